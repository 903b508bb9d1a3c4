"""Plots of a run, written as PNG files; no screen is needed. In each function the data come first and the path last."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.task import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MATRIX_LABELS = 20  # in a confusion matrix
WORST_MATRIX_LABELS = 15  # in a confusion matrix of a task with more labels than that: those with the most errors
MAX_BARS = 30  # in the plot of F1 by label
MAX_CURVES = 10  # in a plot of curves, one per label
MAX_LEGEND_LINES = 5  # inside the axes of a plot of curves; a longer legend is below
MAX_NAME_LENGTH = 36  # characters of a label's name
# Fonts with Chinese, Japanese and Korean letters, which Matplotlib's own font lacks: on Linux, Windows and macOS.
MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS")
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


def plot_curves(kind: str, by_label: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw the curve of each label, "roc" or "precision_recall"; of the `MAX_CURVES` with the smallest areas if there are more.

    `by_label` has two arrays for each label, both (rows,): whether a row has the label, and the label's score. A label that no row
    or every row has is left out, as it has no curve.
    """
    # delayed: it is slow to import, and predict.py does without it
    from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, average_precision_score, roc_auc_score

    display, area = (RocCurveDisplay, roc_auc_score) if kind == "roc" else (PrecisionRecallDisplay, average_precision_score)
    areas = {name: area(*arrays) for name, arrays in by_label.items() if arrays[0].any() and not arrays[0].all()}
    figure, axes = subplots(figsize=(5.4, 5.4))
    for name in sorted(areas, key=areas.get)[:MAX_CURVES]:
        shown = f"{' ' * name.startswith('_')}{shorten(name)}"  # Matplotlib leaves names that begin with _ out of a legend
        display.from_predictions(*by_label[name], name=shown, ax=axes, plot_chance_level=len(areas) == 1)
    if (legend := axes.get_legend()) and len(areas) > MAX_LEGEND_LINES:
        legend.remove()
        figure.set_size_inches(5.4, 5.4 + 0.2 * min(len(areas), MAX_CURVES))
        figure.legend(fontsize=9, loc="outside lower center")
    xlabel, ylabel = ("false positive rate", "true positive rate (recall)") if kind == "roc" else ("recall", "precision")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    if len(areas) > MAX_CURVES:
        axes.set_title(f"the {MAX_CURVES} of {len(areas)} labels with the smallest area under the curve", fontsize=9)
    save(figure, path)


def plot_reliability(before: dict, after: dict, path: Path) -> None:
    """Draw a reliability diagram: the fraction of correct predictions by their probability.

    `before` and `after` temperature scaling are results of `metrics.reliability`.
    """
    figure, axes = subplots(figsize=(5.4, 5.4))
    axes.set(xlabel="probability of the prediction", ylabel="fraction of correct predictions", aspect="equal")
    axes.grid(alpha=0.3)
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
    """Draw a metric by length of the text, with its intervals. `groups` is a result of `metrics.by_length`."""
    figure, axes = subplots(figsize=(6.4, 4))
    names = [f"{group['above'] + 1} to {group['up_to']}" if group["up_to"] else f"over {group['above']}" for group in groups]
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
    axes.barh(range(len(drawn)), [label["f1"] for label in drawn], tick_label=names, color="tab:blue")
    for position, label in enumerate(drawn):
        axes.annotate(f"{label['f1']:.3f}", (label["f1"], position), (4, 0), textcoords="offset points", va="center", fontsize=9)
    selection = f" (the {len(drawn)} of {len(labels)} labels with the lowest F1)" if len(drawn) < len(labels) else ""
    axes.set(xlabel=f"F1{selection}", xlim=(0, 1.1))
    axes.invert_yaxis()
    save(figure, path)


def subplots(rows: int = 1, columns: int = 1, sharex: bool = False, sharey: bool = False, **options):
    """Return a figure and its axes. Matplotlib is imported only here, so that predict.py does not wait for it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a dollar sign
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted({*MORE_FONTS} & {*fontManager.get_font_names()})]
    figure = Figure(layout="constrained", **options)
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey)


def save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=150)
