"""Metrics and sections of the report page for tasks with labels. The metrics are functions of statistics summed over rows."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.special import softmax

from finetuning.results import plots
from finetuning.results.metrics import reliability
from finetuning.results.report import Picture, Section, Table
from finetuning.task import Metric, Sums

MAX_TABLE_LABELS = 5  # in a confusion matrix as a table; with more labels, the table lists the most confused pairs instead
MAX_PAIRS = 10  # in the list of the most confused pairs
MAX_TABLE_ROWS = 20  # in the table by label

# `sums` holds three counts of rows for each label, (labels,) each. `actual`: the row has the label. `predicted`: the label was
# predicted. `true_positives`: both.


def f1_by_label(sums: Sums) -> np.ndarray:
    """Return the F1 of each label, (labels,); 0 for a label that occurs neither in the rows nor in the predictions."""
    return 2 * sums["true_positives"] / np.maximum(sums["predicted"] + sums["actual"], 1)


def f1_macro(sums: Sums) -> float:
    """Return the mean of the labels' F1, from 0 to 1."""
    return f1_by_label(sums).mean()


def f1_micro(sums: Sums) -> float:
    """Return the F1 of all labels together, from 0 to 1; 0 if no label is actual or predicted."""
    return 2 * sums["true_positives"].sum() / max((sums["predicted"] + sums["actual"]).sum(), 1)


def f1_single(sums: Sums) -> float:
    """Return the F1 for one label per row: that of the second label if there are two labels, else the mean over all labels."""
    f1 = f1_by_label(sums)
    return f1[1] if len(f1) == 2 else f1.mean()


def mean_of(name: str) -> Callable[[Sums], float]:
    """Return a function that computes the mean of a statistic per row."""
    return lambda sums: sums[name] / sums["rows"]


ACCURACY = Metric("accuracy", mean_of("correct"), format=".2%", label="Accuracy", proportion=True, limits=(0, 1))
F1_MACRO = Metric("f1_macro", f1_macro, limits=(0, 1))
LOSS = Metric("loss", mean_of("loss"), better="lower", limits=(0, math.inf))


Probabilities = tuple[np.ndarray, np.ndarray]  # as trained, and after temperature scaling


def details(logits: np.ndarray, labels: np.ndarray, names: list[str], probabilities: Probabilities) -> dict:
    """Return precision, recall, ROC AUC, confusion matrix (rows actual, columns predicted) and calibration for one label per row.

    `logits` and both arrays of `probabilities` have shape (rows, labels), `labels` has (rows,). With two labels, precision, recall
    and ROC AUC are those of the second label. With more, they are macro averages. ROC AUC is None if a label occurs in no row.
    """
    # delayed: it is slow to import, and predict.py does without it
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

    predicted, n_labels = logits.argmax(axis=-1), len(names)
    average = {"average": "binary"} if n_labels == 2 else {"average": "macro", "labels": list(range(n_labels))}
    precision, recall, _, _ = precision_recall_fscore_support(labels, predicted, zero_division=0, **average)
    scores, roc_auc = softmax(logits.astype(np.float64), axis=-1), None
    if len(np.unique(labels)) == n_labels:
        roc_auc = float(roc_auc_score(labels, scores[:, 1] if n_labels == 2 else scores, multi_class="ovr"))
    as_trained, scaled = (reliability(array.max(axis=-1), predicted == labels) for array in probabilities)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "averaged": f"of {names[1]!r}" if n_labels == 2 else "macro",
        "roc_auc": roc_auc,
        "confusion_matrix": confusion_matrix(labels, predicted, labels=list(range(n_labels))).tolist(),
        "calibration": {"as_trained": as_trained, "scaled": scaled},
    }


def details_of_several(predicted: np.ndarray, labels: np.ndarray, names: list[str], probabilities: Probabilities) -> dict:
    """Return micro precision and recall, calibration, and the scores of each label, for several labels per row.

    All arrays have shape (rows, labels). Calibration is that of the predicted labels, whose probabilities predict.py prints.
    """
    from sklearn.metrics import precision_recall_fscore_support  # delayed, as above

    precision, recall, _, _ = precision_recall_fscore_support(labels, predicted, average="micro", zero_division=0)
    scores = precision_recall_fscore_support(labels, predicted, average=None, zero_division=0)
    calibration = {}
    for name, array in zip(("as_trained", "scaled"), probabilities, strict=True):
        calibration[name] = reliability(array[predicted], labels[predicted].astype(bool))
    return {
        "precision": float(precision),
        "recall": float(recall),
        "averaged": "micro",
        "calibration": calibration,
        "by_label": [
            {"label": name, "f1": float(f1), "precision": float(p), "recall": float(r), "n": int(n)}
            for name, p, r, f1, n in zip(names, *scores, strict=True)
        ],
    }


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


def table_by_label(labels: list[dict]) -> Table:
    """Return a table with the scores of the first `MAX_TABLE_ROWS` labels."""
    scores = ("f1", "precision", "recall")
    rows = [(label["label"], *(f"{label[name]:.4f}" for name in scores), f"{label['n']:,}") for label in labels[:MAX_TABLE_ROWS]]
    heading = "label" if len(labels) <= MAX_TABLE_ROWS else f"the first {MAX_TABLE_ROWS} of {len(labels)} labels"
    return Table((heading, "F1", "precision", "recall", "rows"), rows, in_terminal=True)


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
