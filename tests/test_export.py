"""Exported models predict what the run's model predicts; exports that do not are not written."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from conftest import make_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetuning import errors
from finetuning.model import base
from finetuning.use import exporting

pytestmark = pytest.mark.predictions
TEXTS = ["a fine film", "a dull film without a heart and a thin plot", "moving"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder for the run of this module."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def run(trained, call, tiny_flags, tmp_path):
    """Return a copy of a run folder whose test split has 200 rows; the first test trains the run."""
    if not (trained / "run" / "training.json").is_file():
        make_rows(1000).to_csv(trained / "rows.csv", index=False)
        flags = ["--dataset_name", trained / "rows.csv", "--train_samples", 56, "--precision", "float32"]
        assert call("fine_tune.py", *tiny_flags, *flags, "--output_dir", trained).code == 0
    return shutil.copytree(trained / "run", tmp_path / "outputs" / "run")


def read_exports(run) -> dict[str, dict]:
    return {export["format"]: export for export in json.loads((run / "export" / "export.json").read_text())["exports"]}


def test_the_merged_model_loads_with_plain_transformers_and_agrees(run, call):
    exported = call("export.py", run, "--formats", "merged")
    assert exported.code == 0, exported.err
    assert {file.name for file in (run / "export").iterdir()} == {"merged", "export.json"}
    model = AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        labels = [model.config.id2label[int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())] for text in TEXTS]
    lines = call("predict.py", "--run", run, "--json", *TEXTS).out.splitlines()
    assert labels == [json.loads(line)["label"] for line in lines]
    exports = read_exports(run)
    assert [*exports] == ["run", "merged"]
    assert exports["merged"]["largest_difference"] < 1e-4
    assert exports["merged"]["accuracy"] == exports["run"]["accuracy"] > 0.9
    again = call("export.py", run, "--formats", "merged")
    assert again.code == 2 and "exists already" in again.err


class Branching(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        return attention_mask if input_ids.sum() > 9 else -attention_mask


def test_a_model_that_can_not_be_converted_to_onnx_is_named(tmp_path):
    with pytest.raises(errors.UserError, match="can't convert Branching to ONNX; give --formats merged"):
        exporting.write_onnx(Branching(), ["input_ids", "attention_mask"], tmp_path / "model.onnx")
    assert logging.root.manager.disable == logging.NOTSET, "later warnings of this process are shown"


def test_a_missing_library_is_named_before_anything_is_written(run, call, monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    result = call("export.py", run)
    assert result.code == 2 and "onnxruntime" in result.err and "requirements-extras.txt" in result.err
    assert not list(run.glob("export*"))


def test_onnx_models_accept_any_batch_size_and_length(run, call):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = call("export.py", run)
    assert exported.code == 0, exported.err
    exports = read_exports(run)
    assert [*exports] == ["run", "merged", "onnx", "int8"]
    assert exports["onnx"]["largest_difference"] < 1e-3 and exports["int8"]["mib"] < exports["onnx"]["mib"]
    plain = AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged").eval()
    for name, tolerance in (("model.onnx", 1e-3), ("model.int8.onnx", 0.5)):
        session = onnxruntime.InferenceSession(run / "export" / name)
        for batch, tokens in ((1, 4), (5, 32), (3, 17)):
            ids = np.random.default_rng(0).integers(5, 60, size=(batch, tokens))
            (logits,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            with torch.no_grad():
                expected = plain(input_ids=torch.tensor(ids), attention_mask=torch.ones(batch, tokens, dtype=torch.long)).logits
            np.testing.assert_allclose(logits, expected.numpy(), atol=tolerance)


# --- formats that do not agree -------------------------------------------------------------------------------------------


def test_a_merged_model_that_disagrees_is_not_written(run, call, monkeypatch):
    def load_damaged(*arguments, **named):
        model = base.load(*arguments, **named)
        model.classifier.bias.data[0] += 0.1
        return model

    monkeypatch.setattr(exporting, "load", load_damaged)
    result = call("export.py", run, "--formats", "merged")
    assert str(result.code).startswith("merged: not written, because it does not agree"), "exit code 1, with this message"
    assert "NOT written" in result.out and read_exports(run)["merged"]["agrees"] is False
    assert [file.name for file in (run / "export").iterdir()] == ["export.json"]


def test_a_format_that_disagrees_is_not_written_and_the_others_are(run, call, monkeypatch):
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")

    def quantize_badly(path, out, **_):
        """Write a model whose logits have the opposite sign."""
        model = onnx.load(path)
        for node in model.graph.node:
            node.output[:] = [name.replace("logits", "inner") for name in node.output]
            node.input[:] = [name.replace("logits", "inner") for name in node.input]
        model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], ["logits"]))
        onnx.save(model, out)

    monkeypatch.setattr(quantization, "quantize_dynamic", quantize_badly)
    result = call("export.py", run)
    assert str(result.code).startswith("int8: not written, because it does not agree"), "exit code 1, with this message"
    assert {file.name for file in (run / "export").iterdir()} == {"merged", "model.onnx", "export.json"}
    exports = read_exports(run)
    assert {name: export.get("agrees") for name, export in exports.items()} == dict(run=None, merged=True, onnx=True, int8=False)
    assert exports["int8"]["accuracy"] < 0.1
    assert "int8" in (run / "export" / "merged" / "README.md").read_text(), (
        "the card gives the accuracy of all formats that were tried"
    )


@pytest.mark.parametrize(("wrong", "agrees"), [(1, True), (2, True), (10, False)])
def test_an_8_bit_model_is_written_if_its_loss_of_accuracy_may_be_chance(wrong, agrees, run, call, monkeypatch):
    """One wrong label of 200 costs 0.5 %, which may be chance; ten cost 5 %, which is not chance."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    monkeypatch.setattr(quantization, "quantize_dynamic", lambda path, out, **_: shutil.copy(path, out))
    monkeypatch.setattr(exporting, "write_onnx", lambda model, names, path: path.write_bytes(b"onnx"))
    rows_left = [wrong]

    class Damaged(torch.nn.Module):
        """A replacement for the 8-bit model: the merged model with wrong labels for `wrong` rows."""

        def __init__(self, path):
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(path.parent / "merged")

        def forward(self, **batch):
            logits = self.model(**batch).logits
            n = min(rows_left[0], len(logits))
            rows_left[0] -= n
            return {"logits": torch.cat([logits[:n].flip(dims=[1]), logits[n:]])}

    monkeypatch.setattr(exporting, "OnnxModel", Damaged)
    result = call("export.py", run, "--formats", "int8")
    export = read_exports(run)["int8"]
    assert export["equal_labels"] == 1 - wrong / 200 and rows_left == [0]
    assert export["agrees"] is agrees and (run / "export" / "model.int8.onnx").is_file() is agrees
    assert (result.code == 0) is agrees
