"""The token cache: the changes after which texts are tokenized again, and those after which they are not."""

import inspect
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from conftest import make_model, make_pairs, make_rows
from entity_files import write_entity_files

from config import Config
from finetuning import errors, task, tasks
from finetuning.data import cache, formats, languages, text, tokens, windows, words
from finetuning.data.sources import find_model
from finetuning.data.splits import load_data
from finetuning.errors import UserError
from finetuning.model.base import load_tokenizer
from finetuning.tasks import language_model, masked_lm

MODELS = {"causal-lm": "gpt2", "translation": "marian"}
NAMES = ("text-classification", "token-classification", "causal-lm", "masked-lm", "translation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    make_rows().to_csv(folder / "rows.csv", index=False)
    make_pairs(100).rename(columns={"low": "source", "high": "target"}).to_csv(folder / "pairs.csv", index=False)
    write_entity_files(folder)
    for model_type in ("distilbert", "gpt2", "marian"):
        make_model(folder / model_type, model_type)
    return folder


@pytest.fixture(params=NAMES)
def encode(request, folder):
    """Return a function that maps changed settings to the cache files with the tokens of the training split."""
    file = {"token-classification": "iob2.conll", "translation": "pairs.csv"}.get(request.param, "rows.csv")
    model = str(folder / MODELS.get(request.param, "distilbert"))
    config = Config(task=request.param, model_name=model, dataset_name=str(folder / file), max_length=16)
    data = load_data(tasks.pick(config), config)

    def files(**changes) -> list[str]:
        settings = replace(data.config, **changes)
        tokenizer = load_tokenizer(data.task, find_model(model), settings)
        encoded = tokens.encode(data.task, data.train, tokenizer, settings)
        return [file["filename"] for file in encoded.inputs.cache_files]

    return files


def test_settings_that_do_not_affect_the_tokens_keep_the_cache(encode):
    first = encode()
    assert first and first == encode()
    assert first == encode(num_beams=1, learning_rate=0.5, batch_size=3, run_name="other", eval_steps=0.1, speedups=False)


def test_a_changed_max_length_tokenizes_again(encode):
    assert encode() != encode(max_length=12)


@pytest.mark.parametrize("module", [errors, task, formats, text, tokens, windows, words, languages, language_model, masked_lm])
def test_the_source_of_modules_that_read_and_tokenize_is_in_the_name(module):
    assert inspect.getsource(module) in cache.source_code()


def test_a_file_of_tokens_that_is_cut_is_computed_again(encode, capsys):
    first = encode()
    for file in map(Path, first):
        content = file.read_bytes()
        file.unlink()  # the old one may be mapped
        file.write_bytes(content[:1000])
    assert encode() == first and "in the cache was damaged; it is computed again" in capsys.readouterr().err


def test_texts_are_tokenized_again_after_an_edit(encode, monkeypatch):
    first = encode()
    monkeypatch.setattr(cache, "source_code", lambda: ["an edited module"])
    assert not {*first} & {*encode()}


@pytest.mark.parametrize("damaged", ["cut", "empty"])
def test_a_copy_of_the_rows_that_is_cut_is_not_called_the_users_file(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_rows().to_csv(tmp_path / "rows.csv", index=False)
    config = Config(dataset_name=str(tmp_path / "rows.csv"))
    n_rows = len(load_data(tasks.pick(config), config).train.dataset)
    (copy,) = (tmp_path / "cache").rglob("0-train.arrow")
    copy.write_bytes(copy.read_bytes()[:1000] if damaged == "cut" else b"")
    with pytest.raises(UserError, match=f"its copy in the cache, {copy.parent}, is damaged .*: remove this folder"):
        load_data(tasks.pick(config), config)
    shutil.rmtree(copy.parent)
    assert len(load_data(tasks.pick(config), config).train.dataset) == n_rows
