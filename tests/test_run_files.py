"""Damaged or hostile files of a run: each ends with one line and exit code 2, never with a traceback or another number."""

import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import forked
import pytest
import torch
import transformers
from conftest import as_flags
from datasets import Dataset
from forked import FLAGS
from safetensors.torch import load_file, save_file

from config import Config
from finetuning import tasks
from finetuning.cli import check, parse_config
from finetuning.data.sources import find_model, find_rows
from finetuning.errors import UserError
from finetuning.fingerprints import seal
from finetuning.results import run_folder
from finetuning.tasks import SingleLabel
from finetuning.training import trainer
from finetuning.use import exporting, predicting

NESTED = b"[" * 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def unfinished(folder, call, tiny_flags, monkeypatch) -> Path:
    """Return a run that was interrupted after checkpoints at steps 5 and 10 of 21."""
    run = folder / "unfinished"
    if not run.exists():
        training_step = transformers.Trainer.training_step

        def interrupted(self, *arguments, **named):
            if self.state.global_step == 12:
                raise InterruptedError
            return training_step(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(transformers.Trainer, "training_step", interrupted)
            with pytest.raises(InterruptedError):
                call("fine_tune.py", *tiny_flags, *as_flags(FLAGS | dict(output_dir=folder, run_name="unfinished")))
        assert len([*run.glob("checkpoints/*/whole.json")]) == 2
    return run


@pytest.fixture
def restored(tmp_path):
    """Return a function that copies a run into this test's own folder `run`."""

    def restore(run: Path) -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return shutil.copytree(run, tmp_path / "run")

    return restore


def edit(file: Path, change) -> None:
    """Apply `change` to the content of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def put(name: str, value):
    """Return a change of config.json that sets a setting."""
    return lambda record: record["config"].update({name: value})


def sealed(run: Path, change=lambda record: None) -> None:
    """Apply `change` to config.json, and write the fingerprints of the run's files anew."""
    for name, change_content in (("config.json", change), ("training.json", lambda training: None)):
        content = json.loads((run / name).read_text(encoding="utf-8"))
        files, _ = content.pop("files"), content.pop("sha256")
        change_content(content)
        (run / name).write_text(json.dumps(seal(content, run, files)), encoding="utf-8")


def refused(result, *words: str) -> None:
    """Assert that a script ended with one line and did nothing."""
    lines = result.err.splitlines()
    assert result.code == 2 and len(lines) == 1 and len(lines[0]) < 1000, result
    assert all(word in lines[0] for word in words), lines


# --- config.json and training.json ---------------------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "number": b"1",
    "list": b"[]",
    "nested": NESTED,
    "not UTF-8": b'{"config": "\xff"}',
    "pickle": pickle.dumps({}),
}


def test_a_run_in_bf16_is_used_on_a_machine_without_bf16(finished_run, call, monkeypatch):
    run = finished_run
    sealed(run, put("precision", "bf16"))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {})
    result = call("predict.py", "--run", run, "a fine film")
    assert result.code == 0 and "trained in bf16, which this machine lacks" in result.err, result.err


@pytest.mark.parametrize("state", ["finished_run", "unfinished"])
def test_a_damaged_config_is_one_line(state, request, restored, call):
    run = restored(request.getfixturevalue(state))
    command = ("predict.py", "--run", run, "a fine film") if state == "finished_run" else ("fine_tune.py", "--resume", run)
    original = (run / "config.json").read_bytes()
    for content in (*DAMAGED.values(), original[:500]):
        (run / "config.json").write_bytes(content)
        refused(call(*command), "config.json")
    assert (run / "training.json").exists() == (state == "finished_run")


def test_a_run_whose_settings_have_changed_is_not_continued(unfinished, restored, call):
    run = restored(unfinished)
    edit(run / "config.json", put("split_seed", 1))
    refused(call("fine_tune.py", "--resume", run), "config.json has changed since it was written", "train again")


def test_a_damaged_training_record_is_one_line(finished_run, call):
    run = finished_run
    original = (run / "training.json").read_bytes()
    for content in (*DAMAGED.values(), original[:500]):
        (run / "training.json").write_bytes(content)
        refused(call("evaluate.py", run), "training.json")


# --- the adapter ---------------------------------------------------------------------------------------------------------


def test_a_damaged_adapter_config_is_one_line(finished_run, call):
    run = finished_run
    file = run / "adapter" / "adapter_config.json"
    original = file.read_bytes()
    for content in (*DAMAGED.values(), original[:500], original.replace(b'"r": 16', b'"r": 8')):
        file.write_bytes(content)
        sealed(run)
        refused(call("predict.py", "--run", run, "a fine film"), "peft can't load it")


@pytest.mark.parametrize("fault", ["missing", "new", "size", "NaN", "infinite"])
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(fault, finished_run, call):
    run = finished_run
    file = run / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "lora_A" in name)
    if fault == "missing":
        del weights[name]
    elif fault in ("new", "size"):
        weights[f"{name}.more" if fault == "new" else name] = torch.zeros(2, 2)
    else:
        weights[name][0] = float("nan" if fault == "NaN" else "inf")
    save_file(weights, file, {"format": "pt"})
    sealed(run)
    for command in (("predict.py", "--run", run, "a film"), ("evaluate.py", run), ("export.py", run, "--formats", "merged")):
        messages = {"missing": "does not fit", "new": "does not fit", "size": "peft can't load it"}
        refused(call(*command), messages.get(fault, "NaN or infinite"))
    assert not (run / "metrics.json").exists() and not (run / "export").exists()


def test_a_run_with_weights_that_are_not_finite_is_not_finished(call, tiny_flags, tmp_path, monkeypatch):
    train = trainer.train

    def spoil(fine_tuner, *arguments) -> float:
        seconds = train(fine_tuner, *arguments)
        with torch.no_grad():
            next(p for name, p in fine_tuner.model.named_parameters() if "lora_A" in name)[0] = float("nan")
        return seconds

    monkeypatch.setattr(trainer, "train", spoil)
    result = call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1)
    assert result.code == 2 and "NaN or infinite" in result.err and "lora_A" in result.err, result.err
    assert not (tmp_path / "outputs/run/training.json").exists() and not (tmp_path / "outputs/run/adapter").exists()


@pytest.mark.parametrize("name", ["merged", "int8"])
def test_an_export_with_nan_in_one_row_does_not_agree(name, finished_run, call, monkeypatch):
    run = finished_run
    add = exporting._Comparison.add

    def spoil(module, inputs, outputs) -> None:
        outputs["logits"][-1] = float("nan")

    def add_spoiled(self, export: str, model: torch.nn.Module, file: Path) -> None:
        if export == name:
            model.register_forward_hook(spoil)
        add(self, export, model, file)

    monkeypatch.setattr(exporting._Comparison, "add", add_spoiled)
    if name == "int8":
        pytest.importorskip("onnxruntime.quantization")
        monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", lambda path, out, **_: shutil.copy(path, out))
        monkeypatch.setattr(exporting, "write_onnx", lambda model, names, path: path.write_bytes(b"onnx"))
        monkeypatch.setattr(exporting, "OnnxModel", lambda path: exporting.load(SingleLabel(), path.parent / "merged"))
        monkeypatch.setattr(SingleLabel, "int8_tolerance", 1.0)
    result = call("export.py", run, "--formats", name)
    assert result.code == f"{name}: not written, because it does not agree with the run's model (see export.json)", result


# --- two processes at once -----------------------------------------------------------------------------------------------


def test_two_exports_at_once_do_not_harm_each_other(finished_run, call, monkeypatch, tmp_path):
    run, load_data, others = finished_run, exporting.load_data, []

    def export_again(*arguments):
        others.extend(forked.run(tmp_path, "export.py", run, "--formats", "merged"))
        return load_data(*arguments)

    monkeypatch.setattr(exporting, "load_data", export_again)
    result = call("export.py", run, "--formats", "merged")
    ((code, output),) = others
    message = f"error: {run} is being exported by process {os.getpid()} on {socket.gethostname()}: wait until it has ended"
    assert code == 2 and message in output and "Traceback" not in output, output
    assert result.code == 0 and (run / "export/merged/model.safetensors").is_file() and not [*run.glob("*.partial")], result.err
    assert not [*run.glob("process.*")]


def test_two_predictions_into_one_file_do_not_harm_each_other(finished_run, data_file, call, monkeypatch, tmp_path):
    load_engine, others, out = predicting.load_engine, [], tmp_path / "out.csv"

    def predict_again(*arguments):
        others.extend(forked.run(tmp_path, "predict.py", "--run", finished_run, "--file", data_file, "--out", out))
        return load_engine(*arguments)

    monkeypatch.setattr(predicting, "load_engine", predict_again)
    result = call("predict.py", "--run", finished_run, "--file", data_file, "--out", out)
    ((code, output),) = others
    assert code == 2 and f"error: --out {out}: another predict.py is writing this file" in output, output
    assert "Traceback" not in output and result.code == 0, result.err
    assert len(out.read_text(encoding="utf-8").splitlines()) == 81 and [*tmp_path.glob(".out*")] == []


def test_without_a_name_the_run_that_finished_or_started_last_is_taken(tmp_path):
    for name, minute, files in (("a", 2, ["config.json", "training.json"]), ("b", 3, ["config.json", "training.json"])) + (
        ("c", 4, ["config.json"]),
        ("d", 1, ["config.json"]),
    ):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (60 * minute, 60 * minute))
    os.utime(tmp_path / "a" / "config.json", (600, 600))
    assert run_folder.newest_run(tmp_path) == tmp_path / "b"
    assert run_folder.newest_unfinished(tmp_path) == tmp_path / "c"
    for find, message in ((run_folder.newest_run, "no finished run"), (run_folder.newest_unfinished, "no unfinished run")):
        with pytest.raises(UserError, match=message):
            find(tmp_path / "empty")


def test_a_finished_run_opens_after_the_defaults_were_edited(monkeypatch):
    for name, value in dict(lora_dropout=0.1, length_warmup=0.5, max_new_tokens=64).items():
        monkeypatch.setattr(Config, name, value)
    stored = dict(lora_dropout=0.0, length_warmup=0.67, max_new_tokens=128)
    check(Config(method="full", **stored))
    pairs = Config(text_pair_column="other", **stored)
    tasks.pick(pairs)
    with pytest.raises(UserError, match="length_warmup=0.67 is not for pairs of texts"):
        tasks.pick(pairs, given=["length_warmup"])
    texts, rows = Config(task="causal-lm", text_column="text", **stored), Dataset.from_dict({"text": []})
    tasks.pick(texts).settle(rows, texts)
    with pytest.raises(UserError, match="max_new_tokens is for prompts and answers"):
        tasks.pick(texts).settle(rows, texts, given=["max_new_tokens"])


def test_settings_of_lora_that_would_change_another_method_are_refused():
    for setting in (dict(train_embeddings=True), dict(loraplus_lr_ratio=8.0), dict(quantization="4bit")):
        with pytest.raises(UserError, match="is for LoRA, and method is full"):
            check(Config(method="full", **setting))
    parse_config(["--method", "full", "--quantization", "none", "--lora_dropout", "0"], "")
    with pytest.raises(UserError, match="lora_dropout=0.2 is for LoRA"):
        parse_config(["--method", "full", "--lora_dropout", "0.2"], "")


def test_what_a_run_read_from_a_path_is_sought_only_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for find, setting, name in (
        (find_model, "model_name", "distilbert-base-uncased"),
        (find_rows, "dataset_name", "stanfordnlp/imdb"),
    ):
        with pytest.raises(UserError, match=f"{setting}={name}, as the run was started with, is not there in {tmp_path}"):
            find(name, "local path")


def test_a_run_opened_from_its_own_folder_has_a_name(call, tiny_flags, tmp_path, monkeypatch):
    assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 0.1).code == 0
    monkeypatch.chdir(tmp_path / "outputs" / "run")
    assert run_folder.open_run(Path("."), tasks.pick).folder.name == "run"
