"""Values that label and text columns may hold, with the notes and errors about them."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, LargeList, List, Value

from config import Config
from finetuning import tasks
from finetuning.data import labels
from finetuning.data.splits import load_data
from finetuning.errors import UserError
from finetuning.task import Rows

TEXT, SEVERAL, ONE, NUMBERS = Value("string"), "multi_label_classification", "single_label_classification", "regression"


def read(splits: dict[str, dict[str, list]], features: dict | None = None, **settings) -> tuple[Rows, str]:
    """Return the rows that a task reads from columns, and the problem type that it chose."""
    raw = {
        name: Dataset.from_dict(columns, features=Features({column: (features or {}).get(column, TEXT) for column in columns}))
        for name, columns in splits.items()
    }
    config = Config(**settings)
    task, config = tasks.pick(config).settle(raw["train"], config)
    return task.read(raw, task.columns(raw["train"].column_names, config), config), config.problem_type


def read_labels(values: list, feature=TEXT, **settings) -> tuple[Rows, str]:
    columns = {"text": [f"text {i}" for i in range(len(values))], "label": values}
    return read({"train": columns}, {"label": feature}, **settings)


def sets_of(rows: Rows) -> list[list[str]]:
    return [[rows.label_names[i] for i in np.flatnonzero(row)] for row in rows.labels["train"]]


NUMBER_LISTS = List(Value("int64"))


@pytest.mark.parametrize(
    ("values", "feature", "sets", "note"),
    [
        ([["b", " a "], [], None, ["b", ""]], List(TEXT), [["a", "b"], [], [], ["b"]], "it holds lists; 2 texts have no label"),
        ([["b", "a"], ["b"]], LargeList(TEXT), [["a", "b"], ["b"]], "holds lists"),
        ([["a", 1], [True], "a"], Json(), [["1", "a"], ["true"], ["a"]], "holds lists"),
        ([[10, 9], [2]], NUMBER_LISTS, [["9", "10"], ["2"]], "holds lists"),
        ([[1.0, 2.0], [1.0]], List(Value("float64")), [["1", "2"], ["1"]], "holds lists"),
        ([[0], [0, 1], [1]], NUMBER_LISTS, [["0"], ["0", "1"], ["1"]], "holds lists"),
        (["['b', 'a']", "['b']", "[]", None], TEXT, [["a", "b"], ["b"], [], []], "written as text"),
        (['["b", "\\u00e9"]', '["b"]'], TEXT, [["b", "é"], ["b"]], "written as text"),
        (["('b', 'a')", "('b',)"], TEXT, [["a", "b"], ["b"]], "written as text"),
        (["{'b', 'a'}", "set()"], TEXT, [["a", "b"], []], "written as text"),
        (["['b' 'a']", "['b'\n 'c d']"], TEXT, [["a", "b"], ["b", "c d"]], "written as text"),
        (["[np.str_('b'), np.str_('a')]", "[np.str_('b')]"], TEXT, [["a", "b"], ["b"]], "written as text"),
        (["array(['b', 'a'], dtype=object)", "array(['b'], dtype=object)"], TEXT, [["a", "b"], ["b"]], "written as text"),
        (["[b, a c]", "[b]"], TEXT, [["a c", "b"], ["b"]], "written as text"),
        (["{b,a}", "{}"], TEXT, [["a", "b"], []], "written as text"),
        (["[np.sum, np.mean]", "[np.sum]"], TEXT, [["np.mean", "np.sum"], ["np.sum"]], "written as text"),
    ],
)  # fmt: skip
def test_lists_are_read_as_several_labels(values, feature, sets, note):
    for settings in ({}, dict(problem_type=SEVERAL)):
        rows, problem_type = read_labels(values, feature, **settings)
        assert problem_type == SEVERAL and sets_of(rows) == sets and note in rows.remarks[0]


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([[1, 0, 1], [0, 0, 1]], NUMBER_LISTS),
        ([[1, 0, 1], [0, 0, 1]], List(Value("int64"), length=3)),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], List(Value("float64"))),
        ([[True, False, True], [False, False, True]], List(Value("bool"))),
        ([["1", "0", "1"], ["0", "0", "1"]], List(TEXT)),
        (["[1, 0, 1]", "[0, 0, 1]"], TEXT),
        (["[1. 0. 1.]", "[0. 0. 1.]"], TEXT),
        (["[ True False  True]", "[False False  True]"], TEXT),
    ],
)
def test_lists_of_0_and_1_are_read_as_one_position_per_label(values, feature):
    rows, problem_type = read_labels(values, feature)
    assert problem_type == SEVERAL and rows.label_names == ["label_0", "label_1", "label_2"]
    assert rows.labels["train"].tolist() == [[1, 0, 1], [0, 0, 1]] and "label_0 to label_2" in rows.remarks[-1]


@pytest.mark.parametrize(
    ("values", "names", "codes", "note"),
    [
        (["0111", "111", " 0111 "], ["0111", "111"], [0, 1, 0], "one number in two forms: '0111', '111'"),
        (["10", "9", "10"], ["9", "10"], [1, 0, 1], ""),
        (["10", "9", "09"], ["09", "10", "9"], [1, 2, 0], "one number in two forms: '09', '9'"),
        (["007", "100", "0", "010"], ["0", "007", "010", "100"], [1, 3, 0, 2], ""),
        (["None", "NA", None, "  "], ["NA", "None"], [1, 0, -1, -1], ""),
        (["[UNK]", "(1)", "(none)"], ["(1)", "(none)", "[UNK]"], [2, 0, 1], ""),
        (["true", "TRUE", "no"], ["TRUE", "no", "true"], [2, 0, 1], "only in capital letters or spaces: 'TRUE', 'true'"),
        (["pos\u200b", "pos", "\ufeffneg"], ["pos", "pos\u200b", "\ufeffneg"], [1, 0, 2], r"only in capital letters or spaces: 'pos', 'pos\u200b'"),
        (["very good", "very  good", "no"], ["no", "very  good", "very good"], [2, 1, 0], "capital letters or spaces: 'very  good', 'very good'"),
        (["a, b", "a", "b"], ["a", "a, b", "b"], [1, 0, 2], "'a, b' consist of other labels"),
        (["a#b", "a#c", "b#c"], ["a#b", "a#c", "b#c"], [0, 1, 2], "set problem_type to multi_label_classification"),
        (["a，b", "a", "b"], ["a", "a，b", "b"], [1, 0, 2], "'a，b' consist of other labels"),
        (["joy anger", "joy", "anger"], ["anger", "joy", "joy anger"], [2, 1, 0], "'joy anger' consist of other labels"),
        (["<a><b>", "<a>", "<b>"], ["<a>", "<a><b>", "<b>"], [1, 0, 2], "'<a><b>' consist of other labels"),
        (["not funny", "funny", "very sad", "sad"], ["funny", "not funny", "sad", "very sad"], [1, 0, 3, 2], ""),
        (["in, out", "in, up", "C#"], ["C#", "in, out", "in, up"], [1, 2, 0], ""),
        (["cs.CG math.CO", "cs.CG", "math.CO"], ["cs.CG", "cs.CG math.CO", "math.CO"], [1, 0, 2], "consist of other labels"),
        (["a", "-", "b"], ["-", "a", "b"], [1, 0, 2], "'-' is read as a label: if it means that the label is missing"),
        (["0", "NULL", "1"], ["0", "1", "NULL"], [0, 2, 1], "'NULL' is read as a label: if it means that the label is missing"),
        (["a", "nan", "b"], ["a", "b", "nan"], [0, 2, 1], "'nan' is read as a label"),
        (["a", "\\N", "b"], ["\\N", "a", "b"], [1, 0, 2], r"'\\N' is read as a label"),
        (["2", "-1", "0", "1"], ["-1", "0", "1", "2"], [3, 0, 1, 2], "'-1' is read as a label"),
        (["1", "-1", "0"], ["-1", "0", "1"], [2, 0, 1], ""),
        (["+", "-"], ["+", "-"], [0, 1], ""),
        ([1, "a", True, 1], ["1", "a", "true"], [0, 1, 2, 0], ""),
        ([["a"], [], ["b"], None], ["a", "b"], [0, -1, 1, -1], "one label for each text, because it holds lists"),
        (["['a']", "[]", "['b']"], ["a", "b"], [0, -1, 1], "one label for each text, because it holds lists that are written as text"),
    ],
)  # fmt: skip
def test_one_label_per_text_is_read_as_it_is_written(values, names, codes, note):
    feature = TEXT if all(isinstance(value, str | None) for value in values) else Json()
    rows, problem_type = read_labels(values, feature)
    assert problem_type == ONE and rows.label_names == names and rows.labels["train"].tolist() == codes
    assert [note in remark for remark in rows.remarks] == ([True] if note else [])


@pytest.mark.parametrize(
    ("values", "names", "note"),
    [
        (["a, b", "b,c", "C#,a"], ["C#", "a", "b", "c"], "',' separates them"),
        (["a/b; c", "c"], ["a/b", "c"], "';' separates them"),
        (["a|b", "c"], ["a", "b", "c"], "'|' separates them"),
        (["a, 1", 1, "b"], ["1", "a", "b"], "',' separates them"),
        (["a#b", "C#"], ["C#", "a", "b"], "'#' separates them"),
    ],
)
def test_a_text_of_several_labels_is_divided_at_its_separator(values, names, note):
    rows, _ = read_labels(values, Json() if 1 in values else TEXT, problem_type=SEVERAL)
    assert rows.label_names == names and [note in remark for remark in rows.remarks] == [True]


@pytest.mark.parametrize("values", [["joy anger", "joy fear"], ["C#", "F#"], [["a"], ["b"]]], ids=str)
def test_several_labels_of_which_no_text_has_two_are_noted(values):
    rows, _ = read_labels(values, TEXT if isinstance(values[0], str) else List(TEXT), problem_type=SEVERAL)
    assert len(rows.label_names) == 2 and "no text has more than one label" in rows.remarks[-1]


def test_many_classes_are_accepted_only_if_the_user_named_the_column():
    values = [f"intent {i // 3}" for i in range(75)]
    assert len(read_labels(values, label_column="label")[0].label_names) == 25
    with pytest.raises(UserError, match="25 different values in 75 rows: if it is the right column.*--label_column"):
        read_labels(values)
    with pytest.raises(UserError, match="no two texts have the same"):
        read_labels([f"id {i}" for i in range(75)], label_column="label")


@pytest.mark.parametrize(
    ("values", "feature", "settings", "message"),
    [
        ([[0, 1], [1, 0]], NUMBER_LISTS, {}, "may name the labels 0 and 1, or have a position for each"),
        (["0,1", "1,0"], TEXT, dict(problem_type=SEVERAL), "may name the labels 0 and 1, or have a position for each"),
        ([[0, 1, 1], [1, 0], [1, 0, 0]], NUMBER_LISTS, {}, "row 1 of split train holds .1, 0.: other rows hold 3 values"),
        ([[0, 1, 1], None], NUMBER_LISTS, {}, "row 1 of split train holds None: other rows hold 3 values"),
        ([[0.1, 0.9], [1.0, 0.0]], List(Value("float64")), {}, "row 0 .*decimal numbers are no labels"),
        (["['a', 'b']", "a"], TEXT, {}, "row 1 .*'a': write the labels of all rows as lists, .*'b'.*or write none as a list"),
        (['{"choices": ["a", "b"]}', "a"], TEXT, {}, "row 0 .*: write names of labels, or lists"),
        (['[{"start": 0}]', "[]"], TEXT, {}, "row 0 .*set task to token-classification"),
        ([[], [[0, 4, "LOC"]]], Json(), {}, "row 1 .*set task to token-classification"),
        ([b"pos", b"neg"], Value("binary"), {}, "holds bytes: write its labels as texts"),
        ([[b"pos"], [b"neg", b"pos"]], List(Value("binary")), {}, "holds bytes: write its labels as texts"),
        ([{"a": 1}, {"b": [1]}], Json(), {}, "row 0 .*must be a text or a number, or a list"),
        ([["a", "b"], ["a"]], List(TEXT), dict(problem_type=ONE), "row 0 .*several labels: set problem_type to multi_label"),
        (["Arts, Crafts; Music", "Music"], TEXT, dict(problem_type=SEVERAL), "with ',' and ';', such as 'Arts, .*as a list, .*one separator"),
        (["0 1 0", "1 0 0"], TEXT, dict(problem_type=SEVERAL), "such as '0 1 0', with a 0 or 1 for each label: write columns of 0 and 1"),
        (["010", "110"], TEXT, dict(problem_type=SEVERAL), "such as '010', with a 0 or 1 for each label: write columns of 0 and 1"),
        (["1.5", "2"], TEXT, dict(problem_type=SEVERAL), "holds decimal numbers: write .* as a list, or as a text with commas"),
        (["1.5", "2"], TEXT, {}, "decimal numbers, such as 1.5: .*set problem_type to regression.*single_label_classification"),
        (["2", "1,5", "-3,25"], TEXT, {}, "numbers with commas, such as 1,5: .*points for decimals, and set problem_type to regression.*multi_label"),
    ],
)  # fmt: skip
def test_labels_that_can_be_read_in_two_ways_are_refused(values, feature, settings, message):
    with pytest.raises(UserError, match=f"label_column=label.*{message}"):
        read_labels(values, feature, **settings)


def test_a_label_that_test_writes_differently_is_unknown():
    splits = {name: {"text": ["a", "b"], "label": values} for name, values in (("train", ["7", "8"]), ("test", ["007", "8"]))}
    with pytest.raises(UserError, match="split test has labels that train lacks: '007'"):
        read(splits)


def test_columns_of_0_and_1_may_be_texts():
    columns = {"text": ["a", "b", "c", "d"], "x": ["0", "1", "1.0", "0.0"], " y": ["true", "FALSE", "True", " false "]}
    rows, problem_type = read({"train": columns}, label_column="x,y")
    assert problem_type == SEVERAL and rows.label_names == ["x", "y"] and "several columns" in rows.remarks[0]
    assert rows.labels["train"].tolist() == [[0, 1], [1, 0], [1, 1], [0, 0]]
    for value, shown in (("2", "'2'"), ("yes", "'yes'")):
        with pytest.raises(UserError, match=f"label_column=x: row 2 of split train holds {shown}: .*0 and 1"):
            read({"train": columns | {"x": ["0", "1", value, "1"]}}, label_column="x,y")


def test_rows_that_lack_one_of_several_label_columns_are_refused_or_skipped(tmp_path):
    rows = pd.DataFrame({"text": [f"text {i}" for i in range(60)], "x": [0, 1] * 30, "y": [None, *[1, 0, 0] * 19, 1, 0]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    config = Config(dataset_name=str(tmp_path / "rows.csv"), label_column="x,y")
    with pytest.raises(UserError, match=r"1 of 60 rows of split train with an empty label \(row 0\): .*on_bad_rows"):
        load_data(tasks.pick(config), config)
    data = load_data(tasks.pick(config), replace(config, on_bad_rows="skip"))
    parts = (data.train, data.validation, data.test)
    assert sorted(np.concatenate([part.rows for part in parts])) == [*range(1, 60)]
    assert all(np.isfinite(part.labels).all() for part in parts)
    rows.assign(x=[1, None] * 30, y=[None, 1] * 30).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="every row of split train has an empty cell in one of these columns: write 0"):
        load_data(tasks.pick(config), config)


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        (["1.5", " 2 ", "-3e0", None, " "], TEXT),
        ([1.5, "2", -3, None, None], Json()),
        ([1.5, 2, -3, None, np.nan], Value("float32")),
    ],
)
def test_regression_reads_numbers_and_missing_values(values, feature):
    labels = read_labels(values, feature, problem_type=NUMBERS)[0].labels["train"]
    assert labels[:3].tolist() == [1.5, 2, -3] and np.isnan(labels[3:]).all()


@pytest.mark.parametrize("wrong", ["nan", "inf", "1,5", "2_5", "1e39", "5 stars", "N/A", "true", True, np.inf, [1]], ids=str)
def test_regression_refuses_values_that_are_not_finite_numbers(wrong):
    feature = TEXT if isinstance(wrong, str) else Value("float64") if wrong is np.inf else Json()
    values = ["1", wrong] if isinstance(wrong, str) else [1, wrong]
    with pytest.raises(UserError, match="label_column=label: row 1 of split train holds .*no finite number.*set label_column"):
        read_labels(values, feature, problem_type=NUMBERS)


@pytest.mark.parametrize("step", [1, 37])
def test_numbers_that_float32_would_round_to_others_are_refused(step):
    with pytest.raises(UserError, match="1700000000 to .* differ too little for their size.*subtract their smallest"):
        read_labels([1_700_000_000 + i * step for i in range(40)], Value("int64"), problem_type=NUMBERS)
    days = [1_700_000_000 + i * 86_400 for i in range(40)]
    assert np.ptp(read_labels(days, Value("int64"), problem_type=NUMBERS)[0].labels["train"]) == 39 * 86_400


# --- texts ---------------------------------------------------------------------------------------------------------------


def read_texts(texts: list, feature, **settings) -> Rows:
    return read({"train": {"text": texts, "label": ["a", "b"] * (len(texts) // 2)}}, {"text": feature}, **settings)[0]


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_numbers_among_texts_are_read_as_texts(task):
    rows = read_texts(["N/A", 10, None, True, "None", "\u00e9"], Json(), task=task)
    assert rows.columns["train"]["text"][:] == ["N/A", "10", None, "true", "None", "\u00e9"]
    assert "2 numbers or truth values are read as texts, such as 10 (row 1)" in rows.remarks[0]


@pytest.mark.parametrize(
    ("texts", "feature", "message"),
    [
        (["a", ["b"]], Json(), "not only texts, but .'b'. .row 1."),
        (["a", {"b": 1}], Json(), "not only texts, but .'b': 1. .row 1."),
        ([1, "a", 2, 3], Json(), "no text, but 1 .row 0."),
        ([["a"], ["b"]], List(TEXT), "no text, but .'a'. .row 0."),
    ],
)
def test_lists_objects_and_columns_of_numbers_are_refused_as_texts(texts, feature, message):
    with pytest.raises(UserError, match=f"text_column=text: in split train it holds {message}.*set text_column"):
        read_texts(texts, feature)


@pytest.mark.parametrize("text_column", [None, "sentence"])
def test_one_column_is_never_both_texts_of_a_pair(text_column):
    config = Config(text_column="premise", text_pair_column="sentence")
    with pytest.raises(UserError, match="column sentence would be both texts of each pair: set text_column"):
        tasks.pick(config).input_columns(["id", "sentence"], config, text_column)


def test_spaces_around_column_names_do_not_matter():
    columns = {" Text": ["a", "b"], "label\u00a0": ["x", "y"]}
    assert read({"train": columns})[0].label_names == ["x", "y"]
    assert read({"train": columns}, label_column="label", text_column="Text")[0].label_names == ["x", "y"]
    with pytest.raises(UserError, match=r"the columns are ' Text', 'label\\xa0': set label_column"):
        read({"train": columns}, label_column="tag")


@pytest.mark.parametrize("is_list", [False, True], ids=["one label", "several labels"])
def test_a_number_that_means_another_class_elsewhere_is_refused(is_list, tmp_path):
    def rows(names: list[str]) -> Dataset:
        label = ClassLabel(names=names)
        values = [[i % 2] if is_list else i % 2 for i in range(40)]
        features = Features({"text": Value("string"), "label": List(label) if is_list else label})
        return Dataset.from_dict({"text": [f"text {i} of {names}" for i in range(40)], "label": values}, features)

    def load(name: str):
        config = Config(dataset_name=str(tmp_path / name), train_samples=0, val_samples=0, test_samples=0)
        return load_data(tasks.pick(config), config)

    train, other, longer = rows(["neg", "pos"]), rows(["pos", "neg"]), rows(["neg", "pos", "mixed"])
    DatasetDict(train=train, test=other).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match="split test: class 0 of column label is 'pos', and 'neg' elsewhere"):
        load("splits")
    (tmp_path / "files").mkdir()
    train.to_parquet(tmp_path / "files" / "train-0.parquet")
    other.to_parquet(tmp_path / "files" / "train-1.parquet")
    with pytest.raises(UserError, match="train-1.parquet: class 0 of column label is 'pos', and 'neg' elsewhere"):
        load("files")
    DatasetDict(train=longer, test=train).save_to_disk(tmp_path / "shorter")
    assert len(load("shorter").test) == 40


# --- values that would be read as others ---------------------------------------------------------------------------------


def test_numbers_are_the_names_of_classes_and_not_their_codes():
    rows, _ = read_labels([0, 1, 2, 1], ClassLabel(names=["1", "10", "5"]), problem_type=NUMBERS)
    assert rows.labels["train"].tolist() == [1, 10, 5, 10]
    with pytest.raises(UserError, match="'1 star'.*no finite number"):
        read_labels([0, 1], ClassLabel(names=["1 star", "2 stars"]), problem_type=NUMBERS)
    columns = {"text": ["a", "b"], "x": [0, 1], "y": [1, 0]}
    features = {"x": ClassLabel(names=["1", "0"]), "y": Value("int64")}
    assert read({"train": columns}, features, label_column="x,y")[0].labels["train"].tolist() == [[1, 1], [0, 0]]


def test_decimal_numbers_of_parquet_are_classes_only_if_they_are_whole():
    feature = Value("decimal128(3, 2)")
    assert read_labels([Decimal("1.00"), Decimal("2.00")], feature)[0].label_names == ["1", "2"]
    large = [Decimal(12345678901234567890), Decimal(12345678901234567891)]
    assert read_labels(large, Value("decimal128(38, 0)"))[0].label_names == [str(number) for number in large]
    with pytest.raises(UserError, match="row 0 of split train holds 1.5: decimal numbers are no labels"):
        read_labels([Decimal("1.50"), Decimal("2.00")], feature)


@pytest.mark.parametrize(
    ("values", "feature"), [([None, None], TEXT), (["a", "b"], TEXT), ([["a"], ["b", None]], Json())], ids=["none", "texts", "json"]
)
def test_lists_in_train_and_other_values_in_test_are_refused(values, feature):
    raw = {
        "train": Dataset.from_dict(
            {"text": ["x", "y"], "label": [["a", "b"], ["b"]]}, features=Features(text=TEXT, label=List(TEXT))
        ),
        "test": Dataset.from_dict({"text": ["z", "w"], "label": values}, features=Features(text=TEXT, label=feature)),
    }
    with pytest.raises(UserError, match="in split train, but .* in split test"):
        labels.encode_label_lists(raw, "label")


def test_empty_cells_of_several_labels_and_numbers_in_two_forms_are_noted():
    assert read_labels(["a, b", None, "b", ""], problem_type=SEVERAL)[0].remarks == [
        "label_column=label: read as several labels for each text, because ',' separates them; 2 texts have no label"
    ]
    assert "one number in two forms: '0', '0.0', '1', '1.0'" in read_labels(["1", "1.0", "0", "0.0"])[0].remarks[0]
