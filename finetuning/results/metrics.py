"""Confidence intervals, comparisons of two runs, and metrics of groups of rows, all from per-row statistics; calibration."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder

import datasets
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score

from finetuning.task import Metric, Statistics

RESAMPLES = 2_000
MAX_NUMBERS_IN_MEMORY = 2 * 10**5  # at a time while resampling; more would not fit into a CPU's caches and would be slower


def select(statistics: Statistics, rows: np.ndarray) -> Statistics:
    """Return the statistics of some rows. `rows` has their positions, or is a mask."""
    return {name: values[rows] for name, values in statistics.items()}


def interval(metric: Metric, *runs: Statistics) -> list[float] | None:
    """Return the 95 % interval [low, high] of a metric, or of its mean over several `runs` (seeds) on the same rows.

    The method is a percentile bootstrap over rows, or Wilson's interval (1927) for a proportion. Return None if there are fewer
    than two rows to resample.
    """
    n = len(runs[0]["rows"])
    if metric.proportion:
        return wilson_interval(round(np.mean([metric.of(run) for run in runs]) * n), n)
    if n < 2:
        return None
    return _percentiles(sum(_resampled(metric, run) for run in runs) / len(runs))


def difference(metric: Metric, a: Sequence[Statistics], b: Sequence[Statistics]) -> dict:
    """Return `difference`, the metric of `a` minus that of `b` on the same rows, and its 95 % interval, `difference_ci95`.

    `a` and `b` have one run each, or several (seeds), whose means are compared. Both are computed on the same resamples of the rows
    (paired bootstrap). A proportion also gets `mcnemar_p`: the p value of McNemar's exact test, for each pair of seeds.
    """
    difference_of_means = np.mean([metric.of(run) for run in a]) - np.mean([metric.of(run) for run in b])
    result = {"difference": float(difference_of_means), "difference_ci95": None}
    if len(a[0]["rows"]) > 1:
        resampled = (sum(_resampled(metric, run) for run in runs) / len(runs) for runs in (a, b))
        result["difference_ci95"] = _percentiles(next(resampled) - next(resampled))
    if metric.proportion:
        result["mcnemar_p"] = [_mcnemar(metric, x, y) for x, y in zip(a, b, strict=True)]
    return result


def groups(metric: Metric, statistics: Statistics, lengths: np.ndarray, edges: Sequence[int]) -> list[dict]:
    """Return the metric and its interval for groups of rows by their `lengths`, (rows,).

    A group has the lengths above one of `edges`, up to the next. Groups without rows are left out.
    """
    results = []
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        mask = (lengths > low) & (lengths <= (high or np.inf))
        if mask.any():
            group = select(statistics, mask)
            scores = {metric.name: metric.of(group), f"{metric.name}_ci95": interval(metric, group)}
            results.append({"above": low, "up_to": high, "n": int(mask.sum())} | scores)
    return results


def _resampled(metric: Metric, statistics: Statistics) -> np.ndarray:
    """Return the metric of `RESAMPLES` resamples of the rows. For the same number of rows, the resamples are the same."""
    n, rng = len(statistics["rows"]), np.random.default_rng(0)
    columns = {name: values.reshape(n, -1).astype(np.float64) for name, values in statistics.items()}
    batch = max(1, min(RESAMPLES, MAX_NUMBERS_IN_MEMORY // n))
    values = []
    for start in range(0, RESAMPLES, batch):
        resamples = rng.integers(0, n, (min(batch, RESAMPLES - start), n))
        counts = np.stack([np.bincount(rows, minlength=n) for rows in resamples]).astype(np.float64)  # how often each row was drawn
        sums = {name: counts @ column for name, column in columns.items()}
        for i in range(len(resamples)):
            values.append(metric.value({name: s[i] if statistics[name].ndim > 1 else s[i, 0] for name, s in sums.items()}))
    return np.array(values)


def _percentiles(values: np.ndarray) -> list[float]:
    return np.percentile(values, [2.5, 97.5]).tolist()


def _mcnemar(metric: Metric, a: Statistics, b: Statistics) -> float:
    """Return the two-sided p value of McNemar's exact test."""
    correct_a, correct_b = (np.asarray(metric.value(run)) > 0.5 for run in (a, b))  # (rows,)
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson_interval(correct: int, n: int) -> list[float]:
    """Return the 95 % confidence interval [low, high] of the proportion `correct` / `n`, by Wilson's method (1927)."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature for which softmax(logits / temperature) has the smallest loss (arXiv 1706.04599).

    `logits` have shape (rows, labels), `labels` (rows,). As in Platt (1999), the target probability of a row's label is
    1 - 1 / (rows + 2) instead of 1. So the temperature stays moderate if there are few rows and all are right.
    """
    n, k = logits.shape
    uncertainty = 1 / (n + 2)
    targets = np.full((n, k), uncertainty / (k - 1))
    targets[np.arange(n), labels] = 1 - uncertainty

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=-1)).sum()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> dict:
    """Return the expected calibration error of predictions, and the bins of equal width that it is summed over.

    `confidence` (n,) has the probabilities of the predictions, and `correct` (n,) whether each is right. A bin has the number of
    its predictions `n`, their mean probability `confidence`, and the fraction that is correct, `accuracy`. Empty bins are left out.
    """
    bin_numbers = np.minimum((confidence * bins).astype(int), bins - 1)
    filled_bins = [
        {"n": int(mask.sum()), "confidence": float(confidence[mask].mean()), "accuracy": float(correct[mask].mean())}
        for mask in (bin_numbers == i for i in range(bins))
        if mask.any()
    ]
    error = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in filled_bins) / max(len(correct), 1)
    return {"expected_calibration_error": float(error), "bins": filled_bins}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of predictions that equal their labels, both (rows,), computed by Hugging Face's library `evaluate`."""
    folder = importlib.metadata.distribution("evaluate").locate_file("")  # import would find the script evaluate.py
    spec = PathFinder.find_spec("evaluate", [str(folder)])
    if getattr(sys.modules.get("evaluate"), "__file__", None) != spec.origin:
        sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["evaluate"])
    features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
    info = sys.modules["evaluate"].MetricInfo(description="", citation="", features=features, format="numpy")
    compute = {"_info": lambda self: info, "_compute": lambda self, **columns: {"accuracy": accuracy_score(*columns.values())}}
    metric = type("Accuracy", (sys.modules["evaluate"].Metric,), compute)(keep_in_memory=True)
    return float(metric.compute(predictions=predictions, references=labels)["accuracy"])
