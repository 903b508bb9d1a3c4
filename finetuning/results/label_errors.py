"""Judge labels by confident learning, and write those that may be wrong into files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetuning.data.splits import Split, load_data
from finetuning.disk import as_utf8
from finetuning.errors import UserError, shorten
from finetuning.processes import by_first
from finetuning.results import evaluation, metrics, report
from finetuning.results.report import MAX_LINE_CHARACTERS, Example, Section, Table
from finetuning.results.run_folder import Run, check_same_data
from finetuning.task import JudgesLabels, Task

MAX_EXAMPLES = 100  # on the page
MAX_PAIRS = 20  # pairs of a given and a likely label, on the page
CSV, PAGE, ALL_ROWS = "label_errors.csv", "label_errors.html", "label_quality.parquet"


@dataclass(frozen=True)
class Judged:
    """Rows whose labels were judged by models that did not learn from them."""

    task: Task
    split: Split
    # A line per row, in the order of the file. `row`: its number. `run`: the run whose model judged it. `given`, `likely`: the label in
    # the data, and the model's. `quality`: from 0 to 1, low if the label is not plausible. `may_be_wrong`: by confident learning.
    # `probabilities`: of all labels. For named entities: of all tags of the first word, then of the second word, and so on.
    rows: pd.DataFrame
    headline: str  # the first metric on all rows, with its interval
    source: str  # the model and the data

    def wrong(self) -> np.ndarray:
        """Return the positions of the rows whose label may be wrong, the lowest quality first."""
        positions = np.flatnonzero(self.rows.may_be_wrong)
        return positions[np.argsort(self.rows.quality.to_numpy()[positions], kind="stable")]

    def lines(self, positions: np.ndarray) -> pd.DataFrame:
        """Return the lines of label_errors.csv for the rows at these positions."""
        texts = self.task.readable(self.split.select(positions).columns())
        return self.rows[["row", "quality", "given", "likely"]].iloc[positions].assign(**texts).round({"quality": 4})

    def pairs(self) -> list[tuple[str, str, int]]:
        """Return the most frequent pairs of a given and a likely label among those that may be wrong, and how often they occur."""
        wrong = self.rows.iloc[self.wrong()]
        return [(*pair, n) for pair, n in Counter(zip(wrong.given, wrong.likely, strict=True)).most_common(MAX_PAIRS)]


def check(task: Task) -> None:
    """Raise `UserError` if the labels of a task can't be judged."""
    if not isinstance(task, JudgesLabels):
        raise UserError(f"label_errors.py judges labels of texts and named entities, not {task.problem_type or task.name}")


def judge(runs: list[Run]) -> Judged:
    """Judge the labels of the test rows of evaluated runs.

    Raise `UserError` if the task has no labels to judge, if a run is not evaluated, or if two runs have different data or the same row.
    """
    task, splits, frames, probabilities, statistics = runs[0].task, [], [], [], []
    check(task)
    for run in runs:
        if run.task is not task or run.record["dataset"]["sha256"] != runs[0].record["dataset"]["sha256"]:
            raise UserError(f"{runs[0].folder} and {run.folder} have different tasks or data: give runs on the same data")
        table, statistics_of_run = evaluation.read_tables(run)
        data = load_data(task, run.config, run.origins["dataset"])
        check_same_data(run, data)
        predictions = task.stored_predictions(table, data.label_names)
        given = task.show_labels(data.test, data.label_names)
        likely = task.show_labels(data.test, data.label_names, task.decide(predictions, run.calibration))
        probabilities += [*task.probabilities(predictions, run.calibration)]
        frames.append(pd.DataFrame({"row": table.row, "run": run.folder.name, "given": given, "likely": likely}))
        splits.append(data.test)
        statistics.append(statistics_of_run)
    rows = pd.concat(frames, ignore_index=True)
    if rows.row.duplicated().any():
        raise UserError(f"{runs[0].folder} and the other runs have test rows in common: give runs of different folds, or one run")
    split = Split(
        splits[0].dataset, *(np.concatenate([getattr(part, name) for part in splits]) for name in ("rows", "labels", "hashes"))
    )
    try:
        quality, wrong = task.label_quality(probabilities, split)
    except ValueError as error:  # of cleanlab, for example if all rows have the same label
        raise UserError(f"{runs[0].folder}: the labels of its rows can't be judged: {error}") from error
    if probabilities[0].ndim == 1:  # a text: with several labels, the library decides at one half, the run at its own threshold
        wrong &= (rows.given != rows.likely).to_numpy()
    rows = rows.assign(quality=quality, may_be_wrong=wrong, probabilities=[array.ravel() for array in probabilities])
    order = np.argsort(split.rows, kind="stable")
    metric, joined = task.metrics[0], {name: np.concatenate([part[name] for part in statistics]) for name in statistics[0]}
    headline = f"{metric.title} {metric.show(metric.of(joined))} ({metric.show_interval(metrics.interval(metric, joined))})"
    source = f"{runs[0].record['model']['name']} ({runs[0].record['model']['origin']}), {len(runs)} run{'s' * (len(runs) > 1)}; "
    dataset = runs[0].record["dataset"]
    measured = dataset["test_split"] if len(runs) == 1 else "folds of train"
    source += f"{len(rows):,} rows of {dataset['name']} ({dataset['origin']}), {measured}"
    return Judged(task, split.select(order), rows.iloc[order].reset_index(drop=True), headline, source)


@by_first
def write(judged: Judged, folder: Path) -> None:
    """Write label_quality.parquet, label_errors.csv and label_errors.html into a folder."""
    wrong = judged.wrong()
    judged.rows.to_parquet(folder / ALL_ROWS, index=False)
    (folder / CSV).unlink(missing_ok=True)
    report.write_csv(folder / CSV, wrong, judged.lines)
    html = report.template("label_errors.html.jinja").render(sections=sections(judged), n_wrong=len(wrong), judged=judged)
    (folder / PAGE).write_text(as_utf8(html), encoding="utf-8")


def sections(judged: Judged) -> list[Section]:
    """Return the sections of the page: how often a label was given in place of another, and the texts."""
    wrong = judged.wrong()
    examples = []
    for row in judged.lines(wrong[:MAX_EXAMPLES]).itertuples():
        line = f"row {row.row}, given {row.given}, likely {row.likely}: {shorten(row.text, MAX_LINE_CHARACTERS)}"
        examples.append(Example(line, row.text, probability=row.quality))
    pairs = Table(("given", "likely", "rows"), [(given, likely, f"{n:,}") for given, likely, n in judged.pairs()])
    text = f"The first number is the quality of the label, from 0 to 100 %. {CSV} has all {len(wrong):,}."
    return [Section(tables=(pairs,)), Section("Labels that may be wrong", text, examples=(("", examples),))]
