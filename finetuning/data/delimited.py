"""Tables in text files, .csv and .tsv: their separator, their quotation marks, and as many fields in each row as there are names."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from finetuning.data.content import Content, of_strings
from finetuning.data.files import SNIFFED_BYTES, lines_of, open_text
from finetuning.errors import UserError

SEPARATORS = ",;\t|"
MAX_VALUES = 50  # of a column that may be one of labels
MIN_SUSPECT_LINES = 4  # of a quoted field: so many lines that look like rows are rows


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
