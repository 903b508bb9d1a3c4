"""Confidence intervals, comparisons of two runs, and metrics of groups of rows, all from per-row statistics; calibration."""

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np
import scipy  # scipy.stats is slow to import: it is loaded at its first use
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from finetuning.task import Metric, Statistics, Sums, Task

if TYPE_CHECKING:
    from scipy.stats.distributions import rv_frozen

    from finetuning.data.splits import Split

RESAMPLES = 2_000
SIMULATIONS = 100  # of perfectly calibrated predictions
FEW = 30  # with fewer rows or groups, a percentile bootstrap is too narrow
MAX_NUMBERS_IN_MEMORY = 2 * 10**5  # at a time while resampling; more would not fit into a CPU's caches and would be slower


def of_rows(task: Task, predictions, split: "Split", calibration: dict) -> Statistics:
    """Return the task's statistics of each row of a split. If rows belong together, `group` has the number of each row's group."""
    groups = {} if split.groups is None else {"group": split.groups}
    return task.statistics(predictions, split, calibration) | groups


def select(statistics: Statistics, rows: np.ndarray) -> Statistics:
    """Return the statistics of some rows. `rows` has their positions, or is a mask."""
    return {name: values[rows] for name, values in statistics.items()}


def interval(metric: Metric, *runs: Statistics) -> list[float] | None:
    """Return the 95 % interval [low, high] of a metric, or of its mean over several `runs` (seeds) on the same rows.

    One run: a percentile bootstrap over rows, or Wilson's interval (1927) for a proportion. Several runs, or few rows: Student's t
    (`_student`). If the statistics have a `group`, whole groups of rows are resampled. Return None if all resamples are equal,
    because they say nothing about the variance, and for one row or group, unless the metric is a proportion.
    """
    n = _units(runs[0])
    if metric.proportion and len(runs) == 1 and "group" not in runs[0]:
        return wilson_interval(round(metric.of(runs[0]) * n), n)
    if n < 2:
        return None
    values = [metric.of(run) for run in runs]
    if metric.limits == (0, 1) and {*values} in ({0}, {1}):  # all resamples would be equal
        n = n if metric.proportion else _deciding(metric, runs[0])
        return wilson_interval(round(values[0] * n), n) if n else None
    to_scale, from_scale = (np.log, np.exp) if metric.log_scale else (np.asarray, np.asarray)
    resampled = to_scale(_resampled(metric, runs).mean(axis=0))
    if len({*values}) == 1 and np.ptp(resampled) < 1e-12:
        return None
    ends = _ends(to_scale(np.mean(values)), resampled, n, to_scale(values), percents=[2.5, 97.5])
    return np.clip(from_scale(ends), *metric.limits).tolist()


def difference(metric: Metric, a: Sequence[Statistics], b: Sequence[Statistics]) -> dict:
    """Return the metric of `a` minus that of `b` on the same rows: `difference`, `difference_ci95`, `difference_ci90` and `p`.

    `a` and `b` hold one run each, or one run per seed; then their means are compared.

                    intervals                     two-sided p                                  about
    one run each    paired bootstrap over rows    McNemar's exact test for a proportion, else  these two models
                                                  approximate randomisation (Noreen, 1989)
    several runs    Student's t (`_student`)      Student's t                                  the two ways to train

    With few rows, Student's t takes the place of the bootstrap. With fewer than two rows or groups, intervals and p are None. If
    the difference is the same in all resamples, for example because both runs predict the same, the interval of a proportion is as
    wide as Wilson's for 0 of `n` rows. Two one-sided tests at 5 % call `a` and `b` equal within a margin if the 90 % interval lies
    within it (TOST, Schuirmann 1987).
    """
    values = [[metric.of(run) for run in runs] for runs in (a, b)]
    center, n = float(np.mean(values[0]) - np.mean(values[1])), _units(a[0])
    if n < 2:
        return {"difference": center, "difference_ci95": None, "difference_ci90": None, "p": None}
    resampled = _resampled(metric, [*a, *b])
    differences = resampled[: len(a)].mean(axis=0) - resampled[len(a) :].mean(axis=0)
    one_run_each = len(a) == len(b) == 1
    ends = _ends(center, differences, n, *values, percents=[2.5, 97.5, 5, 95]).tolist()
    if one_run_each and metric.proportion and np.ptp(differences) == 0:
        margins = [wilson_interval(0, n, level)[1] for level in (0.95, 0.9)]
        ends = np.clip([center + sign * margin for margin in margins for sign in (-1, 1)], -1, 1).tolist()
    if not one_run_each:
        distribution = _student(center, differences, n, *values)
        p = float(2 * min(distribution.cdf(0), distribution.sf(0)))
    elif metric.proportion and "group" not in a[0]:
        p = _mcnemar(metric, a[0], b[0])
    else:
        p = _randomisation(metric, a[0], b[0])
    return {"difference": center, "difference_ci95": ends[:2], "difference_ci90": ends[2:], "p": p}


def by_length(metric: Metric, statistics: Statistics, lengths: np.ndarray, edges: Sequence[int]) -> list[dict]:
    """Return the metric and its interval for groups of rows by their `lengths`, (rows,).

    A group has the lengths above one of `edges`, up to the next. Left out are groups without rows, and those whose rows have no
    actual entity or label, as their F1 is 0 whatever the model predicts.
    """
    results = []
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        mask = (lengths > low) & (lengths <= (high or np.inf))
        if statistics.get("actual", mask)[mask].any():
            group = select(statistics, mask)
            scores = {metric.name: metric.of(group), f"{metric.name}_ci95": interval(metric, group)}
            results.append({"above": low, "up_to": high, "n": int(mask.sum())} | scores)
    return results


def _units(statistics: Statistics) -> int:
    """Return the number of rows, or of groups of rows, that are resampled."""
    return len(np.unique(statistics["group"])) if "group" in statistics else len(statistics["rows"])


def _deciding(metric: Metric, statistics: Statistics) -> int:
    """Return the number of rows or groups that decide a score of labels, such as F1: those with a label, or with the rarer one of two."""
    if "actual" not in statistics:
        return _units(statistics)
    columns = _columns(statistics)
    has_label = (columns["actual"] + columns["predicted"]) > 0  # (units, labels)
    if metric.rarer_decides and has_label.shape[1] == 2:
        return int(has_label.sum(axis=0).min())
    return int(has_label.any(axis=1).sum())


def _columns(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the statistics as (units, k), summed over the rows of each group."""
    columns = {name: values.reshape(len(values), -1).astype(np.float64) for name, values in statistics.items() if name != "group"}
    if "group" not in statistics:
        return columns
    _, groups = np.unique(statistics["group"], return_inverse=True)
    return {name: np.stack([np.bincount(groups, column) for column in values.T], axis=1) for name, values in columns.items()}


def _values(metric: Metric, statistics: Statistics, sums: dict[str, np.ndarray], whole: Sums | None = None) -> np.ndarray:
    """Return the values of the metric, (n,), for sums (n, k) of the columns of `statistics`. `whole` is as in `Sums`."""
    flat = {name for name, values in statistics.items() if values.ndim == 1}
    n, more = len(sums["rows"]), {} if whole is None else {"whole": whole}
    return np.array([metric.value({name: s[i, 0] if name in flat else s[i] for name, s in sums.items()} | more) for i in range(n)])


def _batches(units: int) -> list[int]:
    """Return the sizes of the batches in which `RESAMPLES` resamples are drawn."""
    size = max(1, min(RESAMPLES, MAX_NUMBERS_IN_MEMORY // units))
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


def _resampled(metric: Metric, runs: Sequence[Statistics]) -> np.ndarray:
    """Return the metric of each run for resamples of the rows or groups, (runs, `RESAMPLES`).

    The resamples are the same for all runs, and for the same number of rows or groups always the same.
    """
    columns, rng, values = [_columns(run) for run in runs], np.random.default_rng(0), []
    sums_of_all = [{name: values.sum(axis=0) for name, values in run.items()} for run in runs]
    parts = [column for by_name in columns for column in by_name.values()]
    joined, ends, n = np.concatenate(parts, axis=1), np.cumsum([part.shape[1] for part in parts]), len(parts[0])
    for size in _batches(n):
        resamples = rng.integers(0, n, (size, n))
        counts = np.stack([np.bincount(units, minlength=n) for units in resamples]).astype(np.float64)  # how often each was drawn
        sums = iter(np.split(counts @ joined, ends[:-1], axis=1))
        values.append(
            [
                _values(metric, run, {name: next(sums) for name in by_name}, whole)
                for run, by_name, whole in zip(runs, columns, sums_of_all, strict=True)
            ]
        )
    return np.concatenate(values, axis=1)


def _ends(center: float, resampled: np.ndarray, n: int, *seeds: Sequence[float], percents: list[float]) -> np.ndarray:
    """Return the ends of intervals around the estimate `center`: percentiles of the resamples for one run on many rows, else of
    Student's t. `seeds` are as in `_student`.

    The resamples are moved so that their mean is `center`. The two differ if the metric is no mean over rows, such as macro F1 with
    rare labels.
    """
    if n >= FEW and all(len(values) == 1 for values in seeds):
        return np.percentile(resampled, percents) + center - resampled.mean()
    return _student(center, resampled, n, *seeds).ppf(np.divide(percents, 100))


def _student(center: float, resampled: np.ndarray, n: int, *seeds: Sequence[float]) -> "rv_frozen":
    """Return Student's t distribution of the true value around the estimate `center`.

    The variance is the sum of two parts: that of the `n` rows or groups, as `resampled`, and for each list in `seeds` that of the
    mean of its values, one per seed. A list with one value gets the variance of the other list. The degrees of freedom are those of
    Welch and Satterthwaite (1946).
    """
    parts = [(resampled.var(ddof=1) * n / (n - 1), n - 1)]
    several = [values for values in seeds if len(values) > 1]
    if len(several) == 1:
        parts.append((np.var(several[0], ddof=1) * sum(1 / len(values) for values in seeds), len(several[0]) - 1))
    else:
        parts += [(np.var(values, ddof=1) / len(values), len(values) - 1) for values in several]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else 1
    return scipy.stats.t(freedom, loc=center, scale=np.sqrt(variance) or np.finfo(float).tiny)


def _randomisation(metric: Metric, a: Statistics, b: Statistics) -> float | None:
    """Return the two-sided p value of approximate randomisation: how often a random exchange of rows between the runs gives as
    large a difference. None if the difference is not finite."""
    columns_a, columns_b = _columns(a), _columns(b)
    observed, rng, n_as_large = abs(metric.of(a) - metric.of(b)), np.random.default_rng(0), 0
    if not np.isfinite(observed):
        return None
    for size in _batches(len(columns_a["rows"])):
        exchanged = rng.integers(0, 2, (size, len(columns_a["rows"]))).astype(np.float64)
        moved = {name: exchanged @ (columns_b[name] - columns_a[name]) for name in columns_a}
        sums_a = {name: columns_a[name].sum(axis=0) + moved[name] for name in columns_a}
        sums_b = {name: columns_b[name].sum(axis=0) - moved[name] for name in columns_b}
        differences = _values(metric, a, sums_a) - _values(metric, b, sums_b)
        n_as_large += int((np.abs(differences) >= observed * (1 - 1e-9)).sum())
    return (1 + n_as_large) / (1 + RESAMPLES)


def _mcnemar(metric: Metric, a: Statistics, b: Statistics) -> float:
    """Return the two-sided p value of McNemar's exact test."""
    correct_a, correct_b = (np.asarray(metric.value(run)) > 0.5 for run in (a, b))  # (rows,): of one row, the value is 0 or 1
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson_interval(correct: int, n: int, level: float = 0.95) -> list[float]:
    """Return the confidence interval [low, high] of the proportion `correct` / `n`, by Wilson's method (1927)."""
    interval = scipy.stats.binomtest(correct, n).proportion_ci(level, method="wilson")
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

    `error_by_chance` is the mean error of simulated, perfectly calibrated predictions with the same probabilities: it is above
    zero, because the predictions in a bin are few.

    `confidence` (n,) has the probabilities of the predictions, and `correct` (n,) whether each is right. A bin has the number of
    its predictions `n`, their mean probability `confidence`, and the fraction that is correct, `accuracy`. Empty bins are left out.
    """
    bin_numbers = np.minimum((confidence * bins).astype(int), bins - 1)

    def error_of(correct: np.ndarray) -> float:
        gaps = np.bincount(bin_numbers, confidence - correct, minlength=bins)
        return float(np.abs(gaps).sum() / max(len(correct), 1))

    rng = np.random.default_rng(0)
    by_chance = [error_of(rng.random(len(confidence)) < confidence) for _ in range(SIMULATIONS)]
    filled_bins = [
        {"n": int(mask.sum()), "confidence": float(confidence[mask].mean()), "accuracy": float(correct[mask].mean())}
        for mask in (bin_numbers == i for i in range(bins))
        if mask.any()
    ]
    errors = {"expected_calibration_error": error_of(correct), "error_by_chance": float(np.mean(by_chance))}
    return errors | {"bins": filled_bins}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of predictions that equal their labels, both (rows,), computed by Hugging Face's library `evaluate`."""
    from sklearn.metrics import accuracy_score  # delayed: it is slow to import, and predict.py does without it

    folder = str(importlib.metadata.distribution("evaluate").locate_file(""))
    if not hasattr(sys.modules.get("evaluate"), "Metric"):  # it is not loaded, or the script evaluate.py is in its place
        sys.modules.pop("evaluate", None)
    sys.path.insert(0, folder)  # before the folder of that script
    try:
        import evaluate
    finally:
        sys.path.remove(folder)
    features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
    methods = {
        "_info": lambda _: evaluate.MetricInfo(description="", citation="", features=features, format="numpy"),
        "_compute": lambda _, predictions, references: {"accuracy": accuracy_score(references, predictions)},
    }
    metric = type("Accuracy", (evaluate.Metric,), methods)(keep_in_memory=True)
    return float(metric.compute(predictions=predictions, references=labels)["accuracy"])
