"""Metrics with confidence intervals, comparisons and groups of rows, all from per-row statistics; calibration."""

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
CELLS = 2 * 10**5  # numbers in memory at a time while resampling; more of them are slower than the caches of a CPU


def select(statistics: Statistics, rows: np.ndarray) -> Statistics:
    """Return the statistics of some rows; `rows` are positions or a mask."""
    return {name: values[rows] for name, values in statistics.items()}


def interval(metric: Metric, *runs: Statistics) -> list[float] | None:
    """Return the 95 % interval [low, high] of a metric, or of its mean over `runs` (seeds) on the same rows.

    A percentile bootstrap over rows; Wilson's interval (1927) for a proportion. None for fewer than two rows.
    """
    n = len(runs[0]["rows"])
    if metric.proportion:
        return wilson_interval(round(np.mean([metric.of(run) for run in runs]) * n), n)
    if n < 2:
        return None
    return _percentiles(sum(_resampled(metric, run) for run in runs) / len(runs))


def difference(metric: Metric, a: Sequence[Statistics], b: Sequence[Statistics]) -> dict:
    """Return the metric of a less that of b on the same rows, `difference`, and its 95 % interval, `difference_ci95`.

    a and b hold one run, or several (seeds), whose mean is compared. Rows are resampled together for both (paired bootstrap). For
    a proportion also `mcnemar_p`, exact, one for each pair of seeds.
    """
    point = np.mean([metric.of(run) for run in a]) - np.mean([metric.of(run) for run in b])
    result = {"difference": float(point), "difference_ci95": None}
    if len(a[0]["rows"]) > 1:
        resampled = (sum(_resampled(metric, run) for run in runs) / len(runs) for runs in (a, b))
        result["difference_ci95"] = _percentiles(next(resampled) - next(resampled))
    if metric.proportion:
        result["mcnemar_p"] = [_mcnemar(metric, x, y) for x, y in zip(a, b, strict=True)]
    return result


def groups(metric: Metric, statistics: Statistics, lengths: np.ndarray, edges: Sequence[int]) -> list[dict]:
    """Return the metric, with its interval, of the rows of each length: above one of `edges`, up to the next."""
    results = []
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        chosen = (lengths > low) & (lengths <= (high or np.inf))
        if chosen.any():
            part = select(statistics, chosen)
            scores = {metric.name: metric.of(part), f"{metric.name}_ci95": interval(metric, part)}
            results.append({"above": low, "up_to": high, "n": int(chosen.sum())} | scores)
    return results


def _resampled(metric: Metric, statistics: Statistics) -> np.ndarray:
    """Return the metric of `RESAMPLES` resamples of the rows, the same ones for equal numbers of rows."""
    n, rng = len(statistics["rows"]), np.random.default_rng(0)
    columns = {name: values.reshape(n, -1).astype(np.float64) for name, values in statistics.items()}
    batch = max(1, min(RESAMPLES, CELLS // n))
    values = []
    for start in range(0, RESAMPLES, batch):
        drawn = rng.integers(0, n, (min(batch, RESAMPLES - start), n))
        times = np.stack([np.bincount(rows, minlength=n) for rows in drawn]).astype(np.float64)  # each row was drawn
        sums = {name: times @ column for name, column in columns.items()}
        for i in range(len(drawn)):
            values.append(metric.value({name: s[i] if statistics[name].ndim > 1 else s[i, 0] for name, s in sums.items()}))
    return np.array(values)


def _percentiles(values: np.ndarray) -> list[float]:
    return np.percentile(values, [2.5, 97.5]).tolist()


def _mcnemar(metric: Metric, a: Statistics, b: Statistics) -> float:
    """Return the two-sided p value of McNemar's exact test."""
    correct_a, correct_b = (np.asarray(metric.value(run)) > 0.5 for run in (a, b))  # of each row alone
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson_interval(correct: int, n: int) -> list[float]:
    """Return the 95 % confidence interval [low, high] of a proportion, after Wilson (1927)."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least loss of softmax(logits / temperature) (arXiv 1706.04599); logits (rows, labels).

    As in Platt (1999) a label counts as certain only up to 1 in n + 2, so that a few rows, all right, prove no certainty.
    """
    n, k = logits.shape
    doubt = 1 / (n + 2)
    targets = np.full((n, k), doubt / (k - 1))
    targets[np.arange(n), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=-1)).sum()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> dict:
    """Return the expected calibration error of probabilities `confidence` (n,) of predictions that were `correct` (n,) or not.

    Also the bins of equal width that it is summed over: how many predictions each holds, their mean probability, and the
    fraction that was correct.
    """
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    filled = [
        {"n": int(chosen.sum()), "confidence": float(confidence[chosen].mean()), "accuracy": float(correct[chosen].mean())}
        for chosen in (number == i for i in range(bins))
        if chosen.any()
    ]
    error = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / max(len(correct), 1)
    return {"expected_calibration_error": float(error), "bins": filled}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of (rows,) predictions that equal their labels, through Hugging Face's library `evaluate`."""
    place = importlib.metadata.distribution("evaluate").locate_file("")  # the script evaluate.py has the same name
    spec = PathFinder.find_spec("evaluate", [str(place)])
    if getattr(sys.modules.get("evaluate"), "__file__", None) != spec.origin:
        sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["evaluate"])
    features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
    info = sys.modules["evaluate"].MetricInfo(description="", citation="", features=features, format="numpy")
    compute = {"_info": lambda self: info, "_compute": lambda self, **columns: {"accuracy": accuracy_score(*columns.values())}}
    metric = type("Accuracy", (sys.modules["evaluate"].Metric,), compute)(keep_in_memory=True)
    return float(metric.compute(predictions=predictions, references=labels)["accuracy"])
