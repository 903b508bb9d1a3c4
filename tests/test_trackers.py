"""A single run of the tracker has the settings, losses and test metrics; the tracker's own library reads them back."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from config import Config
from finetuning.training import trackers


def tensorboard(folder) -> tuple[dict, dict]:
    """Return the settings and the numbers that were logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "outputs" / "run" / "logs"))
    events.Reload()
    tags = events.Tags()
    (text,) = events.Tensors("args/text_summary")
    logged = json.loads(text.tensor_proto.string_val[0].decode())
    settings = {name.removeprefix("config/"): value for name, value in logged.items() if name.startswith("config/")}
    numbers = {name: events.Scalars(name)[-1].value for name in tags["scalars"]}
    return settings, numbers


def trackio(folder) -> tuple[dict, dict]:
    """Return the settings and the numbers that were logged."""
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("huggingface")
    assert run.name.startswith("run-"), "a later run of the same name is another one"
    settings = {name.removeprefix("config/"): value for name, value in run.config.items() if name.startswith("config/")}
    logged = {name: value for log in SQLiteStorage.get_logs("huggingface", run.name) for name, value in log.items()}
    return settings, logged


@pytest.mark.parametrize("tracker", [tensorboard, trackio], ids=lambda tracker: tracker.__name__)
def test_settings_losses_and_test_metrics_arrive_in_a_single_tracker_run(tracker, call, tiny_flags, tmp_path, monkeypatch):
    pytest.importorskip(tracker.__name__)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "an earlier run in this process"))
    trained = call("fine_tune.py", *tiny_flags, "--num_train_epochs", "2", "--report_to", tracker.__name__)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    assert os.environ["WANDB_LOG_MODEL"] == "checkpoint", "as the user has set it"
    metrics = json.loads((tmp_path / "outputs" / "run" / "metrics.json").read_text())
    settings, numbers = tracker(tmp_path)
    assert float(settings["learning_rate"]) == 0.01 and str(settings["target_modules"]) == "all-linear"
    assert any("eval" in name and "loss" in name for name in numbers) and any(name in numbers for name in ("train/loss", "loss"))
    assert numbers["test/accuracy"] == pytest.approx(metrics["accuracy"]) and numbers["test/f1"] == pytest.approx(metrics["f1"])


def test_a_second_training_in_a_process_ends_the_run_of_the_first(tmp_path, monkeypatch):
    """label_errors.py trains once for each fold, and wandb's callback starts a run only if there is none."""
    ended = []
    wandb = SimpleNamespace(run=SimpleNamespace(id="fold-1"), finish=lambda: ended.append(wandb.run.id))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
    trackers.prepare(tmp_path / "second", Config(report_to="wandb"))
    wandb.run.id = trackers.run_name(tmp_path / "second")
    trackers.prepare(tmp_path / "second", Config(report_to="wandb"))
    assert ended == ["fold-1"]
