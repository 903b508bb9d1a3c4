"""Label columns: from what a data set holds in them to numbers and names.

`raw` is a data set's splits by name, "train" among them. All functions raise `UserError` for what is no label.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, Dataset

from finetuning.data.label_forms import Distinct, Lists, as_text, distinct, find_lists, kind_of, refuse
from finetuning.errors import UserError

SEPARATORS = "[,;|]"  # between labels that are written as one text
HASH = r"(?<=\w)#(?=\w)"  # doccano's; "C#" is a label
PARTS = rf"[,;|/+&\n，、；]|{HASH}"  # what else may divide labels: then a note asks
LARGEST = float(np.finfo(np.float32).max)
MAX_NAMED = 5  # labels that a message names
MAX_CLASSES = 20  # always allowed; more must come with four rows each, or in a column that the user named
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
ZERO_OR_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SEVERAL = "set problem_type to multi_label_classification"


class Encoded(NamedTuple):
    """Labels as the tasks take them."""

    labels: dict[str, np.ndarray]  # of each split
    names: list[str] = []
    remarks: list[str] = []  # for the user


class Occurrences(NamedTuple):
    """The labels of all rows, one after the other."""

    rows: np.ndarray  # (occurrences,) the row of each
    distinct: list  # labels
    codes: np.ndarray  # (occurrences,) positions in `distinct`
    lengths: np.ndarray  # (rows,) labels of each row


# --- one label a row -----------------------------------------------------------------------------------------------------


def encode_labels(raw: dict[str, Dataset], column: str, named: bool = False) -> Encoded:
    """Return each split's labels as positions among the names, (rows,), -1 where a label is missing.

    The names are the data set's own, or else the sorted values of train. `named`: the user named the column, so it may have many
    classes.
    """
    feature, lists, remarks = raw["train"].features[column], find_lists(raw, column), []
    if lists:
        columns = {split: _only_labels(array, split, column) for split, array in lists.arrays.items()}
        feature = getattr(feature, "feature", feature)
        remarks.append(
            f"label_column={column}: read as one label for each text, because {lists.reason} with at most one label each; for several {SEVERAL}"
        )
    else:
        columns = {split: distinct(rows, column) for split, rows in raw.items()}
    if isinstance(feature, ClassLabel):
        names, position = feature.names, {i: i for i in range(len(feature.names))}
    else:
        columns = _of_one_kind(columns, column)
        values = [value for distinct_values, _ in columns.values() for value in distinct_values if value is not None]
        names = _ordered([value for value in columns["train"].values if value is not None], values)
        _check_classes(names, columns["train"], column, named)
        position = {value: i for i, value in enumerate(names)}
    codes = {}
    for split, (values, indices) in columns.items():
        unknown = sorted({str(value) for value in values if value is not None and value not in position})
        if unknown and not isinstance(feature, ClassLabel):
            _refuse_unknown(column, split, unknown, f"; train has {_listed(names)}")
        codes[split] = np.array([*(position.get(value, -1) for value in values), -1], dtype=np.int64)[indices]
    present = np.unique(codes["train"][codes["train"] >= 0])
    if len(present) == 0:
        raise UserError(f"label_column={column}: train has no labels in it: set it to the column with the labels")
    if len(present) == 1:
        raise UserError(f"label_column={column}: train has one class only, {names[present[0]]!r}; a classifier needs two")
    names = [str(name) for name in names]
    return Encoded(codes, names, [*remarks, *_similar(names, column)])


def holds_several(train: Dataset, column: str) -> bool:
    """Return whether a row of the column holds several labels. Raise `UserError` if it holds texts that may be classes or numbers."""
    lists = find_lists({"train": train}, column)
    if lists:
        return bool((_occurrences(lists.arrays["train"], "train", column).lengths > 1).any())
    if getattr(train.features[column], "dtype", None) in ("string", "large_string"):
        decimal = _decimal([value for value in distinct(train, column).values if value is not None])
        if decimal is not None:
            raise UserError(
                f"label_column={column} holds decimal numbers, such as {decimal}: to predict the numbers set --problem_type regression; "
                "to take each for a class set it to single_label_classification"
            )
    return False


def _of_one_kind(columns: dict[str, Distinct], column: str) -> dict[str, Distinct]:
    """Return whole numbers as integers, and values of several kinds as texts. Raise `UserError` for decimal numbers."""
    values = [value for distinct_values, _ in columns.values() for value in distinct_values if value is not None]
    kinds = {kind_of(value) for value in values}
    if kinds == {float} and any(value % 1 for value in values):
        raise UserError(
            f"label_column={column} holds decimal numbers, which are no classes: to predict the numbers set --problem_type regression, "
            "or set label_column to a column with classes"
        )

    def label(value: Any) -> Any:
        return value if value is None else int(value) if kinds == {float} else as_text(value) if len(kinds) > 1 else value

    return {split: Distinct([label(value) for value in values], codes) for split, (values, codes) in columns.items()}


def _ordered(train: Iterable, labels: Iterable) -> list:
    """Return the labels of train, sorted; texts as numbers if `labels`, those of all splits, are whole numbers."""
    numbers = all(isinstance(label, str) and WHOLE_NUMBER.fullmatch(label) for label in labels)
    return sorted(set(train), key=int if numbers else None)


def _check_classes(names: list, train: Distinct, column: str, named: bool) -> None:
    """Raise `UserError` if the names are more than classes can be."""
    rows = len(train.codes)
    if len(names) <= max(MAX_CLASSES, rows / 4):
        return
    problem = f"label_column={column} has {len(names)} different values in {rows} rows"
    if named and len(names) == rows:
        raise UserError(f"{problem}, so that no two texts have the same: set it to a column with classes")
    if not named:
        raise UserError(f"{problem}: is it the right column? If it is, name it with --label_column")


def _only_labels(lists: pyarrow.Array, split: str, column: str) -> Distinct:
    """Return the only label of each list. Raise `UserError` if a list has more than one."""
    labels = _occurrences(lists, split, column)
    if len(rows := np.flatnonzero(labels.lengths > 1)):
        row = int(rows[0])
        refuse(column, split, row, lists[row].as_py(), f"several labels: {SEVERAL}, or give one label for each text")
    codes = np.full(len(lists), -1)
    codes[labels.rows] = labels.codes
    return Distinct(labels.distinct, codes)


def _refuse_unknown(column: str, split: str, unknown: list, more: str = "") -> None:
    raise UserError(f"label_column={column}: split {split} has labels that train lacks: {_listed(unknown)}{more}")


def _listed(labels: list) -> str:
    return ", ".join(map(repr, labels[:MAX_NAMED])) + (", ..." if len(labels) > MAX_NAMED else "")


def _similar(names: list[str], column: str) -> list[str]:
    """Return notes on labels that look alike, and on labels that are made of other labels."""
    remarks, plain = [], {name: " ".join(unicodedata.normalize("NFKC", name).casefold().split()) for name in names}
    counts = Counter(plain.values())
    if alike := sorted((name for name in names if counts[plain[name]] > 1), key=plain.get):
        remarks.append(f"label_column={column}: labels that differ in capital letters or spaces alone: {_listed(alike)}")
    parts = {name: {part.strip() for part in re.split(PARTS, name)} - {"", name} for name in names}
    counts, known = Counter(part for name in names for part in parts[name]), {*names}
    for name, others in parts.items():
        if others & known or (len(others) > 1 and all(counts[part] > 1 for part in others)):
            remarks.append(
                f"label_column={column}: labels such as {name!r} are made of other labels, and each is taken for a label of its own; "
                f"if a text may have several labels, divide them by commas, and {SEVERAL}"
            )
            break
    return remarks


# --- several labels a row ------------------------------------------------------------------------------------------------


def encode_label_lists(raw: dict[str, Dataset], column: str) -> Encoded:
    """Return each split's labels as 0 or 1, (rows, labels), float32, from lists, vectors of 0 and 1, or texts that name several."""
    feature = raw["train"].features[column]
    lists = find_lists(raw, column) or _divided(raw, column)
    labels = {split: _occurrences(array, split, column) for split, array in lists.arrays.items()}
    remarks = [f"label_column={column}: read as several labels for each text, because {lists.reason}"] if lists.reason else []
    if lists.reason and (empty := sum(int((split.lengths == 0).sum()) for split in labels.values())):
        remarks = [f"{remarks[0]}; {empty:,} texts have none"]
    if isinstance(getattr(feature, "feature", None), ClassLabel):
        names, known = feature.feature.names, list(range(len(feature.feature.names)))
    elif _are_vectors(labels["train"], column):
        values = {split: _vectors(labels[split], labels["train"], (lists.arrays[split], split, column)) for split in labels}
        names = [f"label_{i}" for i in range(values["train"].shape[1])]
        note = f"label_column={column}: in lists of 0 and 1 each place is a label; they are called {names[0]} to {names[-1]}"
        return Encoded(values, names, [*remarks, note])
    else:
        known = _ordered(labels["train"].distinct, [label for split in labels.values() for label in split.distinct])
        names = [str(label) for label in known]
    if len(names) < 2:
        raise UserError(f"label_column={column}: train has fewer than two labels, {names}: is it the right column?")
    position, encoded = {label: i for i, label in enumerate(known)}, {}
    for split, (rows, values, codes, _) in labels.items():
        if unknown := [label for label in values if label not in position]:
            _refuse_unknown(column, split, unknown)
        encoded[split] = np.zeros((len(raw[split]), len(names)), dtype=np.float32)
        encoded[split][rows, np.array([position[label] for label in values], dtype=np.int64)[codes]] = 1
    return Encoded(encoded, names, [*remarks, *_similar(names, column)])


def _divided(raw: dict[str, Dataset], column: str) -> Lists:
    """Return lists from texts that name several labels."""
    texts = {split: distinct(rows, column) for split, rows in raw.items()}
    values = [value for split in texts.values() for value in split.values if value is not None]
    if values and (not any(isinstance(value, str) for value in values) or _decimal(values) is not None):
        held = raw["train"].features[column] if _decimal(values) is None else "decimal numbers"
        raise UserError(f"label_column={column} holds {held}: several labels of a text must be lists, or texts with commas")
    values = [as_text(value) for value in values]
    separator, reason = SEPARATORS, ""
    if not any(re.search(SEPARATORS, value) for value in values) and any(re.search(HASH, value) for value in values):
        separator, reason = HASH, "they are divided at '#'"
    arrays = {}
    for split, (split_values, codes) in texts.items():
        parts = [value if value is None else re.split(separator, as_text(value)) for value in split_values]
        arrays[split] = pyarrow.array([*parts, []], pyarrow.list_(pyarrow.string())).take(pyarrow.array(codes, mask=codes < 0))
    return Lists(arrays, reason)


def _occurrences(lists: pyarrow.Array, split: str, column: str) -> Occurrences:
    """Return all labels of a split, without gaps and empty texts; whole numbers are integers. Raise `UserError` for decimal numbers."""
    parents, labels = pyarrow.compute.list_parent_indices(lists), pyarrow.compute.list_flatten(lists)
    given = labels.is_valid()
    if pyarrow.types.is_string(labels.type) or pyarrow.types.is_large_string(labels.type):
        labels = pyarrow.compute.utf8_trim_whitespace(labels)
        given = pyarrow.compute.fill_null(pyarrow.compute.not_equal(labels, ""), False)
    if pyarrow.types.is_floating(labels.type):
        given = pyarrow.compute.fill_null(pyarrow.compute.invert(pyarrow.compute.is_nan(labels)), False)
    encoded, rows = labels.filter(given).dictionary_encode(), parents.filter(given).to_numpy()
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    for position, value in enumerate(values):
        if isinstance(value, float) and value % 1:
            row = int(rows[codes == position][0])
            refuse(column, split, row, lists[row].as_py(), "decimal numbers are no labels: write names of labels, or 0 and 1")
    values = [int(value) if isinstance(value, float) else value for value in values]
    return Occurrences(rows, values, codes, np.bincount(rows, minlength=len(lists)))


def _are_vectors(train: Occurrences, column: str) -> bool:
    """Return whether lists are vectors of 0 and 1: only then do they repeat a value. Raise `UserError` if they may be vectors."""
    if not {*map(_digit, train.distinct)} <= {"0", "1"}:
        return False
    of_row = np.zeros((len(train.lengths), max(len(train.distinct), 1)), dtype=bool)
    of_row[train.rows, train.codes] = True
    if (train.lengths > of_row.sum(axis=1)).any():
        return True
    if {*train.lengths} <= {0, 2} and len(train.rows):
        raise UserError(
            f"label_column={column}: lists of 0 and 1, two in each, may be the labels 0 and 1 or a place for each of two labels: write "
            "lists of the labels' names, or columns of 0 and 1, and name them in label_column"
        )
    return False


def _digit(label: Any) -> str:
    return str(int(label)) if isinstance(label, bool) else str(label)


def _vectors(labels: Occurrences, train: Occurrences, place: tuple[pyarrow.Array, str, str]) -> np.ndarray:
    """Return vectors of 0 and 1, (rows, labels), float32. Raise `UserError` if one has another length or other values."""
    lists, split, column = place
    length = int(np.bincount(train.lengths[train.lengths > 0]).argmax())
    valid = np.array([_digit(label) in ("0", "1") for label in [*labels.distinct, 0]])[labels.codes]
    wrong = np.flatnonzero((labels.lengths != length) | (np.bincount(labels.rows[~valid], minlength=len(lists)) > 0))
    if len(wrong):
        row = int(wrong[0])
        refuse(column, split, row, lists[row].as_py(), f"other rows hold {length} values, 0 or 1 for each label: correct it")
    return np.array([int(label) for label in labels.distinct], dtype=np.float32)[labels.codes].reshape(len(lists), length)


def encode_label_columns(raw: dict[str, Dataset], columns: list[str]) -> Encoded:
    """Return the same from columns of 0 and 1, or of false and true, whose names are the labels."""
    if len(columns) < 2:
        raise UserError(f"label_column: {', '.join(columns)} is one column; name several of 0 and 1, or leave the comma out")
    encoded = {}
    for split, rows in raw.items():
        encoded[split] = np.empty((len(rows), len(columns)), dtype=np.float32)
        for i, column in enumerate(columns):
            values, codes = distinct(rows, column)
            numbers = [ZERO_OR_ONE.get(str(value).lower()) for value in values]
            valid = np.array([*(number is not None for number in numbers), False])[codes]
            if not valid.all():
                row, code = int(np.argmin(valid)), int(codes[np.argmin(valid)])
                value = values[code] if code >= 0 else None
                refuse(
                    column, split, row, value, "columns of several labels hold 0 or 1; name columns of 0 and 1, and correct others"
                )
            encoded[split][:, i] = np.array(numbers, dtype=np.float32)[codes]
    names = [column.strip() for column in columns]
    return Encoded(encoded, names, ["read as several labels for each text, because label_column names several columns"])


# --- numbers -------------------------------------------------------------------------------------------------------------


def encode_numbers(raw: dict[str, Dataset], column: str) -> Encoded:
    """Return each split's numbers, (rows,) float32, NaN where one is missing; there are no names."""
    encoded = {}
    for split, rows in raw.items():
        columns = distinct(rows, column)
        numbers = [np.nan if value is None else _number(value) for value in columns.values]
        if None in numbers:
            position = numbers.index(None)
            remedy = (
                "more than numbers: write finite numbers, with a point for decimals, or set label_column to a column of numbers"
            )
            refuse(column, split, columns.row_of(position), columns.values[position], remedy)
        encoded[split] = np.array([*numbers, np.nan], dtype=np.float32)[columns.codes]
    train = encoded["train"][~np.isnan(encoded["train"])]
    if len(train) == 0:
        raise UserError(f"label_column={column}: train has no numbers in it: set it to the column with the numbers")
    if np.ptp(train) == 0:
        raise UserError(f"label_column={column}: all numbers of train are equal: is it the right column?")
    return Encoded(encoded)


def _number(value: Any) -> float | None:
    """Return a finite number, or one that is written as text; None for all else, true and false among it."""
    if isinstance(value, bool | list | dict):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def _decimal(values: list) -> Any:
    """Return the first decimal number, if all values are numbers; else None."""
    numbers = [_number(value) for value in values]
    return None if None in numbers else next((value for value, number in zip(values, numbers, strict=True) if number % 1), None)
