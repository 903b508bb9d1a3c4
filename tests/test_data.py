"""Reading, splitting, sampling and cutting texts."""

import io
import os
import tarfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import make_rows
from datasets import ClassLabel, Dataset, Features, List
from transformers import AutoTokenizer

from config import Config
from finetuning import data, labels, tokenizing
from finetuning.augmentation import augmentation
from finetuning.sources import find_model
from finetuning.tasks import text_classification

FRAME = pd.DataFrame({"hash": range(1000), "stratum": [int(i % 10 == 0) for i in range(1000)]})


def parts(**settings) -> dict[str, pd.DataFrame]:
    return data.split({"train": FRAME}, Config(**settings))


def test_held_out_rows_are_stratified_and_depend_on_the_split_seed_alone():
    first = parts(seed=0)
    assert {name: len(frame) for name, frame in first.items()} == {"train": 700, "validation": 100, "test": 200}
    assert {name: frame.stratum.mean() for name, frame in first.items()} == pytest.approx(dict.fromkeys(first, 0.1))
    assert all(first[name].equals(frame) for name, frame in parts(seed=1).items())
    assert not first["test"].equals(parts(split_seed=1)["test"])


def test_equal_texts_stay_on_one_side():
    twins = pd.concat([FRAME, FRAME[:500]], ignore_index=True)
    split = data.split({"train": twins}, Config())
    texts = {name: set(frame.hash) for name, frame in split.items()}
    assert (
        not texts["train"] & texts["test"] and not texts["train"] & texts["validation"] and not texts["validation"] & texts["test"]
    )
    assert len(split["test"]) == 300, "the share that was asked for, although copies are not held out"
    assert split["test"].hash.is_unique and set.union(*texts.values()) == set(FRAME.hash)


def test_a_smaller_sample_is_part_of_a_larger_one_and_keeps_the_shares():
    small, large = (data.stratified(FRAME, n, seed=3) for n in (50, 200))
    assert set(small.index) < set(large.index)
    assert small.stratum.sum() == 5 and large.stratum.sum() == 20
    assert large.index.is_monotonic_increasing


def test_official_splits_are_left_alone(tmp_path):
    rows = make_rows(120)
    for name, part in (("train", rows[:60]), ("validation", rows[60:90]), ("test", rows[90:])):
        part.to_parquet(tmp_path / f"{name}.parquet")
    loaded = data.load_data(Config(dataset_name=str(tmp_path)))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (60, 30, 30)
    assert (loaded.test_split, loaded.validation_split) == ("official test", "official validation")


def test_every_format_gives_the_same_rows(tmp_path):
    rows = make_rows()
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    rows.to_json(tmp_path / "rows.json", orient="records")
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    loaded = [data.load_data(Config(dataset_name=str(file))) for file in sorted(tmp_path.iterdir())]
    assert len(loaded) == 5 and len({item.sha256 for item in loaded}) == 1
    assert all(item.label_names == ["bad", "good"] and item.test.columns() == loaded[0].test.columns() for item in loaded)


def test_acl_imdb_as_a_folder_and_as_its_archive(tmp_path):
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
        loaded = data.load_data(Config(dataset_name=str(source), val_samples=0))
        assert loaded.label_names == ["neg", "pos"] and loaded.test_split == "official test" and len(loaded.test) == 27
        texts = text_classification.texts(loaded.test.columns())
        assert texts[0].endswith("  caf\u00e9") and "unsup" not in loaded.label_names
        assert [int(text.split()[1]) % 3 for text in texts] == loaded.test.labels.tolist()


def test_labels_may_be_words_numbers_or_truth_values():
    for values, names in (
        (["b", "a"], ["a", "b"]),
        ([2, 5], ["2", "5"]),
        ([2.0, 5.0], ["2", "5"]),
        ([True, False], ["False", "True"]),
    ):
        rows = Dataset.from_dict({"text": ["x", "y"] * 10, "label": values * 10})
        codes, found = labels.encode_labels({"train": rows, "test": rows.select([1, 0, 1])}, "label")
        assert found == names
        assert [names[code] for code in codes["train"][:2]] == [str(int(v) if isinstance(v, float) else v) for v in values]
        assert codes["test"].tolist() == codes["train"][[1, 0, 1]].tolist()


def test_several_labels_are_read_with_gaps_and_blanks():
    kinds = ClassLabel(names=["a", "b", "c"])
    for values, names in (
        ([["a", "b "], [], None, [None, "c"]], ["a", "b", "c"]),
        (["a; b", "", None, "c,; c"], ["a", "b", "c"]),
        ([[3, 1], [], None, [None, 7]], ["1", "3", "7"]),
        ([[0, 1], [], [], [2]], kinds.names),
    ):
        features = Features(label=List(kinds)) if values[0] == [0, 1] else None
        found, known = labels.encode_label_lists({"train": Dataset.from_dict({"label": values}, features)}, "label")
        assert known == names
        assert found["train"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_what_was_read_and_tokenised_once_is_found_again_until_what_it_depends_on_changes(tmp_path, model_dir):
    make_rows().to_csv(tmp_path / "rows.csv", index=False)
    config = Config(dataset_name=str(tmp_path / "rows.csv"), max_length=32)

    def files(config: Config, model=model_dir) -> set[str]:
        loaded = data.load_data(config)
        tokens = tokenizing.encode(loaded.train, AutoTokenizer.from_pretrained(model), config)
        return {file["filename"] for file in tokens.inputs.cache_files}

    first = files(config)
    (file,) = first
    written = os.stat(file).st_mtime_ns
    assert files(config) == first and os.stat(file).st_mtime_ns == written, "found, not written again"
    others = [replace(config, max_length=16), replace(config, truncation="tail"), replace(config, split_seed=1)]
    assert len({file, *(files(other).pop() for other in others)}) == 4
    make_rows(82).to_csv(tmp_path / "rows.csv", index=False)
    assert files(config) != first, "another file"


def test_texts_and_tokens_are_read_row_by_row_from_disk(data_file, model_dir):
    config = Config(dataset_name=str(data_file), max_length=16)
    loaded, tokenizer = data.load_data(config), AutoTokenizer.from_pretrained(model_dir)
    written = pd.read_csv(data_file)
    for split in (loaded.train, loaded.validation, loaded.test):
        assert split.columns()["text"] == written.review[split.rows].tolist()
        assert [loaded.label_names[label] for label in split.labels] == written.sentiment[split.rows].tolist()
        tokens = tokenizing.encode(split, tokenizer, config)
        ids, lengths = tokenizing.tokenize_texts(split.columns()["text"], tokenizer, config)
        assert tokens.inputs.cache_files and tokens.lengths.tolist() == lengths.tolist()
        some = [5, 0, 7]
        assert tokens.__getitems__(some) == [{"input_ids": ids[i], "labels": split.labels[i]} for i in some]
        assert split.select(some).columns()["text"] == [split.columns()["text"][i] for i in some]


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        ("head", [1, 10, 11, 12, 13, 14, 15, 2]),
        ("tail", [1, 24, 25, 26, 27, 28, 29, 2]),
        ("head+tail", [1, 10, 25, 26, 27, 28, 29, 2]),
    ],
)
def test_truncation_keeps_the_special_tokens_and_the_side_asked_for(side, kept):
    ids = [1, *range(10, 30), 2]
    assert tokenizing.truncate(ids, 8, side) == kept
    assert tokenizing.truncate(ids, 22, side) == ids


def test_truncation_without_special_tokens():
    ids = list(range(20))
    assert tokenizing.truncate(ids, 8, "head", 0, 0) == ids[:8]
    assert tokenizing.truncate(ids, 8, "tail", 0, 0) == ids[-8:]


def test_the_tokenizer_file_does_not_decide_about_length(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = ["we loved it", "a fine film " * 20]
    ids, lengths = tokenizing.tokenize_texts(texts, tokenizer, replace(Config(), max_length=32))
    assert lengths.tolist() == [5, 62] and [len(row) for row in ids] == [5, 32]
    assert ids[1][0] == tokenizer.cls_token_id and ids[1][-1] == tokenizer.sep_token_id


def test_line_breaks_of_html_are_spaces():
    assert text_classification.clean(["a<br /><br>b"]) == ["a  b"]


def test_stand_ins_are_for_the_default_names_only_and_checked(monkeypatch):
    from finetuning import sources

    found = find_model("distilbert-base-uncased")
    assert found.origin == "stand-in" and found.sha256 == sources.STAND_IN_MODEL["distilbert-base-uncased"]["sha256"]
    monkeypatch.setitem(sources.STAND_IN_MODEL["distilbert-base-uncased"], "sha256", "0" * 64)
    with pytest.raises(sources.UserError, match="not those published"):
        find_model("distilbert-base-uncased")
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sources.UserError, match="pip install -r requirements.txt"):
        find_model("distilbert-base-uncased")


def test_a_hub_that_does_not_answer_is_given_up_once(monkeypatch):
    from finetuning import sources

    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        raise OSError("no route")

    monkeypatch.setattr(sources.huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(sources.huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    sources.hub_answers.cache_clear()
    assert not sources.hub_answers() and not sources.hub_answers()
    assert len(asked) == 1 and asked[0][1] < 3
    sources.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["token-dropout", "crop", "sentence-shuffle"])
def test_augmentation_depends_on_seed_epoch_and_row_and_leaves_the_special_tokens(name, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [" . ".join(make_rows().review[start : start + 8]) for start in range(0, 64, 8)]
    rows, _ = tokenizing.tokenize_texts(texts, tokenizer, Config(max_length=64))
    assert augmentation(tokenizer, Config()) is None
    change = augmentation(tokenizer, Config(augmentation=name))
    first = [change(ids, 0, row) for row, ids in enumerate(rows)]
    assert first != [change(ids, 1, row) for row, ids in enumerate(rows)], "drawn anew each epoch"
    assert first != [augmentation(tokenizer, Config(augmentation=name, seed=1))(ids, 0, row) for row, ids in enumerate(rows)]
    assert first[::-1] == [change(rows[row], 0, row) for row in reversed(range(len(rows)))], "whatever was drawn before"
    for ids, before in zip(first, rows, strict=True):
        assert (ids[0], ids[-1]) == (before[0], before[-1]) and len(ids) <= len(before)
        assert not Counter(ids) - Counter(before), "no token that was not there"
        if name == "sentence-shuffle":
            assert Counter(ids) == Counter(before)
        if name == "crop":
            assert len(ids) >= 0.7 * len(before) and ",".join(map(str, ids[1:-1])) in ",".join(map(str, before))
