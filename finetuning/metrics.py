"""What the tasks measure alike: shares with their intervals, calibration, paired differences."""

import importlib.metadata
import importlib.util
import sys
from types import ModuleType

import datasets
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import accuracy_score


def _evaluate_library() -> ModuleType:
    """Hugging Face's `evaluate`, found by its distribution: the script evaluate.py at the root hides it under that name."""
    file = importlib.metadata.distribution("evaluate").locate_file("evaluate/__init__.py")
    loaded = sys.modules.get("evaluate")
    if loaded is None or loaded.__file__ != str(file):
        spec = importlib.util.spec_from_file_location("evaluate", file, submodule_search_locations=[str(file.parent)])
        loaded = sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return loaded


evaluate = _evaluate_library()


class Accuracy(evaluate.Metric):
    """Share of predictions that equal their reference. `evaluate.load("accuracy")` is the same, but needs the network."""

    def _info(self) -> "evaluate.MetricInfo":
        features = datasets.Features(predictions=datasets.Value("int32"), references=datasets.Value("int32"))
        about = dict(description=self.__doc__, citation="", inputs_description="")
        return evaluate.MetricInfo(features=features, format="numpy", **about)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Of (n,) predictions, against (n,) labels."""
    metric = Accuracy(keep_in_memory=True)
    for start in range(0, len(labels), 10_000):  # what is added passes through Python's lists
        metric.add_batch(predictions=predictions[start : start + 10_000], references=labels[start : start + 10_000])
    return metric.compute()["accuracy"]


def wilson_interval(correct: int, n: int) -> list[float]:
    """95 % confidence interval [low, high] of a share, after Wilson (1927)."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes softmax(logits / temperature) the best probabilities: least loss (arXiv 1706.04599).

    As in Platt (1999) a label counts as certain only up to 1 in n + 2, so that a few rows, all right, prove no certainty.
    """
    n, k = logits.shape
    doubt = 1 / (n + 2)
    targets = np.full((n, k), doubt / (k - 1))
    targets[np.arange(n), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=-1)).sum()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict:
    """`reliability` of the labels with the highest of `probabilities` (n, labels)."""
    return reliability(probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels, bins)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict:
    """Expected calibration error of the probabilities `confidence` (n,) of what was `right` (n,) or not, and the bins of
    equal width it is summed over: of each how many there are, their mean probability, and the share that was right."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    found = [
        {"n": int(here.sum()), "confidence": float(confidence[here].mean()), "accuracy": float(right[here].mean())}
        for here in (number == i for i in range(bins))
        if here.any()
    ]
    error = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found) / max(len(right), 1)
    return {"expected_calibration_error": float(error), "bins": found}


def mean_of_all(means: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """The mean over all items of rows that have `counts` (rows,) of them with `means` (rows,), and its 95 % interval [low, high].

    Rows are what was drawn, and their items belong together: the standard error is that of a ratio of two means (Cochran 1977,
    Sampling Techniques, 6.3).
    """
    mean, rows = float(np.average(means, weights=counts)), len(means)
    residuals = counts * (means - mean)
    error = np.sqrt(rows / max(rows - 1, 1) * (residuals**2).sum()) / counts.sum()
    return mean, float(mean - 1.96 * error), float(mean + 1.96 * error)


LENGTHS = (0, 64, 128, 256, 512)


def accuracy_by_length(right: np.ndarray, lengths: np.ndarray) -> list[dict]:
    """Accuracy, with its interval, of texts of like length in tokens, the special ones included, before any cut."""
    found = []
    for low, high in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        here = right[(lengths > low) & (lengths <= (high or np.inf))]
        if len(here):
            correct = int(here.sum())
            interval = wilson_interval(correct, len(here))
            found.append({"above": low, "up_to": high, "n": len(here), "accuracy": correct / len(here), "accuracy_ci95": interval})
    return found


def paired_difference(a: np.ndarray, b: np.ndarray) -> dict:
    """How much more accurate a is than b, from what each got right on the same rows: (n,) or, seed by seed, (seeds, n).

    `difference` and its 95 % bootstrap interval are over rows, the seeds averaged; `mcnemar_p` is exact, one a seed.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    by_row = a.mean(axis=0) - b.mean(axis=0)
    batch = min(50, 1 + 10**7 // len(by_row))  # resamples in memory at a time
    low, high = bootstrap((by_row,), np.mean, method="percentile", n_resamples=2000, batch=batch, rng=0).confidence_interval
    only = [(int((x & ~y).sum()), int((y & ~x).sum())) for x, y in zip(a.astype(bool), b.astype(bool), strict=True)]
    p = [float(binomtest(i, i + j).pvalue) if i + j else 1.0 for i, j in only]
    return {"difference": float(by_row.mean()), "difference_ci95": [float(low), float(high)], "mcnemar_p": p}
