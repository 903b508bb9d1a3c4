"""The tokenizer that is saved with a model gives the token ids of the run to programs that read tokenizer.json alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from scipy.special import softmax
from transformers import AutoTokenizer

from finetuning import tasks
from finetuning.data.tokens import encode_batch
from finetuning.results import run_folder

LENGTH = 12  # tokens; the tokenizer's own file says 8
TEXTS = [
    "a fine film",
    "a dull film without a heart and a thin plot " * 4,
    "moving , funny and wise we loved every minute of it 1 2 3",
]


def train(call, flags: list, tmp_path: Path, *more) -> Path:
    trained = call("fine_tune.py", *flags, "--num_train_epochs", 1, "--max_length", LENGTH, "--precision", "float32", *more)
    assert trained.code == 0, trained.err
    return tmp_path / "outputs" / "run"


def check_config(folder: Path, max_length: int | None) -> None:
    """Check truncation and padding, and that no setting of the training machine or of the original file is left."""
    file = json.loads((folder / "tokenizer.json").read_text())
    assert file["padding"] is None
    assert (file["truncation"] and file["truncation"]["max_length"]) == max_length
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "max_length", "stride", "pad_to_multiple_of"} & set(settings)
    if max_length:
        assert settings["model_max_length"] == max_length


@pytest.mark.parametrize("truncation", ["head", "tail"])
def test_the_library_tokenizers_alone_gives_the_ids_of_the_run(truncation, call, tiny_flags, tmp_path):
    folder = train(call, tiny_flags, tmp_path, "--truncation", truncation)
    exported = call("export.py", folder, "--formats", "merged")
    assert exported.code == 0, exported.err
    run = run_folder.open_run(folder, tasks.pick)
    tokenizer = run_folder.load_predictor(run, run_folder.find_base_model(run)).tokenizer
    expected = encode_batch(run.task, {"text": TEXTS}, tokenizer, run.config).inputs["input_ids"]
    assert max(map(len, expected)) == LENGTH
    for saved in (folder / "adapter", folder / "export" / "merged"):
        check_config(saved, LENGTH)
        alone = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
        assert [row.ids for row in alone.encode_batch(TEXTS)] == [*expected]
        assert [alone.encode(text).ids for text in TEXTS] == [*expected]
        assert AutoTokenizer.from_pretrained(saved)(TEXTS, truncation=True)["input_ids"] == [*expected]


def test_a_tokenizer_file_keeps_the_head_for_a_run_with_head_and_tail(call, tiny_flags, tmp_path):
    folder = train(call, tiny_flags, tmp_path, "--truncation", "head+tail")
    check_config(folder / "adapter", LENGTH)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "adapter" / "tokenizer.json"))
    words = TEXTS[2].split()[: LENGTH - 2]
    assert tokenizer.encode(TEXTS[2]).tokens == ["[CLS]", *words, "[SEP]"]


def test_texts_with_entities_are_not_truncated(call, entity_flags, tmp_path):
    folder = train(call, entity_flags, tmp_path)
    check_config(folder / "adapter", None)
    alone = tokenizers.Tokenizer.from_file(str(folder / "adapter" / "tokenizer.json"))
    assert len(alone.encode(TEXTS[1]).ids) == len(TEXTS[1].split()) + 2


def test_onnx_runtime_and_tokenizers_alone_give_the_probabilities_of_predict(call, tiny_flags, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = train(call, tiny_flags, tmp_path, "--truncation", "head")
    exported = call("export.py", folder, "--formats", "merged", "onnx")
    assert exported.code == 0, exported.err
    answers = [json.loads(line) for line in call("predict.py", "--json", *TEXTS).out.splitlines()]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "export" / "merged" / "tokenizer.json"))
    names = json.loads((folder / "export" / "merged" / "config.json").read_text())["id2label"]
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx")
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        probabilities = softmax(logits[0])
        assert names[str(probabilities.argmax())] == answer["label"]
        assert probabilities.max() == pytest.approx(answer["probability"], abs=1e-4)
