"""Faults during training: numbers that are not finite, damaged checkpoints, two processes on one run, signals."""

import numpy as np
import pytest
from conftest import make_rows

from finetuning.training import search

# --- numbers that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["one label", "several labels", "entities"])
def test_training_stops_when_the_weights_become_nan(task, call, tiny_flags, entity_flags, tmp_path):
    """So large a lora_alpha overflows in the first steps."""
    flags = entity_flags if task == "entities" else tiny_flags
    if task == "several labels":
        rows = make_rows().assign(good=lambda rows: rows.sentiment == "good", bad=lambda rows: rows.sentiment == "bad")
        rows.astype({"good": int, "bad": int}).drop(columns="sentiment").to_csv(tmp_path / "rows.csv", index=False)
        flags = [*flags, "--dataset_name", tmp_path / "rows.csv", "--label_column", "good,bad"]
    result = call("fine_tune.py", *flags, "--lora_alpha", 10**25, "--precision", "float32", "--eval_steps", 3, "--warmup_steps", 0)
    assert result.code == 2 and "the loss or a weight is NaN or infinite at step" in result.err, result.err
    assert "best so far" not in result.out and len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs/run/training.json").exists()


def test_the_checkpoints_before_a_loss_that_is_not_finite_are_kept(call, tiny_flags, tmp_path):
    """The label of one training row is so large that its squared error is infinite in float32."""
    rows = make_rows().assign(rating=lambda rows: np.arange(len(rows)) % 5).drop(columns="sentiment").astype({"rating": float})
    rows.loc[40, "rating"] = 1e30
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
    monkeypatch.setattr(search, "draw", lambda trial, config: config if trial.suggest_categorical("lora_alpha", [10**25]) else None)
    result = call("fine_tune.py", *flags, "--search", 2)
    assert result.code == 0 and "1 of 2 trials failed" in result.out, result.err
