"""Words, tags and spans: each form is read alike, and a row that can't be read is named."""

import json
import shutil

import numpy as np
import pytest
from forms import make_sentences

from config import Config
from finetuning import data, sentences

FORMS = ["iob2.conll", "iob1.txt", "iobes.bio", "bilou.iob", "windows.conll", "numbers.parquet", "words.jsonl", "doccano.jsonl"]
FORMS += ["prodigy.jsonl", "relations.jsonl", "studio.json"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_texts_words_and_tags(form, forms):
    loaded = data.load_data(Config(task="token-classification", dataset_name=str(forms / form)))
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
    loaded = data.load_data(Config(task="token-classification", dataset_name=str(forms / "eng")))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (80, 20, 20)
    assert (loaded.test_split, loaded.validation_split) == ("official test", "official validation")


def test_notes_beside_parquet_files_are_no_rows(forms, tmp_path):
    shutil.copy(forms / "numbers.parquet", tmp_path / "train.parquet")
    (tmp_path / "README.txt").write_text("What the columns hold.\n")
    assert len(data.load_data(Config(task="token-classification", dataset_name=str(tmp_path))).train) == 84


def test_an_entity_that_goes_on_where_none_began_begins_there():
    assert sentences.to_iob2(["I-A", "I-A", "O", "I-B", "I-A", "B-A"]) == ["B-A", "I-A", "O", "B-B", "B-A", "B-A"]
    assert sentences.to_iob2(["S-A", "I-A", "E-A", "E-A"]) == ["B-A", "B-A", "I-A", "B-A"], "an end ends"


def test_spans_off_the_words_borders_are_widened_and_said_and_overlapping_ones_left_out(call, model_dir, tmp_path):
    text = "Jean-Claude Juncker visited Luxembourg City on Monday ."
    odd = [[0, 4, "PER"], [12, 19, "PER"], [27, 43, "LOC"], [28, 38, "LOC"], [47, 54, "DATE"]]
    rows = [
        {"text": f"{text} {i}", "label": odd if i == 3 else [[12, 19, "PER"], [28, 43, "LOC"], [47, 53, "DATE"]]} for i in range(60)
    ]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = data.load_data(Config(task="token-classification", dataset_name=str(tmp_path / "spans.jsonl")))
    assert loaded.remarks == [
        "row 3 of train: LOC 'Luxembourg' left out: it overlaps another",
        "row 3 of train: PER 'Jean' widened to 'Jean-Claude'",
    ]
    flags = ["--task", "token-classification", "--dataset_name", tmp_path / "spans.jsonl", "--model_name", model_dir]
    said = call("fine_tune.py", *flags, "--max_length", 32)
    assert said.code == 0 and "2 things to know of the data" in said.out and loaded.remarks[1] in said.out


@pytest.mark.parametrize(
    "text", ["नरेंद्र मोदी दिल्ली में हैं।", "安倍晋三は東京で会った", "Ünal gülümsedi: “İyi!” 😀", "ما زال في القاهرة"]
)
def test_words_of_any_script_hold_all_but_spaces_and_keep_their_marks(text):
    starts, ends = sentences.find_words(text)
    words = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert "".join(words) == "".join(text.split())
    assert words[0] in ("नरेंद्र", "安", "Ünal", "ما")


def test_abbreviations_and_names_with_signs_inside_are_one_word():
    text = "The U.S.-based AT&T paid O'Neil's $1,000.50 on 1996-08-22."
    found = [text[start:end] for start, end in zip(*sentences.find_words(text), strict=True)]
    assert found == ["The", "U.S.", "-", "based", "AT&T", "paid", "O'Neil", "'s", "$", "1,000.50", "on", "1996-08-22", "."]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a O\nfilm\n\nthe O\n", ["row 0 of split train", "word 2, 'film', has no tag"]),
        ("a O\n\nfilm NOUN\n", ["row 1 of split train", "'NOUN'", "IOB1, IOB2, IOBES, BILOU"]),
        ("a O\n\nfilm O\n", ["train has no entity in it"]),
        ({"tokens": ["a", "film"], "tags": ["O"]}, ["row 0", "2 words and 1 tags"]),
        ({"tokens": [], "tags": []}, ["row 0", "no words", "remove it"]),
        ({"text": " ", "spans": []}, ["row 0", "no words"]),
        ({"tokens": ["a", "film"], "tags": [0, 1]}, ["row 0", "numbers", "B-PER"]),
        ({"text": "a film", "spans": [{"start": 0, "end": 90, "label": "X"}]}, ["row 0", "from 0 to 90", "6 characters"]),
        ({"text": "a film", "spans": [{"from": 0, "label": "X"}]}, ["row 0", "no form known"]),
        ({"text": "a film", "spans": "film"}, ["row 0", "no form known"]),
        ({"tokens": ["a", "film"], "other": ["O", "O"]}, ["label_column", "tokens, other"]),
    ],
)
def test_a_row_that_can_not_be_read_is_named(lines, words, call, entity_flags, tmp_path):
    file = tmp_path / ("bad.conll" if isinstance(lines, str) else "bad.jsonl")
    file.write_text(lines if isinstance(lines, str) else json.dumps(lines))
    result = call("fine_tune.py", *entity_flags, "--dataset_name", file)
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.glob("outputs/*"))


def test_a_type_that_train_lacks_is_named_with_its_row(call, entity_flags, tmp_path):
    (tmp_path / "eng").mkdir()
    for ending, tag in (("train", "B-LOC"), ("testa", "B-LOC"), ("testb", "B-SHIP")):
        (tmp_path / "eng" / f"eng.{ending}").write_text("\n".join(f"a O\n{i} {tag}\n" for i in range(20)))
    result = call("fine_tune.py", *entity_flags, "--dataset_name", tmp_path / "eng")
    assert result.code == 2 and all(word in result.err for word in ("split test", "SHIP", "row 0", "train has LOC"))
