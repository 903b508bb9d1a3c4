"""Columns of a data set that hold texts and labels: how they are found, checked, renamed and cleaned."""

import re
from collections.abc import Iterable

from datasets import Dataset

from config import Config
from finetuning.errors import UserError

TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "message", "body")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target")
LINE_BREAK = re.compile(r"<br\s*/?>")
MAX_CHARACTERS = 100  # of a text on a line of the terminal
PAIR_SEPARATOR = " || "  # between the texts of a pair, for readers


def find_column(setting: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    """Return `given`, or else the first of the `usual` names among `columns`, in any case.

    `setting` is the name in config.py. Raise `UserError` if there is no such column.
    """
    by_lower = {column.lower(): column for column in columns}
    if given in columns:
        return given
    matches = [by_lower[name.lower()] for name in usual if name.lower() in by_lower]
    if matches and not given:
        return matches[0]
    problem = f"{setting}={given} is not a column" if given else f"no column has a usual name ({', '.join(usual)})"
    no_names = any(len(column.split()) > 4 or column.replace(".", "", 1).isdigit() for column in columns)
    hint = " (they look like a row of data: is the line with the column names missing?)" if no_names else ""
    if {"annotations", "data"} <= {*columns} and not given:
        raise UserError(
            "the columns are those of Label Studio's JSON, which is read for named entities: export labels as CSV or JSON_MIN"
        )
    raise UserError(f"{problem}; the columns are {', '.join(columns)}{hint}: set {setting} to one of them")


def text_columns(available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    """Return the column of the text, and that of the second text if the label belongs to a pair."""
    usual = (*([config.text_column] if config.text_column else []), *TEXT_COLUMNS)
    columns = {"text": find_column("text_column", text_column, usual, available)}
    if config.text_pair_column:
        columns["text_pair"] = find_column("text_pair_column", config.text_pair_column, (), available)
    return columns


def check_texts(raw: dict[str, Dataset], columns: dict[str, str]) -> None:
    """Raise `UserError` if one of `columns`, other than those of labels, holds something else than texts."""
    for split, rows in raw.items():
        for name, column in columns.items():
            if not name.startswith("label") and getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                raise UserError(
                    f"{name}_column={column}: in split {split} it holds no text; set {name}_column to a column with texts"
                )


def renamed(raw: dict[str, Dataset], columns: dict[str, str]) -> dict[str, Dataset]:
    """Return only `columns` of each split, by the task's names for them."""
    names = {column: name for name, column in columns.items()}
    return {split: rows.select_columns([*names]).rename_columns(names) for split, rows in raw.items()}


def clean(texts: Iterable[str | None]) -> list[str]:
    """Return the texts with a space in place of each HTML line break (5 % of IMDb's tokens); "" for None."""
    return [LINE_BREAK.sub(" ", text or "") for text in texts]


def shortened(inputs: dict[str, str]) -> str:
    """Return a row's texts in one line, at most `MAX_CHARACTERS` long."""
    text = PAIR_SEPARATOR.join(inputs.values())
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."
