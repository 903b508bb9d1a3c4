"""Pictures of a run, drawn to files without a screen."""

from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

FORMATS = {"perplexity": ".3f", "bleu": ".2f"}  # others are shares


def title(metric: str, metrics: dict) -> str:
    """What was reached, by what, on what."""
    low, high = metrics[f"{metric}_ci95"]
    return (
        f"{metric} {metrics[metric]:.2%}  (95 % interval {low:.2%} to {high:.2%})\n"
        f"{metrics['model']} ({metrics['model_origin']})\n"
        f"{metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}"
    )


def plot_confusion_matrix(counts: list[list[int]], names: tuple[list[str], list[str]], title: str, path: Path) -> None:
    """Draw `counts` (actual, predicted), and their shares of the row, as a PNG; `names` are those of rows and columns."""
    counts = np.array(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = max(4.8, 1.1 * len(names[0]) + 2)
    figure, axes = subplots(figsize=(size, size))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
            fontsize=13 if len(names[0]) <= 4 else 8,
        )
    axes.set_xticks(range(len(names[1])), names[1], rotation=0 if len(names[1]) <= 5 else 90)
    axes.set_yticks(range(len(names[0])), names[0])
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title(title, fontsize=9)
    save(figure, path)


def plot_training(log: list[dict], best: dict, metric: str, path: Path) -> None:
    """Draw the Trainer's log: training and validation loss, a metric of validation, learning rate; the best step marked."""

    def series(name: str) -> tuple[list, list]:
        rows = [(row["step"], row[name]) for row in log if name in row]
        return [step for step, _ in rows], [value for _, value in rows]

    figure, (loss, score, rate) = subplots(3, 1, figsize=(6.4, 7.2), sharex=True)
    loss.plot(*series("loss"), color="tab:blue", label="training")
    loss.plot(*series("eval_loss"), "o-", color="tab:orange", label="validation")
    loss.set(ylabel="loss", ylim=(0, None))
    score.plot(*series(f"eval_{metric}"), "o-", color="tab:orange", label="validation")
    score.set(ylabel=metric)
    rate.plot(*series("learning_rate"), color="tab:blue")
    rate.set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    for axes in (loss, score, rate):
        axes.axvline(best["step"], color="grey", linestyle=":", label="checkpoint kept")
        axes.grid(alpha=0.3)
    loss.legend(fontsize=9)
    figure.suptitle(
        f"best on validation: step {best['step']:,}, {metric} {best[metric]:{FORMATS.get(metric, '.2%')}}",
        fontsize=10,
    )
    save(figure, path)


def curves(by_label: dict[str, tuple[np.ndarray, np.ndarray]], points: int = 200) -> dict:
    """ROC and precision-recall curves of each label's (whether it is there, score), (n,) each, of at most `points` points.

    Labels without a row on either side are left out.
    """
    found = {}
    for name, (actual, score) in by_label.items():
        if actual.any() and not actual.all():
            false_positive, true_positive, _ = roc_curve(actual, score)
            precision, recall, _ = precision_recall_curve(actual, score)
            few, some = (np.unique(np.linspace(0, len(x) - 1, points).astype(int)) for x in (false_positive, recall))
            found[name] = {
                "roc": {"false_positive_rate": false_positive[few].tolist(), "true_positive_rate": true_positive[few].tolist()},
                "roc_auc": float(roc_auc_score(actual, score)),
                "precision_recall": {"recall": recall[some].tolist(), "precision": precision[some].tolist()},
                "average_precision": float(average_precision_score(actual, score)),
                "share": float(actual.mean()),
            }
    return found


def plot_curves(found: dict, roc_path: Path, precision_recall_path: Path) -> None:
    """Draw what `curves` found, each with the line that guessing would give."""
    figure, axes = _square("false positive rate", "true positive rate (recall)")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="guessing")
    for name, curve in found.items():
        axes.plot(*curve["roc"].values(), label=f"{name}: area {curve['roc_auc']:.4f}")
    axes.legend(fontsize=9, loc="lower right")
    save(figure, roc_path)
    figure, axes = _square("recall", "precision")
    for name, curve in found.items():
        (line,) = axes.plot(
            *curve["precision_recall"].values(), label=f"{name}: average precision {curve['average_precision']:.4f}"
        )
        axes.axhline(curve["share"], color=line.get_color(), linestyle=":", label=f"{name}: guessing")
    axes.legend(fontsize=9, loc="lower left")
    save(figure, precision_recall_path)


def plot_reliability(before: dict, after: dict, path: Path) -> None:
    """Draw what `metrics.calibration` found before and after temperature scaling: how often a probability keeps its word."""
    figure, axes = _square("probability of the predicted label", "share that was right")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as it should be")
    for found, label in ((before, "as trained"), (after, "after temperature scaling")):
        error = found["expected_calibration_error"]
        axes.plot(
            [b["confidence"] for b in found["bins"]],
            [b["accuracy"] for b in found["bins"]],
            "o-",
            label=f"{label}: expected calibration error {error:.2%}",
        )
    lowest = min(min(b["confidence"], b["accuracy"]) for found in (before, after) for b in found["bins"])
    axes.set(xlim=(lowest - 0.02, 1.01), ylim=(lowest - 0.02, 1.01))
    figure.legend(fontsize=9, loc="outside upper center")
    save(figure, path)


def plot_by_length(found: list[dict], metric: str, xlabel: str, path: Path) -> None:
    """Draw a metric of texts of like length, as `metrics.accuracy_by_length` finds it, with the intervals."""
    figure, axes = subplots(figsize=(6.4, 4))
    names = [length_name(row) for row in found]
    score = np.array([row[metric] for row in found])
    low, high = np.array([row[f"{metric}_ci95"] for row in found]).T
    axes.errorbar(names, score, yerr=np.maximum([score - low, high - score], 0), fmt="o", capsize=4)
    for name, row, top in zip(names, found, high, strict=True):
        axes.annotate(
            f"{row[metric]:.1%}\nn = {row['n']:,}", (name, top), (0, 4), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set(xlabel=xlabel, ylabel=metric)
    axes.margins(x=0.15, y=0.3)
    axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def plot_by_label(found: list[dict], path: Path) -> None:
    """Draw each label's F1, with the number of rows that have it."""
    figure, axes = subplots(figsize=(6.4, 1.2 + 0.35 * len(found)))
    names = [f"{one['label']} (n = {one['n']:,})" for one in found]
    axes.barh(names, [one["f1"] for one in found], color="tab:blue")
    for name, one in zip(names, found, strict=True):
        axes.annotate(f"{one['f1']:.3f}", (one["f1"], name), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(xlabel="F1", xlim=(0, 1.1))
    axes.invert_yaxis()
    save(figure, path)


def length_name(row: dict) -> str:
    return f"{row['above'] + 1} to {row['up_to']}" if row["up_to"] else f"over {row['above']}"


def subplots(rows: int = 1, columns: int = 1, sharex: bool = False, sharey: bool = False, **how):
    """A figure and its axes. Matplotlib is read here: a label for a text need not wait for it."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **how)
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey)


def _square(xlabel: str, ylabel: str):
    figure, axes = subplots(figsize=(5.4, 5.4))
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
