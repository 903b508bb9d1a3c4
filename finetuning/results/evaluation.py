"""Measure a run on its test split and write the results into the run folder; compare two runs.

These files are written:

metrics.json, report.html, *.png, predictions.parquet, statistics.parquet, errors.csv, and further files that a task adds
adapter/README.md    the model card
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from finetuning import fingerprints
from finetuning.data.sources import Source
from finetuning.data.splits import Data, Split
from finetuning.disk import as_utf8, move, read_json, remove_reserved, reserve, to_disk, write_json
from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.results import cards, metrics, plots, report
from finetuning.results.run_folder import Run, environment
from finetuning.speed.precision import pick_precision
from finetuning.task import Evaluation, Statistics, Task
from finetuning.training.trainer import chosen_metric

METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
STATISTICS = "statistics.parquet"  # per-row statistics, in the order of predictions.parquet


def measure(task: Task, evaluation: Evaluation, unseen: np.ndarray | None = None) -> Evaluation:
    """Return the evaluation with per-row statistics, columns for each row, and metrics, each with a 95 % interval.

    `unseen`, (rows,) bool, is False for rows whose text is also in train or validation. The first metric is also computed without
    these rows.
    """
    statistics = metrics.of_rows(task, evaluation.predictions, evaluation.split, evaluation.calibration)
    evaluation = replace(evaluation, statistics=statistics, columns=task.prediction_columns(evaluation))
    results, first = {}, task.metrics[0]
    for metric in task.metrics:
        results[metric.name] = metric.of(statistics)
        if metric.interval:
            results[f"{metric.name}_ci95"] = metrics.interval(metric, statistics)
    if unseen is not None:
        value = first.of(metrics.select(statistics, unseen)) if unseen.any() else None
        results["unseen"] = {first.name: value, "n": int(unseen.sum())}
    results |= {"n": len(evaluation.split)} | ({"label_names": evaluation.label_names} if evaluation.label_names else {})
    results |= evaluation.calibration | task.details(evaluation)
    lengths = task.lengths(evaluation)
    results["by_length"] = metrics.by_length(first, statistics, lengths.values, lengths.edges)
    return replace(evaluation, metrics=results)


def describe(run: Run, model: Source, data: Data, seconds: float) -> dict:
    """Return the entries of metrics.json that tell how the metrics were made. `seconds` is the time of the prediction."""
    return {
        "task": run.config.task,
        "method": cards.METHODS[run.config.method],
        "model": run.record["model"]["name"],
        "model_origin": model.origin,
        "dataset": run.record["dataset"]["name"],
        "dataset_origin": data.source.origin,
        "split": data.test_split,
        "stand_in": run.stand_in,
        "trainable_parameters": run.training["trainable_parameters"],
        "total_parameters": run.training["total_parameters"],
        "seconds": run.training["seconds"] | {"prediction": seconds},
        "peak_memory_gib": run.training["peak_memory_gib"],
        "training_precision": run.training["precision"],
        "precision_used": pick_precision(run.config.precision)[0],
        "environment": environment(),
        "run": run.record,
        "validation": run.training["validation"],
    }


def sections_of(run: Run, evaluation: Evaluation) -> list[report.Section]:
    """Return the sections of the report page: those of the task, with the metrics in the first, and two that all tasks have."""
    first, *others = run.task.report(evaluation)
    results, unseen, metric = evaluation.metrics, evaluation.metrics["unseen"], run.task.metrics[0]
    if unseen["n"] < len(evaluation.split):
        n = len(evaluation.split) - unseen["n"]
        without = (
            f"without them, {metric.name} is {metric.show(unseen[metric.name])}" if unseen["n"] else "no text is new to the model"
        )
        first = replace(first, text=f"{first.text} {n:,} texts are in train or validation too; {without}.")
    sections = [replace(first, numbers=_numbers(run, results, first.numbers)), _training_section(run)]
    if results["by_length"]:
        draw = partial(plots.plot_by_length, results["by_length"], metric, run.task.lengths(evaluation).unit)
        sections.append(report.Section("By length", pictures=(report.Picture("by_length", f"{metric.name} by length", draw),)))
    return sections + others


def _numbers(run: Run, results: dict, of_task: tuple) -> tuple:
    """Return each metric of the test, then the numbers `of_task`, then the metric that chose the checkpoint, on validation.

    The note of a metric has its interval, and sacreBLEU's signature if there is one.
    """
    numbers, chosen, validation = [], chosen_metric(run.task, run.config), results["validation"]
    for metric in run.task.metrics:
        interval = metric.show_interval(results[f"{metric.name}_ci95"]) if metric.interval else ""
        note = "; ".join(filter(None, (interval, results.get(f"{metric.name}_signature"))))
        numbers.append((metric.name, metric.show(results[metric.name]), note))
    note = f"{validation['n']:,} rows, {validation['split']}"
    return (*numbers, *of_task, (f"validation {chosen.name}", chosen.show(validation[chosen.name]), note))


@by_first
def write(run: Run, evaluation: Evaluation, sections: list[report.Section]) -> None:
    """Write all files: first into a temporary folder, so that only complete files are moved into the run folder.

    The old metrics.json is removed before, and the new one is moved last. So metrics.json marks a complete evaluation. Raise
    `UserError` if another process is writing.
    """
    task, folder = run.task, run.folder / ".evaluation"
    try:
        reserve(folder)
    except FileExistsError:
        raise UserError(f"{run.folder}: another evaluate.py is writing its evaluation; wait until it ends") from None
    for file in folder.iterdir():  # of a killed process
        file.unlink()
    _write_table(folder / PREDICTIONS, {"row": evaluation.split.rows} | evaluation.columns)
    _write_table(folder / STATISTICS, evaluation.statistics)
    report.write_csv(folder / "errors.csv", *task.errors(evaluation))
    for file_name, text in task.files(evaluation).items():
        (folder / file_name).write_text(text, encoding="utf-8")
    results = evaluation.metrics
    html = report.render(folder, sections, m=results, first=task.metrics[0])
    (folder / "report.html").write_text(as_utf8(html), encoding="utf-8")
    cards.of_adapter(run, results).save(folder / "README.md")
    write_json(folder / METRICS, fingerprints.seal(results, folder, (PREDICTIONS, STATISTICS)))
    (run.folder / METRICS).unlink(missing_ok=True)
    to_disk(run.folder)
    move(folder / "README.md", run.folder / "adapter" / "README.md")
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == METRICS, file.name)):
        move(file, run.folder / file.name)
    remove_reserved()


def _write_table(path: Path, columns: dict) -> None:
    """Write columns as a parquet file. A column has one value per row, or several, (rows, k)."""
    columns = {name: [*values] if getattr(values, "ndim", 1) == 2 else values for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _training_section(run: Run) -> report.Section:
    log, best_validation, metric = run.training["log_history"], run.training["validation"], chosen_metric(run.task, run.config)
    last_entry, epochs = log[-1], run.config.num_train_epochs
    text = f"Training took {last_entry['step']:,} steps, {last_entry['epoch']:.3g} of {epochs:g} epochs"
    text += "; early stopping ended it." if last_entry["epoch"] < epochs - 0.01 else "."
    caption = f"losses, validation {metric.name} and learning rate at each step"
    draw = partial(plots.plot_training, log, best_validation, metric)
    return report.Section("Training", text, pictures=(report.Picture("training", caption, draw),))


# --- two runs ------------------------------------------------------------------------------------------------------------


@by_first
def compare(a: Run, b: Run, test: Split) -> tuple[list[dict], Path]:
    """Compare two evaluated runs on the rows of `test`. Return each metric's two values, their difference and its interval.

    Write the rows with different predictions into a csv file, and return its path too. Raise `UserError` if a run is not evaluated,
    if its evaluation has changed, or if the runs have different tasks or test rows.
    """
    (predictions_a, statistics_a), (predictions_b, statistics_b) = read_tables(a), read_tables(b)
    same_data = a.task is b.task and a.record["dataset"]["sha256"] == b.record["dataset"]["sha256"]
    if not same_data or not predictions_a.row.equals(predictions_b.row):
        raise UserError(f"{a.folder} and {b.folder} were tested on different rows: only runs on the same rows can be compared")
    signatures = [  # sacreBLEU's, without its version, which may differ
        [text.partition("|version")[0] for name, text in read_json(run.folder / METRICS).items() if name.endswith("_signature")]
        for run in (a, b)
    ]
    if signatures[0] != signatures[1]:
        raise UserError(
            f"{a.folder} and {b.folder} were scored in different ways, {signatures[0]} and {signatures[1]}: evaluate "
            "both again on one machine, or train both with the same target_lang"
        )
    results = differences(a.task, statistics_a, statistics_b)
    if not results:
        raise UserError(f"{a.folder} and {b.folder} predicted different tokens: their perplexities can't be compared")
    file = a.folder / f"against-{b.folder.name}.csv"
    file.unlink(missing_ok=True)
    report.write_csv(file, *_differing(a.task, [predictions_a, predictions_b], test))
    return results, file


def differences(task: Task, a: Statistics, b: Statistics) -> list[dict]:
    """Return each metric's two values on the same rows, their difference and its interval.

    Perplexity and loss are left out if the two runs predicted different tokens, because their tokenizers or their masked
    tokens differ.
    """
    same_tokens = "tokens" not in a or np.array_equal(a["tokens"], b["tokens"])
    groups = [statistics["group"] for statistics in (a, b) if "group" in statistics]
    if groups:  # one of the runs may have no group_column
        a, b = a | {"group": groups[0]}, b | {"group": groups[0]}
    return [
        {"metric": metric.name, "values": [metric.of(a), metric.of(b)], "n": len(a["rows"])} | metrics.difference(metric, [a], [b])
        for metric in task.metrics
        if metric.interval and (same_tokens or metric.name not in ("perplexity", "loss"))
    ]


def _differing(task: Task, predictions: list[pd.DataFrame], test: Split):
    """Return the positions of rows whose predictions differ, and a function that maps positions to lines of the csv file."""
    a, b = (frame.drop(columns=[name for name in ("logits", "label", "reference") if name in frame]) for frame in predictions)
    column = task.prediction_column
    differ = np.flatnonzero([not np.array_equal(x, y) for x, y in zip(a[column], b[column], strict=True)])

    def lines_of(positions: np.ndarray) -> pd.DataFrame:
        rows = {"row": test.rows[positions]} | task.readable(test.select(positions).columns())
        rows |= {name: predictions[0][name].iloc[positions].to_numpy() for name in ("label", "reference") if name in predictions[0]}
        for name in a.columns.drop("row"):
            rows |= {f"{name}_a": a[name].iloc[positions].to_numpy(), f"{name}_b": b[name].iloc[positions].to_numpy()}
        return pd.DataFrame(rows).map(lambda value: " ".join(map(str, value)) if isinstance(value, np.ndarray) else value)

    return differ, lines_of


def read_tables(run: Run) -> tuple[pd.DataFrame, Statistics]:
    """Return predictions.parquet and the per-row statistics of a run. Raise `UserError` if it has none, or if one has changed."""
    file, remedy = run.folder / METRICS, f"run python evaluate.py {run.folder} first"
    if not file.is_file():
        raise UserError(f"{run.folder} has no complete evaluation: {remedy}")
    fingerprints.read_sealed(file, remedy)
    frame = pd.read_parquet(run.folder / STATISTICS)
    statistics = {name: np.stack(frame[name]) if frame[name].dtype == object else frame[name].to_numpy() for name in frame}
    return pd.read_parquet(run.folder / PREDICTIONS), statistics
