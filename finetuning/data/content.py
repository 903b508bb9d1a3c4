"""The result of a reader of files."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow
from datasets import Features, Value

ROWS_PER_TABLE = 10_000
STRING = Value("string")


class Content(NamedTuple):
    """The columns of a data set, and its rows in tables of at most `ROWS_PER_TABLE`."""

    features: Features
    tables: Iterator[pyarrow.Table]


# (files, encoding, list of notes to add to) -> the content; if one file holds several splits, the content of each.
Reader = Callable[[list[Path], str | None, list[str]], Content | dict[str, Content]]


def batched(rows: Iterable) -> Iterator[list]:
    """Yield lists of at most `ROWS_PER_TABLE` rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, ROWS_PER_TABLE)):
        yield batch


def string_content(names: list[str], rows: Iterable[list[str | None]]) -> Content:
    """Return rows of strings as content; an empty string becomes None."""

    def table(batch: list[list[str | None]]) -> pyarrow.Table:
        columns = [pyarrow.array([value or None for value in column], pyarrow.string()) for column in zip(*batch, strict=True)]
        return pyarrow.table(columns, names)

    return Content(Features(dict.fromkeys(names, STRING)), map(table, batched(rows)))
