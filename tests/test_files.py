"""Files of many formats and encodings give the rows of a plain CSV file, with notes on guesses and on rows left out."""

import csv
import gzip
import json
import os
import re
import tarfile
import zipfile
from dataclasses import replace

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pyarrow.parquet
import pytest
from conftest import make_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from config import Config
from finetuning import tasks
from finetuning.data.files import guess_encoding
from finetuning.data.formats import read_lines
from finetuning.data.sources import find_rows
from finetuning.data.splits import Data, load_data
from finetuning.errors import UserError
from finetuning.tasks.causal_lm import CausalLM
from finetuning.tasks.translation import Translation

ROWS = make_rows().assign(review=lambda rows: rows.review + ", très déjà vu à la façon d'un rêve")
CSV = ROWS.to_csv(index=False)
RECORDS = ROWS.to_dict("records")


def load(path, **settings) -> Data:
    config = Config(dataset_name=str(path), **settings)
    return load_data(tasks.pick(config), config)


def write_zip(file):
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("inside/rows.csv", CSV)
        packed.writestr("__MACOSX/inside/._rows.csv", "added by macOS")


FORMATS = {  # file name -> function that writes it
    "rows.parquet": ROWS.to_parquet,
    "rows.tsv": lambda file: ROWS.to_csv(file, index=False, sep="\t"),
    "rows.json": lambda file: ROWS.to_json(file, orient="records"),
    "rows.jsonl": lambda file: ROWS.to_json(file, orient="records", lines=True),
    "semicolons.csv": lambda file: ROWS.to_csv(file, index=False, sep=";"),
    "excel.csv": lambda file: write(file, "sep=;\r\n" + ROWS.to_csv(index=False, sep=";")),
    "bars.csv": lambda file: ROWS.to_csv(file, index=False, sep="|"),
    "tabs.csv": lambda file: ROWS.to_csv(file, index=False, sep="\t"),
    "latin.csv": lambda file: ROWS.to_csv(file, index=False, encoding="latin-1"),
    "spreadsheet.csv": lambda file: ROWS.to_csv(file, index=False, encoding="cp1252", sep=";"),
    "unicode.csv": lambda file: ROWS.to_csv(file, index=False, encoding="utf-16", sep="\t"),
    "packed.csv.gz": lambda file: ROWS.to_csv(file, index=False),
    "latin.csv.gz": lambda file: ROWS.to_csv(file, index=False, encoding="latin-1"),
    "packed.zip": write_zip,
    "sheet.xlsx": lambda file: ROWS.to_excel(file, index=False),
    "saved": lambda folder: datasets.Dataset.from_pandas(ROWS).save_to_disk(folder),
    "saved_splits": lambda folder: datasets.DatasetDict(train=datasets.Dataset.from_pandas(ROWS)).save_to_disk(folder),
    "under_a_key.json": lambda file: write(file, json.dumps({"version": 1, "data": RECORDS}, indent=1)),
    "one_line.json": lambda file: write(file, json.dumps({"data": RECORDS})),
    "columns.json": lambda file: ROWS.to_json(file),
    "latin.json": lambda file: file.write_bytes(json.dumps(RECORDS, ensure_ascii=False).encode("latin-1")),
    "mark.jsonl": lambda file: file.write_bytes(b"\xef\xbb\xbf" + ROWS.to_json(orient="records", lines=True).encode()),
    "unicode.jsonl": lambda file: file.write_text(ROWS.to_json(orient="records", lines=True), encoding="utf-16"),
    "rows.ndjson": lambda file: write(file, ROWS.to_json(orient="records", lines=True)),
    "empty_column.jsonl": lambda file: ROWS.assign(other=None).to_json(file, orient="records", lines=True),
    "packed.jsonl.gz": lambda file: ROWS.to_json(file, orient="records", lines=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_rows_of_a_plain_csv(name, tmp_path):
    write(tmp_path / "plain.csv", CSV)
    FORMATS[name](tmp_path / name)
    plain, data = load(tmp_path / "plain.csv"), load(tmp_path / name)
    assert data.sha256 == plain.sha256 and data.test.columns() == plain.test.columns()
    assert data.label_names == plain.label_names == ["bad", "good"] and not plain.remarks
    guessed = any("not UTF-8" in remark and "'très'" in remark for remark in data.remarks)
    assert guessed == name.startswith(("latin", "spreadsheet"))


def test_names_of_files_and_json_keys_define_the_splits(tmp_path):
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


def test_the_encoding_setting_is_used(tmp_path):
    (tmp_path / "rows.csv").write_bytes(CSV.replace("très", "tr\u0148s").encode("cp1250", errors="replace"))
    data = load(tmp_path / "rows.csv", encoding="cp1250")
    assert "tr\u0148s" in data.test.columns()["text"][0] and not data.remarks


GAPS = ROWS.assign(
    review=[None, "  ", *ROWS.review[2:]], sentiment=[*ROWS.sentiment[:-1], None]
)  # rows 0 and 1 have no text, row 79 no label


def test_rows_without_text_or_label_are_refused_with_their_numbers_or_skipped(tmp_path):
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
    remark, unused = load(tmp_path / "twice.csv").remarks
    assert "rows of train are not used: copies of held-out texts" in unused
    assert "2 texts have more than one label" in remark and "rows 0, 2, 80, 82 of train" in remark
    ROWS.assign(sentiment=[*ROWS.sentiment[:-1], "rare"]).to_csv(tmp_path / "rare.csv", index=False)
    assert load(tmp_path / "rare.csv").remarks == ["no validation row has the label 'rare'", "no test row has the label 'rare'"]


def test_files_that_cannot_be_read_are_refused_with_the_reason(tmp_path):
    (tmp_path / "sheet.csv").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "two.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.csv", CSV)
        packed.writestr("b.csv", CSV)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(CSV.encode())[:200])
    (tmp_path / "no.zip").write_bytes(b"PK")
    (tmp_path / "damaged.csv.gz").write_bytes(gzip.compress(CSV.encode())[:10] + b"\xff" * 100)
    for name, part in (("no_sheet.xlsx", "other.xml"), ("damaged.xlsx", "[Content_Types].xml")):
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            packed.writestr(part, "<")
    (tmp_path / "keys.json").write_text(json.dumps({"a": RECORDS, "b": RECORDS}))
    ROWS.to_csv(tmp_path / "no_names.csv", index=False, header=False)
    ROWS.assign(sentiment=None).to_csv(tmp_path / "no_labels.csv", index=False)
    ROWS.assign(review="").to_csv(tmp_path / "no_texts.csv", index=False)
    (tmp_path / "wrong.csv").write_bytes(CSV.encode("latin-1"))
    for name, words, options in (
        ("sheet.csv", "binary", {}),
        ("two.zip", "it contains 2 files", {}),
        ("cut.csv.gz", "cut short", {}),
        ("no.zip", "cannot be read", {}),
        ("damaged.csv.gz", "cannot be read", {}),
        ("no_sheet.xlsx", "cannot be read", {}),
        ("damaged.xlsx", "cannot be read", {}),
        ("keys.json", "several keys have rows, a, b", {}),
        ("no_names.csv", "write a line with the names of the columns above it", {}),
        ("no_labels.csv", "no labels in it", {}),
        ("no_texts.csv", "text_column", {}),
        ("wrong.csv", "set encoding", dict(encoding="utf-8")),
    ):
        with pytest.raises(UserError, match=words):
            load(tmp_path / name, **options)


def test_predict_reads_the_formats_that_training_reads(call, finished_run, tmp_path):
    for name in ("spreadsheet.csv", "sheet.xlsx", "packed.zip", "under_a_key.json"):
        FORMATS[name](tmp_path / name)
        result = call("predict.py", "--file", name, "--out", f"{name}.jsonl")
        assert result.code == 0 and "80 rows written" in result.out, result.err
        assert pd.read_json(f"{name}.jsonl", lines=True).review.tolist() == ROWS.review.tolist()
        assert ("not UTF-8" in result.err) == (name == "spreadsheet.csv")


# --- unusual and broken files --------------------------------------------------------------------------------------------

LABELLED = [f"{text} {number}" for number in range(30) for text in ("fine film", "dull film")]


def write(file, text: str, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="", **options)
    return file


def texts_of(path, **options) -> list[str]:
    """Return the texts of all rows, in the order of the file."""
    splits = find_rows(str(path), **options)[0]
    return [text for rows in splits.values() for text in rows["text"][:]]


def test_values_stay_as_they_are_written(tmp_path):
    values = ["0111", "111", "None", "N/A", "null", "nan", "TRUE", "1e3", "1.10", "2024-01-01", "1234567890123456789", " x "]
    rows = pd.DataFrame({"text": LABELLED[: len(values)], "value": values})
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    rows.to_excel(tmp_path / "a.xlsx", index=False)
    rows.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    rows.to_json(tmp_path / "a.json", orient="records")
    for name in ("a.csv", "a.tsv", "a.xlsx", "a.jsonl", "a.json"):
        assert find_rows(str(tmp_path / name))[0]["train"]["value"][:] == values, name


def test_a_column_of_several_types_keeps_its_values(tmp_path):
    values = [1, 0.1 + 0.2, "x", None, True, [1, "a", 10**25], {"b": [None]}, 2**70]
    lines = [json.dumps({"text": "t", "value": value, "late": "late" if value == 2**70 else None}) for value in values]
    rows = find_rows(str(write(tmp_path / "a.jsonl", "\n".join([*lines, ""]))))[0]["train"]
    assert [repr(value) for value in rows["value"][:]] == [repr(value) for value in values]
    assert rows["late"][:] == [None] * 7 + ["late"]


def test_pairs_of_texts_in_json_may_lack_a_side(tmp_path):
    pairs = [{"translation": {"en": f"one {number}", "de": f"eins {number}"}} for number in range(60)]
    pairs[4]["translation"]["de"], pairs[8] = None, {"translation": {"en": "one"}}
    write(tmp_path / "pairs.jsonl", "\n".join(map(json.dumps, pairs)))
    settings = dict(task="translation", source_column="en", target_column="de")
    with pytest.raises(UserError, match=r"2 of 60 rows .* with an empty text \(row 4, 8\)"):
        load(tmp_path / "pairs.jsonl", **settings)
    assert load(tmp_path / "pairs.jsonl", **settings, on_bad_rows="skip").test_split == "held out from train"


def test_whole_numbers_beyond_64_bits_may_be_groups_texts_and_parts_of_messages(tmp_path):
    rows = [record | {"author": 2**127 + number // 4} for number, record in enumerate(RECORDS)]
    data = load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), group_column="author")
    assert len(np.unique(data.train.groups)) == 14 and len(data.train) == 56
    rows[3]["review"] = 10**25
    data = load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), train_samples=0, test_fraction=0.1)
    assert "1 numbers or truth values are read as texts, such as 10000000000000000000000000 (row 3)" in data.remarks[0]
    messages = [{"role": "user", "content": "q", "id": 10**25}, {"role": "assistant", "content": "a"}]
    rows = find_rows(str(write(tmp_path / "b.jsonl", json.dumps({"messages": messages}))))[0]["train"]
    assert rows[0]["messages"] == messages


AWKWARD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(AWKWARD, AWKWARD, AWKWARD).filter(any), min_size=1, max_size=6))
def test_any_table_comes_back_from_csv_json_and_excel(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("a", "b", "c"), *rows])
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(folder / "pandas.csv", index=False)
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    write(
        folder / "rows.jsonl",
        "".join(json.dumps(record, ensure_ascii=number % 2 == 0) + "\n" for number, record in enumerate(records)),
    )
    write(folder / "rows.json", json.dumps(records, ensure_ascii=False, indent=1))
    names = ["rows.csv", "pandas.csv", "rows.jsonl", "rows.json"]
    if not any(ILLEGAL_CHARACTERS_RE.search(text) or text.startswith("=") for row in rows for text in row):  # "=" begins a formula
        names.append("rows.xlsx")
        pd.DataFrame(rows, columns=["a", "b", "c"]).to_excel(folder / "rows.xlsx", index=False)
    for name in names:
        back = find_rows(str(folder / name))[0]["train"]
        assert [tuple(value or "" for value in row.values()) for row in back] == rows, name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,label\na film, dull,bad\n", "line 2 has 3 fields"),  # a comma without quotation marks
        ("text\nshort, and sweet\n", "line 2 has 2 fields"),
        ("text,label\nfine,good,\ndull,bad,\n", "line 2 has 3 fields"),  # a comma at the end
        ("text,label\nfine,good\ndull\n", "line 3 has 1 fields"),  # cut short
        ('text,label\n"Fine" film,good\n', "line 2: .* quotation marks"),
        ('text,label\nfine,good\n"dull,bad\n', "line 3: .* quotation marks"),  # the field goes to the end of the file
        ('text,label\nfine,good\n"Never mind,bad\nnot bad,good\nat 12",bad\ndull,bad\n', "lines 3 to 5 look like 3 rows"),
        ("en,de\n" + "".join(f"a{i},b{i}\n" for i in range(60)) + '"Go,b\nc,d\ne,f\n12",g\n', "lines 62 to 65 look like 4 rows"),
        ("text,label\nfine,good\ntext,label\ndull,bad\n", "line 3 repeats the names of the columns"),  # joined with cat
        ('"text","label"\n"fine","good"\n\n\ufeff"text","label"\n"dull","bad"\n', "line 4 repeats the names of the columns"),
        ("text,label,text\na,b,c\n", "two columns are called 'text'"),
        ("text,label\rfine,good\rdull,bad\r", "line 1 has a carriage return without a line feed"),
        ("text,label\nfine,good\nd\0ll,bad\n", "NUL characters .*line 3"),
        ("text,label\n" + "fine,good\n" * 9_000 + "d\0ll,bad\n", "NUL characters .*line 9,002"),  # far from the start of the file
    ],
)
def test_a_csv_that_would_be_misread_is_refused_with_the_line_number(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        find_rows(str(write(tmp_path / "rows.csv", text)))


def test_files_that_can_be_read_in_two_ways_are_refused(tmp_path):
    pairs = "".join(f"He goes {i}.\tEr geht {i}.\n" for i in range(60))
    with pytest.raises(UserError, match=r"columns are He goes 0., Er geht 0.: set .* if they are a row of data, write a line"):
        load(write(tmp_path / "pairs.tsv", pairs), task="translation")
    given = load(tmp_path / "pairs.tsv", task="translation", source_column="He goes 0.", target_column="Er geht 0.")
    assert "the names of the columns are He goes 0., Er geht 0.: if they are a row of data" in given.remarks[0]
    unnamed = write(tmp_path / "unnamed.csv", "a film,good\n" + "".join(f"{text},{label}\n" for text, label in ROWS.to_numpy()))
    with pytest.raises(UserError, match="line 2 has 3 fields"):
        load(unnamed)
    write(unnamed, "a film;good\n" + "".join(f"{text};{label}\n" for text, label in ROWS.to_numpy()))
    data = load(unnamed, text_column="a film", label_column="good")
    assert "label_column=good: the name of the column is also a label" in data.remarks[-1]
    ROWS.assign(partition=["train", "dev", "Test", "train"] * 20).to_csv(tmp_path / "parts.csv", index=False)
    with pytest.raises(UserError, match="column partition assigns rows to splits, Test, dev, train.* write a file for each"):
        load(tmp_path / "parts.csv")
    ROWS.assign(partition=["", "dev", "Test", "train"] * 20).to_csv(tmp_path / "empty_first.csv", index=False)
    with pytest.raises(UserError, match="column partition assigns rows to splits, Test, dev, train"):
        load(tmp_path / "empty_first.csv")
    ROWS.assign(department=["ops", "dev", "test", "hr"] * 20).to_csv(tmp_path / "departments.csv", index=False)
    assert load(tmp_path / "departments.csv").test_split == "held out from train", "a few of its values name splits by chance"
    assert load(tmp_path / "parts.csv", label_column="partition").label_names == ["Test", "dev", "train"], "it may be the label"
    with pytest.raises(UserError, match="a word and its tags per line, and not a text: rename it to end in .conll"):
        load(write(tmp_path / "words.tsv", "# a comment\nIn\tO\nParis\tB-LOC\n\n" * 9), task="token-classification")
    with pytest.raises(UserError, match="two columns are called 'O': .* if the first line is a row of data"):
        find_rows(str(write(tmp_path / "tags.csv", "In,O,O\nParis,B-LOC,O\n")))
    with pytest.raises(UserError, match="its rows are lists: write them as objects"):
        find_rows(str(write(tmp_path / "lists.json", json.dumps({"train": [["a", "b"]], "val": [["c", "d"], ["e", "f"]]}))))


@pytest.mark.parametrize(
    ("rows", "texts", "noted"),
    [
        (['"Well, well"\tpos', "fine\tpos"], ["Well, well", "fine"], False),  # as Excel writes it
        (['"Well, well"\tpos', "no, no\tpos"], ['"Well, well"', "no, no"], True),
        (['"two\nlines"\tpos', "fine\tpos"], ["two\nlines", "fine"], False),
        (['"a\tb"\tpos', '"He, "" she"\tpos'], ["a\tb", 'He, " she'], False),
    ],
)
@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_quotation_marks_between_tabs(rows, texts, noted, ending, tmp_path):
    dataset, source = find_rows(str(write(tmp_path / f"rows.{ending}", "\n".join(["text\tlabel", *rows, ""]))))
    assert dataset["train"]["text"][:] == texts and bool(source.remarks) == noted


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_a_row_with_too_few_fields_is_named_also_if_texts_have_quotation_marks(ending, tmp_path):
    rows = [f'{i}\t" The pie {i}\tb "x", y' for i in range(9)]
    with pytest.raises(UserError, match="line 11 has 2 fields, but the first line has 3"):
        find_rows(str(write(tmp_path / f"rows.{ending}", "\n".join(["id\ta\tb", *rows, "9\tbad", ""]))))


def test_a_tsv_that_repeats_the_names_of_its_columns_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 3 repeats the names of the columns"):
        find_rows(str(write(tmp_path / "rows.tsv", 'text\tlabel\n"fine\tgood\ntext\tlabel\n')))


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], ["text", "text"]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="two columns are called 'text'"):
        find_rows(str(tmp_path / "rows.parquet"))


def test_a_parquet_file_may_hold_views_of_texts_but_no_map(tmp_path):
    view = pyarrow.string_view()
    kinds = dict(text=view, label=pyarrow.list_(view), pair=pyarrow.struct({"en": view}))
    rows = [{"text": "a", "label": ["x"], "pair": {"en": "one"}}, {"text": None, "label": ["x", "y"], "pair": {"en": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds)), tmp_path / "rows.parquet")
    read = find_rows(str(tmp_path / "rows.parquet"))[0]["train"]
    assert [*read] == rows and "view" not in str(read.features)
    meta = pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "meta": meta}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="its column meta has the type map<string, int64.* remove it"):
        find_rows(str(tmp_path / "rows.parquet"))


def test_a_quoted_text_may_have_several_lines(tmp_path):
    texts = ["one,\ntwo", "a\n\nb, c", 'she said "no"\nand left', "\n"] * 3
    pd.DataFrame({"text": texts, "label": ["good", "bad"] * 6}).to_csv(tmp_path / "rows.csv", index=False)
    assert texts_of(tmp_path / "rows.csv") == texts


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('"Stop,Halt\nGo now",Geh', "lines 62 to 63 are read as one row"),  # two rows, joined by stray quotation marks
        ('Halt,"Stop\nGeh,Go now"', "lines 62 to 63 are read as one row"),
        ('"Stop, or go\nnow",Halt', ""),
        ('"It costs 1,5\nor more",Halt', ""),
        ('"Stop,Halt\nGo now",Geh' + '\n"Well\nwell",Gut' * 20, ""),
        ('"Well,\nwell,\nwell,\nwell",Gut', ""),
    ],
)
def test_lines_that_may_be_rows_but_are_read_as_one_text_are_noted(text, note, tmp_path):
    pairs = "".join(f"man {i},Mann {i}\n" for i in range(60))
    rows, source = find_rows(str(write(tmp_path / "rows.csv", f"en,de\n{pairs}{text}\n")))
    assert len(rows["train"]) > 60 and [note in remark for remark in source.remarks] == ([True] if note else [])


def test_quotation_marks_of_a_tsv_are_text_unless_they_surround_fields(tmp_path):
    stray = ['"Never mind', "fine", 'a 12" pipe', '"Good" film', '"all of it"']
    plain = "text\tlabel\n" + "".join(f"{text}\tgood\n" for text in stray)
    assert texts_of(write(tmp_path / "plain.tsv", plain)) == stray
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        pd.DataFrame({"text": [*stray, "a\ttab", "two\nlines"], "label": "good"}).to_csv(
            tmp_path / "quoted.tsv", sep="\t", index=False, quoting=quoting
        )
        assert texts_of(tmp_path / "quoted.tsv") == [*stray, "a\ttab", "two\nlines"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.csv", "corpus.dev.csv", "tst.test.csv"], ["train", "validation", "test"]),
        (["Train-1.csv", "train_2.csv", "valid.csv"], ["train", "validation"]),
        (["train/a.csv", "train/b.csv", "test/a.csv"], ["train", "test"]),
        (["a.csv", "b.csv"], ["train"]),
        (["reviews 2025.csv", "test drive.csv"], ["train", "test"]),
        (["data [v2].csv"], ["train"]),
        (["train.csv", "test.jsonl"], ["train", "test"]),
        (["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/test.csv"], ["train", "test"]),
    ],
)
def test_words_in_file_names_tell_the_splits(names, splits, tmp_path):
    for name in names:
        content = ROWS.to_csv(index=False) if name.endswith("csv") else ROWS.to_json(orient="records", lines=True)
        write(tmp_path / "folder" / name, content)
    rows_of_splits, source = find_rows(str(tmp_path / "folder"))
    assert [*rows_of_splits] == splits and sum(map(len, rows_of_splits.values())) == 80 * len(names)
    assert sorted(name for files in source.files.values() for name in files) == sorted(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train.csv", "more_reviews.csv"], "the name of more_reviews.csv tells no split"),
        (["train.csv", "newstest2013.csv"], "newstest2013"),
        (["train.csv", "train.jsonl"], "several formats, train.csv, train.jsonl"),
        (["train_test.csv"], "several splits, test, train"),
        (
            ["train.csv", "eval.csv", "test.csv"],
            "eval.csv and test.csv use different words for the split test.* set validation_split or test_split to eval",
        ),
        (["train.csv", "dev.csv", "val/rows.csv"], "dev.csv and val/rows.csv use different words for the split validation"),
        (["train.csv", "train.csv.gz"], "train.csv and train.csv.gz seem to be one file"),
        (["train.csv", "train.csv.GZ"], "train.csv and train.csv.GZ seem to be one file"),
        (["rows.csv", "rows.csv.gz"], "rows.csv and rows.csv.gz seem to be one file"),
    ],
)
def test_a_file_whose_split_is_not_clear_is_refused(names, words, tmp_path):
    for name in names:
        content = ROWS.to_json(orient="records", lines=True) if name.endswith("jsonl") else ROWS.to_csv(index=False)
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_settings_choose_the_files_for_validation_and_test(tmp_path):
    for name in ("train", "newstest2013", "newstest2014"):
        write(tmp_path / f"{name}.csv", CSV.replace("film", name))
    data = load(tmp_path, validation_split="newstest2013", test_split="newstest2014")
    assert data.test_split == "official newstest2014" and "newstest2014" in data.test.columns()["text"][0]
    write(tmp_path / "more" / "train.csv", CSV)
    write(tmp_path / "more" / "eval.csv", CSV)
    write(tmp_path / "more" / "test.csv", CSV)
    assert load(tmp_path / "more", validation_split="eval").validation_split == "official eval"
    with pytest.raises(UserError, match="test_split=train"):
        load(tmp_path / "train.csv", test_split="train")


def test_a_changed_file_is_read_again(tmp_path):
    file, times = tmp_path / "rows.csv", (1_700_000_000, 1_700_000_000)
    for label in ("good", "fine"):
        write(file, CSV.replace("good", label))
        os.utime(file, times)
        assert label in load(file).label_names


def test_a_changed_translation_is_read_again(tmp_path):
    source = write(tmp_path / "train.en", "one\ntwo\n")
    for target in ("eins\nzwei\n", "uno\ndue\n"):
        write(tmp_path / "train.de", target)
        assert find_rows(str(source), readers=Translation.readers)[0]["train"]["de"][:] == target.split()


def test_an_unwritable_cache_is_reported_as_such(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a file")
    with pytest.raises(UserError, match="cache .*a file.*HF_HOME"):
        load(write(tmp_path / "rows.csv", CSV))


LINES = "one\u2028still one\ntwo\x85\x0b\x0cstill two\r\nthree\rstill three\n\nfive"


def test_only_line_feeds_end_a_line(tmp_path):
    texts = ["one\u2028still one", "two\x85\x0b\x0cstill two", "three\rstill three", None, "five"]
    assert texts_of(write(tmp_path / "a.txt", LINES), readers={".txt": read_lines}) == texts
    write(tmp_path / "b.de", LINES)
    write(tmp_path / "b.en", LINES)
    pairs = find_rows(str(tmp_path / "b.de"), readers=Translation.readers)[0]["train"]
    assert pairs["de"][:] == pairs["en"][:] == texts


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\nb\nc\n\n", ["a", "b", "c"]),  # an empty last line divides nothing
        ("\n \na\nb\n", ["a", "b"]),
        ("a\nb\n\nc\n", ["a\nb", "c"]),
        ("a\nb\n \t\nc\r\n\r\nd\n\n\n", ["a\nb", "c", "d"]),
    ],
)
def test_documents_are_divided_by_blank_lines(text, documents, tmp_path):
    assert texts_of(write(tmp_path / "a.txt", text), readers=CausalLM.readers) == documents


def conll(folder, text: str):
    return find_rows(str(write(folder / "a.conll", text)))


def test_conll_files_may_have_comments_word_numbers_and_several_tag_columns(tmp_path):
    rows, source = conll(tmp_path, "# id 1 domain=train\n1\tAnna\tB-PER\n2\t#\tO\n\n \n# text = x\n1\tOslo\tB-LOC\n")
    assert rows["train"]["tokens"][:] == [["Anna", "#"], ["Oslo"]] and rows["train"]["tags"][:] == [["B-PER", "O"], ["B-LOC"]]
    assert "first column numbers the words" in source.remarks[0]
    rows, _ = conll(tmp_path, "12\tB-NUM\n7\tI-NUM\n\n3\tB-NUM\n")
    assert rows["train"]["tokens"][:] == [["12", "7"], ["3"]], "of two columns, the first one holds the words"
    rows, source = conll(tmp_path, "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\n# SYM O O\n\nOslo NNP B-NP B-LOC\n")
    assert source.remarks[0].endswith(
        "tags are read from column 4, the last one; column_3 has tags too, such as B-NP: set label_column to column_3 to read these"
    )
    assert rows["train"]["tokens"][:] == [["Anna", "#"], ["Oslo"]] and rows["train"]["tags"][:] == [["B-PER", "O"], ["B-LOC"]]
    for text in ("Anna \tB-PER \n#\tO\n\nOslo\tB-LOC\t\n", "Anna\tB-PER\t\n#\tO\t\n\nOslo \t B-LOC\t\n"):
        rows, _ = conll(tmp_path, text)
        assert rows["train"]["tokens"][:] == [["Anna", "#"], ["Oslo"]] and rows["train"]["tags"][:] == [["B-PER", "O"], ["B-LOC"]]
    rows, _ = conll(tmp_path, "Anna\tO\t\n\n#\tO\t\n")
    assert rows["train"]["tokens"][:] == [["Anna"], ["#"]], "a word of one character, and no comment"
    with pytest.raises(UserError, match="line 2 has 1 columns"):
        conll(tmp_path, "Anna B-PER\nOslo\n")
    nested = "1\tAnna\tB-PER\tO\n2\tOslo\tO\tB-LOC\n\n" * 30
    config = Config(dataset_name=str(write(tmp_path / "nested.conll", nested)), task="token-classification")
    with pytest.raises(UserError, match="column_1, column_2, column_3, column_4: .* label_column to that of the tags"):
        load_data(tasks.pick(config), config)
    named = replace(config, text_column="column_2", label_column="column_3", test_fraction=0.2)
    with pytest.raises(UserError, match="too small"):  # the columns are accepted, but all sentences are equal
        load_data(tasks.pick(named), named)


@pytest.mark.parametrize(
    "numbers",
    [
        ["0", "1", "2", "0", "1"],
        ["1", "2", "3", "4", "5"],
        ["1", "1", "1", "2", "2"],
        ["a.txt"] * 5,
        ["Sentence: 1", "", "", "Sentence: 2", ""],
        ["0.00", "0.41", "0.87", "3.10", "3.62"],
    ],
)
def test_a_first_column_that_numbers_words_sentences_or_documents_is_not_the_words(numbers, tmp_path):
    lines = ["{}\tAnna\tB-PER\n", "{}\tsaw\tO\n", "{}\tOslo\tB-LOC\n\n", "{}\tshe\tO\n", "{}\tleft\tO\n\n"]
    rows, source = conll(tmp_path, "".join(line.format(number) for line, number in zip(lines, numbers, strict=True)))
    assert rows["train"]["tokens"][:] == [["Anna", "saw", "Oslo"], ["she", "left"]]
    assert "words are read from column 2, tags from column 3" in source.remarks[0]
    rows, _ = conll(tmp_path, "".join(line.format(f"{number}\t1") for line, number in zip(lines, numbers, strict=True)))
    assert rows["train"].column_names == ["column_1", "column_2", "column_3", "column_4"], "the second column has numbers too"


def test_lines_of_conll_u_that_are_no_words_are_left_out(tmp_path):
    no_words = "2-3\tdu\t_\n2\tde\tO\n2.1\tomitted\tO\n3\tle\tO\n"
    rows, _ = conll(tmp_path, "".join(f"1\tvin\tB-X\n{no_words if i in (7, 90) else ''}\n" for i in range(100)))
    assert [i for i, words in enumerate(rows["train"]["tokens"][:]) if words != ["vin"]] == [7, 90]
    assert rows["train"]["tokens"][90] == ["vin", "de", "le"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"text": "a"}\n[1]\n', "line 2 is not an object"),
        ('{"text": "a"}\n{"text": \n', "line 2: it is not valid JSON"),
        ('{"text": "a", "text": "b"}\n', "an object has the key 'text' 2 times"),
        ('[{"text": "a"}, 3]', "row 1 of train"),
        ('{"text": ["a", "b"], "label": ["c"]}', "different lengths"),
        (pd.DataFrame({"text": ["a"]}).to_json(orient="split"), 'write it with orient="records"'),
        ("", "empty"),
    ],
)
def test_a_json_that_holds_no_rows_is_refused(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        find_rows(str(write(tmp_path / "rows.json", text)))


@pytest.mark.parametrize(
    ("indent", "words"), [(None, "line 1 is not an object .*name a file"), (1, r"line 1 is only \[, .*name the")]
)
def test_a_list_of_rows_in_a_jsonl_is_refused_with_the_right_ending(indent, words, tmp_path):
    with pytest.raises(UserError, match=f"{words}.* .json"):
        find_rows(str(write(tmp_path / "rows.jsonl", json.dumps(RECORDS, indent=indent))))


A, B = ({"text": text, "label": "x"} for text in "ab")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [], "test": [A]}, "its key train holds no list of objects"),
        ({"train": [A], "validation": []}, "its key validation holds no list of objects"),
        ({"train": {"0": A}, "test": [A]}, "its key train holds no list of objects"),
        ({"train_data": ["a"], "test_data": [A]}, "its key train_data holds no list of objects"),
        ({"test": [A]}, "no split train, only test"),
        ({"Dev": [A]}, "no split train, only dev"),
        ({"train": [A], "Train": [B]}, "several keys have rows, train, Train"),
        ({"train": [A], "labels": [{"id": 0}]}, "several keys have rows, train, labels"),
    ],
)
def test_keys_of_a_json_that_name_splits_do_not_become_train(content, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load(write(tmp_path / "rows.json", json.dumps(content)))
    (tmp_path / "rows.json").rename(tmp_path / "train.json")
    if len(content) == 1:
        with pytest.raises(UserError, match="train.json: its keys name the splits"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("content", "splits", "remarks"),
    [
        ({"train": [A], "dev": [B]}, {"train": ["a"], "dev": ["b"]}, ()),
        ({"Train": [A], "Test-Set": [B]}, {"train": ["a"], "test_set": ["b"]}, ()),
        ({"training_data": [A], "test_size": 0.2}, {"train": ["a"]}, ()),
        ({"train": [A], **{f"test{i}": [B] for i in range(10)}}, {"train": ["a"], **{f"test{i}": ["b"] for i in range(10)}}, ()),
        ({"data": [A], "labels": [], "version": 1}, {"train": ["a"]}, ("rows.json: its rows are those of data; not read: labels",)),
    ],
)
def test_keys_of_a_json_name_its_splits(content, splits, remarks, tmp_path):
    rows, source = find_rows(str(write(tmp_path / "rows.json", json.dumps(content))))
    assert {name: split["text"][:] for name, split in rows.items()} == splits and source.remarks == remarks


def test_a_split_of_a_json_that_is_called_dev_is_validation(tmp_path):
    write(tmp_path / "rows.json", json.dumps({"train": RECORDS[:60], "dev": RECORDS[60:]}))
    data = load(tmp_path / "rows.json")
    assert (data.validation_split, data.test_split, data.remarks) == ("official dev", "held out from train", [])
    data = load(tmp_path / "rows.json", test_split="dev")
    assert (data.validation_split, data.test_split) == ("held out from train", "official dev")


def test_json_with_half_characters_and_nan_is_read(tmp_path):
    lines = '{"text": "half \\ud83d", "label": NaN}\n\n{"text": "\\ud83d\\ude00", "label": "x"}\n'
    rows = find_rows(str(write(tmp_path / "rows.jsonl", lines)))[0]["train"]
    assert rows["text"][:] == ["half \ufffd", "\U0001f600"] and rows["label"][:] == [None, "x"]


def test_fine_tune_prints_the_files_the_labels_and_an_example(call, tiny_flags, model_dir, tmp_path):
    for name, rows in (("train", ROWS[:60]), ("eval", ROWS[60:])):
        write(tmp_path / "reviews" / f"{name}.csv", rows.to_csv(index=False))
    flags = [*tiny_flags, "--dataset_name", "reviews", "--num_train_epochs", "1"]
    out = call("fine_tune.py", *flags).out
    assert "files: train from train.csv; test from eval.csv" in out
    assert "one epoch of 54 training examples has only 7 steps: more epochs may help" in out
    assert "labels in train: bad 2" in out and "reads  [CLS] " in out and "label: " in out


# --- files that would be read wrongly ------------------------------------------------------------------------------------


def test_a_file_whose_name_tells_a_split_that_is_not_read_is_named(tmp_path):
    for name in ("train.csv", "test.csv.bz2", "test.md", "test/eval.py", "test.png"):
        write(tmp_path / "rows" / name, CSV)
    data = load(tmp_path / "rows")
    assert data.test_split == "held out from train"
    assert data.remarks == [f"{tmp_path / 'rows'}: not read, because of their endings: test.csv.bz2"]


def test_a_copy_of_a_data_set_on_the_hub_is_read_again_when_it_has_changed(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n---\n"
    for folder, text in (("a/reviews", "one"), ("b/reviews", "two"), ("b/reviews", "three")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write(tmp_path / folder / "README.md", card)
        write(tmp_path / folder / "rows.csv", f"text,label\n{text},x\n")
        assert texts_of(tmp_path / folder) == [text]


def test_lines_in_utf_8_beside_lines_in_another_encoding_are_refused(tmp_path):
    lines = "".join(f"déjà vu {i},x\n" for i in range(20))
    (tmp_path / "rows.csv").write_bytes(f"text,label\n{lines}".encode() + "café,x\n".encode("cp1252"))
    with pytest.raises(UserError, match="line 22 is not UTF-8, but 20 other lines are"):
        texts_of(tmp_path / "rows.csv")


def write_acl_imdb(folder, *files: str):
    for name in files:
        for split in ("train", "test"):
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / split / name, f"{split} {name}")


def test_a_review_of_acl_imdb_that_was_moved_has_its_new_label(tmp_path):
    write_acl_imdb(tmp_path, "neg/1.txt", "neg/2.txt", "pos/3.txt", "pos/4.txt")
    assert find_rows(str(tmp_path))[0]["train"]["label"][:] == [0, 0, 1, 1]
    (tmp_path / "train/neg/2.txt").rename(tmp_path / "train/pos/2.txt")
    assert find_rows(str(tmp_path))[0]["train"]["label"][:] == [0, 1, 1, 1]


def test_folders_and_archives_like_acl_imdb_are_not_read_in_part(tmp_path):
    write_acl_imdb(tmp_path / "own", "neg/1.txt", "pos/1.txt", "neutral/1.txt")
    with pytest.raises(UserError, match="train has a folder neutral beside neg and pos"):
        find_rows(str(tmp_path / "own"))
    with tarfile.open(tmp_path / "own.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "own/train/neg/1.txt", "reviews/1.txt")
    with pytest.raises(UserError, match="it has no train/neg"):
        find_rows(str(tmp_path / "own.tar.gz"))


@pytest.mark.parametrize("dimension", ["A1", "A1:B4", "A1:A11"])
def test_a_sheet_is_read_whole_although_its_dimension_is_wrong(dimension, tmp_path):
    pd.DataFrame({"text": [f"film {i}_x000D_\nend" for i in range(10)], "label": "x"}).to_excel(
        tmp_path / "right.xlsx", index=False
    )
    with zipfile.ZipFile(tmp_path / "right.xlsx") as right, zipfile.ZipFile(tmp_path / "wrong.xlsx", "w") as wrong:
        for name in right.namelist():
            wrong.writestr(name, re.sub(rb'(?<=<dimension ref=")[^"]*', dimension.encode(), right.read(name)))
    rows = find_rows(str(tmp_path / "wrong.xlsx"))[0]["train"]
    assert rows["text"][:] == [f"film {i}\r\nend" for i in range(10)] and rows["label"][:] == ["x"] * 10


def sheet(folder, *rows: list):
    """Return the rows of a folder with an .xlsx file of these rows, and with the file by which Excel locks it."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / "train.xlsx")
    write(folder / "~$train.xlsx", "lock")
    return find_rows(str(folder))[0]["train"].to_dict()


def test_empty_rows_above_and_empty_columns_beside_a_sheet_are_no_data(tmp_path):
    rows = [None, "text", "label", " "], [None, "fine", "good"], [None, "dull", "bad"]
    assert sheet(tmp_path, [None], [], *rows) == {"text": ["fine", "dull"], "label": ["good", "bad"]}
    write(tmp_path / "csv" / "rows.csv", "text,label,,\nfine,good,,\n")
    assert find_rows(str(tmp_path / "csv"))[0]["train"].to_dict() == {"text": ["fine"], "label": ["good"]}
    write(tmp_path / "csv" / "rows.csv", "text,label,,\nfine,good,,\ndull,bad,,note\n")
    with pytest.raises(UserError, match="column 4 has no name, but row 3 of the table holds 'note'"):
        find_rows(str(tmp_path / "csv"))


@pytest.mark.parametrize("value", ["#N/A", "=A2"])
def test_errors_and_formulas_without_a_value_are_read_as_empty_with_a_note(value, tmp_path):
    assert sheet(tmp_path, ["text", "label"], ["fine", value])["label"] == [None]
    (remark,) = find_rows(str(tmp_path / "train.xlsx"))[1].remarks
    assert "a formula that was never calculated, are read as empty (1, such as B2)" in remark


def labels_of_two_files(folder, *labels: list) -> list:
    for number, values in enumerate(labels):
        pd.DataFrame({"text": ["a", "b"], "label": values}).to_parquet(folder / f"train-{number}.parquet")
    return find_rows(str(folder))[0]["train"]["label"][:]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (([None, None], ["x", "y"]), [None, None, "x", "y"]),
        (([1, 0], [1.5, 2.0]), [1, 0, 1.5, 2]),
        ((pd.Categorical(["x", "y"]), ["x", "z"]), ["x", "y", "x", "z"]),
    ],
    ids=["none", "numbers", "categories"],
)
def test_parquet_files_of_one_split_may_differ_in_the_form_of_a_type(labels, expected, tmp_path):
    assert labels_of_two_files(tmp_path, *labels) == expected


@pytest.mark.parametrize("labels", [([True, False], [2, 0]), ([1, 0], ["007", "1"]), (["a", "b"], [1.0, 2.0])], ids=str)
def test_parquet_files_of_one_split_with_different_types_are_refused(labels, tmp_path):
    with pytest.raises(UserError, match="a column has different types in train-0.parquet, train-1.parquet"):
        labels_of_two_files(tmp_path, *labels)


def test_a_zip_with_a_password_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as packed:
        packed.writestr("rows.csv", CSV)
    content = bytearray((tmp_path / "rows.zip").read_bytes())
    content[6] = content[content.find(b"PK\1\2") + 8] = 1  # the flags that say so
    (tmp_path / "rows.zip").write_bytes(content)
    with pytest.raises(UserError, match="it can't be unpacked"):
        find_rows(str(tmp_path / "rows.zip"))


@pytest.mark.parametrize(("encoding", "written"), [("utf-8", "utf-8-sig"), ("utf-16-le", "utf-16"), ("cp1252", "cp1252")])
def test_a_byte_order_mark_is_no_part_of_the_text_whatever_encoding_is_set(encoding, written, tmp_path):
    (tmp_path / "rows.csv").write_bytes("text,label\na,b\n".encode(written))
    assert find_rows(str(tmp_path / "rows.csv"), encoding=encoding)[0]["train"].column_names == ["text", "label"]


def test_files_whose_names_hold_train_and_test_in_longer_words_are_not_all_train(tmp_path):
    for name in ("filmtrain", "filmtest"):
        write(tmp_path / f"{name}.csv", CSV)
    with pytest.raises(UserError, match="tell no split, so all would be train"):
        load(tmp_path)


def test_names_of_splits_may_end_with_set_or_data(tmp_path):
    for name in ("trainset", "devset", "TestData"):
        write(tmp_path / f"{name}.csv", CSV)
    assert {*find_rows(str(tmp_path))[0]} == {"train", "validation", "test"}


def test_quotation_marks_after_a_space_are_refused_unless_they_are_text(tmp_path):
    with pytest.raises(UserError, match="line 2: .* spaces before its quotation mark"):
        find_rows(str(write(tmp_path / "spaces.csv", 'label, text\npos, "A fine film"\n')))
    texts = [' "a" ', 'a, "b"', ' ""']
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "texts.csv", index=False)
    assert texts_of(tmp_path / "texts.csv") == texts
