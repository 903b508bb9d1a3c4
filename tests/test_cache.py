"""The token cache: the changes after which texts are tokenized again, and those after which they are not."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from conftest import make_model, make_pairs, make_rows
from entity_files import write_entity_files

from config import Config
from finetuning import tasks
from finetuning.data import languages, text, tokens, windows
from finetuning.data.cache import source_of
from finetuning.data.sources import find_model
from finetuning.data.splits import load_data
from finetuning.model.base import load_tokenizer
from finetuning.results import cards, label_report, report
from finetuning.task import Task
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

    files.task = data.task
    return files


@pytest.fixture
def edit(monkeypatch):
    """Return a function that replaces a function of a module, as an edit of its file would, in all modules that import it by name."""

    def replace_function(module, name: str, function) -> None:
        original = getattr(module, name)
        function.__module__, function.__qualname__ = module.__name__, name
        for holder in [holder for key, holder in sys.modules.items() if key.startswith("finetuning.")]:
            if vars(holder).get(name) is original:
                monkeypatch.setattr(holder, name, function)

    return replace_function


def test_changes_that_do_not_affect_the_tokens_keep_the_cache(encode, edit, monkeypatch):
    first = encode()
    assert first and first == encode()
    assert first == encode(num_beams=1, learning_rate=0.5, batch_size=3, run_name="other", eval_steps=0.1, speedups=False)

    def edited(*_):
        return "another caption"

    edit(label_report, "calibration_section", edited)
    edit(report, "render", edited)
    monkeypatch.setitem(cards.METHODS, "lora", "another caption")
    for name in ("report", "remark", "as_line", "details", "statistics"):
        monkeypatch.setattr(type(encode.task), name, edited)
    assert first == encode()


def test_a_changed_max_length_tokenizes_again(encode):
    assert encode() != encode(max_length=12)


HELPERS = {  # functions that `tokenize` calls, directly or through others
    "text-classification": [(tokens, "tokenize_texts"), (tokens, "truncate"), (tokens, "special_tokens"), (text, "clean")],
    "token-classification": [(windows, "tokenize"), (windows, "label_sub_words"), (windows, "split"), (tokens, "special_tokens")],
    "causal-lm": [(language_model, "token_ids"), (tokens, "start_token"), (text, "clean")],
    "masked-lm": [(language_model, "token_ids"), (masked_lm, "mask_tokens"), (tokens, "special_tokens"), (text, "clean")],
    "translation": [(tokens, "truncate"), (languages, "set_direction"), (languages, "known_languages"), (text, "filled")],
}


def sources_of(task: Task) -> dict[str, str]:
    return source_of(lambda batch, tokenizer, config: task.tokenize(batch, tokenizer, config))


@pytest.mark.parametrize(("task_name", "module", "name"), [(task, *helper) for task in NAMES for helper in HELPERS[task]])
def test_an_edited_helper_of_tokenize_changes_the_cache_key(task_name, module, name, edit):
    task, original = tasks.pick(Config(task=task_name)), getattr(module, name)
    before = sources_of(task)

    def edited(*arguments, **named):
        return original(*arguments, **named)

    edit(module, name, edited)
    changed = {key for key, source in sources_of(task).items() if source != before.get(key)}
    assert f"{module.__name__}.{name}" in changed


def test_an_edited_constant_or_method_changes_the_cache_key(monkeypatch):
    task = tasks.pick(Config())
    before = sources_of(task)
    monkeypatch.setattr(text, "LINE_BREAK", re.compile("<p>"))
    assert sources_of(task) != before
    monkeypatch.undo()
    assert sources_of(task) == before

    def features(self, tokenizer, config):
        return {}

    monkeypatch.setattr(type(task), "features", features)
    features.__module__ = type(task).__module__
    assert sources_of(task) != before


def test_texts_are_tokenized_again_after_an_edit(folder, edit):
    config = Config(model_name=str(folder / "distilbert"), dataset_name=str(folder / "rows.csv"), max_length=16)
    data = load_data(tasks.pick(config), config)
    tokenizer = load_tokenizer(data.task, find_model(config.model_name), config)
    before = tokens.encode(data.task, data.train, tokenizer, config)

    def truncate(ids, max_length, side, first=1, last=1):
        return ids[:4]

    edit(tokens, "truncate", truncate)
    after = tokens.encode(data.task, data.train, tokenizer, config)
    assert [len(row["input_ids"]) for row in after.inputs] == [4] * len(before)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "flipped") for name in ("0-train.arrow", "contents.json", "cache-*.arrow", "cache-*.json")),
        ("0-train.arrow", "cut"),
        ("cache-*.arrow", "empty"),
    ],
)
def test_a_damaged_file_in_the_cache_is_made_anew(name, damage, call, tiny_flags, tmp_path, monkeypatch):
    """A changed byte would train on another text or other tokens, without a word."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    flags = [*tiny_flags, "--num_train_epochs", 1, "--run_name"]
    assert call("fine_tune.py", *flags, "first").code == 0
    for file in (tmp_path / "cache").rglob(name):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    again = call("fine_tune.py", *flags, "again")
    assert again.code == 0 and "was damaged" in again.err, again.err
    adapters = [(tmp_path / "outputs" / run / "adapter/adapter_model.safetensors").read_bytes() for run in ("first", "again")]
    assert adapters[0] == adapters[1]
    assert "was damaged" not in call("fine_tune.py", *flags, "third").err
