"""Read tables in text files (.csv, .tsv): find the separator, interpret quotation marks, and check the number of fields."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetuning.data.annotations import TAG
from finetuning.data.content import Tables, check_names, string_tables, without_nameless
from finetuning.data.files import MAX_LINE, SNIFFED_BYTES, lines_of, open_text
from finetuning.errors import UserError, listed

SPACED_QUOTE = re.compile(r' +"(?:[^"]|"")+" *')  # a field that was written with a space after the separator
SEPARATORS = ",;\t|"
NAMED_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?\r?\n')  # the first line of a file for Excel, before the names of the columns
SNIFFED_LINES = 200  # of a .tsv, to see whether it holds a word and its tag per line
MIN_TAGS = 0.9  # of the sniffed lines that end in a tag
MAX_DISTINCT_VALUES = 50  # a column with more is not taken for a column of labels
MAX_DOUBTFUL = 0.1  # of the rows of several lines may look like rows by chance
MIN_SUSPECT_LINES = 4  # a quoted field with as many lines that look like rows is refused
csv.field_size_limit(MAX_LINE)  # of all readers; by default a field of more than 131,072 characters is an error


def read_csv(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read fields with quotation marks as in RFC 4180. The separator is named in the first line, or splits the first lines most evenly."""
    with open_text(files[0], encoding) as opened:
        start = opened.read(SNIFFED_BYTES)
    lines = start.splitlines(keepends=True)
    lines = lines if len(start) < SNIFFED_BYTES else lines[:-1]  # the last line may be cut

    def evenness(separator: str) -> tuple[float, int]:
        """Return the fraction of lines with as many fields as the first one, and that number of fields."""
        rows = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        return (sum(n == rows[0] for n in rows) / len(rows), rows[0]) if rows and rows[0] > 1 else (0, 0)

    named = NAMED_SEPARATOR.match(start)
    separator = named[1] if named else max(SEPARATORS, key=evenness)
    if separator == "\t" and not named:
        return read_tsv(files, encoding, remarks)
    if separator != ",":
        remarks.append(f"{files[0].name}: the separator of its columns is {separator!r}")
    return _table(files, encoding, [separator] * len(files), remarks)


def read_tsv(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables:
    """Read fields separated by tabs. Quotation marks belong to the texts, unless they consistently surround fields."""
    lines = [line.rstrip() for line in itertools.islice(lines_of(files[0], encoding), SNIFFED_LINES)]
    ends = [line.split("\t")[-1] for line in lines if line and not line.startswith("#")]
    if sum(bool(TAG.fullmatch(end)) for end in ends) >= max(MIN_TAGS * len(ends), 2):
        raise UserError(f"{files[0]}: it has a word and its tags per line, and not a text: rename it to end in .conll")
    quoted = [_is_quoted(file, encoding) for file in files]
    for file, is_quoted in zip(files, quoted, strict=True):
        if is_quoted is False:
            remarks.append(f"{file.name}: its quotation marks are read as part of the texts")
    return _table(files, encoding, ["\t" if is_quoted else None for is_quoted in quoted], remarks)


def _table(files: list[Path], encoding: str | None, separators: list[str | None], remarks: list[str]) -> Tables:
    """Read files that have the same columns. Separator None: tabs separate fields, and quotation marks belong to the texts."""
    tables: list[tuple[list[str], Iterable[list]]] = []
    for file, separator in zip(files, separators, strict=True):
        rows = _fields(file, encoding, separator, remarks)
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise UserError(f"{file}: it is empty")
        tables.append(without_nameless(file, header, rows))
        check_names(file, tables[-1][0], files[0], tables[0][0])
    return string_tables(tables[0][0], itertools.chain.from_iterable(rows for _, rows in tables))


def _rows(file: Path, encoding: str | None, separator: str | None) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the number of each row's first line, its lines, and its fields. Raise `UserError` for misplaced quotation marks."""
    if separator is None:
        yield from ((number, [line], line.split("\t")) for number, line in enumerate(lines_of(file, encoding), 1) if line)
        return
    lines: list[str] = []  # of the current row

    def recorded() -> Iterator[str]:
        for number, line in enumerate(lines_of(file, encoding, keep_ends=True)):
            line = "\n" if number == 0 and NAMED_SEPARATOR.fullmatch(line) else line  # it keeps its number, and is no row
            lines.append(line)
            yield line

    reader, first_line = csv.reader(recorded(), delimiter=separator, strict=True), 1
    try:
        for row in reader:
            spaced = [field for field in row if SPACED_QUOTE.fullmatch(field) and field in "".join(lines)]
            if spaced:
                raise UserError(
                    f"{file}: line {first_line:,}: the field {spaced[0][:40]!r} has spaces before its quotation mark, which would "
                    "then be part of it: remove these spaces"
                )
            if row:
                yield first_line, [*lines], row
            first_line = reader.line_num + 1
            lines.clear()
    except csv.Error as error:
        if str(error).startswith("new-line character"):
            raise UserError(
                f"{file}: line {first_line:,} has a carriage return without a line feed and without quotation marks: save the file "
                "with line feeds at the ends of its lines (in Excel as CSV UTF-8)"
            ) from error
        raise UserError(
            f"{file}: line {first_line:,}: {error}: a quoted field must begin and end with a quotation mark, and quotation marks "
            "inside it must be doubled: write the file with a spreadsheet or a csv library, or save it as .jsonl"
        ) from error


def _fields(file: Path, encoding: str | None, separator: str | None, remarks: list[str]) -> Iterator[list[str]]:
    """Yield the fields of each row, first those of the header. Raise `UserError` for a row with another number of fields."""
    header, n_joined = [], 0
    for first_line, lines, row in _rows(file, encoding, separator):
        if header:
            _check_fields(file, first_line, row, header, separator or "\t")
            n_joined += len(lines) > 1
        header = header or row
        yield row
    if n_joined:
        remarks += _check_joined_rows(file, encoding, separator)


def _check_fields(file: Path, line: int, row: list[str], header: list[str], separator: str) -> None:
    """Raise `UserError` for a row with another number of fields than the header has, and for one that repeats the header."""
    if len(row) != len(header):
        name = {"\t": "a tab", ",": "a comma"}.get(separator, repr(separator))
        raise UserError(
            f"{file}: line {line:,} has {len(row)} fields, but the first line has {len(header)}: put quotation marks around a text "
            f"that contains {name}, correct the number of fields, or save the file as .jsonl"
        )
    if len(row) > 1 and row[1:] == header[1:] and row[0].strip('\ufeff"') == header[0].strip('"'):  # after a byte order mark
        raise UserError(
            f"{file}: line {line:,} repeats the names of the columns, as in files that were joined: remove this line, or put the "
            "files into a folder and give the folder"
        )


def _check_joined_rows(file: Path, encoding: str | None, separator: str) -> list[str]:
    """Raise `UserError` if the lines of a quoted field look like rows: a single quotation mark has probably joined them.

    Return a note if they may be rows, unless most rows of several lines can't be.
    """
    prose = re.compile(rf"{re.escape(separator)}(?!\S)|(?<=[0-9]){re.escape(separator)}(?=[0-9])")  # as in "well, well" or "1,5"
    rows = _rows(file, encoding, separator)
    values: list[set] = [set() for _ in next(rows)[2]]  # distinct values of each column, in the rows of one line
    n_joined, suspects = 0, []
    for first_line, lines, row in rows:
        if len(lines) == 1:
            for seen, value in zip(values, row, strict=True):
                if len(seen) <= MAX_DISTINCT_VALUES:
                    seen.add(value)
            continue
        n_joined += 1
        parts = [line.rstrip("\r\n").split(separator) for line in lines]
        if len(row) > 1 and all(len(fields) == len(row) for fields in parts):  # each line has as many fields as a row
            is_prose = any("\n" in field and prose.search(field) for field in row)
            suspects.append((f"{first_line:,} to {first_line + len(lines) - 1:,}", parts, is_prose))
    labels = [seen for seen in values if len(seen) <= MAX_DISTINCT_VALUES]
    doubtful = []
    for numbers, parts, is_prose in suspects:
        has_labels = any({field.strip('"') for field in column} <= names for column in zip(*parts, strict=True) for names in labels)
        if has_labels or (len(parts) >= MIN_SUSPECT_LINES and not is_prose):
            raise UserError(
                f"{file}: lines {numbers} look like {len(parts)} rows, but a quotation mark at the start of a field joins them: double "
                "the quotation marks inside fields, or save the file as .jsonl"
            )
        if not is_prose:
            doubtful.append(numbers)
    if len(doubtful) <= MAX_DOUBTFUL * n_joined:
        return []
    return [
        f"{file.name}: lines {listed(doubtful)} are read as one row, because quotation marks surround them: if they are several rows, "
        "double the quotation marks inside fields, or save the file as .jsonl"
    ]


def _is_quoted(file: Path, encoding: str | None) -> bool | None:
    """Return True if quotation marks of a .tsv surround fields, False if they belong to the texts, None if there are none.

    They surround fields if only then each row has as many fields as the first line, if they surround all fields of a column, or if
    only fields that need them have them. Excel also puts them around fields with a comma.
    """
    columns, has_quotes, well_formed = 0, False, True
    # Columns with an unquoted field, and with a quoted field that needs no quotation marks; the same for fields with a comma.
    unquoted, needless = set(), set()
    for line in lines_of(file, encoding):
        fields = line.split("\t")
        if not line:
            continue
        columns = columns or len(fields)
        if len(fields) != columns:
            return _is_table(file, encoding, columns) if has_quotes or '"' in line else None
        for i, field in enumerate(fields):
            if field.startswith('"'):
                inside = field[1:-1].replace('""', "")
                well_formed = well_formed and len(field) > 1 and field.endswith('"') and '"' not in inside
                has_quotes = True
                if '""' not in field[1:-1]:
                    needless.add((i, "," in field))
            elif field:
                unquoted |= {(i, False), (i, "," in field)}
    return well_formed and not unquoted & needless if has_quotes else None


def _is_table(file: Path, encoding: str | None, columns: int) -> bool:
    """Return whether all rows have this number of fields if quotation marks surround fields."""
    try:
        rows = csv.reader(lines_of(file, encoding, keep_ends=True), delimiter="\t", strict=True)
        return all(len(row) == columns for row in rows if row)
    except csv.Error:
        return False
