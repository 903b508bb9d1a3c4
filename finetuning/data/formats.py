"""What stands in a file: a reader for each format. Text stays as it is written; nothing is taken for a number, a date or "missing".

A reader gets the files of a split, their encoding (None: UTF-8, or UTF-16 by its byte order mark) and a list of notes for the user to
add to. It raises `UserError` with the line for what can't be read or could be read in two ways, and `UnicodeDecodeError` if the encoding
is another.
"""

import csv
import importlib.util
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow
import pycountry
from datasets import ClassLabel, Features, Json, List, Value
from pyarrow.parquet import ParquetFile, read_schema

from finetuning.data.files import SNIFFED_BYTES, SPLITS, ending, lines_of, open_bytes, open_text, split_of, stem
from finetuning.errors import UserError

ROWS_PER_TABLE = 10_000
SEPARATORS = ",;\t|"
MAX_VALUES = 50  # of a column that may be one of labels
MIN_SUSPECT_LINES = 4  # of a quoted field: so many lines that look like rows are rows
SNIFFED_SENTENCES = 50  # of a CoNLL file, to find what its columns hold
LANGUAGE_ENDINGS = [f".{language.alpha_2}" for language in pycountry.languages if hasattr(language, "alpha_2")]
TAG = re.compile(r"O|[BIESLUM][-_].+")
STRING = Value("string")
DECODER = json.JSONDecoder(parse_constant=lambda constant: None)  # NaN is missing


class Content(NamedTuple):
    """What a reader finds: the columns, and their rows some thousand at a time."""

    features: Features
    tables: Iterator[pyarrow.Table]


# If one file holds several splits, the content of each.
Reader = Callable[[list[Path], str | None, list[str]], Content | dict[str, Content]]


def batched(rows: Iterable) -> Iterator[list]:
    """Yield lists of at most `ROWS_PER_TABLE` rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, ROWS_PER_TABLE)):
        yield batch


def of_strings(names: list[str], rows: Iterable[list[str | None]]) -> Content:
    """Return rows of texts, in which an empty one is missing."""

    def table(batch: list[list[str | None]]) -> pyarrow.Table:
        columns = [pyarrow.array([value or None for value in column], pyarrow.string()) for column in zip(*batch, strict=True)]
        return pyarrow.table(columns, names)

    return Content(Features(dict.fromkeys(names, STRING)), map(table, batched(rows)))


# --- tables in text: .csv, .tsv ------------------------------------------------------------------------------------------


def read_csv(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read fields that are divided by the separator that divides the first lines best, with quotation marks as RFC 4180 has them."""
    with open_text(files[0], encoding) as opened:
        start = opened.read(SNIFFED_BYTES)
    lines = start.splitlines(keepends=True)
    lines = lines if len(start) < SNIFFED_BYTES else lines[:-1]  # the last one is cut

    def agree(separator: str) -> tuple[float, int]:
        rows = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        return (sum(n == rows[0] for n in rows) / len(rows), rows[0]) if rows and rows[0] > 1 else (0, 0)

    separator = max(SEPARATORS, key=agree)  # of equals the first
    if separator not in (",", "\t"):
        remarks.append(f"{files[0].name}: its columns are divided by {separator!r}")
    return _table(files, encoding, [separator] * len(files))


def read_tsv(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read fields that are divided by tabs. Quotation marks are part of the texts, unless they are consistently put around fields."""
    quoted = [_is_quoted(file, encoding) for file in files]
    for file, answer in zip(files, quoted, strict=True):
        if answer is False:
            remarks.append(f"{file.name}: its quotation marks are read as part of the texts")
    return _table(files, encoding, ["\t" if answer else None for answer in quoted])


def _table(files: list[Path], encoding: str | None, separators: list[str | None]) -> Content:
    """Read files with equal names of columns; without a separator fields are divided by tabs, and nothing is quoted."""
    rows_of_files = [_fields(file, encoding, separator) for file, separator in zip(files, separators, strict=True)]
    headers = [[name.strip() for name in next(rows, [])] for rows in rows_of_files]
    for file, header in zip(files, headers, strict=True):
        if not header:
            raise UserError(f"{file}: it is empty")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise UserError(f"{file}: two columns are called {twice!r}: rename one of them in its first line")
        if header != headers[0]:
            raise UserError(f"{file}: its columns are {', '.join(header)}, and those of {files[0].name} {', '.join(headers[0])}")
    return of_strings(headers[0], itertools.chain.from_iterable(rows_of_files))


def _fields(file: Path, encoding: str | None, separator: str | None) -> Iterator[list[str]]:
    """Yield the fields of each row, the header first. Raise `UserError`, with the line, for a row with another number of fields."""
    if separator is None:
        columns = 0
        for number, line in enumerate(lines_of(file, encoding), 1):
            if line:
                fields = line.split("\t")
                columns = columns or len(fields)
                if len(fields) != columns:
                    _refuse_fields(file, number, len(fields), columns, "\t")
                yield fields
        return
    csv.field_size_limit(2**31 - 1)
    lines: list[str] = []  # of the current row

    def recorded() -> Iterator[str]:
        for line in lines_of(file, encoding, keep_ends=True):
            lines.append(line)
            yield line

    reader = csv.reader(recorded(), delimiter=separator, strict=True)
    columns, suspects = 0, []
    values: dict[int, set] = {}  # of the columns that have few
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{file}: line {first_line:,}: {error}: a field with quotation marks must begin and end with one, and those inside must be doubled; "
                "write the file with a spreadsheet or a csv library, or save it as .jsonl"
            ) from error
        if row is None:
            break
        if row:
            if not columns:
                columns, values = len(row), {i: set() for i in range(len(row))}
            elif len(row) != columns:
                _refuse_fields(file, first_line, len(row), columns, separator)
            elif len(lines) > 1:
                suspects.append((first_line, [line.rstrip("\r\n").split(separator) for line in lines]))
            else:
                for i in [*values]:
                    values[i].add(row[i])
                    if len(values[i]) > MAX_VALUES:
                        del values[i]
            yield row
        lines.clear()
    _check_swallowed(file, columns, suspects, [*values.values()])


def _refuse_fields(file: Path, line: int, fields: int, columns: int, separator: str) -> NoReturn:
    name = {"\t": "a tab", ",": "a comma"}.get(separator, repr(separator))
    raise UserError(
        f"{file}: line {line:,} has {fields} fields, and the first line {columns}: put quotation marks around a text that holds {name}, give each row as many "
        "fields as there are names, or save the file as .jsonl"
    )


def _check_swallowed(file: Path, columns: int, suspects: list, values: list[set]) -> None:
    """Raise `UserError` if a quoted field of several lines looks like whole rows: a stray quotation mark has swallowed them.

    `suspects`: the first line of such a row, and its lines, divided at each separator. `values`: those of the columns with few.
    """
    for first_line, rows in suspects:
        if columns < 2 or any(len(row) != columns for row in rows):
            continue
        positions = range(columns)
        few = any(all(row[i].strip('"') in known for row in rows) for known in values for i in positions)
        if few or len(rows) >= MIN_SUSPECT_LINES:
            raise UserError(
                f"{file}: lines {first_line:,} to {first_line + len(rows) - 1:,} look like {len(rows)} rows, but a quotation mark at the start of a field makes them "
                "one: double the quotation marks inside of fields, or save the file as .jsonl"
            )


def _is_quoted(file: Path, encoding: str | None) -> bool | None:
    """Return whether quotation marks of a .tsv surround fields, or are part of the texts; None if no field begins with one.

    They surround fields if a line alone has another number of fields than the first, or if they are around all fields of a column, or
    only where they are needed.
    """
    columns, filled, quoted, needless, whole = 0, [], [], [], True
    for line in lines_of(file, encoding):
        fields = line.split("\t")
        if not line:
            continue
        columns = columns or len(fields)
        if len(fields) != columns:
            return True if any(quoted) or '"' in line else None
        filled, quoted, needless = (counts or [0] * columns for counts in (filled, quoted, needless))
        for i, field in enumerate(fields):
            filled[i] += bool(field)
            if field.startswith('"'):
                inside = field[1:-1].replace('""', "")
                whole = whole and len(field) > 1 and field.endswith('"') and '"' not in inside
                quoted[i] += 1
                needless[i] += '""' not in field[1:-1]
    if not any(quoted):
        return None
    return whole and all(quoted[i] == filled[i] or not needless[i] for i in range(columns))


# --- .xlsx ---------------------------------------------------------------------------------------------------------------


def read_excel(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read the first sheet, whose first row has the names of the columns. Numbers, dates and truth values become text."""
    if not importlib.util.find_spec("openpyxl"):
        raise UserError(f"{files[0]}: reading it needs openpyxl: pip install -r requirements-extras.txt, or save it as csv")
    import openpyxl

    if len(files) > 1:
        raise UserError(f"{files[0].parent}: {len(files)} .xlsx files of one split: give one, or save them as csv")
    with open_bytes(files[0]) as opened:
        book = openpyxl.load_workbook(io.BytesIO(opened.read()), read_only=True, data_only=True)
    if len(book.worksheets) > 1:
        remarks.append(f"{files[0].name}: the first of its sheets, {book.worksheets[0].title!r}, was read")
    rows = [[_cell_text(value) for value in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    while rows and not any(rows[-1]):
        rows.pop()
    if not rows:
        raise UserError(f"{files[0]}: its sheet {book.worksheets[0].title!r} is empty")
    width = max(i + 1 for row in rows for i, value in enumerate(row) if value)
    rows = [[*row[:width], *[None] * (width - len(row))] for row in rows]
    names = [(name or "").strip() for name in rows[0]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{files[0]}: several columns are called {twice!r}: give each a name of its own in the first row")
    return of_strings(names, rows[1:])


def _cell_text(value: Any) -> str | None:
    """Return what stands in a cell, as text."""
    if isinstance(value, datetime):
        return str(value.date() if value.time() == time() else value)
    return value if value is None else str(value).upper() if isinstance(value, bool) else str(value)


# --- .json, .jsonl -------------------------------------------------------------------------------------------------------


def read_json(files: list[Path], encoding: str | None, remarks: list[str]) -> Content | dict[str, Content]:
    """Read an object per line, a list of objects, rows under a key, splits under keys, or a column per key, as pandas writes it."""
    if len(files) > 1 or _has_lines(files[0], encoding):
        if any(not _has_lines(file, encoding) for file in files):
            raise UserError(
                f"{files[0].parent}: several .json files of one split must hold an object on each line: save them as .jsonl"
            )
        return _objects(files, lambda: (row for file in files for row in _json_lines(file, encoding)))
    with open_text(files[0], encoding) as opened:
        text = opened.read()
    if not text.strip():
        raise UserError(f"{files[0]}: it is empty")
    content = _load(text, files[0])
    tables = {"train": content} if isinstance(content, list) else _tables_of(content, files[0])
    for split, rows in tables.items():
        wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise UserError(f"{files[0]}: row {wrong} of {split} is no object with names and values: {str(rows[wrong])[:80]}")
    return {split: _objects(files, lambda rows=rows: iter(rows)) for split, rows in tables.items()}


def _has_lines(file: Path, encoding: str | None) -> bool:
    """Return whether a file holds an object on each line."""
    if ending(file) == ".jsonl":
        return True
    lines = (line for line in lines_of(file, encoding) if line.strip())
    try:
        return isinstance(json.loads(next(lines, "")), dict) and next(lines, None) is not None
    except ValueError:
        return False


def _load(text: str, place: str | Path) -> Any:
    try:
        content = DECODER.decode(text)
    except ValueError as error:
        raise UserError(f"{place}: it is no JSON, or cut short ({error})") from error
    return _without_surrogates(content) if "\\ud" in text or "\\uD" in text else content


def _without_surrogates(value: Any) -> Any:
    """Return `value` with U+FFFD in place of each half of a character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value


def _json_lines(file: Path, encoding: str | None) -> Iterator[dict]:
    for number, line in enumerate(lines_of(file, encoding), 1):
        if line.strip():
            row = _load(line, f"{file}: line {number:,}")
            if not isinstance(row, dict):
                raise UserError(f"{file}: line {number:,} is no object with names and values: {line[:80]}")
            yield row


def _tables_of(content: dict, file: Path) -> dict[str, list]:
    """Return the rows of each split of a file that is one object."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: it holds no rows: {str(content)[:80]}")
    tables = {key: value for key, value in content.items() if value and isinstance(value, list) and isinstance(value[0], dict)}
    if len(tables) == 1:
        return {"train": next(iter(tables.values()))}
    if tables:
        if "train" not in tables or not tables.keys() <= {*SPLITS}:
            keys = ", ".join(tables)
            raise UserError(f"{file}: rows under several keys, {keys}: keep those of one, or name them {', '.join(SPLITS)}")
        return tables
    if content and all(isinstance(value, dict) for value in content.values()):  # as pandas writes a frame: column -> row -> value
        rows = list(dict.fromkeys(row for column in content.values() for row in column))
        return {"train": [{name: column.get(row) for name, column in content.items()} for row in rows]}
    if content and all(isinstance(value, list) for value in content.values()):
        if len(lengths := {len(value) for value in content.values()}) > 1:
            raise UserError(f"{file}: its columns have different lengths, {', '.join(map(str, sorted(lengths)))}")
        return {"train": [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]}
    return {"train": [content]}


def _objects(files: list[Path], rows: Callable[[], Iterator[dict]]) -> Content:
    """Return objects as rows; `rows` gives them, once to find the types of the columns, once to write them."""
    kinds: dict[str, set] = {}
    for row in rows():
        for name, value in row.items():
            if value is not None:
                kinds.setdefault(name, set()).add(_kind(value))
            elif name not in kinds:
                kinds[name] = set()
    if not kinds:
        raise UserError(f"{files[0]}: it is empty")
    features = Features({name: _feature(several) for name, several in kinds.items()})
    return Content(features, (_object_table(batch, features) for batch in batched(rows())))


def _kind(value: Any) -> Any:
    """Return what tells the Arrow type of a value: "string", "int64", ..., a tuple for a list or an object of texts; else "json"."""
    simple = {str: "string", bool: "bool", float: "float64"}.get(type(value))
    if simple:
        return simple
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, list):
        kinds = {_kind(item) for item in value}
        return ("list", *kinds) if not kinds or (len(kinds) == 1 and kinds <= {"string", "int64", "float64"}) else "json"
    if value and all(isinstance(item, str) for item in value.values()):
        return ("object", *value)
    return "json"


def _feature(kinds: set) -> Any:
    """Return the feature of a column with values of these kinds."""
    lists = {kind[1:] for kind in kinds if isinstance(kind, tuple) and kind[0] == "list"} - {()}
    if kinds and all(isinstance(kind, tuple) and kind[0] == "list" for kind in kinds) and len(lists) <= 1:
        return List(Value(next(iter(lists), ("string",))[0]))
    if len(kinds) > 1:
        return Json()
    kind = next(iter(kinds), "string")
    if isinstance(kind, tuple):
        return dict.fromkeys(kind[1:], STRING)
    return Json() if kind == "json" else Value(kind)


def _object_table(rows: list[dict], features: Features) -> pyarrow.Table:
    columns = []
    for name, feature in features.items():
        values = [row.get(name) for row in rows]
        if isinstance(feature, Json):
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            columns.append(pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(texts, pyarrow.string())))
        else:
            columns.append(pyarrow.array(values, features.arrow_schema.field(name).type))
    return pyarrow.table(columns, list(features))


# --- .parquet ------------------------------------------------------------------------------------------------------------


def read_parquet(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read typed columns."""
    opened = [io.BytesIO(open_bytes(file).read()) if file.suffix.lower() != ".parquet" else file for file in files]
    schemas = [read_schema(file) for file in opened]
    for file, schema in zip(files, schemas, strict=True):
        if schema.names != schemas[0].names:
            raise UserError(
                f"{file}: its columns are {', '.join(schema.names)}, and those of {files[0].name} {', '.join(schemas[0].names)}"
            )
    features = Features.from_arrow_schema(schemas[0])
    batches = (batch for file in opened for batch in ParquetFile(file).iter_batches(batch_size=ROWS_PER_TABLE))
    return Content(features, (pyarrow.Table.from_batches([batch]) for batch in batches))


# --- plain text ----------------------------------------------------------------------------------------------------------


def read_lines(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read a text per line."""
    return of_strings(["text"], ([line] for file in files for line in lines_of(file, encoding)))


def read_documents(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read documents: each of several files is one, unless they are named after splits.

    The documents of a single file are divided by empty lines, or are its lines if no empty line stands between others.
    """
    if len(files) > 1 and not any(split_of(Path(file.name)) for file in files):
        return of_strings(["text"], (["\n".join(lines_of(file, encoding))] for file in files))

    def paragraphs(file: Path) -> Iterator[list[str]]:
        for filled, lines in itertools.groupby(lines_of(file, encoding), key=lambda line: bool(line.strip())):
            if filled:
                yield list(lines)

    divided = any(len(list(itertools.islice(paragraphs(file), 2))) > 1 for file in files)
    documents = ("\n".join(lines) for file in files for lines in paragraphs(file))
    if not divided:
        documents = (line for file in files for line in lines_of(file, encoding) if line.strip())
        first = list(itertools.islice(documents, 2))
        if len(first) < 2 and len(files) == 1:
            raise UserError(
                f"{files[0]}: it is {'a single line' if first else 'empty'}, and nothing can be held out of one document: divide "
                "documents by empty lines or line breaks, or give a folder with a file for each"
            )
        documents = itertools.chain(first, documents)
    return of_strings(["text"], ([document] for document in documents))


def in_other_languages(path: Path) -> list[Path]:
    """Return a file, and those beside it whose names differ only in the language."""
    return [file for file in sorted(path.parent.iterdir()) if ending(file) in LANGUAGE_ENDINGS and stem(file) == stem(path)]


def read_parallel(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read texts in several languages, line by line: train.en beside train.de and so on, a column for each ending."""
    by_stem: dict[Path, dict[str, Path]] = {}
    for file in files:
        by_stem.setdefault(file.parent / stem(file), {})[ending(file)[1:]] = file
    names = sorted({name for of in by_stem.values() for name in of})
    for path, of in by_stem.items():
        if len(of) < 2 or sorted(of) != names:
            raise UserError(
                f"{path.parent}: of {path} there is {', '.join(of)} only, of others {', '.join(names)}: give each in all languages"
            )
        counts = {file.name: sum(1 for _ in lines_of(file, encoding)) for file in of.values()}
        if len({*counts.values()}) > 1:
            lengths = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
            raise UserError(f"{path.parent}: the files do not match line by line: {lengths} lines: correct them")
    rows = (zip(*(lines_of(of[name], encoding) for name in names), strict=True) for of in by_stem.values())
    return of_strings(names, itertools.chain.from_iterable(rows))


# --- CoNLL ---------------------------------------------------------------------------------------------------------------


def read_conll(files: list[Path], encoding: str | None, remarks: list[str]) -> Content:
    """Read a word and its tags per line, and an empty line after each sentence: the columns tokens, column_2, ..., tags.

    Lines of -DOCSTART- and comments are passed over. A first column that counts the words of each sentence is no word.
    """
    sample = list(itertools.islice(_sentences(files[0], encoding), SNIFFED_SENTENCES))
    if not sample:
        raise UserError(f"{files[0]}: it is empty")
    width = len(sample[0][0])
    names = [f"column_{number}" for number in range(1, width + 1)]
    numbered = width > 2 and all([row[0] for row in sentence] == [str(i + 1) for i in range(len(sentence))] for sentence in sample)
    tag_columns = [i for i in range(1, width) if all(TAG.fullmatch(row[i]) for sentence in sample for row in sentence)]
    if not numbered:
        names[0], names[-1] = "tokens", "tags"
    elif len(tag_columns) == 1:
        names[1], names[tag_columns[0]] = "tokens", "tags"
        remarks.append(
            f"{files[0].name}: its first column counts words; words are read from column 2, tags from column {tag_columns[0] + 1}"
        )
    else:
        remarks.append(f"{files[0].name}: its first column counts words, and tags are in several columns")
    if width == 1:
        names = ["tokens"]

    def tables() -> Iterator[pyarrow.Table]:
        for batch in batched(sentence for file in files for sentence in _sentences(file, encoding, width)):
            columns = zip(*([list(column) for column in zip(*sentence, strict=True)] for sentence in batch), strict=True)
            yield pyarrow.table([pyarrow.array(column, pyarrow.list_(pyarrow.string())) for column in columns], names)

    return Content(Features(dict.fromkeys(names, List(STRING))), tables())


def _sentences(file: Path, encoding: str | None, width: int | None = None) -> Iterator[list[list[str]]]:
    """Yield the fields of the lines of each sentence. Raise `UserError` for a line with another number of fields than `width`."""
    sentence: list[list[str]] = []
    for number, line in enumerate(lines_of(file, encoding), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        comment = not sentence and line.startswith("#") and (len(fields) < 2 or not TAG.fullmatch(fields[-1]))
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
        elif not comment and not line.startswith("-DOCSTART-"):
            width = width or len(fields)
            if len(fields) != width:
                raise UserError(
                    f"{file}: line {number:,} has {len(fields)} columns, and those before {width}: correct it, or remove it"
                )
            sentence.append(fields)
    if sentence:
        yield sentence


# --- the original release of IMDb ----------------------------------------------------------------------------------------


def acl_imdb(path: Path) -> dict[str, Content]:
    """Read the original Stanford release: {train,test}/{neg,pos}/*.txt in a folder or in its .tar.gz."""
    features = Features({"text": STRING, "label": ClassLabel(names=["neg", "pos"])})

    def tables(part: str) -> Iterator[pyarrow.Table]:
        for batch in batched(_acl_imdb_rows(path, part)):
            labels, texts = zip(*batch, strict=True)
            yield pyarrow.table({"text": texts, "label": [("neg", "pos").index(label) for label in labels]})

    return {part: Content(features, tables(part)) for part in ("train", "test")}


def _acl_imdb_rows(path: Path, part: str) -> list[tuple[str, str]]:
    texts = {}
    if path.is_dir():
        for file in path.glob(f"{part}/*/*.txt"):
            texts[file.parts[-2:]] = file.read_text(encoding="utf-8")
    else:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".txt") and Path(member.name).parts[-3] == part:
                    texts[Path(member.name).parts[-2:]] = archive.extractfile(member).read().decode("utf-8")
    rows = [(label, text) for (label, _), text in sorted(texts.items()) if label in ("neg", "pos")]
    if not rows:
        raise UserError(f"no {part}/neg/*.txt and {part}/pos/*.txt in it")
    return rows


READERS: dict[str, Reader] = {  # by a file's ending
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_json,
    ".xlsx": read_excel,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), read_conll),
}
