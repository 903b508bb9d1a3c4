"""Words, tags and spans: all formats are read alike, and a row that can't be read is named."""

import json
import shutil

import numpy as np
import pytest
from forms import make_sentences

from config import Config
from finetuning.data import spans
from finetuning.data.splits import Data, load_data
from finetuning.data.words import find_words
from finetuning.errors import UserError
from finetuning.tasks.entities import Entities

FORMS = ["iob2.conll", "iob1.txt", "iobes.bio", "bilou.iob", "windows.conll", "numbers.parquet", "words.jsonl", "doccano.jsonl"]
FORMS += ["prodigy.jsonl", "relations.jsonl", "studio.json"]


def load(path, **settings) -> Data:
    return load_data(Entities(), Config(task="token-classification", dataset_name=str(path), **settings))


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_texts_words_and_tags(form, forms):
    loaded = load(forms / form)
    words, tags = make_sentences()
    assert loaded.label_names == ["O", "B-LOOK", "I-LOOK", "B-NUM", "I-NUM"] and not loaded.remarks
    seen = []
    for split in (loaded.train, loaded.validation, loaded.test):
        rows = split.columns()
        for i, row in enumerate(split.rows):
            places = zip(rows["starts"][i], rows["ends"][i], strict=True)
            assert [rows["text"][i][start:end] for start, end in places] == words[row] and rows["text"][i] == " ".join(words[row])
            assert [loaded.label_names[tag] for tag in rows["tags"][i]] == tags[row]
            seen.append(row)
    assert sorted(seen) == list(range(120)), "the sentences are all different"
    assert len(np.unique(loaded.test.labels)) == len(np.unique(loaded.train.labels)) > 1, "stratified by the rarest type"


def test_the_files_of_conll_2003_are_its_splits(forms):
    loaded = load(forms / "eng")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (80, 20, 20)
    assert (loaded.test_split, loaded.validation_split) == ("official test", "official validation")


def test_notes_beside_parquet_files_are_no_rows(forms, tmp_path):
    shutil.copy(forms / "numbers.parquet", tmp_path / "train.parquet")
    (tmp_path / "README.txt").write_text("What the columns hold.\n")
    assert len(load(tmp_path).train) == 84


def test_a_further_word_of_an_entity_that_never_began_begins_it():
    assert spans.to_iob2(["I-A", "I-A", "O", "I-B", "I-A", "B-A"]) == ["B-A", "I-A", "O", "B-B", "B-A", "B-A"]
    assert spans.to_iob2(["S-A", "I-A", "E-A", "E-A"]) == ["B-A", "B-A", "I-A", "B-A"], "an end ends"


def test_a_span_that_ends_inside_a_word_is_widened_and_one_that_overlaps_is_left_out_with_notes(call, model_dir, tmp_path):
    text = "Jean-Claude Juncker visited Luxembourg City on Monday ."
    odd = [[0, 4, "PER"], [12, 19, "PER"], [27, 43, "LOC"], [28, 38, "LOC"], [47, 54, "DATE"]]
    rows = [
        {"text": f"{text} {i}", "label": odd if i == 3 else [[12, 19, "PER"], [28, 43, "LOC"], [47, 53, "DATE"]]} for i in range(60)
    ]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load(tmp_path / "spans.jsonl")
    assert loaded.remarks == [
        "row 3 of train: LOC 'Luxembourg' left out: it overlaps another",
        "row 3 of train: PER 'Jean' widened to 'Jean-Claude'",
    ]
    flags = ["--task", "token-classification", "--dataset_name", tmp_path / "spans.jsonl", "--model_name", model_dir]
    trained = call("fine_tune.py", *flags, "--max_length", 32)
    assert trained.code == 0 and all(remark in trained.out for remark in loaded.remarks), trained.err


def test_rows_without_words_are_an_error_or_left_out_and_the_others_keep_their_numbers(tmp_path):
    rows = [{"text": f"a film {i}", "label": [[7, 7 + len(str(i)), "NUM"]]} for i in range(40)]
    rows[3], rows[20] = {"text": " ", "label": []}, {"text": None, "label": []}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"2 of 40 rows of split train with an empty text \(row 3, 20\).*on_bad_rows"):
        load(tmp_path / "rows.jsonl")
    loaded = load(tmp_path / "rows.jsonl", on_bad_rows="skip")
    splits = (loaded.train, loaded.validation, loaded.test)
    assert sorted(row for split in splits for row in split.rows) == [i for i in range(40) if i not in (3, 20)]
    assert all(rows[row]["text"] == text for split in splits for row, text in zip(split.rows, split.columns()["text"], strict=True))


@pytest.mark.parametrize(
    "text", ["नरेंद्र मोदी दिल्ली में हैं।", "安倍晋三は東京で会った", "Ünal gülümsedi: “İyi!” 😀", "ما زال في القاهرة"]
)
def test_the_words_of_any_script_hold_all_characters_but_spaces_and_keep_their_marks(text):
    starts, ends = find_words(text)
    words = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert "".join(words) == "".join(text.split())
    assert words[0] in ("नरेंद्र", "安", "Ünal", "ما")


def test_abbreviations_and_names_with_punctuation_inside_are_one_word():
    text = "The U.S.-based AT&T paid O'Neil's $1,000.50 on 1996-08-22."
    words = [text[start:end] for start, end in zip(*find_words(text), strict=True)]
    assert words == ["The", "U.S.", "-", "based", "AT&T", "paid", "O'Neil", "'s", "$", "1,000.50", "on", "1996-08-22", "."]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a O\nfilm\n\nthe O\n", ["row 0 of split train", "word 2, 'film', has no tag"]),
        ("a O\n\nfilm NOUN\n", ["row 1 of split train", "'NOUN'", "IOB1, IOB2, IOBES or BILOU"]),
        ("a O\n\nfilm O\n", ["train has no entity in it"]),
        ({"tokens": ["a", "film"], "tags": ["O"]}, ["row 0", "2 words and 1 tags"]),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, ["row 0", "no words", "text_column"]),
        ({"tokens": ["a", "film"], "tags": [0, 1]}, ["row 0", "numbers", "B-PER"]),
        ({"text": "a film", "spans": [{"start": 0, "end": 90, "label": "X"}]}, ["row 0", "from 0 to 90", "6 characters"]),
        ({"text": "a film", "spans": [{"from": 0, "label": "X"}]}, ["row 0", "unknown form"]),
        ({"text": "a film", "spans": "film"}, ["row 0", "unknown form"]),
        ({"tokens": ["a", "film"], "other": ["O", "O"]}, ["label_column", "tokens, other"]),
    ],
)
def test_a_row_that_can_not_be_read_is_named(lines, words, tmp_path):
    file = tmp_path / ("bad.conll" if isinstance(lines, str) else "bad.jsonl")
    file.write_text(lines if isinstance(lines, str) else json.dumps(lines))
    with pytest.raises(UserError) as error:
        load(file)
    assert all(word in str(error.value) for word in words), error.value


def test_a_type_that_train_lacks_is_named_with_its_row(tmp_path):
    for ending, tag in (("train", "B-LOC"), ("testa", "B-LOC"), ("testb", "B-SHIP")):
        (tmp_path / f"eng.{ending}").write_text("\n".join(f"a O\n{i} {tag}\n" for i in range(20)))
    with pytest.raises(UserError, match="split test has entities .*: SHIP .*row 0.*train has LOC"):
        load(tmp_path)
