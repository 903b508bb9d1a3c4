"""Read the forms that labels have in a data set: a value per row, a list per row, or a list that is written as text.

`raw` has the splits of a data set by name. All functions raise `UserError`, with the split and the row, for a value that is no
label.
"""

import ast
import json
import re
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Json, LargeList, List

from finetuning.data.cache import read_columns
from finetuning.errors import UserError, shorten

MAX_SHOWN = 60  # characters of a value that a message shows
OTHER_TASK = "; for entities in the text set task to token-classification"
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

    values: list  # Python values, None for a missing one; without the spaces around them, two may be equal
    codes: np.ndarray  # (rows,) int, -1 where there is no value

    def row_of(self, position: int) -> int:
        """Return the first row with the value at `position`."""
        return int(np.flatnonzero(self.codes == position)[0])


class Lists(NamedTuple):
    """Labels that are given as lists."""

    arrays: dict[str, pyarrow.Array]  # for each split a list of labels per row, or null
    reason: str  # why the column was taken for lists, for the user


def distinct(rows: Dataset, column: str) -> Distinct:
    """Return the values of a column with one value per row. Texts lose the spaces around them; empty texts and NaN become None."""
    feature, data = rows.features[column], read_columns(rows, column)[column]
    try:
        encoded = (data.cast(pyarrow.string()) if isinstance(feature, Json) else data).dictionary_encode().unify_dictionaries()
    except pyarrow.ArrowException as error:
        raise UserError(f"label_column={column} holds {feature}: set it to a column with a label per row") from error
    values = encoded.chunk(0).dictionary.to_pylist() if len(data) else []
    indices = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    values = [json.loads(value) for value in values] if isinstance(feature, Json) else values
    values = [value.strip() or None if isinstance(value, str) else value for value in values]
    values = [
        (int(value) if value == value.to_integral_value() else float(value)) if isinstance(value, Decimal) else value
        for value in values
    ]
    return Distinct([value if value == value else None for value in values], np.concatenate([*indices, np.empty(0, np.int64)]))


def distinct_names(rows: Dataset, column: str) -> Distinct:
    """Return `distinct`, with the names of a `ClassLabel` column in place of their numbers."""
    (values, codes), feature = distinct(rows, column), rows.features[column]
    if isinstance(feature, ClassLabel):
        values = [feature.names[value] if value in range(len(feature.names)) else None for value in values]
    return Distinct(values, codes)


def shown(value: Any) -> str:
    """Return a value as text for a message, at most `MAX_SHOWN` characters."""
    return shorten(repr(value), MAX_SHOWN)


def refuse(column: str, split: str, row: int, value: Any, remedy: str) -> NoReturn:
    """Raise `UserError` for the value of a row."""
    raise UserError(f"label_column={column}: row {row} of split {split} holds {shown(value)}: {remedy}")


def kind_of(value: Any) -> type:
    """Return the kind of a label: float for all numbers that Arrow can hold, else the type."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float
    return type(value)


def as_text(value: Any) -> str:
    """Return a label as text; one that is no text as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- lists ---------------------------------------------------------------------------------------------------------------


def find_lists(raw: dict[str, Dataset], column: str) -> Lists | None:
    """Return the labels of each row if the column holds lists; None if it holds a value per row."""
    feature = raw["train"].features[column]
    if getattr(getattr(feature, "feature", feature), "dtype", None) in ("binary", "large_binary"):
        raise UserError(f"label_column={column} holds bytes: write its labels as texts")
    is_list = {split: isinstance(rows.features[column], List | LargeList) for split, rows in raw.items()}
    if other := next((split for split in raw if is_list[split] != is_list["train"]), None):
        raise UserError(
            f"label_column={column} holds {feature} in split train, but {raw[other].features[column]} in split {other}: write the "
            "labels of all splits in the same form, with a list in every row"
        )
    if isinstance(feature, List | LargeList):
        arrays = {split: read_columns(rows, column)[column].combine_chunks() for split, rows in raw.items()}
        if pyarrow.types.is_nested(arrays["train"].type.value_type):
            refuse(column, "train", 0, raw["train"][:1][column], WRONG_KIND)
        return Lists({split: array.cast(pyarrow.list_(array.type.value_type)) for split, array in arrays.items()}, "it holds lists")
    if not isinstance(feature, Json) and getattr(feature, "dtype", None) not in ("string", "large_string"):
        return None
    columns = {split: distinct(rows, column) for split, rows in raw.items()}
    lists, reason = _lists_in_json(columns), "it holds lists"
    if lists is None:
        lists, reason = _lists_in_texts(columns, column), "it holds lists that are written as text"
    if lists is None:
        return None
    return Lists(_as_arrays(columns, lists, column), reason)


def _lists_in_json(columns: dict[str, Distinct]) -> dict[str, list] | None:
    """Return each distinct value as a list; a value that is no list becomes a list of one. Return None for texts and numbers."""
    if not any(isinstance(value, list | dict) for values, _ in columns.values() for value in values):
        return None
    return {
        split: [value if isinstance(value, list) or value is None else [value] for value in values]
        for split, (values, _) in columns.items()
    }


def _lists_in_texts(columns: dict[str, Distinct], column: str) -> dict[str, list] | None:
    """Return each distinct text as a list; None if the texts are no lists. Raise `UserError` if only some of them are lists."""
    entries = [
        (split, position, value) for split in columns for position, value in enumerate(columns[split].values) if value is not None
    ]
    texts = [value for _, _, value in entries if isinstance(value, str)]
    quoted = {text: read_list(text) for text in texts}  # lists with quotation marks around their texts
    lists = quoted if None not in quoted.values() else {text: read_list(text, words=True) for text in texts}
    is_list = any(labels is not None for labels in quoted.values()) or (
        None not in lists.values() and any(len(labels) > 1 for labels in lists.values())
    )
    no_lists = [entry for entry in entries if lists.get(entry[2]) is None]
    for split, position, value in no_lists:
        nested = isinstance(value, str) and NESTED.fullmatch(value)
        if nested or is_list:
            example = next((f", like {shown(text)}" for text in texts if quoted[text]), "")
            remedy = f"write the labels of all rows as lists{example}, or write none as a list"
            remedy = f"write names of labels, or lists of them such as ['a', 'b']{OTHER_TASK}" if nested else remedy
            refuse(column, split, columns[split].row_of(position), value, remedy)
    if not is_list:
        return None
    return {split: [value if value is None else lists[value] for value in values] for split, (values, _) in columns.items()}


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


def _as_arrays(columns: dict[str, Distinct], lists: dict[str, list], column: str) -> dict[str, pyarrow.Array]:
    """Return a list of labels for each row from the lists of the distinct values. Labels of several kinds become texts."""
    kinds = set()
    for split, values in lists.items():
        for position, labels in enumerate(values):
            kinds |= {kind_of(label) for label in labels or [] if label is not None}
            if kinds & {list, dict}:
                refuse(column, split, columns[split].row_of(position), columns[split].values[position], WRONG_KIND)
    if len(kinds) > 1 or int in kinds:
        lists = {
            split: [labels and [label if label is None else as_text(label) for label in labels] for labels in values]
            for split, values in lists.items()
        }
    arrays = {}
    for split, values in lists.items():
        codes = columns[split].codes
        arrays[split] = pyarrow.array([*values, []]).take(pyarrow.array(codes, mask=codes < 0))
    return arrays
