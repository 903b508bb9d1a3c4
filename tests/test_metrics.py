"""Metrics against cases computed by hand or published."""

import sys

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT

from finetuning import metrics, plots


def logits_for(labels, predictions, k=2):
    return np.eye(k)[predictions] * 2.0


def test_accuracy_goes_through_the_evaluate_library_in_spite_of_the_script_of_that_name():
    assert "site-packages" in metrics.evaluate.__file__ and (ROOT / "evaluate.py").exists()
    assert issubclass(metrics.Accuracy, metrics.evaluate.Metric) and sys.modules["evaluate"] is metrics.evaluate
    assert metrics.Accuracy(keep_in_memory=True).compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1]) == {"accuracy": 0.75}


def test_two_labels():
    labels = np.array([0] * 50 + [1] * 50)
    predictions = np.array([0] * 45 + [1] * 5 + [0] * 10 + [1] * 40)
    found = metrics.classification_metrics(logits_for(labels, predictions), labels, ["neg", "pos"])
    assert found["confusion_matrix"] == [[45, 5], [10, 40]], "rows actual, columns predicted"
    assert found["accuracy"] == 0.85 and found["n"] == 100
    assert (found["precision"], found["recall"]) == pytest.approx((40 / 45, 40 / 50))
    assert found["f1"] == pytest.approx(80 / 95)
    assert found["roc_auc"] == pytest.approx((0.9 + 0.8) / 2)
    right, wrong = -np.log(1 / (1 + np.exp(-2))), -np.log(1 / (1 + np.exp(2)))
    assert found["loss"] == pytest.approx(0.85 * right + 0.15 * wrong)


def test_more_labels_and_one_that_is_missing_from_the_test():
    labels = np.array([0, 0, 1, 1])
    found = metrics.classification_metrics(logits_for(labels, np.array([0, 0, 1, 2]), k=3), labels, ["a", "b", "c"])
    assert found["averaged"] == "macro" and found["roc_auc"] is None
    assert found["recall"] == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_newcombe_1998_table_1(correct, n, low, high):
    assert metrics.wilson_interval(correct, n) == pytest.approx([low, high], abs=5e-5)


def test_a_paired_difference_counts_the_rows_that_one_alone_gets_right():
    a = np.array([True] * 90 + [False] * 10)
    b = np.array([True] * 80 + [False] * 10 + [True] * 2 + [False] * 8)  # 10 rows a alone, 2 rows b alone
    found = metrics.paired_difference(a, b)
    assert found["difference"] == pytest.approx(0.08)
    assert found["mcnemar_p"] == [pytest.approx(2 * (1 + 12 + 66) / 2**12)], "12 tosses, 2 or fewer of one kind, either side"
    by_normal = 1.96 * np.std(a.astype(float) - b) / 10
    assert found["difference_ci95"] == pytest.approx([0.08 - by_normal, 0.08 + by_normal], abs=0.02)
    seeds = metrics.paired_difference(np.stack([a, b]), np.stack([b, b]))
    assert seeds["difference"] == pytest.approx(0.04) and seeds["mcnemar_p"][1] == 1


def test_the_plot_is_a_picture_even_with_many_labels_and_empty_rows(tmp_path):
    for k in (2, 12):
        names = [f"label {i}" for i in range(k)]
        counts = np.diag(range(k)).tolist()
        about = dict(model="tiny", model_origin="hub", dataset="rows", dataset_origin="hub", split="held out from train", n=3)
        plots.plot_confusion_matrix(
            about | dict(confusion_matrix=counts, label_names=names, accuracy=1.0, accuracy_ci95=[0.5, 1.0]), tmp_path / "p.png"
        )
        picture = matplotlib.image.imread(tmp_path / "p.png")
        assert min(picture.shape[:2]) > 600 and picture[..., :3].std() > 0.05
