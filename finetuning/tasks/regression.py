"""Predict one number for each text or pair of texts, such as a rating or a similarity."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from datasets import Dataset
from torch.nn.functional import mse_loss

from config import Config
from finetuning.data.labels import Encoded, encode_numbers
from finetuning.data.splits import Split
from finetuning.data.text import LABEL_COLUMNS, shortened
from finetuning.results import plots
from finetuning.results.report import Picture, Section, lines_of_rows
from finetuning.task import Evaluation, Metric, Statistics, Sums
from finetuning.tasks.text_task import TextClassification, show_examples
from finetuning.training.prediction import Predictor

STRATA = 10  # groups between quantiles of the labels; each is the same fraction of the training rows and of the held-out rows
SMALLEST_SPREAD = 1e-4  # variance of the predictions, as a fraction of that of the labels
MOMENTS = ("x", "y", "xx", "yy", "xy")  # terms of each row; their sums over the rows give the correlation of x and y


def _correlation(prefix: str) -> Callable[[Sums], float]:
    """Return a function that computes the correlation of x and y from sums of `_moments`; 0 if x or y is constant."""

    def value(sums: Sums) -> float:
        n, (x, y, xx, yy, xy) = sums["rows"], (sums[f"{prefix}_{name}"] for name in MOMENTS)
        variances = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / variances**0.5 if variances > 0 else 0.0

    return value


def _moments(prefix: str, x: np.ndarray, y: np.ndarray) -> Statistics:
    """Return the `MOMENTS` of x and y, each (rows,). `prefix` begins their names."""
    return {f"{prefix}_{name}": values for name, values in zip(MOMENTS, (x, y, x * x, y * y, x * y), strict=True)}


class Regression(TextClassification):
    """Predict one number for each text: the single output of the model, times the labels' standard deviation, plus their mean.

    The loss is the squared error of the output. So the model learns numbers near 0, whether the labels are stars, years or prices.
    """

    problem_type = "regression"
    widgets = (("text", "Predicted value"),)
    label_columns = ("score", "rating", "stars", "similarity", "value", *LABEL_COLUMNS)
    settings = tuple(name for name in TextClassification.settings if name not in ("class_weights", "label_smoothing_factor"))
    metrics = (
        Metric(
            "rmse", lambda sums: (sums["squared_error"] / sums["rows"]) ** 0.5, better="lower", label="RMSE", limits=(0, math.inf)
        ),
        Metric("mae", lambda sums: sums["absolute_error"] / sums["rows"], better="lower", limits=(0, math.inf)),
        Metric("pearson", _correlation("values"), limits=(-1, 1)),
        Metric("spearman", _correlation("ranks"), limits=(-1, 1)),  # on a subset of rows, ranks are still those among all rows
        Metric("loss", lambda sums: sums["loss"] / sums["rows"], better="lower", interval=False),
    )

    def encode_labels(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Encoded:
        """Return the numbers of each split, (rows,) float32, NaN where a number is missing. The labels have no names."""
        return encode_numbers(raw, columns["label"])

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Return the quantile group of each label, (rows,), from 0 to `STRATA` - 1."""
        numbers = labels[self.has_label(labels)]
        return np.searchsorted(np.quantile(numbers, np.arange(1, STRATA) / STRATA) if len(numbers) else [], labels)

    def show_labels(self, split: Split, label_names: list[str], decisions: np.ndarray | None = None) -> list[str]:
        return [f"{value:g}" for value in split.labels]

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        return np.isfinite(labels)

    def model_settings(self, label_names: list[str]) -> dict:
        return {"num_labels": 1, "problem_type": "regression"}

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        scale = self.label_scale(train_labels)

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return mse_loss(logits[:, 0].float(), (labels.float() - scale["label_mean"]) / scale["label_std"], reduction="sum")

        return loss

    def label_scale(self, train_labels: np.ndarray) -> dict:
        labels = train_labels.astype(np.float64)
        return {"label_mean": float(labels.mean()), "label_std": float(labels.std()) or 1.0}

    def output_scale(self, calibration: dict) -> tuple[float, float]:
        return calibration.get("label_std", 1.0), calibration.get("label_mean", 0.0)

    def numbers(self, predictions: np.ndarray, calibration: dict) -> np.ndarray:
        """Return the predicted numbers, (rows,); `predictions` are the model's outputs, (rows, 1)."""
        factor, offset = self.output_scale(calibration)
        return offset + factor * predictions[:, 0].astype(np.float64)

    # --- predictions and results -----------------------------------------------------------------------------------------

    def statistics(self, predictions: np.ndarray, split: Split, calibration: dict) -> Statistics:
        predicted, actual = self.numbers(predictions, calibration), split.labels.astype(np.float64)
        error, mean = predicted - actual, actual.mean()  # subtracting the mean from the values keeps their sums precise
        return {
            "rows": np.ones(len(error)),
            "squared_error": error**2,
            "absolute_error": abs(error),
            "loss": (error / self.output_scale(calibration)[0]) ** 2,
            **_moments("values", predicted - mean, actual - mean),
            **_moments("ranks", scipy.stats.rankdata(predicted), scipy.stats.rankdata(actual)),
        }

    def learned_nothing(self, statistics: Statistics, label_names: list[str]) -> str:
        n, (x, xx, yy) = len(statistics["rows"]), (statistics[f"values_{name}"] for name in ("x", "xx", "yy"))
        spread = (xx.mean() - x.mean() ** 2) / yy.mean() if n > 1 and yy.any() else 1.0
        return "gets almost the same number" if spread < SMALLEST_SPREAD else ""

    def details(self, evaluation: Evaluation) -> dict:
        return {"rmse_of_mean": float(evaluation.split.labels.astype(np.float64).std())}

    def answer_columns(self, evaluation: Evaluation) -> dict:
        predicted, actual = self.numbers(evaluation.predictions, evaluation.calibration), evaluation.split.labels
        return {"label": actual, "prediction": predicted, "error": predicted - actual}

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return all rows, those with the largest error first."""
        return np.argsort(-abs(evaluation.columns["error"]), kind="stable"), lines_of_rows(self, evaluation)

    def report(self, evaluation: Evaluation) -> list[Section]:
        metrics, (positions, lines) = evaluation.metrics, self.errors(evaluation)
        rmse_of_mean = self.metrics[0].show(metrics["rmse_of_mean"])
        mean = ("RMSE of the mean", rmse_of_mean, "if every prediction were the mean of the test labels")
        draw = partial(_plot_scatter, evaluation.split.labels, self.numbers(evaluation.predictions, evaluation.calibration))
        examples = show_examples(lines, positions, lambda row: f"row {row.row}: {row.actual:.6g}, predicted {row.predicted:.6g}")
        return [
            Section(pictures=(Picture("scatter", "predicted against actual value", draw),), numbers=(mean,)),
            Section("Largest errors", f"All {len(positions):,} rows are in errors.csv.", examples=(("", examples),)),
        ]

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return `prediction`, a number with seven digits for each row: a model's float32 has no more."""
        numbers = self.numbers(self.logits_of(predictor, batch), predictor.calibration)
        return {"prediction": [float(f"{value:.7g}") for value in numbers]}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return f"{answer['prediction']:>9.6g}  {shortened(inputs)}"

    def widget_values(self, predictor: Predictor, text: str) -> list:
        (value,) = self.answers(predictor, {"text": [text]})["prediction"]
        return [f"{value:.6g}"]


def _plot_scatter(actual: np.ndarray, predicted: np.ndarray, path: Path) -> None:
    """Write a picture of predicted against actual values."""
    figure, axes = plots.subplots(figsize=(5.4, 5.4))
    ends = [min(actual.min(), predicted.min()), max(actual.max(), predicted.max())]
    axes.plot(ends, ends, color="grey", linestyle=":", label="predicted = actual")
    axes.scatter(actual, predicted, s=8, alpha=min(1.0, 50 / len(actual) ** 0.5), linewidths=0)
    axes.set(xlabel="actual", ylabel="predicted", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    plots.save(figure, path)
