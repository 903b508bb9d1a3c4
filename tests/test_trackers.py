"""Settings, losses and test figures of a run arrive in one tracker run, each read back by the tracker's own means."""

import json
import os

import pytest


def tensorboard(folder) -> tuple[dict, dict, set]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "outputs" / "run" / "logs"))
    events.Reload()
    tags = events.Tags()
    (text,) = events.Tensors("config/text_summary")
    settings = json.loads(text.tensor_proto.string_val[0].decode().strip("`\n"))
    figures = {name: events.Scalars(name)[-1].value for name in tags["scalars"]}
    return settings, figures, set(tags["images"])


def mlflow(folder) -> tuple[dict, dict, set]:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "run"
    settings = {name.removeprefix("config/"): value for name, value in run.data.params.items() if name.startswith("config/")}
    pictures = {file.path.removesuffix(".png") for file in client.list_artifacts(run.info.run_id, "test")}
    return settings, run.data.metrics, pictures


def trackio(folder) -> tuple[dict, dict, set]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("huggingface")
    assert run.name == "run"
    settings = {name.removeprefix("config/"): value for name, value in run.config.items() if name.startswith("config/")}
    found = {name: value for log in SQLiteStorage.get_logs("huggingface", "run") for name, value in log.items()}
    return settings, found, {name for name, value in found.items() if isinstance(value, dict)}


@pytest.mark.parametrize("tracker", [tensorboard, mlflow, trackio], ids=lambda tracker: tracker.__name__)
def test_all_of_a_run_arrives_in_one_tracker_run(tracker, call, tiny_flags, tmp_path, monkeypatch):
    pytest.importorskip(tracker.__name__)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    trained = call("fine_tune.py", *tiny_flags, "--num_train_epochs", "2", "--report_to", tracker.__name__)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    metrics = json.loads((tmp_path / "outputs" / "run" / "metrics.json").read_text())
    settings, figures, pictures = tracker(tmp_path)
    assert float(settings["learning_rate"]) == 0.01 and str(settings["target_modules"]) == "all-linear"
    assert any("eval" in name and "loss" in name for name in figures) and any(name in figures for name in ("train/loss", "loss"))
    assert figures["test/accuracy"] == pytest.approx(metrics["accuracy"]) and figures["test/f1"] == pytest.approx(metrics["f1"])
    assert any("confusion_matrix" in name for name in pictures)
