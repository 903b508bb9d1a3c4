"""Texts are split, sampled, tokenized, truncated and augmented; stand-ins replace what the Hub does not deliver."""

import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_rows
from datasets import ClassLabel, Dataset, DatasetDict, Features, List
from transformers import AutoTokenizer

from config import PRESETS, Config
from finetuning import tasks
from finetuning.data import hub, labels, sources, splits, tokens
from finetuning.data.augmentation import augmentation
from finetuning.data.text import clean
from finetuning.errors import UserError
from finetuning.model.base import load_tokenizer
from finetuning.results.metrics import wilson_interval

# 1,000 different texts; every tenth is in stratum 1.
FRAME = pd.DataFrame({"text_hash": range(1000), "stratum": [int(i % 10 == 0) for i in range(1000)], "labelled": True})


def load(path, given=(), **settings) -> splits.Data:
    config = Config(dataset_name=str(path), **settings)
    return splits.load_data(tasks.pick(config), config, given=given)


def split_frame(frame: pd.DataFrame = FRAME, **settings) -> dict[str, pd.DataFrame]:
    return splits.hold_out({"train": frame}, Config(**settings))


# --- splits --------------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_stratified_and_depend_on_the_split_seed_alone():
    first = split_frame(seed=0)
    assert {name: len(frame) for name, frame in first.items()} == {"train": 700, "validation": 100, "test": 200}
    assert {name: frame.stratum.mean() for name, frame in first.items()} == pytest.approx(dict.fromkeys(first, 0.1))
    assert all(first[name].equals(frame) for name, frame in split_frame(seed=1).items())
    assert not first["test"].equals(split_frame(split_seed=1)["test"])


def test_equal_texts_are_never_in_two_splits():
    frames = split_frame(pd.concat([FRAME, FRAME[:500]], ignore_index=True))
    train, validation, test = (set(frames[name].text_hash) for name in ("train", "validation", "test"))
    assert not train & test and not train & validation and not validation & test
    assert len(test) == len(frames["test"]) == 200, "a fifth of the texts"
    few = split_frame(pd.concat([FRAME, FRAME[:50]], ignore_index=True))
    assert len(few["test"]) == 210, "a fifth of the rows, if few are copies"
    groups = split_frame(pd.concat([FRAME, FRAME[:500]], ignore_index=True).assign(group=np.arange(1_500) % 300))
    assert len(groups["test"]) == 300, "a fifth of the rows, if rows have groups"
    assert train | validation | test == set(FRAME.text_hash)


def test_a_smaller_sample_is_part_of_a_larger_one_and_keeps_the_label_fractions():
    small, large = (splits.draw(FRAME, n, seed=3) for n in (50, 200))
    assert set(small.index) < set(large.index)
    assert small.stratum.sum() == 5 and large.stratum.sum() == 20
    assert large.index.is_monotonic_increasing


def test_official_splits_are_used_as_they_are(tmp_path):
    rows = make_rows(120)
    for name, part in (("train", rows[:60]), ("validation", rows[60:90]), ("test", rows[90:])):
        part.to_parquet(tmp_path / f"{name}.parquet")
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 30, 30)
    assert (data.test_split, data.validation_split) == ("official test", "official validation")


def test_any_split_may_be_the_test_split(tmp_path):
    rows = make_rows(120)
    rows[:80].to_parquet(tmp_path / "train.parquet")
    rows[80:].to_parquet(tmp_path / "validation.parquet")
    data = load(tmp_path, test_split="validation")
    assert (data.test_split, data.validation_split) == ("official validation", "held out from train")
    with pytest.raises(UserError, match="test_fraction=0.3 has no effect, because the data set has the split validation"):
        load(tmp_path, given={"test_fraction"}, test_split="validation", test_fraction=0.3)
    assert (len(data.test), len(data.validation), len(data.train)) == (40, 8, 72)


def test_unlabelled_copies_of_held_out_texts_are_not_trained_on(tmp_path):
    rows = make_rows(200)
    rows = pd.concat([rows, rows.assign(sentiment=None)])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    data = load(tmp_path / "rows.csv", task="masked-lm")
    texts = {name: set(getattr(data, name).columns()["text"]) for name in ("train", "validation", "test")}
    assert len(data.test) == 40 and not texts["train"] & (texts["validation"] | texts["test"])


def test_a_sample_size_above_the_number_of_rows_is_refused_from_the_user_but_not_from_a_preset(tmp_path):
    make_rows(80).to_csv(tmp_path / "rows.csv", index=False)
    # 16 of the 80 rows are held out for test, and 8 for validation; 56 remain.
    assert PRESETS["smoke"]["train_samples"] == 64 > 56 and PRESETS["translation"]["val_samples"] == 500 > 8
    for setting, n, hint in (("train_samples", 64, ""), ("val_samples", 500, "validation_fraction"), ("val_samples", 1_000, "")):
        with pytest.raises(UserError, match=rf"{setting}={n:,} is more than the .* rows of split .*0 for all.*{hint}"):
            load(tmp_path / "rows.csv", given={setting}, **{setting: n})
    data = load(tmp_path / "rows.csv", **PRESETS["smoke"] | dict(test_samples=0))
    assert data.remarks == [
        "train_samples=64 is more than the 56 rows of split train: all are used",
        "val_samples=32 is more than the 8 rows of split validation: all are used",
    ]
    assert (len(data.train), len(data.validation)) == (56, 8)
    assert not load(tmp_path / "rows.csv").remarks, "the defaults fit data sets of any size"


def test_columns_with_usual_names_that_are_not_read_are_noted(tmp_path):
    rows = make_rows(80).rename(columns={"review": "sentence"}).assign(question="why", label=["x", "y"] * 40, idx=range(80))
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert load(tmp_path / "rows.csv").remarks == [
        "column sentence is read, and not question: set text_column or text_pair_column to read another column",
        "column label is read, and not sentiment: set label_column to read another column",
    ]
    named = load(tmp_path / "rows.csv", text_column="sentence", text_pair_column="question", label_column="sentiment")
    assert not named.remarks


# --- archives and labels -------------------------------------------------------------------------------------------------


def test_acl_imdb_is_read_from_its_folder_and_from_its_archive(tmp_path):
    packed = tmp_path / "aclImdb_v1.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        for split in ("train", "test"):
            for i in range(40):
                text = f"{split} {i}<br /><br />caf\u00e9".encode()
                member = tarfile.TarInfo(f"aclImdb/{split}/{('neg', 'pos', 'unsup')[i % 3]}/{i}_1.txt")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path)
    for source in (packed, tmp_path / "aclImdb"):
        data = load(source, val_samples=0)
        assert data.label_names == ["neg", "pos"] and data.test_split == "official test" and len(data.test) == 27, (
            "13 of 40 are unsup"
        )
        texts = data.task.readable(data.test.columns())["text"]
        assert texts[0].endswith("  caf\u00e9")
        assert [int(text.split()[1]) % 3 for text in texts] == data.test.labels.tolist()


def test_labels_may_be_words_numbers_or_truth_values():
    for values, names in (
        (["b", "a"], ["a", "b"]),
        ([2, 5], ["2", "5"]),
        ([2.0, 5.0], ["2", "5"]),
        ([True, False], ["False", "True"]),
    ):
        rows = Dataset.from_dict({"text": ["x", "y"] * 10, "label": values * 10})
        codes, label_names, _ = labels.encode_labels({"train": rows, "test": rows.select([1, 0, 1])}, "label")
        assert label_names == names
        assert [names[code] for code in codes["train"][:2]] == [str(int(v) if isinstance(v, float) else v) for v in values]
        assert codes["test"].tolist() == codes["train"][[1, 0, 1]].tolist()


def test_lists_of_labels_may_have_missing_and_blank_entries():
    class_label = ClassLabel(names=["a", "b", "c"])
    for values, names in (
        ([["a", "b "], [], None, [None, "c"]], ["a", "b", "c"]),
        (["a; b", "", None, "c;; c"], ["a", "b", "c"]),
        ([[3, 1], [], None, [None, 7]], ["1", "3", "7"]),
        ([[0, 1], [], [], [2]], class_label.names),
    ):
        features = Features(label=List(class_label)) if values[0] == [0, 1] else None
        encoded, label_names, _ = labels.encode_label_lists({"train": Dataset.from_dict({"label": values}, features)}, "label")
        assert label_names == names
        assert encoded["train"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


# --- tokens --------------------------------------------------------------------------------------------------------------


def test_tokens_are_cached_until_the_file_or_a_setting_that_they_depend_on_changes(tmp_path, model_dir):
    make_rows().to_csv(tmp_path / "rows.csv", index=False)
    settings = dict(max_length=32)

    def cache_files(**settings) -> set[str]:
        data = load(tmp_path / "rows.csv", **settings)
        encoded = tokens.encode(data.task, data.train, AutoTokenizer.from_pretrained(model_dir), data.config)
        return {file["filename"] for file in encoded.inputs.cache_files}

    first = cache_files(**settings)
    (file,) = first
    written = os.stat(file).st_mtime_ns
    assert cache_files(**settings) == first and os.stat(file).st_mtime_ns == written, "read from disk, not written again"
    other_settings = [settings | changed for changed in (dict(max_length=16), dict(truncation="tail"), dict(split_seed=1))]
    assert len({file, *(cache_files(**other).pop() for other in other_settings)}) == 4, "a file for each setting"
    make_rows(82).to_csv(tmp_path / "rows.csv", index=False)
    assert cache_files(**settings) != first, "the data file has changed"


def test_rows_read_from_disk_keep_their_texts_labels_and_tokens(data_file, model_dir):
    data, tokenizer = load(data_file, max_length=16), AutoTokenizer.from_pretrained(model_dir)
    written = pd.read_csv(data_file)
    for split in (data.train, data.validation, data.test):
        texts = split.columns()["text"]
        assert texts == written.review[split.rows].tolist()
        assert [data.label_names[label] for label in split.labels] == written.sentiment[split.rows].tolist()
        encoded = tokens.encode(data.task, split, tokenizer, data.config)
        ids, lengths = tokens.tokenize_texts(texts, tokenizer, data.config)
        assert encoded.inputs.cache_files and encoded.lengths.tolist() == lengths.tolist()
        positions = [5, 0, 7]
        assert encoded.__getitems__(positions) == [{"input_ids": ids[i], "labels": split.labels[i]} for i in positions]
        assert split.select(positions).columns()["text"] == [texts[i] for i in positions]


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        ("head", [1, 10, 11, 12, 13, 14, 15, 2]),
        ("tail", [1, 24, 25, 26, 27, 28, 29, 2]),
        ("head+tail", [1, 10, 25, 26, 27, 28, 29, 2]),
    ],
)
def test_truncation_keeps_the_special_tokens_and_the_chosen_side(side, kept):
    ids = [1, *range(10, 30), 2]
    assert tokens.truncate(ids, 8, side) == kept
    assert tokens.truncate(ids, 22, side) == ids


def test_truncation_without_special_tokens_keeps_the_chosen_side():
    ids = list(range(20))
    assert tokens.truncate(ids, 8, "head", 0, 0) == ids[:8]
    assert tokens.truncate(ids, 8, "tail", 0, 0) == ids[-8:]


def test_max_length_overrides_the_truncation_of_the_tokenizer_file(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = ["we loved it", "a fine film " * 20]
    ids, lengths = tokens.tokenize_texts(texts, tokenizer, replace(Config(), max_length=32))
    assert lengths.tolist() == [5, 62] and [len(row) for row in ids] == [5, 32]
    assert ids[1][0] == tokenizer.cls_token_id and ids[1][-1] == tokenizer.sep_token_id


def test_html_line_breaks_become_spaces():
    assert clean(["a<br /><br>b"]) == ["a  b"]


# --- sources -------------------------------------------------------------------------------------------------------------


def test_stand_ins_are_checked_by_hash_and_a_missing_one_names_the_pip_command(monkeypatch):
    model = sources.find_model("distilbert-base-uncased")
    assert model.origin == "stand-in" and model.sha256 == sources.STAND_IN_MODEL["distilbert-base-uncased"]["sha256"]
    monkeypatch.setitem(sources.STAND_IN_MODEL["distilbert-base-uncased"], "sha256", "0" * 64)
    with pytest.raises(UserError, match="differ from the published ones"):
        sources.find_model("distilbert-base-uncased")
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements.txt"):
        sources.find_model("distilbert-base-uncased")


def test_rotten_tomatoes_has_a_stand_in():
    config = Config(**PRESETS["rotten_tomatoes"])
    data = splits.load_data(tasks.pick(config), config)
    assert data.source.name == "Rotten Tomatoes train sentences" and data.source.origin == "stand-in"
    assert len(data.test) == 1706 and data.label_names == ["neg", "pos"]
    tokenizer = load_tokenizer(data.task, sources.find_model("distilbert-base-uncased"), data.config)
    encoded = tokens.encode(data.task, data.test, tokenizer, data.config)
    assert np.mean(encoded.lengths > 64) < 0.01, "max_length of the preset cuts almost no text"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    requests = []

    def head(url, timeout):
        requests.append((url, timeout))
        raise OSError("no route")

    monkeypatch.setattr(hub.huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    hub.hub_answers.cache_clear()
    assert not hub.hub_answers() and not hub.hub_answers()
    assert len(requests) == 1 and requests[0][1] < 3
    hub.hub_answers.cache_clear()


# --- augmentation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token-dropout", "crop", "sentence-shuffle"])
def test_augmentation_depends_on_seed_epoch_and_row_and_keeps_the_special_tokens(name, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [" . ".join(make_rows().review[start : start + 8]) for start in range(0, 64, 8)]
    rows, _ = tokens.tokenize_texts(texts, tokenizer, Config(max_length=64))
    assert augmentation(tokenizer, Config()) is None
    augment = augmentation(tokenizer, Config(augmentation=name))
    first = [augment(ids, 0, row) for row, ids in enumerate(rows)]
    assert first != [augment(ids, 1, row) for row, ids in enumerate(rows)], "drawn again in each epoch"
    assert first != [augmentation(tokenizer, Config(augmentation=name, seed=1))(ids, 0, row) for row, ids in enumerate(rows)]
    assert first[::-1] == [augment(rows[row], 0, row) for row in reversed(range(len(rows)))], (
        "the order of the rows does not matter"
    )
    for ids, before in zip(first, rows, strict=True):
        assert (ids[0], ids[-1]) == (before[0], before[-1]) and len(ids) <= len(before)
        assert not Counter(ids) - Counter(before), "only tokens of the text"
        if name == "sentence-shuffle":
            assert Counter(ids) == Counter(before)
        if name == "crop":
            # A crop is a piece of the text without gaps.
            assert len(ids) >= 0.7 * len(before) and ",".join(map(str, ids[1:-1])) in ",".join(map(str, before))


def test_a_split_with_another_name_for_validation_is_used_if_there_is_only_one(tmp_path):
    parts = {
        name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(40)], "label": ["x", "y"] * 20})
        for name in ("train", "val", "test", "unsupervised")
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert (data.validation_split, data.test_split, data.remarks) == ("official val", "official test", [])
    DatasetDict(parts | {"dev_set": parts["val"]}).save_to_disk(tmp_path / "more")
    with pytest.raises(UserError, match="several splits say validation, val, dev_set: set validation_split to one of them"):
        load(tmp_path / "more")
    assert load(tmp_path / "more", validation_split="val").validation_split == "official val"
    parts = {"train": parts["train"], "test_1": parts["test"], "test_2": parts["test"]}
    DatasetDict(parts).save_to_disk(tmp_path / "folds")
    assert load(tmp_path / "folds", folds=3).test_split == "fold 1 of 3 of train"


# --- rows that belong together -------------------------------------------------------------------------------------------


def test_the_rows_of_a_group_stay_in_one_split(call, tiny_flags, tmp_path):
    rows = make_rows(120).assign(author=lambda rows: [f"author {i // 6}" for i in range(len(rows))])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    flags = [*tiny_flags, "--dataset_name", tmp_path / "rows.csv", "--group_column", "author", "--num_train_epochs", 1]
    data = load(tmp_path / "rows.csv", group_column="author")
    authors = [{*rows.author[part.rows]} for part in (data.train, data.validation, data.test)]
    assert all(authors) and sum(map(len, authors)) == len(set.union(*authors)), "no author is in two splits"
    assert call("fine_tune.py", *flags).code == 0 and call("evaluate.py").code == 0
    assert pd.read_parquet(tmp_path / "outputs/run/statistics.parquet").group.nunique() == len(authors[2])
    training = json.loads((tmp_path / "outputs/run/training.json").read_text())["validation"]
    low, high = wilson_interval(round(training["accuracy"] * training["n"]), training["n"])
    assert training["ci95"] != [low, high], "the interval of validation resamples whole groups too"
    wrong = call("fine_tune.py", *flags[:-4], "--group_column", "writer", "--run_name", "wrong")
    assert wrong.code == 2 and "group_column=writer: there is no such column; the columns are" in wrong.err, wrong.err


@pytest.mark.parametrize("no_group", [None, "", " "])
def test_rows_without_a_group_are_alone(no_group, tmp_path):
    rows = make_rows(120).assign(author=lambda rows: [f"author {i % 4}" if i < 40 else no_group for i in range(len(rows))])
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    data = load(tmp_path / "rows.jsonl", group_column="author")
    n_used = sum(map(len, (data.train, data.validation, data.test)))
    assert n_used >= 80, "they do not leave train as one group"
    assert any(f"{120 - n_used} rows of train are not used" in remark for remark in data.remarks) == (n_used < 120)


@pytest.mark.parametrize(
    ("labels", "n_texts", "settings", "message"),
    [
        ("ab" * 300, 3, {}, r"600 rows, 3 different texts, .*\): raise test_fraction"),
        (
            "a" * 3 + "b" * 997,
            1000,
            {},
            r"1,000 different texts, 3 rows without the most frequent label\): raise validation_fraction",
        ),
        ("ab" * 25, 50, {"group_column": "label"}, r"50 rows, 50 different texts, 2 groups, .*\): raise test_fraction"),
        ("ab" * 6, 12, {"validation_fraction": 0.01}, r"to hold out 1% for validation \(12 rows, .*: raise"),
        ("ab" * 6, 12, {"test_fraction": 0.9}, r"to hold out 90% for test \(12 rows, .*: lower test_fraction"),
    ],
)
def test_a_split_that_cannot_be_held_out_is_refused_with_the_reason(labels, n_texts, settings, message, tmp_path):
    texts = [f"text {i % n_texts}" for i in range(len(labels))]
    pd.DataFrame({"text": texts, "label": [*labels]}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "rows.csv", **settings)


@pytest.mark.parametrize("settings", [{}, {"train_samples": 100}])
def test_a_type_of_one_sentence_is_in_one_split_and_the_others_are_noted(settings, tmp_path):
    lines = [f"word{i} O\nParis B-LOC\n" + "It B-MISC\n" * (i == 7) for i in range(400)]
    (tmp_path / "rare.conll").write_text("\n".join(lines))
    remarks = load(tmp_path / "rare.conll", task="token-classification", **settings).remarks
    assert sum("has the label 'MISC'" in remark for remark in remarks) == 2, remarks


def test_held_out_sentences_are_neighbours_in_the_file(tmp_path):
    """So that `--context neighbours` reads real neighbours, and few documents are in two splits."""
    lines = [f"word{i} O\nParis B-LOC\n" for i in range(6000)]
    (tmp_path / "sentences.conll").write_text("\n".join(lines))
    data = load(tmp_path / "sentences.conll", task="token-classification")
    for part in (data.validation, data.test):
        assert np.mean(np.diff(part.rows) == 1) > 0.95
    assert len({*(data.train.rows // 30)} & {*(data.test.rows // 30)}) == 0


def test_texts_that_are_in_train_and_test_are_counted(call, tiny_flags, tmp_path):
    rows = make_rows(120)
    folder = tmp_path / "rows"
    folder.mkdir()
    rows.iloc[:100].to_csv(folder / "train.csv", index=False)
    rows.iloc[90:].to_csv(folder / "test.csv", index=False)
    (tmp_path / "same").mkdir()
    for name in ("train", "test"):
        rows.to_csv(tmp_path / "same" / f"{name}.csv", index=False)
    (folder / ".ipynb_checkpoints").mkdir()  # hidden, so it is not read
    rows.iloc[90:].to_csv(folder / ".ipynb_checkpoints/test-checkpoint.csv", index=False)
    result = call("fine_tune.py", *tiny_flags, "--dataset_name", folder, "--num_train_epochs", 1)
    assert result.code == 0 and "of 30 test texts are in train too" in result.out, result.out
    evaluated = call("evaluate.py")
    metrics = json.loads((tmp_path / "outputs/run/metrics.json").read_text())
    assert evaluated.code == 0 and metrics["unseen"].keys() == {"accuracy", "n"} and metrics["unseen"]["n"] == 20
    assert (
        "on the 20 rows whose text is not in train or validation" in evaluated.out
        and "10 texts are in train or validation too; without them, accuracy is"
        in (tmp_path / "outputs/run/report.html").read_text()
    )
    flags = [*tiny_flags[:-2], "--dataset_name", tmp_path / "same", "--num_train_epochs", 1, "--run_name", "same"]
    assert call("fine_tune.py", *flags).code == 0 and call("evaluate.py").code == 0
    metrics = json.loads((tmp_path / "outputs/same/metrics.json").read_text())
    assert metrics["unseen"] == {"accuracy": None, "n": 0}
    assert "no text is new to the model" in (tmp_path / "outputs/same/report.html").read_text()
