"""The scripts from end to end with a tiny model."""

import contextlib
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_model, make_pairs, make_rows
from safetensors.torch import load_file

from config import Config
from finetuning import console, disk, tasks
from finetuning.data import splits
from finetuning.data.splits import load_data
from finetuning.data.tokens import encode
from finetuning.errors import UserError
from finetuning.results import run_folder
from finetuning.training import progress, search, trainer
from finetuning.training.trainer import FineTuner


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Return where the run of this module is kept."""
    return tmp_path_factory.mktemp("scripts") / "run"


@pytest.fixture
def run(first_run, call, tiny_flags, tmp_path, pictures):
    """Return the folder of a finished and evaluated run; the first test that needs it trains it, the others get a copy."""
    folder = tmp_path / "outputs" / "run"
    if first_run.exists():
        return shutil.copytree(first_run, folder)
    trained = call("fine_tune.py", *tiny_flags)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    assert "learned nothing" not in trained.out + evaluated.out
    shutil.copytree(folder, first_run)
    return folder


def test_a_run_folder_holds_all_that_is_needed_to_judge_repeat_and_use_it(run):
    assert {file.name for file in run.iterdir()} == {
        "config.json", "training.json", "adapter", "metrics.json", "predictions.parquet", "statistics.parquet", "errors.csv",
        "report.html", *[f"{name}.png" for name in ("confusion_matrix", "training", "roc", "precision_recall", "reliability", "by_length")],
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9, "the texts of the two classes differ in most words"
    low, high = metrics["accuracy_ci95"]
    assert low < metrics["accuracy"] <= high <= 1
    assert (metrics["split"], metrics["stand_in"], metrics["n"], metrics["model"]) == (
        "held out from train",
        False,
        16,
        "tiny-distilbert",
    )
    assert metrics["label_names"] == ["bad", "good"] and np.sum(metrics["confusion_matrix"]) == 16
    assert metrics["trainable_parameters"] < metrics["total_parameters"]
    record = metrics["run"]
    assert record["config"]["learning_rate"] == 0.01 and record["environment"]["versions"]["peft"]
    assert record["dataset"]["rows"] == {"train": 56, "validation": 8, "test": 16}
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == record["config"]["model_name"], "a local base model is found again"


def test_predictions_line_up_with_the_rows_of_the_test_split(run, data_file, call):
    predictions = pd.read_parquet(run / "predictions.parquet")
    texts = pd.read_csv(data_file).loc[predictions.row]
    assert (texts.sentiment.to_numpy() == predictions.label.to_numpy()).all()
    for text, row in zip(texts.review[:5], predictions[:5].itertuples(), strict=True):
        (line,) = call("predict.py", "--json", text).out.splitlines()  # a single text has no order and no padding
        alone = json.loads(line)
        assert alone["label"] == row.prediction
        assert alone["probability"] == pytest.approx(row.probability, abs=0.02)
    assert not predictions.tokens.is_monotonic_increasing, "the rows are in their own order, not by length"


@pytest.mark.parametrize(
    "flags",
    [["--eval_steps", 2, "--save_steps", 14], ["--eval_steps", 7, "--init_lora_weights", "pissa", "--padding", "max_length"]],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_the_saved_adapter_has_the_recorded_metrics_of_the_best_validation(flags, call, tiny_flags, tmp_path):
    """The learning rate is so high that the best validation is neither the last one nor one at which a checkpoint was due."""
    more = ["--learning_rate", 0.03, "--metric_for_best_model", "loss", "--precision", "float32"]
    trained = call("fine_tune.py", *tiny_flags, *more, *flags)
    assert trained.code == 0, trained.err
    run = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    recorded = run.training["validation"]
    assert recorded["step"] < 84
    rows = load_data(run.task, run.config, "local path").validation
    predictor = run_folder.load_predictor(run, run_folder.find_base_model(run))
    predictions = run.task.predict(predictor, encode(run.task, rows, predictor.tokenizer, run.config))
    statistics = run.task.statistics(predictions, rows, {})
    measured = {metric.name: metric.of(statistics) for metric in run.task.metrics}
    assert measured["loss"] == pytest.approx(recorded["loss"], rel=1e-4) and measured["accuracy"] == recorded["accuracy"]


def test_both_layers_of_the_head_are_saved_with_the_adapter(run):
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    heads = {name.split(".")[-2] for name in saved if "lora" not in name}
    assert heads == {"pre_classifier", "classifier"}
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())


def test_a_new_process_predicts_what_the_model_did_before_it_was_saved(call, tiny_flags, data_file, tmp_path, monkeypatch):
    texts = pd.read_csv(data_file).review[:10].tolist()
    before, finish = [], run_folder.finish_run

    def predict_then_finish(folder, predictor, base_name, training):
        predictor.label_names = json.loads((folder / "config.json").read_text())["dataset"]["label_names"]
        predictor.calibration = training["calibration"]
        before.extend(predictor.task.answers(predictor, {"text": texts})["probability"])
        finish(folder, predictor, base_name, training)

    monkeypatch.setattr(run_folder, "finish_run", predict_then_finish)
    assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 3).code == 0
    ((code, out),) = forked.run(tmp_path, "predict.py", "--json", *texts)
    assert code == 0, out
    after = [json.loads(line)["probability"] for line in out.splitlines() if line.startswith("{")]
    assert after == pytest.approx(before, abs=2e-6) and len(set(after)) > 5


def test_predict_reads_arguments_files_and_stdin(run, call, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("a great film\na poor film\n")
    from_file = call("predict.py", "--file", "in.txt").out
    assert from_file == call("predict.py", "a great film", "a poor film").out and len(from_file.splitlines()) == 2
    with open(tmp_path / "in.txt", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert call("predict.py").out == from_file
    broken, line_break = call("predict.py", "a poor \udcc3\udca9 \udced\udca0\udcbd \ud83d film", "a\nfilm\u2028b").out.splitlines()
    assert "a poor é \ufffd\ufffd\ufffd \ufffd film" in broken, "bytes of an argument are UTF-8 in any locale"
    assert "a film b" in line_break


def test_a_name_is_reserved_for_one_run(tmp_path, monkeypatch):
    model = SimpleNamespace(name="tiny")
    config = Config(output_dir=str(tmp_path / "outputs"), dataset_name="rows.csv")
    monkeypatch.setattr(
        run_folder.datetime, "datetime", SimpleNamespace(now=lambda: datetime(2024, 1, 31))
    )  # all start in the same second
    folders = [run_folder.choose_folder(config, model).name for _ in range(3)]
    assert folders == [f"tiny-rows-20240131-000000{ending}" for ending in ("", "-2", "-3")]
    named = replace(config, run_name="named")
    folder = run_folder.choose_folder(named, model)
    with pytest.raises(UserError, match="run_name=named: another run with this name is starting; use another name"):
        run_folder.choose_folder(named, model)
    disk.remove_reserved()
    assert list(folder.parent.iterdir()) == [] and run_folder.choose_folder(named, model) == folder
    disk.remove_reserved()
    folder.mkdir()
    with pytest.raises(UserError, match="never overwritten"):
        run_folder.choose_folder(named, model)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [UserError("no rows"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_run_that_does_not_start_leaves_no_name_behind(error, call, tiny_flags, tmp_path, monkeypatch):
    def fail(*_):
        assert (tmp_path / "outputs" / ".run.partial").is_dir()
        raise error

    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.setattr(splits, "load_data", fail)
        assert call("fine_tune.py", *tiny_flags).code
    assert list((tmp_path / "outputs").iterdir()) == []


def test_the_settings_of_training_reach_the_trainer(call, tiny_flags, monkeypatch):
    built, build_trainer = [], trainer.build_trainer
    monkeypatch.setattr(trainer, "build_trainer", lambda *arguments: built.append(build_trainer(*arguments)) or built[0])
    flags = [*tiny_flags, "--num_train_epochs", 1, "--weight_decay", 0.3, "--lr_scheduler_type", "constant_with_warmup"]
    result = call("fine_tune.py", *flags, "--warmup_steps", 4, "--padding", "max_length", "--length_warmup", 0)
    assert result.code == 0, result.err
    (fine_tuner,) = built
    rates = [entry["learning_rate"] for entry in fine_tuner.state.log_history if "learning_rate" in entry]
    assert rates[-1] == 0.01 and fine_tuner.args.warmup_steps == 4
    assert max(group["weight_decay"] for group in fine_tuner.optimizer.param_groups) == 0.3
    assert next(iter(fine_tuner.get_train_dataloader()))["input_ids"].shape[1] == 32


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another_one(call, tiny_flags, tmp_path):
    for name, seed in (("run", 0), ("again", 0), ("other", 1)):
        assert call("fine_tune.py", *tiny_flags, "--run_name", name, "--seed", seed, "--num_train_epochs", 1).code == 0
    folders = [tmp_path / "outputs" / name for name in ("run", "again", "other")]
    first, again, other = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == again != other


def test_a_run_that_ended_before_it_was_marked_as_finished_can_be_resumed(call, finished_run):
    (finished_run / "training.json").unlink()  # as if a kill came after the adapter was saved
    assert call("fine_tune.py", "--resume", "outputs/run").code == 0
    assert call("evaluate.py", "outputs/run").code == 0


def test_evaluation_refuses_rows_that_changed_since_training(call, tmp_path, tiny_flags):
    copy = tmp_path / "copy.csv"
    make_rows().to_csv(copy, index=False)
    assert call("fine_tune.py", *tiny_flags, "--dataset_name", copy, "--run_name", "copy", "--num_train_epochs", 1).code == 0
    make_rows(78).to_csv(copy, index=False)
    changed = call("evaluate.py", "outputs/copy")
    assert changed.code == 2 and "has changed since training" in changed.err


def test_evaluation_refuses_rows_that_are_split_in_another_way_than_in_training(call, finished_run, monkeypatch):
    hold_out = splits.hold_out
    monkeypatch.setattr(
        splits, "hold_out", lambda frames, config, *more: hold_out(frames, replace(config, test_fraction=0.3), *more)
    )
    refused = call("evaluate.py", "outputs/run")
    assert (
        refused.code == 2
        and "the code now splits" in refused.err
        and "(rows before: 56 train, 8 validation, 16 test; " in refused.err
    )


def test_runs_that_were_tested_on_different_rows_are_not_compared(call, finished_run, tiny_flags, tmp_path):
    make_rows().assign(review=lambda rows: rows.review + " 1").to_csv("other.csv", index=False)
    for name, *changed in (("other-rows", "--split_seed", 1), ("other-texts", "--dataset_name", "other.csv")):
        assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1, "--run_name", name, *changed).code == 0
    folders = [finished_run, tmp_path / "outputs/other-rows", tmp_path / "outputs/other-texts"]
    assert [call("evaluate.py", folder).code for folder in folders] == [0, 0, 0]
    rows, other_rows, same_rows = (pd.read_parquet(folder / "predictions.parquet").row for folder in folders)
    assert not rows.equals(other_rows) and rows.equals(same_rows)
    for folder in folders[1:]:
        refused = call("evaluate.py", finished_run, folder)
        assert refused.code == 2 and "were tested on different rows" in refused.err, refused.err


def test_a_search_continues_where_it_ended_and_prints_flags(call, tiny_flags, tmp_path, monkeypatch):
    """Takes long, because it trains five times: two trials, a third one, one of another search, and a run with the flags."""
    space = {"learning_rate": (1e-4, 1e-2), "lora_r": [2, 4], "batch_size": [4, 8]}
    space |= {"num_train_epochs": [3]}  # more steps than with the flags
    space |= {"lr_scheduler_type": ["cosine"], "weight_decay": (0.0, 0.1)}
    monkeypatch.setattr("finetuning.training.search.SEARCH_SPACE", space)
    flags = [*tiny_flags[:-2], "--num_train_epochs", "2"]
    first = call("fine_tune.py", *flags, "--search", 2)
    assert first.code == 0, first.err
    assert "0 trials are finished, 2 are left" in first.out and "trial 1: " in first.out
    assert "note: the search draws batch_size, learning_rate, num_train_epochs, so these flags have no effect" in first.out
    more = call("fine_tune.py", *flags, "--search", 3)
    assert "2 trials are finished, 1 are left" in more.out and "trial 2: " in more.out and "trial 1:" not in more.out
    assert "0 trials are finished" in call("fine_tune.py", *flags, "--seed", 1, "--search", 1).out, (
        "other settings are another search"
    )
    found = more.out.split("in place of --search:\n")[1].split()
    settings = dict(zip(found[::2], found[1::2], strict=True))
    assert {"--learning_rate", "--batch_size"} < {*settings} and settings["--lr_scheduler_type"] == "cosine"
    assert settings["--lora_r"] in ("2", "4") and "--lora_alpha" not in settings, "alpha stays at 32"
    assert settings["--early_stopping_patience"] == "0", "a trial never stops early, so its value needs all validations"
    assert [file.name for file in (tmp_path / "outputs").iterdir()] == ["search.db"]
    assert call("fine_tune.py", *flags, *found).code == 0


def spy_on_evaluations(monkeypatch) -> list:
    """Return a list to which each validation of a search adds the trial's optimizer and its model's parameter names by id."""
    seen, evaluate = [], FineTuner.evaluate

    def spy(self, *arguments, **named):
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        seen.append((self.optimizer, names))
        return evaluate(self, *arguments, **named)

    monkeypatch.setattr(FineTuner, "evaluate", spy)
    return seen


def test_the_trials_of_a_search_train_with_loraplus(call, tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "config.json").write_text("of another program")
    seen = spy_on_evaluations(monkeypatch)
    monkeypatch.setattr("finetuning.training.search.SEARCH_SPACE", {"learning_rate": (1e-4, 1e-2)})
    result = call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1, "--loraplus_lr_ratio", 8, "--search", 1)
    assert result.code == 0, result.err
    optimizer, names = seen[-1]
    rates = {names[id(p)]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    rates_a, rates_b = ({rate for name, rate in rates.items() if part in name} for part in ("lora_A", "lora_B"))
    assert len(rates_a) == len(rates_b) == 1 and rates_b.pop() == pytest.approx(8 * rates_a.pop())


@pytest.mark.parametrize("task", ["text-classification", "translation"])
def test_a_search_scores_the_model_of_each_trial(task, call, tiny_flags, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    flags = [*tiny_flags, "--num_train_epochs", 1]
    if task == "translation":
        make_pairs(60).to_csv(tmp_path / "pairs.csv", index=False)
        columns = ["--source_column", "low", "--target_column", "high"]
        paths = ["--model_name", make_model(tmp_path / "marian", "marian"), "--dataset_name", tmp_path / "pairs.csv"]
        flags += ["--task", task, *columns, *paths]
    monkeypatch.setattr("finetuning.training.search.SEARCH_SPACE", {"learning_rate": (1e-4, 1e-1)})
    result = call("fine_tune.py", *flags, "--metric_for_best_model", "loss", "--search", 2)
    assert result.code == 0, result.err
    storage = f"sqlite:///{tmp_path / 'outputs' / 'search.db'}"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert len({trial.value for trial in trials}) == 2, "two learning rates give two models"


def test_a_search_changes_the_loss_too_and_refuses_settings_of_the_rows(call, tiny_flags, monkeypatch):
    optuna = pytest.importorskip("optuna")
    seen, space, set_up = set(), "finetuning.training.search.SEARCH_SPACE", FineTuner.__init__

    def spy(self, data, **arguments):
        seen.add(data.config.label_smoothing_factor)
        set_up(self, data, **arguments)

    monkeypatch.setattr(FineTuner, "__init__", spy)
    monkeypatch.setattr(space, {"label_smoothing_factor": [0.3]})
    assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1, "--search", 1).code == 0
    assert seen == {0.3}
    monkeypatch.setattr(space, {"learning_rate": (1e-4, 1e-2), "max_length": [16, 32]})
    refused = call("fine_tune.py", *tiny_flags, "--search", 1)
    assert refused.code == 2 and "SEARCH_SPACE in config.py has max_length" in refused.err
    monkeypatch.setattr(space, {"class_weights": ["balanced"]})
    refused = call("fine_tune.py", *tiny_flags, "--task", "masked-lm", "--search", 1)
    assert refused.code == 2 and "class_weights=balanced is not for masked-lm" in refused.err
    monkeypatch.setattr(space, {"gradient_accumulation_steps": [100]})
    refused = call("fine_tune.py", *tiny_flags, "--search", 1)
    assert refused.code == 2 and "gradient_accumulation_steps=100" in refused.err, "a trial is checked as a run is"
    monkeypatch.setattr(space, {"learning_rate": (1e-4, 1e-2), "lora_r": [4], "use_dora": [True], "target_modules": ["mlp"]})
    assert search.space(Config(method="full")) == {"learning_rate": (1e-4, 1e-2)}
    monkeypatch.setattr(space, {"method": ["full"], "lora_r": [4]})
    assert search.draw(optuna.trial.FixedTrial({"method": "full", "lora_r": 4}), Config()) == {"method": "full"}


def test_training_prints_aligned_lines_without_control_characters(call, tiny_flags, tmp_path):
    result = call("fine_tune.py", *tiny_flags, "--num_train_epochs", 3)
    lines = [line for line in result.out.splitlines() if "left on this machine" not in line]  # a slow machine estimates the time
    header = next(i for i, line in enumerate(lines) if "validation loss" in line)
    table = [line for line in lines[header + 1 :] if line.split("/")[0].strip().isdigit()]  # on slow machines others come between
    steps = [int(line.split("/")[0]) for line in table]
    log = json.loads((tmp_path / "outputs" / "run" / "training.json").read_text())["log_history"]
    validations = [entry for entry in log if "eval_loss" in entry]
    assert steps == [entry["step"] for entry in validations]
    for line, entry in zip(table, validations, strict=True):
        accuracy = f"{entry['eval_accuracy']:.2%}"
        assert f"{entry['eval_loss']:.4f}" in line and line.index(accuracy) + len(accuracy) == len(lines[header])
    assert "best so far" in table[0]
    assert "{" not in result.out and not set("\r\x1b") & {*result.out, *result.err} and "%|" not in result.err


def test_the_remaining_time_follows_the_remaining_work(monkeypatch, capsys):
    """The long steps come first. A validation, as long as 5 work, comes after every fourth step."""
    lengths = np.full(2, 128)
    trainer = SimpleNamespace(
        work_of_steps=lambda: np.array([3.0, 3.0, 1.0, 1.0] * 3),
        eval_dataset=SimpleNamespace(lengths=lengths),
        config=SimpleNamespace(max_length=128),
        rows_per_step=16,
    )
    monkeypatch.setattr(progress, "FORWARD_FRACTION", 5 / progress.work(lengths).sum())
    shown, clock = progress.Training(trainer, None), iter((9.0, 15.0, 16.0, 17.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    args = SimpleNamespace(eval_strategy="steps")
    state = SimpleNamespace(max_steps=8, global_step=0, eval_steps=4, is_world_process_zero=True)
    shown.on_train_begin(args, state, None)
    for _ in range(4):  # the first step is slower and does not count; the three after it take 6 + 1 + 1 s for 3 + 1 + 1 work
        shown.on_step_end(args, state, None)
    (line,) = capsys.readouterr().out.splitlines()
    left = (1 + 1 + 5 + 8 + 5) * 6 / 3  # as estimated after the second step
    assert line == f"8 steps of 16 rows: about {console.duration(left)} left on this machine"
    assert console.duration((5 + 8 + 5) * 8 / 5) in shown.bar.bar.postfix
    assert progress.work(256) > 2 * progress.work(128), "attention: a text of twice the tokens takes more than twice the time"
    assert [console.duration(seconds) for seconds in (4, 47, 400, 7800)] == ["4 s", "45 s", "7 min", "2 h 10 min"]


def test_help_has_the_sections_of_config_and_ends_with_examples(call):
    result = call("fine_tune.py", "--help")
    assert result.code == 0
    sections = [
        "task:",
        "model:",
        "data:",
        "tokens:",
        "trainable parameters:",
        "training:",
        "evaluation while training:",
        "output:",
    ]
    places = [result.out.index(f"\n{section}\n") for section in sections]
    assert places == sorted(places) and result.out.index("--lora_r INT") > places[4] and "(default: 16)" in result.out
    assert result.out.rstrip().endswith("search for better settings, on validation") and "None" not in result.out


def test_a_log_file_says_how_long_a_prediction_takes(monkeypatch, capsys):
    clock = iter((9.0, 11.0, 19.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    bar = progress.RowBar(np.full(100, 16), show=True)
    for _ in range(3):  # the first batch warms up, the second one took 2 s, which says little, and both after it 10 s
        bar.update(20)
    assert capsys.readouterr().out == "predicting 100 rows: about 10 s left on this machine\n"
