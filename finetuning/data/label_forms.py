"""The forms that labels have in a data set: a value a row, or lists, as such or written as text.

`raw` is a data set's splits by name. All functions raise `UserError`, with the split and the row, for what is no label.
"""

import ast
import json
import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset, Json, LargeList, List

from finetuning.data.cache import read_columns
from finetuning.errors import UserError

MAX_SHOWN = 60  # characters of a value that a message shows
OTHER_TASK = "; for entities in the text set task to token-classification"

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None, "nan": None, "NaN": None}
PLAIN = rf"-?(?:0|[1-9]\d*)(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])|(?:{'|'.join(CONSTANTS)})\b"
ITEM = rf"(?:np\.\w+\((?:{QUOTED}|{PLAIN})\)|{QUOTED}|{PLAIN})"  # as Python, JSON and NumPy write it
ITEMS = re.compile(rf"{ITEM}(?:(?:\s*,\s*|\s+){ITEM})*")  # NumPy writes no commas
WORD = rf"(?:{QUOTED}|[^\s,'\"\[\](){{}}][^,'\"\[\](){{}}]*)"  # as Java, Spark and PostgreSQL write it
WORDS = re.compile(rf"{WORD}(?:\s*,\s*{WORD})*")
WRAPPED = re.compile(r"[\w.]+\(([\[({].*[\])}])(?:,\s*dtype=[^()]+)?\)", re.DOTALL)  # array(...), frozenset(...)
NESTED = re.compile(r"[\[({]\s*(?:[\[({]|(['\"]).*?\1\s*:).*[\])}]", re.DOTALL)  # lists of lists or of objects, and objects
BRACKETS = ("[]", "()", "{}")


class Distinct(NamedTuple):
    """A column's distinct values, and each row's position among them."""

    values: list  # Python's; None where a value is missing. Two may be equal
    codes: np.ndarray  # (rows,) int, -1 where there is no value

    def row_of(self, position: int) -> int:
        return int(np.flatnonzero(self.codes == position)[0])


class Lists(NamedTuple):
    arrays: dict[str, pyarrow.Array]  # of each split: a list of labels a row, or null
    reason: str  # why they are taken for lists, for the user


def distinct(rows: Dataset, column: str) -> Distinct:
    """Return what a column with one value a row holds. Spaces around texts are taken off; empty texts and NaN are None."""
    feature, data = rows.features[column], read_columns(rows, column)[column]
    try:
        encoded = (data.cast(pyarrow.string()) if isinstance(feature, Json) else data).dictionary_encode().unify_dictionaries()
    except pyarrow.ArrowException as error:
        raise UserError(f"label_column={column} holds {feature}: set it to a column with one label a row") from error
    values = encoded.chunk(0).dictionary.to_pylist() if len(data) else []
    indices = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    values = [json.loads(value) for value in values] if isinstance(feature, Json) else values
    values = [value.strip() or None if isinstance(value, str) else value for value in values]
    return Distinct([value if value == value else None for value in values], np.concatenate([*indices, np.empty(0, np.int64)]))


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def refuse(column: str, split: str, row: int, value: Any, remedy: str) -> None:
    raise UserError(f"label_column={column}: row {row} of split {split} holds {shown(value)}: {remedy}")


def kind_of(value: Any) -> type:
    """Return the kind of a label: float stands for all numbers that Arrow knows."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float
    return type(value)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- lists ---------------------------------------------------------------------------------------------------------------


def find_lists(raw: dict[str, Dataset], column: str) -> Lists | None:
    """Return the labels of each row if the column holds lists; None if it holds one value a row."""
    feature = raw["train"].features[column]
    if isinstance(feature, List | LargeList):
        arrays = {split: read_columns(rows, column)[column].combine_chunks() for split, rows in raw.items()}
        if pyarrow.types.is_nested(arrays["train"].type.value_type):
            refuse(column, "train", 0, raw["train"][:1][column], f"it must be a text or a number, or a list of them{OTHER_TASK}")
        return Lists({split: array.cast(pyarrow.list_(array.type.value_type)) for split, array in arrays.items()}, "it holds lists")
    if not isinstance(feature, Json) and getattr(feature, "dtype", None) not in ("string", "large_string"):
        return None
    columns = {split: distinct(rows, column) for split, rows in raw.items()}
    lists, reason = _lists_in_json(columns, column), "it holds lists"
    if lists is None:
        lists, reason = _written_lists(columns, column), "it holds lists that are written as text"
    if lists is None:
        return None
    return Lists(_as_arrays(columns, lists, column), reason)


def _lists_in_json(columns: dict[str, Distinct], column: str) -> dict[str, list] | None:
    """Return each distinct value as a list, one that is no list as a list of one; None if no value is a list."""
    for split in columns:
        for position, value in enumerate(columns[split].values):
            if isinstance(value, dict):
                remedy = f"a label must be a text or a number, or a list of them{OTHER_TASK}"
                refuse(column, split, columns[split].row_of(position), value, remedy)
    if not any(isinstance(value, list) for values, _ in columns.values() for value in values):
        return None
    return {
        split: [value if isinstance(value, list) or value is None else [value] for value in values]
        for split, (values, _) in columns.items()
    }


def _written_lists(columns: dict[str, Distinct], column: str) -> dict[str, list] | None:
    """Return each distinct text as a list; None if the texts are no lists. Raise `UserError` if only some of them are."""
    places = [
        (split, position, value) for split in columns for position, value in enumerate(columns[split].values) if value is not None
    ]
    texts = [value for _, _, value in places if isinstance(value, str)]
    exact = {text: read_list(text) for text in texts}
    is_exact = None not in exact.values()
    lists = exact if is_exact else {text: read_list(text, words=True) for text in texts}
    is_list = any(labels is not None for labels in exact.values()) or (
        None not in lists.values() and any(len(labels) > 1 for labels in lists.values())
    )
    others = [place for place in places if lists.get(place[2]) is None]
    for split, position, value in others:
        nested = isinstance(value, str) and NESTED.fullmatch(value)
        if nested or is_list:
            example = next((f", as others are, such as {shown(text)}" for text in texts if exact[text]), "")
            remedy = f"write the labels of all rows as lists{example}, or those of no row"
            remedy = f"write names of labels, or lists of them such as ['a', 'b']{OTHER_TASK}" if nested else remedy
            refuse(column, split, columns[split].row_of(position), value, remedy)
    if not is_list:
        return None
    return {split: [value if value is None else lists[value] for value in values] for split, (values, _) in columns.items()}


def read_list(text: str, words: bool = False) -> list | None:
    """Return the items of a list, tuple or set that Python, JSON or NumPy wrote as text; None if the text is no such list.

    `words`: as other programs write it, with texts that are not in quotation marks.
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
    if item.startswith("np."):
        item = item.partition("(")[2].removesuffix(")")
    if item[0] not in "'\"":
        return item if words else CONSTANTS[item] if item in CONSTANTS else json.loads(re.sub(r"\.(?!\d)", ".0", item))
    try:
        return json.loads(item) if item[0] == '"' else ast.literal_eval(item)
    except (ValueError, SyntaxError):
        return item[1:-1]


def _as_arrays(columns: dict[str, Distinct], lists: dict[str, list], column: str) -> dict[str, pyarrow.Array]:
    """Return a list of labels per row from those of the distinct values; labels of several kinds become texts."""
    kinds = set()
    for split, values in lists.items():
        for position, labels in enumerate(values):
            kinds |= {kind_of(label) for label in labels or [] if label is not None}
            if kinds & {list, dict}:
                remedy = f"its labels must be texts or numbers{OTHER_TASK}"
                refuse(column, split, columns[split].row_of(position), labels, remedy)
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
