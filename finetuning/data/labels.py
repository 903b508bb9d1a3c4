"""Label columns: from what a data set holds in them to numbers and names.

`raw` is a data set's splits by name, "train" among them. All functions raise `UserError` for what is no label.
"""

from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, Dataset, LargeList, List

from finetuning.data.cache import read_columns
from finetuning.errors import UserError

SEPARATORS = "[,;|]"  # between labels that are written as one text
MAX_NAMED = 5  # labels that a message names
MAX_CLASSES = 20  # always allowed; more must come with four rows each


def encode_labels(raw: dict[str, Dataset], column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return each split's labels as positions among the names, (rows,), -1 where a label is missing; and the names.

    The names are the data set's own, or else the sorted values of train.
    """
    distinct = {split: _distinct(rows, column) for split, rows in raw.items()}
    feature = raw["train"].features[column]
    if isinstance(feature, ClassLabel):
        names, position = feature.names, {i: i for i in range(len(feature.names))}
    else:
        names = _class_values(distinct["train"][0], column, len(raw["train"]))
        position = {value: i for i, value in enumerate(names)}
    codes = {}
    for split, (values, indices) in distinct.items():
        values = [None if value != value else value for value in values]  # NaN
        unknown = sorted(str(value) for value in values if value is not None and value not in position)
        if unknown and not isinstance(feature, ClassLabel):
            _refuse_unknown(column, split, unknown, f"; train has {_listed(names)}")
        codes[split] = np.array([*(position.get(value, -1) for value in values), -1], dtype=np.int64)[indices]
    present = np.unique(codes["train"][codes["train"] >= 0])
    if len(present) == 0:
        raise UserError(f"label_column={column}: train has no labels in it: set it to the column with the labels")
    if len(present) == 1:
        raise UserError(f"label_column={column}: train has one class only, {names[present[0]]!r}; a classifier needs two")
    return codes, [str(name) for name in names]


def _refuse_unknown(column: str, split: str, unknown: list, more: str = "") -> None:
    raise UserError(f"label_column={column}: split {split} has labels that train lacks: {_listed(unknown)}{more}")


def _listed(labels: list) -> str:
    return ", ".join(map(repr, labels[:MAX_NAMED]))


def _distinct(split: Dataset, column: str) -> tuple[list, np.ndarray]:
    """Return a column's distinct values, and each row's position among them, (rows,), -1 where there is no value."""
    try:
        encoded = read_columns(split, column)[column].dictionary_encode().unify_dictionaries()
    except pyarrow.ArrowException as error:
        raise UserError(f"label_column={column} holds {split.features[column]}: set it to a column with one class a row") from error
    indices = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary.to_pylist(), np.concatenate(indices)


def _class_values(values: list, column: str, rows: int) -> list:
    """Return `values` sorted, whole numbers as integers. Raise `UserError` if they are no classes."""
    values = [value for value in values if value is not None and value == value]
    if any(isinstance(value, float) and value % 1 for value in values):
        raise UserError(
            f"label_column={column} holds decimal numbers, which are no classes: to predict the numbers set --problem_type regression, "
            "or set label_column to a column with classes"
        )
    if len(values) > max(MAX_CLASSES, rows / 4):
        raise UserError(f"label_column={column} has {len(values)} different values in {rows} rows: is it the right column?")
    values = sorted(values, key=lambda value: (str(type(value)), value))
    return [int(value) if isinstance(value, float) else value for value in values]


def encode_label_lists(raw: dict[str, Dataset], column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return each split's labels as 0 or 1, (rows, labels), float32, from lists or from texts that name several; and the names."""
    feature = raw["train"].features[column]
    occurrences = {split: _occurrences(rows, column) for split, rows in raw.items()}
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel):
        names, known = feature.feature.names, list(range(len(feature.feature.names)))
    else:
        known = sorted(occurrences["train"].distinct)
        names = [str(label) for label in known]
    if len(names) < 2:
        raise UserError(f"label_column={column}: train has fewer than two labels, {names}: is it the right column?")
    position, labels = {label: i for i, label in enumerate(known)}, {}
    for split, (rows, distinct, codes) in occurrences.items():
        if unknown := [label for label in distinct if label not in position]:
            _refuse_unknown(column, split, unknown)
        labels[split] = np.zeros((len(raw[split]), len(names)), dtype=np.float32)
        labels[split][rows, np.array([position[label] for label in distinct], dtype=np.int64)[codes]] = 1
    return labels, names


class _Occurrences(NamedTuple):
    """The labels of all rows, one after the other."""

    rows: np.ndarray  # (occurrences,) the row of each
    distinct: list  # labels
    codes: np.ndarray  # (occurrences,) positions in `distinct`


def _occurrences(rows: Dataset, column: str) -> _Occurrences:
    lists = read_columns(rows, column)[column].combine_chunks()
    if _is_text(lists.type):
        lists = pyarrow.compute.split_pattern_regex(lists, pattern=SEPARATORS)
    if not (pyarrow.types.is_list(lists.type) or pyarrow.types.is_large_list(lists.type)):
        raise UserError(
            f"label_column={column} holds {rows.features[column]}: several labels of a text must be lists, or texts with commas"
        )
    parents, labels = pyarrow.compute.list_parent_indices(lists), pyarrow.compute.list_flatten(lists)
    given = labels.is_valid()
    if _is_text(labels.type):
        labels = pyarrow.compute.utf8_trim_whitespace(labels)
        given = pyarrow.compute.not_equal(labels, "")
    encoded = labels.filter(given).dictionary_encode()
    return _Occurrences(parents.filter(given).to_numpy(), encoded.dictionary.to_pylist(), encoded.indices.to_numpy())


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def encode_label_columns(raw: dict[str, Dataset], columns: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the same from columns of 0 and 1, whose names are the labels."""
    if len(columns) < 2:
        raise UserError(f"label_column: {', '.join(columns)} is one column; name several of 0 and 1, or leave the comma out")
    labels = {}
    for split, rows in raw.items():
        table = read_columns(rows, *columns).to_pandas()[columns]
        if wrong := [name for name in columns if not table[name].isin([0, 1]).all()]:
            raise UserError(f"label_column: split {split} holds more than 0 and 1 in {', '.join(wrong)}; name columns of 0 and 1")
        labels[split] = table.to_numpy(np.float32)
    return labels, columns
