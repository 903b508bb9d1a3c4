"""Tasks with one label or several per text: columns, truncation, losses, metrics and reports, compared with cases by hand."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import make_model
from datasets import Dataset, List, Value

from config import Config
from finetuning.data.labels import encode_labels
from finetuning.data.sources import find_model
from finetuning.data.splits import Split
from finetuning.errors import UserError
from finetuning.model.base import load_tokenizer
from finetuning.results import evaluation, label_report, plots
from finetuning.task import Evaluation
from finetuning.tasks.classification import MultiLabel, SingleLabel

pytestmark = pytest.mark.usefixtures("pictures")
SINGLE, SEVERAL = SingleLabel(), MultiLabel()
PAIRS = Config(text_pair_column="b", max_length=12)


def evaluated(task, logits, labels, names: list[str], calibration: dict | None = None, **about) -> Evaluation:
    """Return an evaluation of texts with 5 tokens each, with its metrics."""
    n = len(labels)
    split = Split(Dataset.from_dict({"text": [f"text {i}" for i in range(n)]}), np.arange(n), labels, np.zeros(n))
    calibration = calibration or task.calibrate(None, logits, split)
    unmeasured = Evaluation(logits, split, np.full(n, 5), names, calibration, Config())
    measured = evaluation.measure(task, unmeasured)
    return replace(measured, metrics=measured.metrics | calibration | about)


# --- columns and labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "labels", "task"),
    [
        ({}, ["a", "b"], SingleLabel),
        ({}, [["a", "b"], ["b"]], MultiLabel),
        ({}, [["a"], ["b"]], SingleLabel),
        (dict(label_column="x,y"), [0, 1], MultiLabel),
        (dict(problem_type="single_label_classification"), ["a", "b"], SingleLabel),
    ],
)
def test_the_label_column_decides_between_one_label_and_several(settings, labels, task):
    rows = Dataset.from_dict({"text": ["s", "t"], "label": labels, "x": [0, 1], "y": [1, 0]})
    chosen, config = SINGLE.settle(rows, Config(**settings))
    assert type(chosen) is task and config.problem_type == task.problem_type


def test_a_number_that_is_nan_is_a_missing_label():
    with pytest.raises(UserError, match="no labels in it"):
        encode_labels({"train": Dataset.from_dict({"label": [None, float("nan")]})}, "label")


# --- truncation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="module")
def tokenizer(bert):
    return load_tokenizer(SINGLE, find_model(str(bert)), Config())


def test_the_longer_text_of_a_pair_is_truncated_and_token_types_stay_aligned(bert, tokenizer):
    numbers = [str(i) for i in range(20)]
    texts = {"text": [" ".join(numbers), "a"], "text_pair": ["we loved it", "it"]}
    rows = SINGLE.tokenize(texts, tokenizer, PAIRS)
    assert tokenizer.convert_ids_to_tokens(rows["input_ids"][0])[1:7] == numbers[:6]
    of_end = replace(PAIRS, truncation="tail")
    last = SINGLE.tokenize(texts, load_tokenizer(SINGLE, find_model(str(bert)), of_end), of_end)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(last)[1:7] == numbers[-6:]
    assert rows["length"][0] > 20 and [len(ids) for ids in rows["input_ids"]] == [12, rows["length"][1]]
    assert rows["input_ids"][0][-4:-1] == tokenizer.convert_tokens_to_ids(["we", "loved", "it"])
    assert [len(types) for types in rows["token_type_ids"]] == [len(ids) for ids in rows["input_ids"]]
    assert SINGLE.features(tokenizer, PAIRS).keys() == rows.keys() and SINGLE.shorten(tokenizer, PAIRS, 8) is None


def test_notes_name_the_truncation_that_is_applied():
    assert SINGLE.truncation_note(Config()) == "truncation=head+tail"
    assert SINGLE.truncation_note(PAIRS) == "the longer text of a pair is cut first, at its end"
    assert SINGLE.truncation_note(replace(PAIRS, truncation="tail")) == "the longer text of a pair is cut first, at its start"
    metrics = {"calibration": {"scaled": {"expected_calibration_error": 0.01}}, "temperature": 1.0}
    remark = SINGLE.remark(metrics | {"run": {"config": {"text_pair_column": "b"}}})
    assert "the longer text of a pair is cut first" in remark and "head+tail" not in remark


@pytest.mark.parametrize("second", [None, "we loved every minute of it"], ids=["a text", "a pair"])
def test_a_longer_text_is_refused_where_truncation_is_error(second, tokenizer):
    batch = {"text": ["a film", "a " * 20]} | ({"text_pair": [second, second]} if second else {})
    with pytest.raises(UserError, match="tokens is longer than max_length=12: raise it, or set truncation to head"):
        SINGLE.tokenize(batch, tokenizer, Config(text_pair_column=second and "b", max_length=12, truncation="error"))


# --- metrics -------------------------------------------------------------------------------------------------------------


def logits_for(predictions, k=2):
    return np.eye(k, dtype=np.float32)[predictions] * 2


def test_metrics_of_two_labels_equal_those_computed_by_hand():
    labels = np.array([0] * 50 + [1] * 50)
    predictions = np.array([0] * 45 + [1] * 5 + [0] * 10 + [1] * 40)
    metrics = evaluated(SINGLE, logits_for(predictions), labels, ["neg", "pos"]).metrics
    assert metrics["confusion_matrix"] == [[45, 5], [10, 40]], "rows actual, columns predicted"
    assert metrics["accuracy"] == 0.85 and metrics["n"] == 100
    assert (metrics["precision"], metrics["recall"]) == pytest.approx((40 / 45, 40 / 50))
    assert metrics["f1"] == pytest.approx(80 / 95) and metrics["f1_macro"] == pytest.approx((90 / 105 + 80 / 95) / 2)
    assert metrics["roc_auc"] == pytest.approx((0.9 + 0.8) / 2)
    right, wrong = -np.log(1 / (1 + np.exp(-2))), -np.log(1 / (1 + np.exp(2)))
    assert metrics["loss"] == pytest.approx(0.85 * right + 0.15 * wrong)
    for name in ("accuracy", "f1", "f1_macro", "loss"):
        low, high = metrics[f"{name}_ci95"]
        assert low < metrics[name] < high


def test_metrics_with_a_label_that_the_test_split_lacks():
    metrics = evaluated(SINGLE, logits_for([0, 0, 1, 2], k=3), np.array([0, 0, 1, 1]), ["a", "b", "c"]).metrics
    assert metrics["averaged"] == "macro" and metrics["roc_auc"] is None
    assert metrics["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["f1"] == metrics["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3), "c is predicted, so it counts"
    metrics = evaluated(SINGLE, logits_for([0, 0, 1, 1], k=3), np.array([0, 0, 1, 1]), ["a", "b", "c"]).metrics
    assert metrics["f1"] == metrics["f1_macro"] == 1, "c is neither actual nor predicted"


def test_metrics_of_several_labels_equal_those_computed_by_hand():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=np.float32)
    predicted = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    logits = ((predicted * 2 - 1) * 3).astype(np.float32)
    metrics = evaluated(SEVERAL, logits, labels, ["a", "b", "c"], dict(temperature=1.0, threshold=0.5)).metrics
    assert metrics["accuracy"] == 0.5 and (metrics["precision"], metrics["recall"]) == (3 / 4, 3 / 4)
    assert metrics["f1"] == 3 / 4 and metrics["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert [label["n"] for label in metrics["by_label"]] == [2, 2, 0]
    wrong, right = np.log1p(np.exp(3)), np.log1p(np.exp(-3))
    assert metrics["loss"] == pytest.approx((2 * wrong + 10 * right) / 12)


def test_temperature_and_threshold_change_the_predicted_labels_but_not_the_loss():
    logits, labels = np.array([[2.0, -1.0], [0.5, 3.0]], dtype=np.float32), np.array([[1, 0], [0, 1]], dtype=np.float32)
    for threshold, accuracy in ((0.5, 0.5), (0.6, 1.0)):  # at a temperature of 2 the third probability is 0.56
        metrics = evaluated(SEVERAL, logits, labels, ["a", "b"], dict(temperature=2.0, threshold=threshold)).metrics
        assert metrics["accuracy"] == accuracy
        assert metrics["loss"] == pytest.approx(np.log1p(np.exp([-2, -1, 0.5, -3])).mean())


def test_the_threshold_of_a_validation_is_that_of_the_finished_run():
    """Labels with probabilities of a fifth, of which a half are right: the best threshold for micro F1 is far below 0.5."""
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 4)) < 0.2).astype(np.float32)
    logits = (rng.normal(-2, 1, (500, 4)) + 2 * labels).astype(np.float32)
    example = evaluated(SEVERAL, logits, labels, ["a", "b", "c", "d"], dict(temperature=1.0, threshold=0.5))
    during_training = SEVERAL.statistics(logits, example.split, {})
    fitted = SEVERAL.calibrate(None, logits, example.split)
    finished = SEVERAL.statistics(logits, example.split, fitted)
    f1 = SEVERAL.metrics[0]
    assert f1.name == "f1" and fitted["threshold"] < 0.45 and f1.of(during_training) == f1.of(finished) > example.metrics["f1"]


def test_the_calibration_of_several_labels_is_that_of_the_labels_that_are_given():
    """Nine of ten labels are rightly absent, with a probability near 0; the given ones say 0.75 and half of them are right."""
    labels = np.zeros((200, 10), dtype=np.float32)
    labels[:100, 0] = 1
    logits = np.full((200, 10), -6, dtype=np.float32)
    logits[:, 0] = np.log(3)
    metrics = evaluated(SEVERAL, logits, labels, [*"abcdefghij"], dict(temperature=1.0, threshold=0.5)).metrics
    assert metrics["calibration"]["scaled"]["expected_calibration_error"] == pytest.approx(0.25)


# --- losses --------------------------------------------------------------------------------------------------------------


def test_the_loss_of_several_labels_applies_smoothing_and_class_weights():
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 0], [1, 1]])
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    if_true, if_false = (torch.nn.functional.softplus(sign * logits) for sign in (-1, 1))

    def loss(**settings) -> float:
        return float(SEVERAL.loss_function(labels.numpy(), 2, Config(**settings))(logits, labels))

    assert loss() == pytest.approx(float((labels * if_true + (1 - labels) * if_false).sum()), rel=1e-5)
    soft = 0.8 * labels + 0.1
    assert loss(label_smoothing_factor=0.2) == pytest.approx(float((soft * if_true + (1 - soft) * if_false).sum()), rel=1e-5)
    weights = torch.tensor([1.0, 3.0])  # two of four have the first label, one of four the second
    expected = (weights * labels * if_true + (1 - labels) * if_false).sum()
    assert loss(class_weights="balanced") == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_give_classes_equal_totals_and_a_mean_of_one():
    labels = np.array([0] * 90 + [1] * 10)
    logits = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    plain = SINGLE.loss_function(labels, 2, Config())
    balanced = SINGLE.loss_function(labels, 2, Config(class_weights="balanced"))
    losses = [[float(loss(logits[labels == k], torch.tensor(labels[labels == k]))) for k in (0, 1)] for loss in (plain, balanced)]
    assert losses[1] == pytest.approx([losses[0][0] * 100 / 180, losses[0][1] * 100 / 20])
    assert float(balanced(torch.zeros(100, 2), torch.tensor(labels))) == pytest.approx(100 * np.log(2))


def test_smoothing_keeps_the_weight_of_each_text():
    """The probability of a rare label with the smallest loss, for a text without it, is its share of the smoothed label."""
    config, z = Config(class_weights="balanced", label_smoothing_factor=0.1), torch.linspace(-6, 6, 601)
    rare = np.zeros((1000, 1), dtype=np.float32)
    rare[:10] = 1
    several, one = SEVERAL.loss_function(rare, 1, config), SINGLE.loss_function(rare[:, 0].astype(int), 2, config)
    losses_of_several = torch.stack([several(value.view(1, 1), torch.zeros(1, 1)) for value in z])
    losses_of_one = torch.stack([one(torch.stack([value * 0, value])[None], torch.tensor([0])) for value in z])
    for losses in (losses_of_several, losses_of_one):
        assert float(z[losses.argmin()].sigmoid()) == pytest.approx(0.05, abs=0.01)


# --- report --------------------------------------------------------------------------------------------------------------

ABOUT = dict(model="tiny", model_origin="hub", dataset="rows", dataset_origin="hub", split="held out from train")
ABOUT |= dict(validation={"accuracy": 0.5, "n": 3, "split": "held out from train"}, run={"config": {}})


def draw_all(sections, folder) -> None:
    for section in sections:
        for picture in section.pictures:
            picture.draw(folder / f"{picture.name}.png")


def test_many_labels_get_a_small_picture_and_a_table_of_confusions(tmp_path):
    k, generator = 77, np.random.default_rng(0)
    names = [f"balance_not_updated_after_cheque_or_cash_deposit_{i}" for i in range(k)]
    labels = np.repeat(np.arange(k), 10)
    predictions = np.where(generator.random(10 * k) < 0.1, generator.integers(k, size=10 * k), labels)
    predictions[:6] = 1  # rows with label 0
    example = evaluated(SINGLE, logits_for(predictions, k), labels, names, **ABOUT)
    sections = SINGLE.report(example)
    draw_all(sections, tmp_path)
    for file in tmp_path.glob("*.png"):
        picture = matplotlib.image.imread(file)
        assert max(picture.shape[:2]) <= 2000 and picture[..., :3].std() > 0.02, file
    tables = [table for table in sections[0].tables if table.in_terminal]
    assert tables[0].rows[0][0] == f"{names[0]}, predicted as {names[1]}" and int(tables[0].rows[0][1]) >= 6
    assert sections[-1].examples[0][0] == tables[0].rows[0][0] and len(sections[-1].examples) <= 20


def test_the_confusion_matrix_of_two_labels_is_printed(tmp_path):
    example = evaluated(SINGLE, logits_for([0, 1, 1]), np.array([0, 0, 1]), ["neg", "pos"], **ABOUT)
    sections = SINGLE.report(example)
    draw_all(sections, tmp_path)
    assert matplotlib.image.imread(tmp_path / "confusion_matrix.png").shape[:2] == (720, 720)
    assert sections[0].tables[0].rows == [("neg", "1", "1"), ("pos", "0", "1")]
    wrong, lines = SINGLE.errors(example)
    assert lines(wrong).to_dict("list") | {"probability": 0} == dict(
        row=[1], text=["text 1"], actual=["neg"], predicted=["pos"], probability=0, tokens=[5], truncated=[False]
    )


def test_a_test_split_of_one_row_is_reported(tmp_path):
    for task, labels in ((SINGLE, np.array([1])), (SEVERAL, np.array([[0, 1]], dtype=np.float32))):
        draw_all(task.report(evaluated(task, logits_for([0]), labels, ["neg", "pos"], **ABOUT)), tmp_path)


def test_confused_labels_are_listed_by_frequency():
    assert label_report.most_confused([[5, 1, 0], [0, 5, 3], [2, 0, 5]]) == [(1, 2), (2, 0), (0, 1)]


def test_long_names_are_shortened_and_can_be_told_apart():
    names = ["balance_not_updated_after_bank_transfer", "balance_not_updated_after_cheque_or_cash_deposit"]
    short = [plots.shorten(name) for name in names]
    assert len({*short}) == 2 and max(map(len, short)) <= 36 and plots.shorten("age_limit") == "age_limit"


def test_each_label_has_a_bar_and_a_name_in_the_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    names = [f"{'a' * 20}{middle}{'b' * 20}" for middle in ("one", "two")]  # shortened, they are equal
    plots.plot_by_label([dict(label=name, f1=0.5, n=10) for name in names], tmp_path / "bars.png")
    assert len({bar.get_y() for bar in figures[0].axes[0].patches}) == 2
    label = (np.array([0, 1, 1, 0]), np.array([0.1, 0.2, 0.9, 0.4]))
    plots.plot_curves("roc", {"__label__pos": label, "neg": label}, tmp_path / "roc.png")
    shown = [text.get_text() for text in figures[1].axes[0].get_legend().get_texts()]
    assert [text.split()[0] for text in shown] == ["__label__pos", "neg"]


def test_the_picture_of_calibration_is_drawn_without_predictions(tmp_path):
    nothing = {"expected_calibration_error": 0.0, "bins": []}
    plots.plot_reliability(nothing, nothing, tmp_path / "reliability.png")
    assert matplotlib.image.imread(tmp_path / "reliability.png").shape[0] > 600


def test_predictions_without_any_label_keep_the_type_of_their_column(tmp_path):
    logits, labels = np.full((2, 2), -3, dtype=np.float32), np.zeros((2, 2), dtype=np.float32)
    example = evaluated(SEVERAL, logits, labels, ["a", "b"], dict(temperature=1.0, threshold=0.5))
    evaluation._write_table(tmp_path / "rows.parquet", {"row": example.split.rows} | example.columns)
    table = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table.features["prediction"] == List(Value("string")) and table["label"][:] == [[], []]
