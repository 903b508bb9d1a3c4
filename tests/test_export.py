"""Exports hold what the run's model says; those that do not are not written."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetuning.model import lora as model
from finetuning.use import exporting

TEXTS = ["a fine film", "a dull film without a heart and a thin plot", "moving"]


@pytest.fixture
def run(call, tiny_flags, tmp_path):
    assert call("fine_tune.py", *tiny_flags, "--precision", "float32").code == 0
    return tmp_path / "outputs" / "run"


def probabilities(call, folder, texts):
    lines = call("predict.py", "--run", folder, "--json", *texts).out.splitlines()
    return [json.loads(line)["label"] for line in lines]


def test_the_merged_model_loads_with_plain_transformers_and_agrees(run, call):
    exported = call("export.py", run, "--formats", "merged")
    assert exported.code == 0, exported.err
    assert {file.name for file in (run / "export").iterdir()} == {"merged", "export.json"}
    model = AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        labels = [model.config.id2label[int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())] for text in TEXTS]
    assert labels == probabilities(call, run, TEXTS)
    found = json.loads((run / "export" / "export.json").read_text())["exports"]
    assert [one["format"] for one in found] == ["run", "merged"]
    assert found[1]["largest_difference"] < 1e-4 and found[1]["accuracy"] == found[0]["accuracy"] > 0.9
    again = call("export.py", run, "--formats", "merged")
    assert again.code == 2 and "is there already" in again.err


def test_an_export_that_disagrees_is_not_written(run, call, monkeypatch):
    def spoilt(*arguments, **named):
        loaded = model.load(*arguments, **named)
        loaded.classifier.bias.data[0] += 0.1
        return loaded

    monkeypatch.setattr(exporting, "load", spoilt)
    result = call("export.py", run, "--formats", "merged")
    assert result.code == 2 and "does not agree" in result.err
    assert not list(run.glob("export*"))


def test_a_missing_library_is_named_before_anything_is_done(run, call, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    result = call("export.py", run)
    assert result.code == 2 and "onnxruntime" in result.err and "requirements-extras.txt" in result.err
    assert not list(run.glob("export*"))


def test_onnx_and_its_8_bit_form_take_any_batch_and_length(run, call):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = call("export.py", run)
    assert exported.code == 0, exported.err
    found = {one["format"]: one for one in json.loads((run / "export" / "export.json").read_text())["exports"]}
    assert set(found) == {"run", "merged", "onnx", "int8"}
    assert found["onnx"]["largest_difference"] < 1e-3 and found["int8"]["mib"] < found["onnx"]["mib"]
    plain = AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged").eval()
    for name, tolerance in (("model.onnx", 1e-3), ("model.int8.onnx", 0.5)):
        session = onnxruntime.InferenceSession(run / "export" / name)
        for batch, tokens in ((1, 4), (5, 32), (3, 17)):
            ids = np.random.default_rng(0).integers(5, 60, size=(batch, tokens))
            (logits,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            with torch.no_grad():
                expected = plain(input_ids=torch.tensor(ids), attention_mask=torch.ones(batch, tokens, dtype=torch.long)).logits
            np.testing.assert_allclose(logits, expected.numpy(), atol=tolerance)
