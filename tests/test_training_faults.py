"""Faults during training: numbers that are not finite, damaged checkpoints, two processes on one run, signals."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import change_a_byte, make_model, make_rows
from faults import Bomb
from forked import STEP, Kill, flags_of, outcome

from finetuning.fingerprints import seal
from finetuning.training import search


def several_labels(file: Path, rows: pd.DataFrame) -> list:
    """Write `rows` with two columns of labels, and return the flags to train on them."""
    rows = rows.assign(good=lambda rows: rows.sentiment == "good", bad=lambda rows: rows.sentiment == "bad")
    rows.astype({"good": int, "bad": int}).drop(columns="sentiment").to_csv(file, index=False)
    return ["--dataset_name", file, "--label_column", "good,bad"]


# --- numbers that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["one label", "several labels", "entities"])
def test_training_stops_when_the_weights_become_nan(task, call, tiny_flags, entity_flags, tmp_path):
    """So large a lora_alpha overflows in the first steps."""
    flags = entity_flags if task == "entities" else tiny_flags
    if task == "several labels":
        flags = [*flags, *several_labels(tmp_path / "rows.csv", make_rows())]
    result = call("fine_tune.py", *flags, "--lora_alpha", 10**25, "--precision", "float32", "--eval_steps", 3, "--warmup_steps", 0)
    assert result.code == 2 and "the loss or a weight is NaN or infinite at step" in result.err, result.err
    assert "best so far" not in result.out and len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs/run/training.json").exists()


def test_the_checkpoints_before_a_loss_that_is_not_finite_are_kept(call, tiny_flags, monkeypatch, tmp_path):
    """One training row, which has the largest label, gets an infinite loss."""

    def infinite_for_one(predicted, labels, reduction):
        return torch.nn.functional.mse_loss(predicted, labels, reduction=reduction) * (torch.inf if labels.max() > 3 else 1)

    monkeypatch.setattr("finetuning.tasks.regression.mse_loss", infinite_for_one)
    rows = make_rows().assign(rating=lambda rows: np.arange(len(rows)) % 5).drop(columns="sentiment").astype({"rating": float})
    rows.loc[40, "rating"] = 20
    held_out = make_rows(20).assign(rating=1.0).drop(columns="sentiment")
    rows.to_csv(tmp_path / "train.csv", index=False)
    held_out.to_csv(tmp_path / "test.csv", index=False)
    flags = [*tiny_flags, "--dataset_name", tmp_path, "--problem_type", "regression", "--eval_steps", 1]
    result = call("fine_tune.py", *flags, "--precision", "float32", "--label_column", "rating")
    assert result.code == 2 and ": lower learning_rate (0.01) or lora_alpha" in result.err, result.err
    step = int(result.err.partition("at step ")[2].partition(":")[0])
    checkpoints = {folder.name for folder in (tmp_path / "outputs/run/checkpoints").iterdir()}
    assert step > 1 and f"checkpoint-{step - 1}" in checkpoints and f"checkpoint-{step}" not in checkpoints


def test_a_search_continues_after_a_trial_that_is_not_finite(call, tiny_flags, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "SEARCH_SPACE", {"lora_alpha": [10**25]})
    flags = [*tiny_flags, "--num_train_epochs", 1, "--precision", "float32", "--warmup_steps", 0]
    failed = call("fine_tune.py", *flags, "--search", 1)
    assert failed.code == 2 and "no trial had a finite loss" in failed.err, failed.err
    monkeypatch.setattr(search, "draw", lambda trial, config: {} if trial.suggest_categorical("lora_alpha", [10**25]) else None)
    result = call("fine_tune.py", *flags, "--search", 2)
    assert result.code == 0 and "1 of 2 trials failed" in result.out, result.err


# --- models that learned nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["one label", "several labels", "entities", "numbers"])
def test_a_model_that_learned_nothing_is_called_so(task, call, tiny_flags, entity_flags, tmp_path, pictures):
    """The model knows no word of these texts, so it reads the same tokens in every row."""
    rows = make_rows().assign(review=[f"unknown{i}" for i in range(80)])
    flags, common, file = tiny_flags, "rows gets '", tmp_path / "rows.csv"
    if task == "several labels":
        flags, common = [*flags, *several_labels(file, rows)], "rows gets "
    elif task == "numbers":
        flags, common = [*flags, "--problem_type", "regression"], "rows gets almost the same number"
        rows = rows.replace({"good": 1, "bad": 0})
    elif task == "entities":
        flags, common, file = entity_flags, "rows gets no entity", tmp_path / "rows.conll"
        places = [i * 7 % 12 for i in range(80)]
        file.write_text(
            "\n".join("".join(f"x{i}-{k} {'B-PER' if k == place else 'O'}\n" for k in range(12)) for i, place in enumerate(places))
        )
    if file.suffix == ".csv" and task != "several labels":
        rows.to_csv(file, index=False)
    for script, given in (("fine_tune.py", [*flags, "--dataset_name", file, "--num_train_epochs", 3]), ("evaluate.py", [])):
        result = call(script, *given)
        message = (
            "the model has learned nothing, or no other answer is ever more probable; lower learning_rate (0.01), or train longer"
        )
        assert result.code == 0 and common in result.out and message in result.out, result


# --- damaged checkpoints -------------------------------------------------------------------------------------------------


def flip_byte(file: Path) -> None:
    file.write_bytes(change_a_byte(file.read_bytes()))


@pytest.fixture(scope="module")
def killed(model_dir, data_file, tmp_path_factory) -> Path:
    """Return a folder with a run that was killed after checkpoints at steps 5 and 10. The accuracy stays, so the first is the best."""
    folder = tmp_path_factory.mktemp("killed")
    settings = dict(learning_rate=1e-5, metric_for_best_model="accuracy", num_train_epochs=2)
    for name, kill in (("run", Kill(STEP, 13)), ("uninterrupted", None)):
        forked.run(folder, "fine_tune.py", *flags_of(settings, model_dir, data_file, name), kill=kill)
    assert {file.name for file in (folder / "outputs/run/checkpoints").iterdir()} == {"checkpoint-5", "checkpoint-10"}
    assert (folder / "outputs/run/process.lock").exists(), "the lock of a killed process does not block the run"
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "whole.json"])
def test_a_checkpoint_with_a_changed_byte_is_passed_over(name, killed, call, tmp_path):
    shutil.copytree(killed / "outputs/run", tmp_path / "run")
    flip_byte(tmp_path / "run/checkpoints/checkpoint-10" / name)
    result = call("fine_tune.py", "--resume", tmp_path / "run")
    assert result.code == 0 and "checkpoint-10 is damaged: " in result.err, result.err
    assert "training continues from checkpoint-5" in result.err and "Traceback" not in result.err
    adapters = [run / "adapter/adapter_model.safetensors" for run in (tmp_path / "run", killed / "outputs/uninterrupted")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(name, killed, call, tmp_path):
    shutil.copytree(killed / "outputs/run", tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/checkpoint-10"
    torch.save(Bomb(), checkpoint / name)
    record = json.loads((checkpoint / "whole.json").read_text())
    names = [*record["files"]]
    content = {key: value for key, value in record.items() if key not in ("files", "sha256")}
    (checkpoint / "whole.json").write_text(json.dumps(seal(content, checkpoint, names)))
    result = call("fine_tune.py", "--resume", tmp_path / "run")
    assert result.code == 2 and "has a file with code, which is never run" in result.err, result.err
    assert not [*tmp_path.rglob("canary")]


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_a_run_whose_best_checkpoint_is_lost_is_not_resumed(fault, killed, call, tmp_path):
    shutil.copytree(killed / "outputs/run", tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    best = checkpoints / "checkpoint-5"
    if fault == "gone":
        best.rename(tmp_path / "elsewhere")
    else:
        shutil.copytree(best, tmp_path / "elsewhere")
        flip_byte(best / "adapter_model.safetensors")
    for _ in range(2):
        result = call("fine_tune.py", "--resume", tmp_path / "run")
        message = f"checkpoint-10 needs checkpoint-5, the best one, which is {fault}"
        assert result.code == 2 and message in result.err and not (tmp_path / "run/adapter").exists(), result.err
        assert len(result.err.strip().splitlines()) == 1
    shutil.rmtree(best, ignore_errors=True)
    (tmp_path / "elsewhere").rename(best)
    assert call("fine_tune.py", "--resume", tmp_path / "run").code == 0
    assert not [*(tmp_path / "run").glob("process*")]


def test_a_best_checkpoint_that_is_damaged_during_training_is_not_loaded(killed, call, tmp_path, monkeypatch):
    shutil.copytree(killed / "outputs/run", tmp_path / "run")
    training_step = transformers.Trainer.training_step

    def flip_first(self, *arguments, **named):
        if self.state.global_step == 12:
            flip_byte(tmp_path / "run/checkpoints/checkpoint-5/adapter_model.safetensors")
        return training_step(self, *arguments, **named)

    monkeypatch.setattr(transformers.Trainer, "training_step", flip_first)
    result = call("fine_tune.py", "--resume", tmp_path / "run")
    assert result.code == 2 and "checkpoint-5, the best checkpoint, is damaged: adapter_model.safetensors" in result.err, result.err
    assert not (tmp_path / "run/adapter").exists() and not (tmp_path / "run/training.json").exists()


# --- two processes on one run --------------------------------------------------------------------------------------------


def test_a_run_is_trained_by_one_command_at_a_time(call, model_dir, data_file, tmp_path, monkeypatch):
    run, steps, others, before = tmp_path / "outputs/run", [], [], []

    def resume_in_step_8(*_) -> None:
        steps.append(len(steps))
        if len(steps) == 8:
            before.append((run / "config.json").read_bytes())
            others.extend(forked.run(tmp_path, "fine_tune.py", "--resume", "outputs/run", processes=2))

    forked.watch(STEP, resume_in_step_8, monkeypatch.setattr)
    first = call("fine_tune.py", *flags_of({}, model_dir, data_file, "run"))
    assert [code for code, _ in others] == [2, 2], others
    expected = f"error: outputs/run is being trained by process {os.getpid()} on {socket.gethostname()}"
    assert others[0][1].startswith(expected) and len(others[0][1].strip().splitlines()) == 1
    assert first.code == 0 and (run / "config.json").read_bytes() == before[0] and not [*run.glob("process*")], first.err


# --- signals -------------------------------------------------------------------------------------------------------------

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def uninterrupted(model_dir, data_file, tmp_path_factory) -> dict:
    """Return the outcomes of uninterrupted runs with one and with two processes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for processes in (1, 2):
        flags = flags_of({}, model_dir, data_file, f"run-{processes}")
        results = forked.run(folder, "fine_tune.py", *flags, processes=processes)
        assert {code for code, _ in results} == {0}, results
    return {processes: outcome(folder / f"outputs/run-{processes}") for processes in (1, 2)}


@pytest.mark.parametrize(
    ("kill", "processes", "saved"),
    [
        (Kill(STEP, 12, signal=signal.SIGINT), 1, 12),
        (Kill(STEP, 12, signal=signal.SIGTERM), 1, 12),
        (Kill(STEP, 10, signal=signal.SIGHUP), 1, 10),
        (Kill("finetuning.training.trainer:FineTuner.evaluate", 2, signal=signal.SIGTERM), 1, 11),
        (Kill(STEP, 21, signal=signal.SIGTERM), 1, 21),
        (Kill(STEP, 12, signal=signal.SIGTERM, process=1, times=2), 2, 20),
    ],
    ids=["ctrl-c", "sigterm", "sighup", "in-a-validation", "in-the-last-step", "two-processes"],
)
def test_a_signal_ends_training_after_a_checkpoint_of_its_step(
    kill, processes, saved, uninterrupted, model_dir, data_file, tmp_path
):
    flags = flags_of({}, model_dir, data_file, "run")
    results = forked.run(tmp_path, "fine_tune.py", *flags, processes=processes, kill=kill)
    assert [code for code, _ in results] == [CODES[kill.signal]] * processes, results
    assert "--resume outputs/run continues from the last checkpoint" in results[0][1] and "Traceback" not in str(results)
    assert (tmp_path / f"outputs/run/checkpoints/checkpoint-{saved}/whole.json").is_file()
    results = forked.run(tmp_path, "fine_tune.py", "--resume", processes=processes)
    assert {code for code, _ in results} == {0}, results
    expected, ended = uninterrupted[processes], outcome(tmp_path / "outputs/run")
    assert all(torch.equal(tensor, ended["adapter"][name]) for name, tensor in expected["adapter"].items())
    assert all(ended[name] == expected[name] for name in ("validation", "calibration"))


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_the_validation_that_follows(model_dir, data_file, tmp_path):
    settings = dict(num_train_epochs=1, eval_strategy="epoch")
    for name, kill in (("uninterrupted", None), ("run", Kill(STEP, 7, signal=signal.SIGTERM))):
        ((code, printed),) = forked.run(tmp_path, "fine_tune.py", *flags_of(settings, model_dir, data_file, name), kill=kill)
        assert code == (143 if kill else 0), printed
    ((code, printed),) = forked.run(tmp_path, "fine_tune.py", "--resume")
    assert code == 0, printed
    expected, ended = outcome(tmp_path / "outputs/uninterrupted"), outcome(tmp_path / "outputs/run")
    assert ended["validation"] == expected["validation"] and ended["log"] == expected["log"]


def test_a_second_signal_ends_training_at_once(model_dir, data_file, tmp_path):
    flags = flags_of(dict(batch_size=2, gradient_accumulation_steps=4), model_dir, data_file, "run")
    kill = Kill(STEP, 4 * 11 + 2, signal=signal.SIGTERM, times=2)  # in two of the four passes of step 12
    ((code, printed),) = forked.run(tmp_path, "fine_tune.py", *flags, kill=kill)
    assert code == 143 and "--resume outputs/run continues from the last checkpoint" in printed
    assert "checkpoint-12" not in {folder.name for folder in (tmp_path / "outputs/run/checkpoints").iterdir()}


def test_a_signal_that_the_shell_ignores_stays_ignored(call, tiny_flags, monkeypatch):
    """As with `nohup`."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Kill(STEP, 3, signal=signal.SIGHUP).prepare(monkeypatch.setattr)
    try:
        assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1).code == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


# --- commands that a scheduler starts again ------------------------------------------------------------------------------


def test_the_same_command_starts_continues_and_then_leaves_a_run(model_dir, data_file, uninterrupted, call, tmp_path):
    flags = [*flags_of({}, model_dir, data_file, "run"), "--resume_if_exists"]
    ((code, _),) = forked.run(tmp_path, "fine_tune.py", *flags, kill=Kill(STEP, 12))
    assert code == -9
    unfinished = call("evaluate.py", "outputs/run")
    assert unfinished.code == 2 and "--resume" in unfinished.err
    assert call("evaluate.py").code == 2, "an unfinished run is not the newest finished one"
    other = call("fine_tune.py", *flags, "--learning_rate", 0.001)
    assert other.code == 2 and "learning_rate=0.001: outputs/run was started with 0.003" in other.err
    other = call("fine_tune.py", *flags, "--dataset_name", "elsewhere.csv")
    assert other.code == 2 and "dataset_name=elsewhere.csv: outputs/run was started with" in other.err, "before it is looked for"
    assert call("fine_tune.py", *flags).code == 0
    ended = outcome(tmp_path / "outputs/run")
    assert all(torch.equal(tensor, ended["adapter"][name]) for name, tensor in uninterrupted[1]["adapter"].items())
    before = (tmp_path / "outputs/run/training.json").read_bytes()
    finished = call("fine_tune.py", *flags)
    assert finished.code == 0 and "outputs/run: this run is finished" in finished.out
    assert call("fine_tune.py", "--resume", "outputs/run").code == 2, "nothing is left to train"
    assert (tmp_path / "outputs/run/training.json").read_bytes() == before
    other = call("fine_tune.py", *flags, "--learning_rate", 0.001)
    assert other.code == 2 and "learning_rate=0.001: outputs/run was started with 0.003" in other.err
    position = flags.index("--learning_rate")
    without = call("fine_tune.py", *flags[:position], *flags[position + 2 :])
    assert without.code == 2 and "learning_rate=0.001: outputs/run was started with 0.003" in without.err


def test_a_run_is_not_resumed_with_another_base_model(killed, model_dir, call, tmp_path):
    shutil.copytree(killed / "outputs/run", tmp_path / "run")
    record = json.loads((tmp_path / "run/config.json").read_text())
    record["config"]["model_name"] = str(make_model(tmp_path / "other", seed=1))
    content = {name: value for name, value in record.items() if name not in ("files", "sha256")}
    (tmp_path / "run/config.json").write_text(json.dumps(seal(content)))
    result = call("fine_tune.py", "--resume", tmp_path / "run")
    assert result.code == 2 and "another base model" in result.err, result.err


def test_a_trial_that_a_signal_stopped_is_not_one_of_the_trials_of_a_search(model_dir, data_file, tmp_path):
    pytest.importorskip("optuna")
    flags = [*flags_of(dict(num_train_epochs=0.2), model_dir, data_file, "run"), "--search", 2]
    ((code, _),) = forked.run(tmp_path, "fine_tune.py", *flags, kill=Kill(STEP, 1, signal=signal.SIGTERM))
    assert code == 143
    ((code, printed),) = forked.run(tmp_path, "fine_tune.py", *flags)
    assert code == 0 and "0 trials are finished, 2 are left" in printed and "best of 2 trials" in printed, printed
