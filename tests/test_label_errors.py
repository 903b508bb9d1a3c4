"""Folds of train, and label_errors.py: labels that may be wrong."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import as_flags, make_rows
from datasets import ClassLabel, Dataset, DatasetDict

from config import Config
from finetuning import tasks
from finetuning.data.splits import Split, load_data
from finetuning.errors import UserError
from finetuning.tasks.classification import MultiLabel, SingleLabel
from finetuning.tasks.entities import Entities


@pytest.fixture
def fold_flags(model_dir, data_file):
    return as_flags(dict(model_name=model_dir, dataset_name=data_file, max_length=32, batch_size=8, eval_steps=0.5, run_name="run"))


def load_folds(file, n: int, **settings):
    configs = (
        Config(dataset_name=str(file), folds=n, fold=fold, train_samples=0, test_samples=0, **settings) for fold in range(1, n + 1)
    )
    return [load_data(tasks.pick(config), config) for config in configs]


def test_each_row_of_train_is_judged_once_and_a_second_call_trains_nothing(call, fold_flags, data_file, tmp_path):
    folder = tmp_path / "outputs" / "run"
    out = call("label_errors.py", *fold_flags, "--folds", 2)
    assert (out.code, out.err) == (0, "")
    rows = pd.read_parquet(folder / "label_quality.parquet")
    assert rows.row.tolist() == [*range(80)] and set(rows.run) == {"fold-1", "fold-2"}
    data = pd.read_csv(data_file)
    assert rows.given.tolist() == data.sentiment.tolist()
    for probabilities, quality, likely, label in zip(rows.probabilities, rows.quality, rows.likely, rows.given, strict=True):
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert quality == pytest.approx(probabilities[["bad", "good"].index(label)])
        assert likely == ["bad", "good"][probabilities.argmax()]
    listed = pd.read_csv(folder / "label_errors.csv")
    assert sorted(listed.row) == rows.row[rows.may_be_wrong].tolist() and listed.quality.is_monotonic_increasing
    assert listed.text.tolist() == data.review[listed.row].tolist() and (listed.given != listed.likely).all()
    page = (folder / "label_errors.html").read_text()
    assert f"{len(listed)} of 80 labels may be wrong" in page and all(text in page for text in listed.text)
    assert f"{len(listed)} of 80 may be wrong" in out.out

    (folder / "fold-2" / "metrics.json").unlink()  # as if it had been interrupted there
    again = call("label_errors.py", *fold_flags, "--folds", 2)
    assert again.code == 0 and again.out.count("this run is finished") == 2 and again.out.count("report  ") == 1
    assert pd.read_parquet(folder / "label_quality.parquet").equals(rows)

    one = call("label_errors.py", "--runs", folder / "fold-1")
    assert one.code == 0 and len(pd.read_parquet(folder / "fold-1" / "label_quality.parquet")) == 40
    twice = call("label_errors.py", "--runs", folder / "fold-1", folder / "fold-1")
    assert twice.code == 2 and "have test rows in common" in twice.err
    other = call("label_errors.py", *fold_flags, "--folds", 3)
    assert other.code == 2 and "folds=3" in other.err and "was started with 2" in other.err


def test_equal_texts_and_groups_are_never_in_train_and_the_fold(tmp_path):
    rows = make_rows()
    rows["author"] = np.arange(80) % 16
    rows = pd.concat([rows, rows.iloc[:30].assign(author=99)])  # copies of texts, by another author
    rows.to_csv(tmp_path / "rows.csv", index=False)
    for settings in ({}, dict(group_column="author", validation_fraction=0.2)):
        folds = load_folds(tmp_path / "rows.csv", 4, **settings)
        assert sorted(row for data in folds for row in data.test.rows) == [*range(110)]
        for data in folds:
            assert data.test_split.startswith("fold ")
            assert not {*data.test.hashes} & {*data.train.hashes, *data.validation.hashes}
            if settings:
                assert not {*data.test.groups} & {*data.train.groups, *data.validation.groups}
            else:
                assert 20 <= len(data.test) <= 35 and abs((data.test.labels == 0).mean() - 0.5) < 0.1


def test_folds_leave_the_official_test_alone(tmp_path):
    make_rows().to_csv(tmp_path / "train.csv", index=False)
    make_rows(40).assign(review=lambda frame: "test " + frame.review).to_csv(tmp_path / "test.csv", index=False)
    first, second = load_folds(tmp_path, 2)
    assert sorted([*first.test.rows, *second.test.rows]) == [*range(80)]
    assert not any(text.startswith("test") for text in first.test.columns()["text"])


def test_too_few_rows_or_labels_for_the_folds_are_an_error(tmp_path):
    rows = make_rows(40)
    rows.loc[:2, "sentiment"] = "mixed"
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="folds=5: the label 'mixed' occurs only 3 times in train: lower folds, add rows"):
        load_folds(tmp_path / "rows.csv", 5)
    make_rows(40).assign(review=lambda frame: "film " + frame.sentiment).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="folds=3: train has only 2 different texts"):
        load_folds(tmp_path / "rows.csv", 3)


def test_a_label_that_no_row_has_does_not_prevent_folds(tmp_path):
    names = ClassLabel(names=["bad", "good", "unused"])
    rows = Dataset.from_pandas(make_rows(40)).cast_column("sentiment", names)
    DatasetDict(train=rows).save_to_disk(tmp_path / "rows")
    assert len(load_folds(tmp_path / "rows", 2)) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fold", 2), "--fold is not for label_errors.py"),
        (("--search", 2), "--search is not for label_errors.py"),
        (("--task", "translation"), "judges labels of texts and named entities, not translation"),
        (("--problem_type", "regression"), "judges labels of texts and named entities, not regression"),
        (("--folds", 1), "folds=1 is out of range: it must be 0, or at least 2"),
        (("--folds", 0), "folds=0: label_errors.py needs at least 2"),
        (("--max_lenght", 8), "did you mean --max_length?"),
        (("--runs", "outputs/a", "--max_length", 8), "leave --max_length out"),
        (("--runs", "outputs/a"), "there is no such run folder"),
    ],
)
def test_wrong_flags_are_refused_before_anything_starts(call, flags, message):
    out = call("label_errors.py", *flags)
    assert out.code == 2 and message in out.err and not out.out


def split_of(labels) -> SimpleNamespace:
    return SimpleNamespace(labels=labels)


def test_labels_that_contradict_sure_predictions_are_found():
    """The model is sure and right for all rows but those whose label was changed, and unsure for a few."""
    rng = np.random.default_rng(0)
    changed, n = [3, 50, 77], 120
    right = np.arange(n) % 3
    probabilities = np.full((n, 3), 0.03) + 0.91 * np.eye(3)[right]
    unsure = [10, 40]
    probabilities[unsure] = [0.34, 0.33, 0.33]
    labels = right.copy()
    labels[changed] = (right[changed] + 1) % 3
    quality, wrong = SingleLabel().label_quality([*probabilities], split_of(labels))
    assert np.flatnonzero(wrong).tolist() == changed and {*np.argsort(quality)[:3]} == {*changed}

    several = (rng.random((n, 4)) < 0.4).astype(np.float32)
    probabilities = 0.05 + 0.9 * several
    labels = several.copy()
    labels[changed, [0, 1, 2]] = 1 - labels[changed, [0, 1, 2]]
    quality, wrong = MultiLabel().label_quality([*probabilities], split_of(labels))
    assert np.flatnonzero(wrong).tolist() == changed and {*np.argsort(quality)[:3]} == {*changed}

    tags = [np.array([0, 1, 2, 0, 0]), np.array([0, 0, 1])] * 30
    probabilities = [0.02 + 0.94 * np.eye(3)[sentence] for sentence in tags]
    given = [sentence.tolist() for sentence in tags]
    given[4][1:3] = [0, 0]  # an entity without its tags
    given[9][0] = 1  # a word that is no entity
    raw = Dataset.from_dict({"tags": given})
    quality, wrong = Entities().label_quality(probabilities, Split(raw, np.arange(60), np.zeros(60), np.arange(60)))
    assert np.flatnonzero(wrong).tolist() == [4, 9] and {*np.argsort(quality)[:2]} == {4, 9}


def test_entities_and_several_labels_are_judged_by_the_same_command(call, entity_flags, fold_flags, tmp_path):
    """The numbers of these untrained models mean nothing; each row must be judged, and shown with its labels."""
    assert call("label_errors.py", *entity_flags, "--folds", 2, "--num_train_epochs", 1).code == 0
    rows = pd.read_parquet(tmp_path / "outputs" / "run" / "label_quality.parquet")
    assert rows.row.is_unique and rows.quality.between(0, 1).all() and rows.given.str.contains("NUM").any()
    data = make_rows()
    data["sentiment"] = [
        ["long", name] if len(text) > 60 else [name] for name, text in zip(data.sentiment, data.review, strict=True)
    ]
    data.to_json(tmp_path / "several.jsonl", orient="records", lines=True)
    flags = [*fold_flags, "--dataset_name", tmp_path / "several.jsonl", "--run_name", "several"]
    out = call("label_errors.py", *flags, "--folds", 2)
    assert (out.code, out.err) == (0, "")
    rows = pd.read_parquet(tmp_path / "outputs" / "several" / "label_quality.parquet")
    assert len(rows) == 80 and {"bad, long", "good"} < {*rows.given} and len(rows.probabilities[0]) == 3
    assert not (rows.may_be_wrong & (rows.given == rows.likely)).any()
    position = flags.index("--batch_size")
    other = call("label_errors.py", *flags[:position], *flags[position + 2 :], "--folds", 2)
    assert other.code == 2 and "batch_size=32: " in other.err and "fold-1 was started with 8" in other.err
