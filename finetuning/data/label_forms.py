"""Read the forms that labels have in a data set: a value per row, a list per row, or a list that is written as text.

`raw` has the splits of a data set by name. All functions raise `UserError`, with the split and the row, for a value that is no
label.
"""

import ast
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Json, LargeList, List, Value

from finetuning.data.cache import read_column
from finetuning.data.content import holds_texts
from finetuning.errors import UserError, shorten

MAX_SHOWN = 60  # characters of a value that a message shows
OTHER_TASK = "; for entities in the text set task to token-classification"
DECIMAL = "decimal numbers are no labels: write the names of labels, or set problem_type to regression to predict the numbers"
WRONG_KIND = f"a label must be a text or a number, or a list of them{OTHER_TASK}"

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None, "nan": None, "NaN": None}
PLAIN = rf"-?(?:0|[1-9]\d*)(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])|(?:{'|'.join(CONSTANTS)})\b"
ITEM = rf"(?:np\.\w+\((?:{QUOTED}|{PLAIN})\)|{QUOTED}|{PLAIN})"  # an item of a list that Python, JSON or NumPy wrote
ITEMS = re.compile(rf"{ITEM}(?:(?:\s*,\s*|\s+){ITEM})*")  # NumPy writes lists without commas
WORD = rf"(?:{QUOTED}|[^\s,'\"\[\](){{}}][^,'\"\[\](){{}}]*)"  # an item of a list that Java, Spark or PostgreSQL wrote
WORDS = re.compile(rf"{WORD}(?:\s*,\s*{WORD})*")
WRAPPED = re.compile(r"[\w.]+\(([\[({].*[\])}])(?:,\s*dtype=[^()]+)?\)", re.DOTALL)  # array(...), frozenset(...)
NESTED = re.compile(r"[\[({]\s*(?:[\[({]|(['\"]).*?\1\s*:).*[\])}]", re.DOTALL)  # lists of lists or of objects, and objects
BRACKETS = ("[]", "()", "{}")


class Distinct(NamedTuple):
    """The distinct values of a column, and the position of each row's value among them."""

    values: list  # Python values, None if missing. Two values may become equal when their spaces are removed.
    codes: np.ndarray  # (rows,) int, -1 where there is no value

    def per_row(self, entries: Iterable, missing: Any) -> np.ndarray:
        """Return the entry of each row's value, (rows, ...). `entries` has one for each of `values`; the others get `missing`."""
        return np.array([*entries, missing])[self.codes]

    def refuse(self, column: str, split: str, wrong: Iterable[bool], remedy: str, missing: bool = False) -> None:
        """Raise `UserError` for the first wrong row. `wrong` has a bool for each of `values`, `missing` is that of rows without one."""
        rows = np.flatnonzero(self.per_row(wrong, missing))
        if len(rows):
            value = shown([*self.values, None][self.codes[rows[0]]])
            raise UserError(f"label_column={column}: row {rows[0]} of split {split} holds {value}: {remedy}")


def distinct(rows: Dataset, column: str) -> Distinct:
    """Return the values of a column. Texts lose the spaces around them; empty texts and NaN become None."""
    feature, data = rows.features[column], read_column(rows, column)
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, Value | ClassLabel):
        positions: dict[tuple, int] = {}
        lists = (value for chunk in data.chunks for value in chunk.to_pylist())
        codes = [-1 if value is None else positions.setdefault(tuple(value), len(positions)) for value in lists]
        return Distinct([*map(list, positions)], np.array(codes, dtype=np.int64))
    try:
        encoded = (data.cast(pyarrow.string()) if isinstance(feature, Json) else data).combine_chunks().dictionary_encode()
    except pyarrow.ArrowException as error:
        raise UserError(f"label_column={column} holds {feature}: {WRONG_KIND}") from error
    values = encoded.dictionary.to_pylist()
    values = map(json.loads, values) if isinstance(feature, Json) else values
    return Distinct([*map(_cleaned, values)], encoded.indices.fill_null(-1).to_numpy())


def _cleaned(value: Any) -> Any:
    """Return a text without the spaces around it, None if it is empty or the value NaN, and a decimal of Arrow as int or float."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if value == value else None


def distinct_names(rows: Dataset, column: str) -> Distinct:
    """Return `distinct`, with the names of a `ClassLabel` column in place of their numbers."""
    (values, codes), feature = distinct(rows, column), rows.features[column]
    if isinstance(feature, ClassLabel):
        values = [feature.names[value] if value in range(len(feature.names)) else None for value in values]
    return Distinct(values, codes)


def shown(value: Any) -> str:
    """Return a value as text for a message, at most `MAX_SHOWN` characters."""
    return shorten(repr(value), MAX_SHOWN)


def kind_of(value: Any) -> type:
    """Return the kind of a label: float for all numbers that Arrow can hold, else the type."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float
    return type(value)


def as_text(value: Any) -> str:
    """Return a label as text; one that is no text as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- lists ---------------------------------------------------------------------------------------------------------------


def label_lists(raw: dict[str, Dataset], column: str) -> tuple[dict[str, Distinct], str]:
    """Return the labels of each row as a list, and why the column was taken for lists, "" if it holds a value per row."""
    feature, reason = raw["train"].features[column], "it holds lists"
    if getattr(getattr(feature, "feature", feature), "dtype", None) in ("binary", "large_binary"):
        raise UserError(f"label_column={column} holds bytes: write its labels as texts")
    is_list = {split: isinstance(rows.features[column], List | LargeList) for split, rows in raw.items()}
    if other := next((split for split in raw if is_list[split] != is_list["train"]), None):
        raise UserError(
            f"label_column={column} holds {feature} in split train, but {raw[other].features[column]} in split {other}: write the "
            "labels of all splits in the same form, with a list in every row"
        )
    columns = {split: distinct(rows, column) for split, rows in raw.items()}
    if not is_list["train"] and not any(isinstance(value, list | dict) for cells in columns.values() for value in cells.values):
        is_text = isinstance(feature, Json) or holds_texts(feature)
        lists = _lists_in_texts(columns, column) if is_text else None
        columns, reason = (lists, "it holds lists that are written as text") if lists else (columns, "")
    return as_lists(columns, column), reason


def as_lists(columns: dict[str, Distinct], column: str) -> dict[str, Distinct]:
    """Return each value as a list of labels, without missing and empty ones. A value that is no list becomes a list of one.

    Whole numbers become integers, and labels of several kinds become texts. Raise `UserError` for values that are no labels.
    """

    def labels_of(value: Any) -> list | None:
        labels = map(_cleaned, value if isinstance(value, list) else [value])
        return None if value is None else [label for label in labels if label is not None]

    lists = {split: [*map(labels_of, cells.values)] for split, cells in columns.items()}
    kinds = {kind_of(label) for split in lists.values() for labels in split for label in labels or []}
    are_numbers = kinds == {float}
    convert = int if are_numbers else as_text if len(kinds) > 1 else lambda label: label
    for split, cells in columns.items():
        wrong = (any(label % 1 if are_numbers else isinstance(label, list | dict) for label in row or []) for row in lists[split])
        cells.refuse(column, split, wrong, DECIMAL if are_numbers else WRONG_KIND)
        lists[split] = [labels and [*map(convert, labels)] for labels in lists[split]]
    return {split: Distinct(lists[split], cells.codes) for split, cells in columns.items()}


def _lists_in_texts(columns: dict[str, Distinct], column: str) -> dict[str, Distinct] | None:
    """Return each distinct text as a list; None if the texts are no lists. Raise `UserError` if only some of them are lists."""
    texts = [value for cells in columns.values() for value in cells.values if isinstance(value, str)]
    quoted = {text: read_list(text) for text in texts}  # lists with quotation marks around their texts
    lists = quoted if None not in quoted.values() else {text: read_list(text, words=True) for text in texts}
    is_list = any(labels is not None for labels in quoted.values()) or (
        None not in lists.values() and any(len(labels) > 1 for labels in lists.values())
    )
    example = next((f", like {shown(text)}" for text in texts if quoted[text]), "")
    for split, cells in columns.items():
        no_list = [value is not None and lists.get(value) is None for value in cells.values]
        nested = [wrong and bool(NESTED.fullmatch(str(value))) for wrong, value in zip(no_list, cells.values, strict=True)]
        remedy = f"write names of labels, or lists of them such as ['a', 'b']{OTHER_TASK}"
        cells.refuse(column, split, nested, remedy)
        if is_list:
            remedy = f"write the labels of all rows as lists{example}, or write none as a list"
            cells.refuse(column, split, no_list, remedy)
    if not is_list:
        return None
    return {split: Distinct([lists.get(value) for value in values], codes) for split, (values, codes) in columns.items()}


def read_list(text: str, words: bool = False) -> list | None:
    """Return the items of a list, tuple or set that Python, JSON or NumPy wrote as text; None if the text is no such list.

    `words`: accept lists of other programs too, whose texts are not in quotation marks.
    """
    wrapped = WRAPPED.fullmatch(text)
    text = wrapped[1] if wrapped else "[]" if text == "set()" else text
    inner = text[1:-1].strip()
    if len(text) < 2 or text[0] + text[-1] not in BRACKETS or (text[0] == "(" and inner and "," not in inner):
        return None
    inner = inner.removesuffix(",")
    pattern, item = (WORDS, WORD) if words else (ITEMS, ITEM)
    if inner and not pattern.fullmatch(inner):
        return None
    return [_value(part.strip(), words) for part in re.findall(item, inner)]


def _value(item: str, words: bool) -> Any:
    """Return the value of an item of a list; `words` as in `read_list`."""
    if item.startswith("np.") and not words:  # such as np.str_('a'); with `words`, np.sum is a label
        item = item.partition("(")[2].removesuffix(")")
    if item[0] not in "'\"":
        return item if words else CONSTANTS[item] if item in CONSTANTS else ast.literal_eval(item)
    try:
        return json.loads(item) if item[0] == '"' else ast.literal_eval(item)
    except (ValueError, SyntaxError):
        return item[1:-1]
