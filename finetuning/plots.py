"""Pictures of a run. The Agg backend draws to files, so no screen is needed."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)


def plot_confusion_matrix(metrics: dict, path: Path) -> None:
    """Draw counts and row percentages of `metrics["confusion_matrix"]` (rows actual, columns predicted) as a PNG."""
    counts = np.array(metrics["confusion_matrix"])
    names = metrics["label_names"]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = max(4.8, 1.1 * len(names) + 2)
    figure, axes = pyplot.subplots(figsize=(size, size), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
            fontsize=13 if len(names) <= 4 else 8,
        )
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 4 else 90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual")
    low, high = metrics["accuracy_ci95"]
    axes.set_title(
        f"accuracy {metrics['accuracy']:.2%}  (95 % interval {low:.2%} to {high:.2%})\n"
        f"{metrics['model']} ({metrics['model_origin']})\n"
        f"{metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
