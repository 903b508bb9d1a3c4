"""Find, check, rename and clean the columns of a data set that hold texts and labels."""

import json
import re
from collections.abc import Iterable

from datasets import Dataset, Features, Json, Value

from config import Config
from finetuning.data.content import holds_texts
from finetuning.data.label_forms import shown
from finetuning.errors import UserError, shorten
from finetuning.task import Task

TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "message", "body")  # usual names of columns
PAIR_COLUMNS = ("text_pair", "sentence2", "question", "premise", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target")
LINE_BREAK = re.compile(r"<br\s*/?>")
MAX_CHARACTERS = 100  # of a text, on a line of the terminal
MAX_LISTED = 20  # names of columns in a message
PAIR_SEPARATOR = " || "  # between the two texts of a pair, for the reader


def find_column(setting: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    """Return the column `given`, or else the first of the `usual` names that is one of `columns`.

    Spaces around names are ignored; so are capital letters for usual names. `setting`: the setting in config.py that names the
    column. Raise `UserError` if there is no such column.
    """

    def plain(name: str) -> str:
        return name.strip() if given else name.strip().lower()

    for wanted in [given] if given else usual:
        if matches := [column for column in columns if plain(column) == plain(wanted)]:
            return wanted if wanted in matches else matches[0]
    problem = f"{setting}={given} is not a column" if given else f"no column has a usual name ({', '.join(usual)})"
    remedy = f"set {setting} to one of them"
    if look_like_values(columns):
        remedy += "; or, if they are a row of data, write a line with the names of the columns above it, such as text,label"
    if {"annotations", "data"} <= {*columns} and not given:
        raise UserError(
            "the columns are those of Label Studio's JSON, which is read only for named entities: export labels as CSV or JSON_MIN"
        )
    if "column_1" in columns and not given:
        remedy = "column_1 holds numbers, so set text_column to the column of the words and label_column to that of the tags"
    raise UserError(f"{problem}; the columns are {listed_columns(columns)}: {remedy}")


def look_like_values(columns: Iterable[str]) -> bool:
    """Return whether names of columns look like a row of data: there is a number, or a sentence."""
    return any(re.fullmatch(r"-?[0-9.]+|(\S+\s+){4,}\S+|.*\w[.!?]", column.strip()) for column in columns)


def listed_columns(columns: Iterable[str]) -> str:
    """Return the first names of columns for a message, in quotation marks if there are spaces around a name."""
    names = [column if column == column.strip() else repr(column) for column in columns]
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def not_read(available: list[str], columns: dict[str, str], task: Task, config: Config) -> list[str]:
    """Return notes on columns that are not read although their names are usual ones, unless the column to read was named."""
    notes, pairs = [], "text_pair_column" in task.settings
    if look_like_values(columns.values()):
        notes.append(
            f"the names of the columns are {listed_columns(available)}: if they are a row of data, it is not read; write a line with "
            "names above it"
        )
    for name, usual in (("text", (*TEXT_COLUMNS, *(PAIR_COLUMNS if pairs else ()))), ("label", task.label_columns)):
        others = [column for column in available if column.strip().lower() in usual and column not in columns.values()]
        if others and name in columns and not getattr(config, f"{name}_column"):
            more = " or text_pair_column" if name == "text" and pairs else ""
            notes.append(
                f"column {columns[name]} is read, and not {', '.join(others)}: set {name}_column{more} to read another column"
            )
    return notes


def text_columns(available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    """Return the column of the text, and the column of the second text if labels belong to pairs.

    Raise `UserError` if one is missing, and if both are the same.
    """
    usual = (*([config.text_column] if config.text_column else []), *TEXT_COLUMNS)
    columns = {"text": find_column("text_column", text_column, usual, available)}
    if config.text_pair_column:
        columns["text_pair"] = find_column("text_pair_column", config.text_pair_column, (), available)
        if columns["text"] == columns["text_pair"]:
            raise UserError(
                f"column {columns['text']} would be both texts of each pair: set text_column to the column of the first texts; the "
                f"columns are {listed_columns(available)}"
            )
    return columns


def check_texts(raw: dict[str, Dataset], columns: dict[str, str]) -> list[str]:
    """Return notes on numbers that are read as texts. `columns` are checked except those of labels.

    Raise `UserError` for a column without texts, and for lists and objects among texts.
    """
    remarks = []
    for split, rows in raw.items():
        for name, column in columns.items():
            feature, where = rows.features[column], f"{name}_column={column}: in split {split}"
            remedy = f"set {name}_column to a column with texts"
            if name.startswith("label") or holds_texts(feature):
                continue
            if not isinstance(feature, Json):
                raise UserError(f"{where} it holds no text, but {shown(rows[0][column])} (row 0): {remedy}")
            types = [type(value) for batch in rows.select_columns(column).iter(1_000) for value in batch[column]]
            others = [row for row, kind in enumerate(types) if kind not in (str, type(None))]
            nested = [row for row in others if types[row] in (list, dict)]
            if not others:
                continue
            row = (nested or others)[0]
            example = f"{shown(rows[row][column])} (row {row})"
            if len(others) > types.count(str):
                raise UserError(f"{where} it holds no text, but {example}: {remedy}")
            if nested:
                raise UserError(f"{where} it holds not only texts, but {example}: correct the row, or {remedy}")
            remarks.append(f"{where} {len(others):,} numbers or truth values are read as texts, such as {example}")
    return remarks


def renamed(raw: dict[str, Dataset], columns: dict[str, str]) -> dict[str, Dataset]:
    """Return only `columns` of each split, under the task's names. JSON values in text columns become texts."""
    names = {column: name for name, column in columns.items()}
    return {split: _as_texts(rows.select_columns([*names]).rename_columns(names)) for split, rows in raw.items()}


def _as_texts(rows: Dataset) -> Dataset:
    """Return rows in which columns of JSON values, except those of labels, have become texts."""
    names = [name for name, feature in rows.features.items() if isinstance(feature, Json) and not name.startswith("label")]

    def texts(batch: dict[str, list]) -> dict[str, list]:
        return {
            name: [value if value is None or isinstance(value, str) else json.dumps(value) for value in batch[name]]
            for name in names
        }

    features = Features(rows.features | dict.fromkeys(names, Value("string")))
    return rows.map(texts, batched=True, features=features) if names else rows


def filled(texts: Iterable[str | None]) -> list[str]:
    """Return the texts, "" for None."""
    return [text or "" for text in texts]


def clean(texts: Iterable[str | None]) -> list[str]:
    """Return the texts with a space for each HTML line break, which saves 5 % of IMDb's tokens; "" for None."""
    return [LINE_BREAK.sub(" ", text) for text in filled(texts)]


def shortened(inputs: dict[str, str]) -> str:
    """Return the text or texts of a row, cut to `MAX_CHARACTERS`."""
    return shorten(PAIR_SEPARATOR.join(inputs.values()), MAX_CHARACTERS)
