"""Metrics compared with cases that were computed by hand or published."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from finetuning import console
from finetuning.results import bleu, evaluation, metrics, plots
from finetuning.results.entities import F1
from finetuning.results.label_report import F1_MACRO, f1, single
from finetuning.results.label_report import LOSS as MEAN_LOSS
from finetuning.task import Metric

pytestmark = pytest.mark.usefixtures("pictures")
ACCURACY = Metric("accuracy", lambda sums: sums["correct"] / sums["rows"], proportion=True, limits=(0, 1))


def correct(*right) -> dict[str, np.ndarray]:
    """Return the statistics of rows that are predicted correctly or not."""
    return {"rows": np.ones(len(right)), "correct": np.array(right)}


def test_accuracy_comes_from_the_evaluate_library_and_not_from_evaluate_py():
    assert metrics.accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])) == 0.75
    assert "site-packages" in sys.modules["evaluate"].__file__ and (ROOT / "evaluate.py").exists()


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_equal_those_of_newcombe_1998_table_1(correct, n, low, high):
    assert metrics.wilson_interval(correct, n) == pytest.approx([low, high], abs=5e-5)


def test_a_paired_difference_counts_the_rows_that_only_one_run_gets_right():
    a = np.array([True] * 90 + [False] * 10)
    b = np.array([True] * 80 + [False] * 10 + [True] * 2 + [False] * 8)  # 10 rows are correct in a alone, 2 in b alone
    difference = metrics.difference(ACCURACY, [correct(*a)], [correct(*b)])
    assert difference["difference"] == pytest.approx(0.08)
    assert difference["p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12), "two-sided: at most 2 heads or at most 2 tails in 12 tosses"
    by_normal = 1.96 * np.std(a.astype(float) - b) / 10
    assert difference["difference_ci95"] == pytest.approx([0.08 - by_normal, 0.08 + by_normal], abs=0.02)
    assert metrics.difference(ACCURACY, [correct(*a)] * 2, [correct(*b)])["p"] != difference["p"], "a test of ways to train"


# --- simulations: without a true difference, p is below 0.05 in 5 % of cases; 95 % of the intervals hold the true value -----------

SIMULATIONS = 400
LOSS = Metric("loss", lambda sums: sums["loss"] / sums["tokens"], better="lower")
PERPLEXITY = Metric("perplexity", lambda sums: np.exp(sums["loss"] / sums["tokens"]), better="lower", log_scale=True)


@pytest.fixture
def few_resamples(monkeypatch):
    """Enough for the mean over many simulations."""
    monkeypatch.setattr(metrics, "RESAMPLES", 200)


def fraction(events) -> float:
    return float(np.mean([*events]))


def seeds_of_one_method(rng: np.random.Generator, rows: np.ndarray, seeds: int, deviation: float = 0.05) -> list[dict]:
    """Return runs that get each row right with its own probability in `rows`, (rows,), changed by `deviation` from seed to seed."""
    return [correct(*(rng.random(len(rows)) < rows + rng.normal(0, deviation))) for _ in range(seeds)]


@pytest.mark.parametrize("seeds", [(3, 3), (2, 4), (1, 4)], ids=str)
def test_equal_methods_with_different_seeds_are_rarely_called_different(seeds, few_resamples):
    rng, differences = np.random.default_rng(0), []
    for _ in range(SIMULATIONS):
        rows = rng.beta(6, 1.5, 300)
        differences.append(metrics.difference(ACCURACY, *(seeds_of_one_method(rng, rows, n) for n in seeds)))
    assert 0.01 < fraction(result["p"] < 0.05 for result in differences) < 0.08
    assert 0.92 < fraction(result["difference_ci95"][0] <= 0 <= result["difference_ci95"][1] for result in differences) < 0.99


def test_the_interval_of_a_mean_over_seeds_holds_the_true_accuracy(few_resamples):
    rng, held = np.random.default_rng(0), []
    for _ in range(SIMULATIONS):
        low, high = metrics.interval(ACCURACY, *seeds_of_one_method(rng, rng.beta(6, 1.5, 300), 3))
        held.append(low <= 0.8 <= high)
    assert 0.92 < fraction(held) < 0.99


def documents(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return loss and tokens of `n` documents of different lengths."""
    tokens = rng.integers(50, 500, n).astype(float)
    return {"rows": np.ones(n), "tokens": tokens, "loss": tokens * rng.normal(3, 0.3, n)}


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_the_interval_of_perplexity_holds_the_true_one_with_few_documents(n, few_resamples):
    rng, held = np.random.default_rng(0), []
    for _ in range(SIMULATIONS):
        low, high = metrics.interval(PERPLEXITY, documents(rng, n))
        held.append(0 < low <= np.exp(3) <= high)
    assert 0.91 < fraction(held) <= 0.99
    assert metrics.interval(PERPLEXITY, documents(rng, 1)) is None


def sentences(rng: np.random.Generator, entities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the counts of a model that finds 85 % of the entities of each sentence, (rows,), and others that are none."""
    found = rng.binomial(entities, 0.85)
    counts = {"actual": entities, "predicted": found + rng.poisson(0.2, len(entities)), "true_positives": found}
    return {"rows": np.ones(len(entities))} | {name: values[:, None] for name, values in counts.items()}


def translations(rng: np.random.Generator, words: np.ndarray) -> dict[str, np.ndarray]:
    """Return sacreBLEU's counts of a model for references of this many words, (rows,): two lengths, n-grams that match, n-grams."""
    ngrams = (words[:, None] - np.arange(4)).clip(min=0)
    matches = rng.binomial(ngrams, [0.7, 0.5, 0.35, 0.25])
    return {"rows": np.ones(len(words)), "bleu": np.c_[words, words, matches, ngrams]}


@pytest.mark.parametrize("metric", ["F1 of entities", "BLEU"])
def test_two_equal_models_are_rarely_called_different_by_a_metric_of_sums(metric, few_resamples):
    rng, differences = np.random.default_rng(0), []
    for _ in range(SIMULATIONS // 2):
        rows = rng.poisson(1.6, 200) if metric != "BLEU" else rng.integers(5, 25, 200)
        pair = [(sentences if metric != "BLEU" else translations)(rng, rows) for _ in range(2)]
        differences.append(metrics.difference(F1 if metric != "BLEU" else bleu.METRICS[0], pair[:1], pair[1:]))
    assert 0.01 < fraction(result["p"] < 0.05 for result in differences) < 0.09
    assert 0.91 < fraction(result["difference_ci95"][0] <= 0 <= result["difference_ci95"][1] for result in differences) < 0.99


@pytest.mark.parametrize("seeds", [1, 3])
def test_two_methods_that_differ_by_the_margin_are_rarely_called_equal(seeds, few_resamples):
    """The two one-sided tests call them equal if the 90 % interval is within the margin."""
    rng, margin, equal = np.random.default_rng(0), 0.2, []
    deviation = 0.05 if seeds > 1 else 0  # with one run each, the test is about these two models
    for _ in range(SIMULATIONS // 2):
        rows = rng.uniform(0.1, 0.6, 300)
        sides = [seeds_of_one_method(rng, rows + shift, seeds, deviation) for shift in (margin, 0)]
        low, high = metrics.difference(ACCURACY, *sides)["difference_ci90"]
        equal.append(-margin < low and high < margin)
    assert 0.01 < fraction(equal) < 0.09


def test_two_equal_models_are_rarely_called_different_by_accuracy_or_loss(few_resamples):
    """One run each: McNemar's test for accuracy, approximate randomisation for a ratio of sums."""
    rng, results = np.random.default_rng(0), []
    for _ in range(SIMULATIONS):
        a, b = documents(rng, 60), documents(rng, 60)
        b["tokens"] = a["tokens"]
        b["loss"] = a["loss"] + a["tokens"] * rng.normal(0, 0.1, 60)
        rows = rng.beta(6, 1.5, 300)
        accuracies = ([correct(*(rng.random(300) < rows))] for _ in range(2))
        results.append((metrics.difference(LOSS, [a], [b]), metrics.difference(ACCURACY, *accuracies)))
    p = [[result["p"] for result in pair] for pair in results]
    for intervals in zip(*([result["difference_ci95"] for result in pair] for pair in results), strict=True):
        assert 0.91 < fraction(low <= 0 <= high for low, high in intervals) < 0.99
    assert all(0.01 < fraction(p < 0.05 for p in values) < 0.08 for values in zip(*p, strict=True))
    assert fraction(values[0] > 0.5 for values in p) > 0.4, "p values of no difference are spread from 0 to 1"


def test_intervals_of_rows_that_belong_together_resample_whole_groups(few_resamples):
    rng, held = np.random.default_rng(0), {True: [], False: []}
    for _ in range(SIMULATIONS):
        rows = np.repeat(rng.beta(4, 1, 50), 10)  # 50 documents of 10 sentences
        statistics = correct(*(rng.random(500) < rows))
        for grouped in held:
            low, high = metrics.interval(ACCURACY, statistics | ({"group": np.arange(500) // 10} if grouped else {}))
            held[grouped].append(low <= 0.8 <= high)
    assert 0.91 < fraction(held[True]) < 0.99 and fraction(held[False]) < 0.9


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    loss = np.random.default_rng(0).exponential(size=500)
    mean = Metric("loss", lambda sums: sums["loss"] / sums["rows"], better="lower")
    error = 1.96 * loss.std() / 500**0.5
    interval = metrics.interval(mean, {"rows": np.ones(500), "loss": loss})
    assert interval == pytest.approx([loss.mean() - error, loss.mean() + error], abs=0.02)
    assert metrics.interval(mean, {"rows": np.ones(1), "loss": loss[:1]}) is None


def test_temperature_scaling_equals_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    true = generator.normal(size=(4000, 3)) * 2
    labels = np.array([generator.choice(3, p=row) for row in softmax(true, axis=1)])
    overconfident = 2.5 * true
    temperature = metrics.fit_temperature(overconfident, labels)
    assert temperature == pytest.approx(2.5, rel=0.1)

    class Logits(ClassifierMixin, BaseEstimator):  # scikit-learn scales the decision function of a fitted classifier
        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x):
            return x

        def predict(self, x):
            return x.argmax(axis=1)

    scaled = CalibratedClassifierCV(FrozenEstimator(Logits().fit(overconfident, labels)), method="temperature").fit(
        overconfident, labels
    )
    np.testing.assert_allclose(softmax(overconfident / temperature, axis=1), scaled.predict_proba(overconfident), atol=2e-3)
    before, after = (calibration(softmax(x, axis=1), labels) for x in (overconfident, overconfident / temperature))
    assert before["expected_calibration_error"] > 0.1 > 0.03 > after["expected_calibration_error"]


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict:
    return metrics.reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def test_the_calibration_error_equals_the_one_computed_by_hand():
    confident = [[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2  # 0.9 sure, right in 7 of 10
    unsure = [[0.6, 0.4]] * 10  # 0.6 sure, right in 8 of 10
    labels = np.array([0] * 6 + [1] * 2 + [1, 0] + [0] * 8 + [1] * 2)
    result = calibration(np.array(confident + unsure), labels, bins=10)
    assert result["expected_calibration_error"] == pytest.approx((10 * 0.2 + 10 * 0.2) / 20)
    assert 0.05 < result["error_by_chance"] < 0.25, "two bins of ten: the fraction of a calibrated model is off by about 0.1"
    assert [(b["n"], b["accuracy"]) for b in result["bins"]] == [(10, pytest.approx(0.8)), (10, pytest.approx(0.7))]
    assert metrics.fit_temperature(np.array([[4.0, 0.0]] * 8), np.zeros(8, dtype=int)) > 1, "all eight are correct"
    assert calibration(np.eye(2), np.array([0, 1]))["expected_calibration_error"] == 0, "a probability of 1 has a bin"


def test_groups_of_lengths_count_every_text_once():
    lengths = np.array([3, 64, 65, 128, 300, 512, 513, 2000])
    rows = correct(True, True, True, False, True, True, False, False)
    groups = metrics.by_length(ACCURACY, rows, lengths, (0, 64, 128, 256, 512))
    assert [(group["above"], group["up_to"], group["n"], group["accuracy"]) for group in groups] == [
        (0, 64, 2, 1.0), (64, 128, 2, 0.5), (256, 512, 2, 1.0), (512, None, 2, 0.0),
    ]  # fmt: skip
    assert groups[0]["accuracy_ci95"] == metrics.wilson_interval(2, 2)


def test_an_interval_of_macro_f1_holds_its_estimate_although_resamples_lack_labels(few_resamples):
    rng, actual = np.random.default_rng(0), np.eye(77)[np.repeat(np.arange(77), 2)]
    for _ in range(12):
        predicted = np.where(rng.random((154, 1)) < 0.85, actual, np.eye(77)[rng.integers(77, size=154)])
        statistics = {"rows": np.ones(154), "actual": actual, "predicted": predicted, "true_positives": actual * predicted}
        low, high = metrics.interval(F1_MACRO, statistics)
        assert low < F1_MACRO.of(statistics) < high


def few_positive(n: int, right: bool) -> dict[str, np.ndarray]:
    """Return the statistics of 1,000 rows with `n` of the second label; all others are right."""
    actual = np.eye(2)[(np.arange(1_000) < n).astype(int)]
    predicted = actual if right else np.eye(2)[np.zeros(1_000, dtype=int)]
    return {"rows": np.ones(1_000), "actual": actual, "predicted": predicted, "true_positives": actual * predicted}


def test_an_interval_of_macro_f1_holds_its_estimate_although_a_rare_label_is_never_predicted():
    statistics = few_positive(3, right=False)
    low, high = metrics.interval(F1_MACRO, statistics)
    assert low < F1_MACRO.of(statistics) < high < 0.501


@pytest.mark.parametrize(("right", "expected"), [(False, (0, 10)), (True, (10, 10))])
def test_an_f1_of_0_or_1_has_the_interval_of_the_rows_with_the_rare_label(right, expected):
    metric = Metric("f1", single(f1), limits=(0, 1), rarer_decides=True)
    assert metrics.interval(metric, few_positive(10, right)) == metrics.wilson_interval(*expected)
    assert metrics.interval(metric, few_positive(0, right=True)) is None, "no row has the label"


def test_a_rare_label_does_not_decide_a_micro_f1_of_1():
    statistics = few_positive(3, right=True)
    assert metrics.interval(F1, statistics) == metrics.wilson_interval(1_000, 1_000)


def test_small_errors_are_shown_with_their_first_digits():
    assert (MEAN_LOSS.show(0.123456), MEAN_LOSS.show(0.0), MEAN_LOSS.show(0.0000123), ACCURACY.show(0.00001)) == (
        "0.1235",
        "0.0000",
        "1.2e-05",
        "0.0000",
    )
    assert replace(MEAN_LOSS, format=".2%").show(0.6889) == "68.89%"


def test_groups_of_rows_that_are_all_right_have_an_interval():
    groups = np.arange(120) // 3
    assert metrics.interval(ACCURACY, correct(*[1] * 120) | {"group": groups}) == metrics.wilson_interval(40, 40)


def test_the_confusion_matrix_is_drawn_with_many_labels_and_empty_rows(tmp_path):
    for k in (2, 12):
        names = [*("$0-$50", "a$\\x$b")[:k], *(f"label {i}" for i in range(2, k))]
        counts = np.diag(range(k)).tolist()
        about = dict(
            model="tiny", model_origin="hub", dataset="prices_in_$_and_$", dataset_origin="hub", split="held out from train", n=3
        )
        title = plots.title(ACCURACY, about | dict(accuracy=1.0, accuracy_ci95=[0.5, 1.0]))
        plots.plot_confusion_matrix(counts, (names, names), title, tmp_path / "p.png")
        picture = matplotlib.image.imread(tmp_path / "p.png")
        assert min(picture.shape[:2]) > 600 and picture[..., :3].std() > 0.05


def test_perplexities_of_different_tokens_are_not_compared():
    tokens = np.array([5.0, 7.0, 9.0])
    run = {"rows": np.ones(3), "loss": 2 * tokens, "tokens": tokens}
    task = SimpleNamespace(metrics=(PERPLEXITY,))
    assert [result["difference"] for result in evaluation.differences(task, run, run)] == [0]
    assert evaluation.differences(task, run, run | {"tokens": tokens + 1}) == []


def test_a_run_with_groups_of_rows_is_compared_with_one_without():
    one = correct(*[1, 1, 0, 1] * 15)
    other = correct(*[1, 0, 0, 1] * 15) | {"group": np.arange(60) // 4}
    first, second = (
        evaluation.differences(SimpleNamespace(metrics=(ACCURACY,)), *runs)[0] for runs in ((one, other), (other, one))
    )
    assert first["difference"] == 0.25 == -second["difference"]
    low, high = first["difference_ci95"]
    assert low < 0.25 < high, "each group has the same difference, but there are only 15 groups"


def test_resamples_that_are_all_equal_are_not_taken_for_certainty():
    same = metrics.difference(ACCURACY, [correct(*[1, 0] * 6)], [correct(*[1, 0] * 6)])
    limit = metrics.wilson_interval(0, 12)[1]
    assert (same["difference"], same["p"]) == (0, 1) and same["difference_ci95"] == pytest.approx([-limit, limit])
    assert 0 < same["difference_ci90"][1] < limit
    low, high = metrics.difference(ACCURACY, [correct(1, 1)], [correct(0, 0)])["difference_ci95"]
    assert low < 0.5 < high == 1
    first_of_two = {"rows": np.ones(9), "actual": np.ones((9, 2)), "predicted": np.eye(2)[[0] * 9]}
    assert metrics.interval(F1_MACRO, first_of_two | {"true_positives": first_of_two["predicted"]}) is None
    low, high = metrics.interval(ACCURACY, *[correct(1, 1, 1)] * 3)
    assert low < 0.9 and high == 1
    broken = {"rows": np.ones(3), "loss": np.array([1, np.nan, 2]), "tokens": np.ones(3)}
    assert metrics.difference(LOSS, [broken], [broken | {"loss": np.ones(3)}])["p"] is None


def test_a_comparison_on_one_row_is_printed_without_an_interval(capsys):
    result = {"metric": "accuracy", "values": [0.0, 1.0], "n": 1} | metrics.difference(ACCURACY, [correct(0)], [correct(1)])
    console.show_comparison(SimpleNamespace(metrics=(ACCURACY,)), ("a", "b"), [result], Path("differences.csv"))
    printed = capsys.readouterr().out
    assert "-1.0000" in printed and " to " not in printed


def test_a_right_answer_of_one_word_has_a_chrf_of_100():
    assert bleu.sentence_chrf(["no", "Paris", "42"], [["no"], ["London", "Paris"], ["42"]]) == [100, 100, 100]
