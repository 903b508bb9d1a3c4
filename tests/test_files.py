"""Files of many formats and encodings give the rows that a plain csv gives, with notes on what was guessed or left out."""

import gzip
import json
import os
import zipfile

import datasets
import pandas as pd
import pytest
from conftest import make_rows

from config import Config
from finetuning import tasks
from finetuning.data.files import guess_encoding
from finetuning.data.splits import Data, load_data
from finetuning.errors import UserError

ROWS = make_rows().assign(review=lambda rows: rows.review + ", très déjà vu à la façon d'un rêve")
CSV = ROWS.to_csv(index=False)
RECORDS = ROWS.to_dict("records")


def load(path, **settings) -> Data:
    config = Config(dataset_name=str(path), **settings)
    return load_data(tasks.pick(config), config)


def in_zip(file):
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("inside/rows.csv", CSV)
        packed.writestr("__MACOSX/inside/._rows.csv", "of the system")


FORMATS = {  # file name -> function that writes it
    "semicolons.csv": lambda file: ROWS.to_csv(file, index=False, sep=";"),
    "bars.csv": lambda file: ROWS.to_csv(file, index=False, sep="|"),
    "tabs.csv": lambda file: ROWS.to_csv(file, index=False, sep="\t"),
    "latin.csv": lambda file: ROWS.to_csv(file, index=False, encoding="latin-1"),
    "spreadsheet.csv": lambda file: ROWS.to_csv(file, index=False, encoding="cp1252", sep=";"),
    "unicode.csv": lambda file: ROWS.to_csv(file, index=False, encoding="utf-16", sep="\t"),
    "packed.csv.gz": lambda file: ROWS.to_csv(file, index=False),
    "latin.csv.gz": lambda file: ROWS.to_csv(file, index=False, encoding="latin-1"),
    "packed.zip": in_zip,
    "sheet.xlsx": lambda file: ROWS.to_excel(file, index=False),
    "saved": lambda folder: datasets.Dataset.from_pandas(ROWS).save_to_disk(folder),
    "saved_splits": lambda folder: datasets.DatasetDict(train=datasets.Dataset.from_pandas(ROWS)).save_to_disk(folder),
    "under_a_key.json": lambda file: file.write_text(json.dumps({"version": 1, "data": RECORDS}, indent=1)),
    "one_line.json": lambda file: file.write_text(json.dumps({"data": RECORDS})),
    "columns.json": lambda file: ROWS.to_json(file),
    "latin.json": lambda file: file.write_bytes(json.dumps(RECORDS, ensure_ascii=False).encode("latin-1")),
    "mark.jsonl": lambda file: file.write_bytes(b"\xef\xbb\xbf" + ROWS.to_json(orient="records", lines=True).encode()),
    "unicode.jsonl": lambda file: file.write_text(ROWS.to_json(orient="records", lines=True), encoding="utf-16"),
    "packed.jsonl.gz": lambda file: ROWS.to_json(file, orient="records", lines=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_are_those_of_a_plain_csv(name, tmp_path):
    (tmp_path / "plain.csv").write_text(CSV)
    FORMATS[name](tmp_path / name)
    plain, data = load(tmp_path / "plain.csv"), load(tmp_path / name)
    assert data.sha256 == plain.sha256 and data.test.columns() == plain.test.columns()
    assert not plain.remarks
    guessed = any("not UTF-8" in remark and "'très'" in remark for remark in data.remarks)
    assert guessed == name.startswith(("latin", "spreadsheet"))


def test_splits_by_the_names_of_files_and_keys(tmp_path):
    (tmp_path / "folder").mkdir()
    for split, rows in (("train", ROWS[:60]), ("test", ROWS[60:])):
        rows.to_csv(tmp_path / "folder" / f"{split}.csv", index=False, sep=";", encoding="cp1252")
    (tmp_path / "folder" / "README.md").write_text("no rows")
    (tmp_path / "keys.json").write_text(json.dumps({"train": RECORDS[:60], "test": RECORDS[60:]}))
    folder, keys = load(tmp_path / "folder"), load(tmp_path / "keys.json")
    assert all((len(data.test), data.test_split) == (20, "official test") for data in (folder, keys))
    assert folder.sha256 == keys.sha256


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le film est très réussi, malgré quelques défauts à la fin."),
        ("cp1252", "Der Film ist schön, aber viel zu lang für einen Abend."),
        ("cp1250", "To jest świetny film, choć zbyt długi; gra aktorów była naprawdę dobra."),
        ("cp1251", "Это замечательный фильм, хотя и слишком длинный."),
        ("shift_jis", "この映画はとても素晴らしかったです。もう一度見たい。"),
        ("gb18030", "这部电影非常精彩，我还想再看一遍。"),
    ],
)
def test_an_encoding_is_guessed_from_the_text(encoding, text, tmp_path):
    (tmp_path / "text.txt").write_bytes(f"{text}\n".encode(encoding) * 3)
    guess, word = guess_encoding([tmp_path / "text.txt"])
    assert text.encode(encoding).decode(guess) == text and word in text


def test_the_encoding_that_is_given_is_used(tmp_path):
    (tmp_path / "rows.csv").write_bytes(CSV.replace("très", "tr\u0148s").encode("cp1250", errors="replace"))
    data = load(tmp_path / "rows.csv", encoding="cp1250")
    assert "tr\u0148s" in data.test.columns()["text"][0] and not data.remarks


GAPS = ROWS.assign(
    review=[None, "  ", *ROWS.review[2:]], sentiment=[*ROWS.sentiment[:-1], None]
)  # rows 0 and 1 have no text, row 79 no label


def test_rows_that_lack_something_are_refused_with_their_numbers_or_left_out(tmp_path):
    GAPS.to_csv(tmp_path / "gaps.csv", index=False)
    problems = r"2 of 80 rows .* empty text \(row 0, 1\); 1 of 80 .* without a label \(row 79\).*on_bad_rows"
    with pytest.raises(UserError, match=problems):
        load(tmp_path / "gaps.csv")
    data = load(tmp_path / "gaps.csv", on_bad_rows="skip")
    rows = sorted([*data.train.rows, *data.validation.rows, *data.test.rows])
    assert rows == [*range(2, 79)] and len(data.remarks) == 2 and all("left out" in remark for remark in data.remarks)


def test_doubtful_labels_are_noted(tmp_path):
    twice = pd.concat([ROWS, ROWS[:3].assign(sentiment="bad")])
    twice.to_csv(tmp_path / "twice.csv", index=False)
    (remark,) = load(tmp_path / "twice.csv").remarks
    assert "2 texts come with more than one label" in remark and "rows 0, 2, 80, 82 of train" in remark
    ROWS.assign(sentiment=[*ROWS.sentiment[:-1], "rare"]).to_csv(tmp_path / "rare.csv", index=False)
    assert load(tmp_path / "rare.csv").remarks == ["no validation row has the label 'rare'", "no test row has the label 'rare'"]


def test_files_that_cannot_be_read_are_refused_with_the_reason(tmp_path):
    (tmp_path / "sheet.csv").write_bytes(os.urandom(4000) + b"\0")
    (tmp_path / "two.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.csv", CSV)
        packed.writestr("b.csv", CSV)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(CSV.encode())[:200])
    (tmp_path / "no.zip").write_bytes(b"PK")
    (tmp_path / "keys.json").write_text(json.dumps({"a": RECORDS, "b": RECORDS}))
    ROWS.to_csv(tmp_path / "no_names.csv", index=False, header=False)
    ROWS.assign(sentiment=None).to_csv(tmp_path / "no_labels.csv", index=False)
    ROWS.assign(review="").to_csv(tmp_path / "no_texts.csv", index=False)
    (tmp_path / "wrong.csv").write_bytes(CSV.encode("latin-1"))
    for name, words, settings in (
        ("sheet.csv", "binary", {}),
        ("two.zip", "2 files are packed", {}),
        ("cut.csv.gz", "cut short", {}),
        ("no.zip", "cannot be read", {}),
        ("keys.json", "several keys, a, b", {}),
        ("no_names.csv", "names missing", {}),
        ("no_labels.csv", "no labels in it", {}),
        ("no_texts.csv", "text_column", {}),
        ("wrong.csv", "set encoding", dict(encoding="utf-8")),
    ):
        with pytest.raises(UserError, match=words):
            load(tmp_path / name, **settings)


def test_predict_reads_the_same_files(call, tiny_flags, tmp_path):
    assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", "1").code == 0
    for name in ("spreadsheet.csv", "sheet.xlsx", "packed.zip", "under_a_key.json"):
        FORMATS[name](tmp_path / name)
        result = call("predict.py", "--file", name, "--out", f"{name}.jsonl")
        assert result.code == 0 and "80 rows written" in result.out, result.err
        assert pd.read_json(f"{name}.jsonl", lines=True).review.tolist() == ROWS.review.tolist()
        assert ("not UTF-8" in result.err) == (name == "spreadsheet.csv")
