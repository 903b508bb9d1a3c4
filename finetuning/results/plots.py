"""Plots of a run, written as PNG files; no screen is needed. In each function the data come first and the path last."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MATRIX_LABELS = 20  # in a confusion matrix
WORST_MATRIX_LABELS = 15  # in a confusion matrix of a task with more labels than that: those with the most errors
MAX_BARS = 30  # in the plot of F1 by label
MAX_CURVES = 10  # in a plot of curves, one per label
MAX_POINTS = 200  # in a curve
MAX_LEGEND_LINES = 6  # in a legend inside the axes; longer ones are below
MAX_NAME_LENGTH = 36  # characters of a label's name
MAX_INCHES = 13.2  # width and height of a plot: 1,980 pixels


def title(metric: Metric, metrics: dict) -> str:
    """Return a plot's title, three lines: a metric with its interval, the model, and the test."""
    interval = metrics[f"{metric.name}_ci95"]
    interval_text = f"  ({metric.show_interval(interval)})" if interval else ""
    return (
        f"{metric.name} {metric.show(metrics[metric.name])}{interval_text}\n"
        f"{metrics['model']} ({metrics['model_origin']})\n"
        f"{metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}"
    )


def plot_confusion_matrix(counts: list[list[int]], names: tuple[list[str], list[str]], title: str, path: Path) -> None:
    """Draw `counts`, (actual, predicted), each with its fraction of the row's total. `names` has the names of rows and of columns.

    If there are more than `MAX_MATRIX_LABELS` labels, only those with the most errors are drawn.
    """
    counts = np.array(counts)
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    labels = np.arange(len(counts))
    if len(counts) > MAX_MATRIX_LABELS:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        labels = np.sort(np.argsort(-errors, kind="stable")[:WORST_MATRIX_LABELS])
        title += f"\nthe {len(labels)} of {len(counts)} labels with the most errors"
    n, (row_names, column_names) = len(labels), [[shorten(side[i]) for i in labels] for side in names]
    longest = max(map(len, row_names + column_names))
    size = max(4.8, min(1.1, max(0.55, 6.6 / n)) * n + 2 + 0.08 * max(0, longest - 12))
    figure, axes = subplots(figsize=(min(size, MAX_INCHES), min(size, MAX_INCHES)))
    axes.imshow(fractions[np.ix_(labels, labels)], cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(n, n):
        count, fraction = counts[labels[row], labels[column]], fractions[labels[row], labels[column]]
        color, fontsize = "white" if fraction > 0.5 else "black", 13 if n <= 4 else 8
        if count or n <= 4:
            axes.text(column, row, f"{count:,}\n{fraction:.1%}", ha="center", va="center", color=color, fontsize=fontsize)
    axes.set_xticks(range(n), column_names, rotation=0 if n <= 5 and longest <= 12 else 90)
    axes.set_yticks(range(n), row_names)
    axes.set(xlabel="predicted", ylabel="actual")
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def shorten(name: str) -> str:
    """Return a label's name with at most `MAX_NAME_LENGTH` characters. A longer name keeps its start and its end."""
    half = MAX_NAME_LENGTH // 2
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def plot_training(log: list[dict], best: dict, metric: Metric, path: Path) -> None:
    """Draw the Trainer's log (losses, a validation metric, the learning rate), and mark the step of the best checkpoint."""

    def series(name: str) -> tuple[list, list]:
        rows = [(row["step"], row[name]) for row in log if name in row]
        return [step for step, _ in rows], [value for _, value in rows]

    figure, (loss, score, rate) = subplots(3, 1, figsize=(6.4, 7.2), sharex=True)
    loss.plot(*series("loss"), color="tab:blue", label="training")
    loss.plot(*series("eval_loss"), "o-", color="tab:orange", label="validation")
    loss.set(ylabel="loss", ylim=(0, None))
    score.plot(*series(f"eval_{metric.name}"), "o-", color="tab:orange", label="validation")
    score.set(ylabel=metric.name)
    rate.plot(*series("learning_rate"), color="tab:blue")
    rate.set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, score, rate):
        axes.axvline(best["step"], color="grey", linestyle=":", label="best checkpoint")
        axes.grid(alpha=0.3)
    loss.legend(fontsize=9)
    value = metric.show(best[metric.name])
    figure.suptitle(f"best checkpoint: step {best['step']:,}, validation {metric.name} {value}", fontsize=10)
    save(figure, path)


def curves(by_label: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict:
    """Return each label's ROC and precision-recall curves, with at most `MAX_POINTS` points, and the areas under them.

    `by_label` has two arrays for each label, both (rows,): whether a row has the label, and the label's score. A label that no row
    or every row has is left out, as it has no curve.
    """
    # delayed: it is slow to import, and predict.py does without it
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    by_name = {}
    for name, (actual, score) in by_label.items():
        if actual.any() and not actual.all():
            false_positive, true_positive, _ = roc_curve(actual, score)
            precision, recall, _ = precision_recall_curve(actual, score)
            roc, pr = (np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int)) for x in (false_positive, recall))
            by_name[name] = {
                "roc": {"false_positive_rate": false_positive[roc].tolist(), "true_positive_rate": true_positive[roc].tolist()},
                "roc_auc": float(roc_auc_score(actual, score)),
                "precision_recall": {"recall": recall[pr].tolist(), "precision": precision[pr].tolist()},
                "average_precision": float(average_precision_score(actual, score)),
                "fraction": float(actual.mean()),
            }
    return by_name


def plot_roc(curves: dict, path: Path) -> None:
    """Draw the ROC curves that `curves` returned, with the line of random guessing."""
    figure, axes = _square("false positive rate", "true positive rate (recall)")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="random guessing")
    for name, curve in _worst(curves, "roc_auc", axes).items():
        axes.plot(*curve["roc"].values(), label=f"{shorten(name)}: area under the curve {curve['roc_auc']:.4f}")
    _legend(figure, axes, "lower right")
    save(figure, path)


def plot_precision_recall(curves: dict, path: Path) -> None:
    """Draw the precision-recall curves that `curves` returned, each with the line of random guessing."""
    figure, axes = _square("recall", "precision")
    for name, curve in _worst(curves, "average_precision", axes).items():
        label = f"{shorten(name)}: average precision {curve['average_precision']:.4f}"
        (line,) = axes.plot(*curve["precision_recall"].values(), label=label)
        guess = f"{shorten(name)}: random guessing" if len(curves) <= MAX_CURVES else None
        axes.axhline(curve["fraction"], color=line.get_color(), linestyle=":", label=guess)
    _legend(figure, axes, "lower left")
    save(figure, path)


def _worst(curves: dict, area: str, axes: "Axes") -> dict:
    """Return the `MAX_CURVES` curves with the smallest `area`. If there are more curves, the title of the axes says so."""
    names = sorted(curves, key=lambda name: curves[name][area])[:MAX_CURVES]
    if len(names) < len(curves):
        axes.set_title(f"the {len(names)} of {len(curves)} labels with the smallest area under the curve", fontsize=9)
    return {name: curve for name, curve in curves.items() if name in names}


def _legend(figure: "Figure", axes: "Axes", corner: str) -> None:
    """Add a legend in a corner of the axes, or below them if it is long."""
    lines = len(axes.get_legend_handles_labels()[0])
    if lines > MAX_LEGEND_LINES:
        figure.set_size_inches(5.4, 5.4 + 0.2 * lines)
        figure.legend(fontsize=9, loc="outside lower center")
    elif lines:
        axes.legend(fontsize=9, loc=corner)


def plot_reliability(before: dict, after: dict, path: Path) -> None:
    """Draw a reliability diagram: the fraction of correct predictions by their probability.

    `before` and `after` temperature scaling are results of `metrics.reliability`.
    """
    figure, axes = _square("probability of the prediction", "fraction of correct predictions")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    for calibration, label in ((before, "as trained"), (after, "after temperature scaling")):
        error = calibration["expected_calibration_error"]
        axes.plot(
            [b["confidence"] for b in calibration["bins"]],
            [b["accuracy"] for b in calibration["bins"]],
            "o-",
            label=f"{label}: expected calibration error {error:.2%}",
        )
    values = [min(b["confidence"], b["accuracy"]) for calibration in (before, after) for b in calibration["bins"]]
    axes.set(xlim=(min(values, default=0) - 0.02, 1.01), ylim=(min(values, default=0) - 0.02, 1.01))
    if not values:
        axes.text(0.5, 0.25, "no predictions", ha="center")
    figure.legend(fontsize=9, loc="outside upper center")
    save(figure, path)


def plot_by_length(groups: list[dict], metric: Metric, xlabel: str, path: Path) -> None:
    """Draw a metric by length of the text, with its intervals. `groups` is a result of `metrics.groups`."""
    figure, axes = subplots(figsize=(6.4, 4))
    names = [length_name(group) for group in groups]
    score = np.array([group[metric.name] for group in groups])
    low, high = np.array([group[f"{metric.name}_ci95"] or [group[metric.name]] * 2 for group in groups]).T
    axes.errorbar(names, score, yerr=np.maximum([score - low, high - score], 0), fmt="o", capsize=4)
    for name, group, top in zip(names, groups, high, strict=True):
        text = f"{metric.show(group[metric.name])}\nn = {group['n']:,}"
        axes.annotate(text, (name, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlabel=xlabel, ylabel=metric.name)
    axes.margins(x=0.15, y=0.3)
    axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def plot_by_label(labels: list[dict], path: Path) -> None:
    """Draw each label's F1 and its number of rows; if there are more than `MAX_BARS` labels, those with the lowest F1."""
    lowest = sorted(labels, key=lambda label: label["f1"])[:MAX_BARS]
    drawn = [label for label in labels if label in lowest]
    figure, axes = subplots(figsize=(6.4, 1.2 + 0.35 * len(drawn)))
    names = [f"{shorten(label['label'])} (n = {label['n']:,})" for label in drawn]
    axes.barh(names, [label["f1"] for label in drawn], color="tab:blue")
    for name, label in zip(names, drawn, strict=True):
        axes.annotate(f"{label['f1']:.3f}", (label["f1"], name), (4, 0), textcoords="offset points", va="center", fontsize=9)
    selection = f" (the {len(drawn)} of {len(labels)} labels with the lowest F1)" if len(drawn) < len(labels) else ""
    axes.set(xlabel=f"F1{selection}", xlim=(0, 1.1))
    axes.invert_yaxis()
    save(figure, path)


def length_name(group: dict) -> str:
    return f"{group['above'] + 1} to {group['up_to']}" if group["up_to"] else f"over {group['above']}"


def subplots(rows: int = 1, columns: int = 1, sharex: bool = False, sharey: bool = False, **options):
    """Return a figure and its axes. Matplotlib is imported only here, so that predict.py does not wait for it."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a dollar sign
    figure = Figure(layout="constrained", **options)
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey)


def _square(xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    figure, axes = subplots(figsize=(5.4, 5.4))
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=150)
