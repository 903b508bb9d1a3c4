"""Convert the label columns of a data set to numbers, and list the names of the labels.

`raw` has the splits of a data set by name, with "train" among them. All functions raise `UserError` for values that are no labels.
"""

import re
import unicodedata
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from finetuning.data.content import class_names, holds_texts
from finetuning.data.label_forms import Distinct, as_lists, as_text, distinct, distinct_names, label_lists, shown
from finetuning.errors import UserError, listed

SEPARATORS = ",;|"  # between labels that are written as one text
HASH = r"(?<=\w)#(?=\w)"  # doccano's separator, as in "a#b"; "C#" is one label
POSSIBLE_SEPARATORS = rf"[,;|/+&\n，、；]|{HASH}"  # a label with one of these may be several labels; a note says so
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_ROUNDING = 1e-3  # of numbers to float32, as a fraction of their standard deviation
MAX_CLASSES = 20  # more are allowed if classes have four rows on average, or if the user named the column
VECTOR = re.compile(r"[01](\s*[01])+")  # 0 or 1 for each label, in one text
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
MISSING = re.compile(r"#?n/?a|nan|null|none|\\n", re.IGNORECASE)  # how databases, spreadsheets and Python write a missing value
ZERO_OR_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SET_MULTI_LABEL = "set problem_type to multi_label_classification"


class Encoded(NamedTuple):
    """Labels as arrays, (rows, ...)."""

    labels: dict[str, np.ndarray]  # split -> its labels
    names: list[str] = []  # the names of the labels; [] if labels are numbers
    remarks: list[str] = []  # notes for the user


# --- one label per row ---------------------------------------------------------------------------------------------------


def encode_labels(raw: dict[str, Dataset], column: str, named: bool = False) -> Encoded:
    """Return the labels of each split as positions in the list of names, (rows,), -1 for a missing label.

    The names are those that a `ClassLabel` column brings along, or else the sorted values of train. `named`: the user named the
    column, so it may have many classes.
    """
    (columns, reason), remarks = label_lists(raw, column), []
    if reason:
        remarks.append(
            f"label_column={column}: read as one label for each text, because {reason} with at most one label; if a text can have "
            f"several labels, {SET_MULTI_LABEL}"
        )
    for split, labels in columns.items():
        has_several = (len(value or []) > 1 for value in labels.values)
        labels.refuse(column, split, has_several, f"several labels: {SET_MULTI_LABEL}, or give one label for each text")
    positions, names = _known(raw["train"].features[column], columns, column, named)
    codes = {
        split: labels.per_row((positions.get(value[0], -1) if value else -1 for value in labels.values), -1)
        for split, labels in columns.items()
    }
    present = np.unique(codes["train"][codes["train"] >= 0])
    if len(present) == 0:
        raise UserError(f"label_column={column}: train has no labels in it: set it to the column with the labels")
    if len(present) == 1:
        raise UserError(
            f"label_column={column}: train has one class only, {names[present[0]]!r}, and a classifier needs two: add rows "
            "with another label"
        )
    return Encoded(codes, names, [*remarks, *_notes_on_names(names, column)])


def _known(feature: Any, columns: dict[str, Distinct], column: str, named: bool = True) -> tuple[dict, list[str]]:
    """Return the positions of the labels of train, sorted, or of the class numbers of a `ClassLabel` column; and their names.

    They are sorted by number if all labels are texts of whole numbers. Raise `UserError` for too many classes, unless the column is
    `named`, and for a label that train lacks.
    """
    names = class_names(feature)
    labels = {split: {label for value in values for label in value or []} for split, (values, _) in columns.items()}
    if names is not None:
        known = list(range(len(names)))
        labels = {split: numbers - {-1} for split, numbers in labels.items()}  # -1: no label
    else:
        as_numbers = all(isinstance(label, str) and WHOLE_NUMBER.fullmatch(label) for label in set().union(*labels.values()))
        known = sorted(labels["train"], key=int if as_numbers else None)
        names = [str(label) for label in known]
        _check_classes(names, len(columns["train"].codes), column, named)
    for split in labels:
        if unknown := labels[split] - {*known}:
            absent, present = (listed([repr(str(label)) for label in part]) for part in (sorted(unknown), known))
            raise UserError(
                f"label_column={column}: split {split} has labels that train lacks: {absent}; train has {present}: correct these "
                "labels, or remove their rows"
            )
    return {label: i for i, label in enumerate(known)}, names


def holds_several(train: Dataset, column: str) -> bool:
    """Return whether a row of the column holds several labels. Raise `UserError` for texts that may be classes or numbers."""
    columns, reason = label_lists({"train": train}, column)
    if reason:
        return any(len(value or []) > 1 for value in columns["train"].values)
    if holds_texts(train.features[column]):
        values = [label for value in columns["train"].values for label in value or []]
        is_class = "if each is a class set it to single_label_classification"
        if (decimal := _decimal(values)) is not None:
            raise UserError(
                f"label_column={column} holds decimal numbers, such as {decimal}: to predict the numbers set problem_type to "
                f"regression; {is_class}"
            )
        if _decimal([value.replace(",", ".") for value in values]) is not None:
            raise UserError(
                f"label_column={column} holds numbers with commas, such as {next(value for value in values if ',' in value)}: to predict "
                "the numbers write them without commas, with points for decimals, and set problem_type to regression; if these are "
                f"several labels set it to multi_label_classification; {is_class}"
            )
    return False


def _check_classes(names: list, rows: int, column: str, named: bool) -> None:
    """Raise `UserError` if the column has so many different values that they are hardly classes."""
    if len(names) <= max(MAX_CLASSES, rows / 4):
        return
    problem = f"label_column={column} has {len(names)} different values in {rows} rows"
    if named and len(names) == rows:
        raise UserError(f"{problem}, so no two texts have the same label: set it to a column with classes")
    if not named:
        raise UserError(f"{problem}: if it is the right column, name it with --label_column; if not, name another")


def alike(names: list[str], column: str) -> list[str]:
    """Return a note on names that differ only in invisible characters, or only in capital letters or spaces."""

    def plain(name: str) -> str:
        visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
        return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())

    normalised = {name: plain(name) for name in names}
    counts = Counter(normalised.values())
    same = sorted((name for name in names if counts[normalised[name]] > 1), key=normalised.get)
    problem = f"label_column={column}: labels that differ only in invisible characters, or only in capital letters or spaces"
    return [f"{problem}: {listed([*map(repr, same)])}"] if same else []


def _notes_on_names(names: list[str], column: str) -> list[str]:
    """Return notes on labels that look alike, on labels that seem to be several labels in one, and on one called like the column."""
    remarks = alike(names, column)
    if column in names:
        remarks.append(
            f"label_column={column}: the name of the column is also a label: if the first line of the file is a row of data, "
            "write a line with names above it"
        )
    numbers = {name: re.sub(r"^(-?)0+(?=[0-9])|\.0+$", r"\1", name) for name in names if re.fullmatch(r"-?[0-9]+(\.0+)?", name)}
    number_counts = Counter(numbers.values())
    if same := [name for name, number in numbers.items() if number_counts[number] > 1]:
        remarks.append(f"label_column={column}: labels that are one number in two forms: {listed([*map(repr, same)])}")
    signs = [
        name
        for name in names
        if not any(map(str.isalnum, name)) or MISSING.fullmatch(name) or (name == "-1" and {"0", "1", "2"} <= {*names})
    ]
    if len(signs) == 1:
        remarks.append(
            f"label_column={column}: {signs[0]!r} is read as a label: if it means that the label is missing, remove its rows"
        )
    if combined := _first_combined(names):
        remarks.append(
            f"label_column={column}: labels such as {combined!r} consist of other labels, but each was read as one label; "
            f"if a text can have several labels, separate them by commas, and {SET_MULTI_LABEL}"
        )
    return remarks


def _first_combined(names: list[str]) -> str | None:
    """Return the first label that seems to be several labels in one; None if there is none."""
    parts = {name: {part.strip() for part in re.split(POSSIBLE_SEPARATORS, name)} - {"", name} for name in names}
    counts = Counter(part for name_parts in parts.values() for part in name_parts)
    words = {name: re.findall(r"[0-9]+\.[0-9]+|[^\W_]+", name) for name in names}
    single_words = {name_words[0] for name_words in words.values() if len(name_words) == 1}

    def is_combined(name: str) -> bool:
        if parts[name] & parts.keys():  # "a, b" beside "a"
            return True
        if len(parts[name]) > 1 and all(counts[part] > 1 for part in parts[name]):  # "a, b" beside "a, c" and "b, c"
            return True
        if len(words[name]) < 2:
            return False
        pieces = name.split()  # "a b" or "a_b" beside "a" and "b"
        return {*words[name]} <= single_words or (pieces != [name] and {*pieces} <= parts.keys())

    return next(filter(is_combined, parts), None)


# --- several labels per row ----------------------------------------------------------------------------------------------


def encode_label_lists(raw: dict[str, Dataset], column: str) -> Encoded:
    """Return the labels of each split as 0 or 1, (rows, labels), float32.

    The column has lists of labels, vectors of 0 and 1, or texts with several labels.
    """
    columns, reason = label_lists(raw, column)
    if not reason:
        columns, reason = _split_texts(raw, column)
    remarks = [f"label_column={column}: read as several labels for each text, because {reason}"] if reason else []
    lengths = {split: labels.per_row((len(value or []) for value in labels.values), 0) for split, labels in columns.items()}
    if empty := sum(int((split == 0).sum()) for split in lengths.values()):
        start = f"{remarks[0]};" if remarks else f"label_column={column}:"
        remarks = [f"{start} {empty:,} texts have no label"]
    feature = raw["train"].features[column]
    if class_names(feature) is None and _are_vectors(columns["train"].values, column):
        length = int(np.bincount(lengths["train"][lengths["train"] > 0]).argmax())  # the most frequent one
        vectors = {split: _vectors(labels, length, split, column) for split, labels in columns.items()}
        names = [f"label_{i}" for i in range(length)]
        note = f"label_column={column}: lists of 0 and 1 have a position for each label; the labels are called {names[0]} to {names[-1]}"
        return Encoded(vectors, names, [*remarks, note])
    positions, names = _known(feature, columns, column)
    if len(names) < 2:
        raise UserError(f"label_column={column}: train has fewer than two labels, {names}: set it to the column with the labels")
    encoded = {}
    for split, (values, codes) in columns.items():
        vectors = np.zeros((len(values) + 1, len(names)), dtype=np.float32)  # the last one is for rows without a value
        for i, value in enumerate(values):
            vectors[i, [positions[label] for label in value or [] if label in positions]] = 1
        encoded[split] = vectors[codes]
    if all((split < 2).all() for split in lengths.values()):
        remarks.append(
            f"label_column={column}: no text has more than one label: separate the labels of a text by commas, or set problem_type "
            "to single_label_classification"
        )
    return Encoded(encoded, names, [*remarks, *_notes_on_names(names, column)])


def _split_texts(raw: dict[str, Dataset], column: str) -> tuple[dict[str, Distinct], str]:
    """Return lists of labels from texts such as "a, b", and why they were divided, "" if they were not."""
    texts = {split: distinct(rows, column) for split, rows in raw.items()}
    values = [value for split in texts.values() for value in split.values if value is not None]
    if values and (not any(isinstance(value, str) for value in values) or _decimal(values) is not None):
        kind = raw["train"].features[column] if _decimal(values) is None else "decimal numbers"
        raise UserError(f"label_column={column} holds {kind}: write the labels of a text as a list, or as a text with commas")
    values = [as_text(value) for value in values]
    if values and all(map(VECTOR.fullmatch, values)) and len({len("".join(value.split())) for value in values}) == 1:
        raise UserError(
            f"label_column={column} holds texts such as {shown(values[0])}, with a 0 or 1 for each label: write columns of 0 and 1 "
            "and name these in label_column, or write the names of the labels of each text"
        )
    found = [separator for separator in SEPARATORS if any(separator in value for value in values)]
    if len(found) > 1:
        example = max(values, key=lambda value: sum(separator in value for separator in found))
        raise UserError(
            f"label_column={column} holds texts with {' and '.join(map(repr, found))}, such as {shown(example)}, and only one of "
            "these can separate labels: write the labels of each text as a list, such as ['a', 'b'], or use one separator"
        )
    mark, separator = (found[0], re.escape(found[0])) if found else ("#", HASH)
    reason = f"{mark!r} separates them" if any(re.search(separator, value) for value in values) else ""
    parts = {
        split: Distinct([value and re.split(separator, as_text(value)) for value in split_values], codes)
        for split, (split_values, codes) in texts.items()
    }
    return as_lists(parts, column), reason


def _are_vectors(train: list, column: str) -> bool:
    """Return whether the distinct lists of train are vectors of 0 and 1. Vectors repeat a value, lists of labels do not.

    Raise `UserError` if the lists can be either.
    """
    lists = [[_digit(label) for label in value] for value in train if value]
    if not {digit for digits in lists for digit in digits} <= {"0", "1"}:
        return False
    if any(len({*digits}) < len(digits) for digits in lists):
        return True
    if lists and {*map(len, lists)} == {2}:
        raise UserError(
            f"label_column={column}: lists of two numbers, 0 and 1, may name the labels 0 and 1, or have a position for each of "
            "two labels: write lists with the names of the labels, or columns of 0 and 1, and name these in label_column"
        )
    return False


def _digit(label: Any) -> str:
    """Return a label as text, with 1 for True and 0 for False."""
    return str(int(label)) if isinstance(label, bool) else str(label)


def _vectors(labels: Distinct, length: int, split: str, column: str) -> np.ndarray:
    """Return vectors of 0 and 1, (rows, labels), float32. Raise `UserError` for a list with another length or other values."""
    vectors = [[int(digit) for digit in map(_digit, value or []) if digit in ("0", "1")] for value in labels.values]
    is_wrong = (len(vector) != length or len(value) != length for vector, value in zip(vectors, labels.values, strict=True))
    remedy = f"other rows hold {length} values, a 0 or 1 for each label: correct the row"
    labels.refuse(column, split, is_wrong, remedy, missing=True)
    return labels.per_row(vectors, [0] * length).astype(np.float32)


def encode_label_columns(raw: dict[str, Dataset], columns: list[str]) -> Encoded:
    """Return the labels of each split as 0 or 1, (rows, labels), float32.

    Each label has a column of 0 and 1, or of false and true. The column's name is the name of the label.
    """
    if len(columns) < 2:
        raise UserError(
            f"label_column: {', '.join(columns)} is one column: name several columns of 0 and 1, or leave the comma out"
        )
    encoded = {}
    for split, rows in raw.items():
        encoded[split] = np.empty((len(rows), len(columns)), dtype=np.float32)
        for i, column in enumerate(columns):
            names = class_names(rows.features[column])
            cells = (distinct_names if names and all(name.lower() in ZERO_OR_ONE for name in names) else distinct)(rows, column)
            numbers = [np.nan if value is None else ZERO_OR_ONE.get(str(value).lower()) for value in cells.values]
            remedy = "each label is a column of 0 and 1: name only such columns, and correct other values"
            cells.refuse(column, split, (number is None for number in numbers), remedy)
            encoded[split][:, i] = cells.per_row(numbers, np.nan)
    remark = "read as several labels for each text, because label_column names several columns"
    return Encoded(encoded, [column.strip() for column in columns], [remark])


# --- numbers -------------------------------------------------------------------------------------------------------------


def encode_numbers(raw: dict[str, Dataset], column: str) -> Encoded:
    """Return the numbers of each split, (rows,) float32, NaN where a number is missing. There are no names."""
    numbers = {}
    for split, rows in raw.items():
        cells = distinct_names(rows, column)
        values = [np.nan if value is None else _number(value) for value in cells.values]
        remedy = "this is no finite number: write numbers with a point for decimals, or set label_column to a column of numbers"
        cells.refuse(column, split, (value is None for value in values), remedy)
        numbers[split] = cells.per_row(values, np.nan)
    train = numbers["train"][~np.isnan(numbers["train"])]
    if len(train) == 0:
        raise UserError(f"label_column={column}: train has no numbers in it: set it to the column with the numbers")
    if np.ptp(train) == 0:
        raise UserError(f"label_column={column}: all numbers of train are equal: set it to the column with the numbers to predict")
    encoded = {split: values.astype(np.float32) for split, values in numbers.items()}
    if abs(train - train.astype(np.float32)).max() > MAX_ROUNDING * train.std():
        raise UserError(
            f"label_column={column}: the numbers of train, {train.min():.12g} to {train.max():.12g}, differ too little for their size, "
            "because the training keeps seven digits of each: subtract their smallest from all numbers"
        )
    return Encoded(encoded)


def _number(value: Any) -> float | None:
    """Return a value as a number, also if it is written as text. Return None if it is not finite, no number, or a truth value."""
    if isinstance(value, bool | list | dict) or "_" in str(value):  # Python reads 2_5 as 25
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= MAX_FLOAT32 else None


def _decimal(values: list) -> Any:
    """Return the first value that is not a whole number, if all values are numbers. Return None otherwise."""
    numbers = [_number(value) for value in values]
    return None if None in numbers else next((value for value, number in zip(values, numbers, strict=True) if number % 1), None)
