"""What a reader of files returns: the rows of each split, in tables."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from datasets import ClassLabel, Features

from finetuning.errors import UserError

ROWS_PER_TABLE = 10_000  # and per batch of an Arrow file: opening the file maps 64 KiB of each batch into memory

# (files, encoding, list of notes to add to) -> tables with at most `ROWS_PER_TABLE` rows; for files with several splits, those of
# each split. The types of the columns are those of the first table.
Tables = Iterator[pyarrow.Table]
Reader = Callable[[list[Path], str | None, list[str]], Tables | dict[str, Tables]]


def class_names(feature: Any) -> list[str] | None:
    """Return the names of the classes whose numbers a column or its lists hold; None if they hold anything else."""
    item = getattr(feature, "feature", feature)
    return item.names if isinstance(item, ClassLabel) else None


def holds_texts(feature: Any) -> bool:
    """Return whether a column with this feature holds texts."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def check_classes(place: str, first: Features, other: Features) -> None:
    """Raise `UserError` if a number means different classes in two files or splits."""
    for column in first.keys() & other.keys():
        names, other_names = (class_names(features[column]) or [] for features in (first, other))
        for number, (name, other_name) in enumerate(zip(names, other_names, strict=False)):
            if name != other_name:
                raise UserError(
                    f"{place}: class {number} of column {column} is {other_name!r}, and {name!r} elsewhere: store the labels as texts, "
                    "or with the same classes everywhere"
                )


def as_rows(columns: dict[str, list]) -> list[dict]:
    """Return columns of the same length as a list of rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def check_names(file: Path, names: list[str], first_file: Path, first_names: list[str]) -> None:
    """Raise `UserError` if columns of a file have the same name, or other names than those of the first file of the split."""
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"{file}: two columns are called {duplicate!r}: give each column another name, or, if the first line is a row of data, "
            "write a line with names above it"
        )
    if names != first_names:
        raise UserError(
            f"{file}: its columns are {', '.join(names)}, but those of {first_file.name} are {', '.join(first_names)}: use the same "
            "columns"
        )


def without_nameless(file: Path, names: list[str], rows: Iterable[list], first_row: int = 2) -> tuple[list[str], Iterable[list]]:
    """Return a table without its columns that have no name if there are several, as spreadsheets write them beside a table.

    `first_row`: the number of the first of `rows`, for a message. Raise `UserError` for a value in such a column.
    """
    if names.count("") < 2:
        return names, rows

    def named() -> Iterator[list]:
        for number, row in enumerate(rows, first_row):
            for position, (name, value) in enumerate(zip(names, row, strict=True), 1):
                if value and not name:
                    raise UserError(
                        f"{file}: column {position} has no name, but row {number:,} of the table holds {value[:40]!r} there: name the "
                        "column, empty it, or put quotation marks around a text that contains the separator"
                    )
            yield [value for name, value in zip(names, row, strict=True) if name]

    return [name for name in names if name], named()


def batched(rows: Iterable) -> Iterator[list]:
    """Yield lists of at most `ROWS_PER_TABLE` rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, ROWS_PER_TABLE)):
        yield batch


def string_tables(names: list[str], rows: Iterable[list[str | None]]) -> Tables:
    """Yield rows of strings as tables; an empty string becomes None."""
    for batch in batched(rows):
        columns = [pyarrow.array([value or None for value in column], pyarrow.string()) for column in zip(*batch, strict=True)]
        yield pyarrow.table(columns, names)
