"""A reader for each file format. Texts are kept as they are written: none becomes a number, a date or a missing value.

A reader gets the files of a split, their encoding (None: UTF-8, or UTF-16 by its byte order mark), and a list to which it adds
notes for the user. It raises `UserError`, with the line, for content that can't be read or could be read in two ways. It raises
`UnicodeDecodeError` if the encoding is wrong.
"""

import io
import itertools
import re
import tarfile
from collections.abc import Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pyarrow
import pycountry
from datasets import ClassLabel, Features, Value
from datasets.features.features import _visit
from pyarrow.parquet import ParquetFile, read_schema

from finetuning.data.annotations import TAG
from finetuning.data.content import (
    ROWS_PER_TABLE,
    Reader,
    Tables,
    batched,
    check_classes,
    check_names,
    string_tables,
    without_nameless,
)
from finetuning.data.delimited import read_csv, read_tsv
from finetuning.data.files import ending, lines_of, read_bytes, split_of, stem
from finetuning.data.json_rows import read_json
from finetuning.errors import UserError, listed, require_installed

SNIFFED_SENTENCES = 50  # of a CoNLL file, to find the columns of words and tags
LANGUAGE_ENDINGS = [f".{language.alpha_2}" for language in pycountry.languages if hasattr(language, "alpha_2")]
NO_WORD = re.compile(r"\d+[-.]\d+")  # CoNLL-U's number of a line that repeats words 1 and 2 (1-2), or of an omitted word (8.1)


# --- .xlsx ---------------------------------------------------------------------------------------------------------------


def read_excel(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read the first sheet. Its first filled row has the names of the columns. Numbers, dates and truth values become text."""
    require_installed(str(files[0]), "openpyxl")
    import openpyxl

    if len(files) > 1:
        raise UserError(
            f"{files[0].parent}: a split has {len(files)} .xlsx files, and only one is allowed: give one, or save them as csv"
        )
    content = read_bytes(files[0])
    books = [openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=data_only) for data_only in (True, False)]
    sheet, formulas = (book.worksheets[0] for book in books)
    if len(books[0].worksheets) > 1:
        remarks.append(f"{files[0].name}: only its first sheet, {sheet.title!r}, was read")
    for part in (sheet, formulas):
        part.reset_dimensions()  # some programs write wrong ones, and openpyxl would leave out the cells outside
    rows, unreadable = [], []
    for cells, originals in zip(sheet.iter_rows(), formulas.iter_rows(), strict=True):
        rows.append([_cell_text(cell) for cell in cells])
        for text, cell, original in zip(rows[-1], cells, originals, strict=True):
            if cell.data_type == "e" or (text is None and original.data_type == "f"):
                unreadable.append(original.coordinate)
    if unreadable:
        remarks.append(
            f"{files[0].name}: cells with an error, or with a formula that was never calculated, are read as empty "
            f"({len(unreadable):,}, such as {unreadable[0]})"
        )
    filled = [number for number, row in enumerate(rows) if any(row)]
    if not filled:
        raise UserError(f"{files[0]}: its first sheet, {sheet.title!r}, is empty: put the rows there, or save them as csv")
    rows = rows[filled[0] : filled[-1] + 1]
    width = max(i + 1 for row in rows for i, value in enumerate(row) if value)
    rows = [[*row[:width], *[None] * (width - len(row))] for row in rows]
    names, rows = without_nameless(files[0], [(name or "").strip() for name in rows[0]], rows[1:], filled[0] + 2)
    check_names(files[0], names, files[0], names)
    return string_tables(names, rows)


def _cell_text(cell: Any) -> str | None:
    """Return the value of a cell as text, None if it has none or an error; a date without a time of day is only the date."""
    value = cell.value if cell.data_type != "e" else None
    if value is None and cell.data_type == "str":
        return ""  # a formula's value
    if isinstance(value, datetime):
        return str(value.date() if value.time() == time() else value)
    if isinstance(value, str):  # Excel writes a carriage return as _x000D_
        return re.sub("_x(000[1-9A-Fa-f]|001[0-9A-Fa-f])_", lambda match: chr(int(match[1], 16)), value)
    return value if value is None else str(value).upper() if isinstance(value, bool) else str(value)


# --- .parquet ------------------------------------------------------------------------------------------------------------


def read_parquet(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read columns with their types."""
    opened = [io.BytesIO(read_bytes(file)) if file.suffix.lower() != ".parquet" else file for file in files]
    schemas = [read_schema(file) for file in opened]
    features = [_features(file, schema) for file, schema in zip(files, schemas, strict=True)]
    for file, schema, file_features in zip(files, schemas, features, strict=True):
        check_names(file, schema.names, files[0], schemas[0].names)
        check_classes(str(file), features[0], file_features)
    try:
        schema = pyarrow.unify_schemas([types.arrow_schema for types in features], promote_options="permissive")
    except pyarrow.ArrowTypeError as error:
        raise UserError(
            f"{files[0].parent}: a column has different types in {listed([file.name for file in files])} ({error}): write it "
            "with the same type"
        ) from error
    for file in opened:
        for batch in ParquetFile(file).iter_batches(batch_size=ROWS_PER_TABLE):
            yield pyarrow.Table.from_batches([batch]).cast(schema)


def _features(file: Path, schema: pyarrow.Schema) -> Features:
    """Return the types of columns. Categories, as pandas writes them, have the type of their values, and views are texts."""
    for column in schema:
        try:
            Features.from_arrow_schema(pyarrow.schema([column]))
        except ValueError as error:
            raise UserError(
                f"{file}: its column {column.name} has the type {column.type}, which can't be read: remove it, or store it as text"
            ) from error
    view, text = Value("string_view"), Value("string")
    return Features(_visit(Features.from_arrow_schema(schema), lambda feature: text if feature == view else feature))


# --- plain text ----------------------------------------------------------------------------------------------------------


def read_lines(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read a text per line."""
    return string_tables(["text"], ([line] for file in files for line in lines_of(file, encoding)))


def read_documents(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read documents. Each of several files is a document, unless the files are named after splits.

    In other files empty lines separate the documents; without such lines, each line is a document.
    """
    if len(files) > 1 and not any(split_of(Path(file.name)) for file in files):
        return string_tables(["text"], (["\n".join(lines_of(file, encoding))] for file in files))

    def documents(files: list[Path], by_paragraph: bool) -> Iterator[str]:
        for file in files:
            for filled, lines in itertools.groupby(lines_of(file, encoding), key=lambda line: bool(line.strip())):
                if filled and by_paragraph:
                    yield "\n".join(lines)
                elif filled:
                    yield from lines

    by_paragraph = any(len([*itertools.islice(documents([file], True), 2)]) > 1 for file in files)
    first = [*itertools.islice(documents(files, by_paragraph), 2)]
    if len(first) < 2 and len(files) == 1:
        raise UserError(
            f"{files[0]}: it is {'a single line' if first else 'empty'}, and nothing can be held out of one document: separate "
            "documents by empty lines or line breaks, or give a folder with a file for each document"
        )
    return string_tables(["text"], ([document] for document in documents(files, by_paragraph)))


def read_parallel(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read texts in several languages line by line, such as train.en and train.de. Each ending is a column."""
    by_stem: dict[Path, dict[str, Path]] = {}
    for file in files:
        by_stem.setdefault(file.parent / stem(file), {})[ending(file)[1:]] = file
    names = sorted({name for by_language in by_stem.values() for name in by_language})
    for path, by_language in by_stem.items():
        if len(by_language) < 2 or sorted(by_language) != names:
            raise UserError(
                f"{path}: it exists in {', '.join(by_language)}, but the languages are {', '.join(names)}: give a file for each, "
                "and at least two"
            )
        counts = {file.name: sum(1 for _ in lines_of(file, encoding)) for file in by_language.values()}
        if len({*counts.values()}) > 1:
            lengths = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
            raise UserError(f"{path.parent}: the files must match line by line, but {lengths} lines: correct them")
    rows = (zip(*(lines_of(paths[name], encoding) for name in names), strict=True) for paths in by_stem.values())
    return string_tables(names, itertools.chain.from_iterable(rows))


# --- CoNLL ---------------------------------------------------------------------------------------------------------------


def read_conll(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read a word and its tags per line, and an empty line after each sentence. The columns are tokens, column_2, ..., tags.

    Lines with -DOCSTART- and comments are skipped. A first column that numbers words, sentences or documents is not the word.
    """
    sample = list(itertools.islice(_sentences(files[0], encoding), SNIFFED_SENTENCES))
    if not sample:
        raise UserError(f"{files[0]}: it is empty")
    width = len(sample[0])
    names = [f"column_{number}" for number in range(1, width + 1)]
    numbered = width > 2 and _is_number([sentence[0] for sentence in sample])
    first = [field for sentence in sample for field in sentence[0]]
    words_only = numbered and 2 * sum(map(str.isdigit, first)) > len(first)
    if words_only:
        sample = list(itertools.islice(_sentences(files[0], encoding, width, words_only), SNIFFED_SENTENCES))
    columns = [[*itertools.chain.from_iterable(parts)] for parts in zip(*sample, strict=True)]
    tag_columns = [i for i in range(1, width) if all(map(TAG.fullmatch, columns[i]))]
    if not numbered:
        last = max((i for i in range(1, width) if any(columns[i])), default=width - 1)
        names[last], names[0] = "tags", "tokens"
        if others := [i for i in tag_columns if i != last and {*columns[i]} != {"O"}]:
            example = next(tag for tag in columns[others[-1]] if tag != "O")
            remarks.append(
                f"{files[0].name}: tags are read from column {last + 1}, the last one; {names[others[-1]]} has tags too, such as "
                f"{example}: set label_column to {names[others[-1]]} to read these"
            )
    else:
        note = f"{files[0].name}: its first column numbers the words, sentences or documents"
        if len(tag_columns) == 1 and not _is_number([sentence[1] for sentence in sample]):
            names[1], names[tag_columns[0]] = "tokens", "tags"
            note += f"; words are read from column 2, tags from column {tag_columns[0] + 1}"
        remarks.append(note)
    for batch in batched(sentence for file in files for sentence in _sentences(file, encoding, width, words_only)):
        yield pyarrow.table([pyarrow.array(lists, pyarrow.list_(pyarrow.string())) for lists in zip(*batch, strict=True)], names)


def _is_number(column: list[list[str]]) -> bool:
    """Return whether the fields of each sentence are numbers, or all equal, except perhaps the first one."""
    repeats = all(len({*fields[1:]}) < 2 for fields in column) and any(len(fields) > 2 for fields in column)
    return repeats or all(field.isdigit() or NO_WORD.fullmatch(field) for fields in column for field in fields)


def _sentences(file: Path, encoding: str | None, width: int | None = None, words_only: bool = False) -> Iterator[list[list[str]]]:
    """Yield the columns of each sentence. Raise `UserError` for a line without `width` fields.

    `words_only`: leave out lines whose number is a `NO_WORD`.
    """
    rows: list[list[str]] = []
    for number, line in enumerate(itertools.chain(lines_of(file, encoding), [""]), 1):
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else line.split()
        filled = [field for field in fields if field]
        comment = not rows and line.startswith("#") and (len(filled) < 2 or not TAG.fullmatch(filled[-1]))
        if not line.strip():
            if rows:
                yield [list(column) for column in zip(*rows, strict=True)]
            rows = []
        elif not comment and not line.startswith("-DOCSTART-"):
            width = width or len(fields)
            if not any(fields[width:]):  # a tab at the end of the line
                del fields[width:]
            if len(fields) != width:
                raise UserError(
                    f"{file}: line {number:,} has {len(fields)} columns, but the lines before have {width}: correct it, or remove it"
                )
            if not (words_only and NO_WORD.fullmatch(fields[0])):
                rows.append(fields)


# --- the original release of IMDb ----------------------------------------------------------------------------------------


def acl_imdb(path: Path) -> dict[str, Tables]:
    """Read the original Stanford release: {train,test}/{neg,pos}/*.txt in a folder or in its .tar.gz."""
    schema = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])}).arrow_schema
    texts = {}  # (train or test, neg or pos, name of the file) -> text; "" for those without labels, which are not read
    if path.is_dir():
        for file in [*path.glob("train/*/*.txt"), *path.glob("test/*/*.txt")]:
            texts[file.parts[-3:]] = "" if file.parts[-2] == "unsup" else file.read_text(encoding="utf-8")
    else:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                place = Path(member.name).parts[-3:]
                if member.isfile() and member.name.endswith(".txt") and len(place) == 3 and place[0] in ("train", "test"):
                    texts[place] = "" if place[1] == "unsup" else archive.extractfile(member).read().decode("utf-8")

    def tables(part: str) -> Tables:
        folders = {place[1] for place in texts if place[0] == part}
        if others := sorted(folders - {"neg", "pos", "unsup"}):
            raise UserError(
                f"{path}: {part} has a folder {', '.join(others)} beside neg and pos, and only the original release of IMDb is read in "
                "this form: save the texts with their labels as .csv or .jsonl"
            )
        if not folders & {"neg", "pos"}:
            raise UserError(f"{path}: it has no {part}/neg/*.txt and {part}/pos/*.txt: give the original release of IMDb")
        for batch in batched(place for place in sorted(texts) if place[0] == part and place[1] != "unsup"):
            labels = [("neg", "pos").index(label) for _, label, _ in batch]
            yield pyarrow.table({"text": [texts[place] for place in batch], "label": labels}, schema)

    return {part: tables(part) for part in ("train", "test")}


READERS: dict[str, Reader] = {  # ending of a file -> reader
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_tsv,
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), read_json),
    ".xlsx": read_excel,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), read_conll),
}
