"""Metrics and sections of the report page for tasks with labels. The metrics are functions of statistics summed over rows."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from finetuning.results import plots
from finetuning.results.report import Picture, Section, Table
from finetuning.task import Metric, Statistics, Sums

MAX_TABLE_LABELS = 5  # in a confusion matrix as a table; with more labels, the table lists the most confused pairs instead
MAX_PAIRS = 10  # in the list of the most confused pairs
MAX_TABLE_ROWS = 20  # in the table by label

# `sums` holds three counts of rows for each label, (labels,) each. `actual`: the row has the label. `predicted`: the label was
# predicted. `true_positives`: both. For entities, they are counts of the entities of each type.
COUNTS = ("true_positives", "predicted", "actual")


def f1(sums: Sums) -> np.ndarray:
    """Return the F1 of each label, (labels,); 0 for a label that is neither actual nor predicted."""
    return 2 * sums["true_positives"] / np.maximum(sums["predicted"] + sums["actual"], 1)


def precision(sums: Sums) -> np.ndarray:
    """Return the precision of each label, (labels,); 0 for a label that is never predicted."""
    return sums["true_positives"] / np.maximum(sums["predicted"], 1)


def recall(sums: Sums) -> np.ndarray:
    """Return the recall of each label, (labels,); 0 for a label that is never actual."""
    return sums["true_positives"] / np.maximum(sums["actual"], 1)


def micro(score: Callable[[Sums], np.ndarray]) -> Callable[[Sums], float]:
    """Return a function that computes a score, such as `f1`, of all labels together."""
    return lambda sums: score({name: np.sum(sums[name]) for name in COUNTS})


def macro(score: Callable[[Sums], np.ndarray]) -> Callable[[Sums], float]:
    """Return a function that computes the mean score of the labels that occur, as actual or predicted label.

    scikit-learn does the same if each row has one label. A resample may lack a rare label. It says nothing about this label, so the
    score over all rows takes its place.
    """

    def value(sums: Sums) -> float:
        whole = sums.get("whole", sums)
        occurs, is_known = ((part["actual"] + part["predicted"]) > 0 for part in (whole, sums))
        return np.where(is_known, score(sums), score(whole))[occurs].mean() if occurs.any() else 0.0

    return value


def single(score: Callable[[Sums], np.ndarray]) -> Callable[[Sums], float]:
    """Return a function that computes the score of the second label if there are two labels, else the mean as in `macro`."""
    return lambda sums: score(sums)[1] if len(sums["actual"]) == 2 else macro(score)(sums)


def mean_of(name: str) -> Callable[[Sums], float]:
    """Return a function that computes the mean of a statistic per row."""
    return lambda sums: sums[name] / sums["rows"]


ACCURACY = Metric("accuracy", mean_of("correct"), format=".2%", label="Accuracy", proportion=True, limits=(0, 1))
F1_MACRO = Metric("f1_macro", macro(f1), limits=(0, 1), rarer_decides=True)
LOSS = Metric("loss", mean_of("loss"), better="lower", limits=(0, math.inf))


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the ROC AUC of the second label if there are two labels, else the mean over all labels; None if a label has no row.

    `labels` has shape (rows,), `probabilities` (rows, labels).
    """
    from sklearn.metrics import roc_auc_score  # delayed: it is slow to import, and predict.py does without it

    n_labels = probabilities.shape[1]
    if len(np.unique(labels)) < n_labels:
        return None
    return float(roc_auc_score(labels, probabilities[:, 1] if n_labels == 2 else probabilities, multi_class="ovr"))


def by_label(statistics: Statistics, names: Sequence[str]) -> list[dict]:
    """Return F1, precision, recall and the actual number of each label."""
    sums = {name: statistics[name].sum(axis=0) for name in COUNTS}
    columns = {"f1": f1(sums), "precision": precision(sums), "recall": recall(sums), "n": sums["actual"]}
    return [{"label": label} | {name: column[i].item() for name, column in columns.items()} for i, label in enumerate(names)]


def most_confused(counts: list[list[int]]) -> list[tuple[int, int]]:
    """Return the pairs of labels (actual, predicted) that were confused, as positions in `counts`, the most frequent first."""
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    return sorted(pairs, key=lambda pair: -counts[pair[0]][pair[1]])


def confusion_table(counts: list[list[int]], names: list[str]) -> Table:
    """Return a table of the confusion matrix. With more than `MAX_TABLE_LABELS` labels, it lists the most confused pairs instead."""
    if len(names) <= MAX_TABLE_LABELS:
        rows = [(name, *(f"{n:,}" for n in row)) for name, row in zip(names, counts, strict=True)]
        return Table(("actual", *(f"predicted {name}" for name in names)), rows, in_terminal=True)
    rows = [
        (f"{names[i]}, predicted as {names[j]}", f"{counts[i][j]:,}", f"{counts[i][j] / sum(counts[i]):.1%}")
        for i, j in most_confused(counts)[:MAX_PAIRS]
    ]
    return Table(("most confused pairs", "rows", "of the actual label's rows"), rows, in_terminal=True)


def table_by_label(labels: list[dict], kind: str = "label", counted: str = "rows", format: str = ".4f") -> Table:
    """Return a table with the scores of the first `MAX_TABLE_ROWS` labels. `counted` is what has the labels: rows or entities."""
    rows = []
    for label in labels[:MAX_TABLE_ROWS]:
        rows.append((label["label"], *(f"{label[name]:{format}}" for name in ("f1", "precision", "recall")), f"{label['n']:,}"))
    heading = kind if len(labels) <= MAX_TABLE_ROWS else f"the first {MAX_TABLE_ROWS} of {len(labels)} {kind}s"
    return Table((heading, "F1", "precision", "recall", counted), rows, in_terminal=True)


def ranking_section(by_label: dict[str, tuple[np.ndarray, np.ndarray]]) -> Section:
    """Return the section that draws ROC and precision-recall curves. `by_label` is as in `plots.plot_curves`."""
    captions = {"roc": "ROC curve", "precision_recall": "precision-recall curve"}
    pictures = tuple(Picture(kind, caption, partial(plots.plot_curves, kind, by_label)) for kind, caption in captions.items())
    return Section("ROC and precision-recall curves", pictures=pictures)


def calibration_section(
    metrics: dict,
    meaning: str = "In a calibrated model, 90 % of the predictions with a probability of 90 % are correct.",
    caption: str = "fraction of correct predictions by probability",
) -> Section:
    """Return the section with the reliability diagram. `metrics` is the content of metrics.json."""
    as_trained, scaled = metrics["calibration"]["as_trained"], metrics["calibration"]["scaled"]
    errors = [f"{100 * calibration['expected_calibration_error']:.2f} %" for calibration in (as_trained, scaled)]
    text = (
        f"{meaning} The expected calibration error is {errors[0]} as trained and {errors[1]} after dividing the logits "
        f"by the temperature {metrics['temperature']:.3f}, which was fitted on validation. A perfectly calibrated model would "
        f"show about {100 * scaled['error_by_chance']:.2f} % by chance, with this number of predictions. predict.py gives the scaled probabilities."
    )
    draw = partial(plots.plot_reliability, as_trained, scaled)
    return Section("Calibration", text, pictures=(Picture("reliability", caption, draw),))
