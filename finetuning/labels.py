"""Label columns: from what a data set holds in them to numbers and names.

`raw` is a data set's splits by name, "train" among them. All raise `UserError` for what is no label.
"""

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, Dataset, LargeList, List

from finetuning.disk import read_columns
from finetuning.errors import UserError

SEPARATORS = "[,;|]"  # between the labels of a text that names them all


def encode_labels(raw: dict[str, Dataset], column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Each split's labels as positions (rows,) among the names, -1 where it is missing.

    The names are the data set's own, or else train's sorted values.
    """
    found = {name: _distinct(rows, column) for name, rows in raw.items()}
    feature = raw["train"].features[column]
    if isinstance(feature, ClassLabel):
        names, position = feature.names, {i: i for i in range(len(feature.names))}
    else:
        names = _class_values(found["train"][0], column, len(raw["train"]))
        position = {value: i for i, value in enumerate(names)}
    codes = {}
    for name, (values, indices) in found.items():
        values = [None if value != value else value for value in values]  # NaN
        unknown = sorted(str(value) for value in values if value is not None and value not in position)
        if unknown and not isinstance(feature, ClassLabel):
            raise UserError(
                f"label_column={column}: split {name} has labels that train lacks: {', '.join(map(repr, unknown[:5]))}; "
                f"train has {', '.join(map(repr, names[:5]))}"
            )
        codes[name] = np.array([*(position.get(value, -1) for value in values), -1], dtype=np.int64)[indices]
    there = np.unique(codes["train"][codes["train"] >= 0])
    if len(there) < 2:
        raise UserError(
            f"label_column={column}: train has "
            + (f"one class only, {names[there[0]]!r}; a classifier needs two" if len(there) else "no labels in it")
        )
    return codes, [str(name) for name in names]


def _distinct(split: Dataset, column: str) -> tuple[list, np.ndarray]:
    """A column's distinct values, and for each row the position of its own among them, -1 where there is none."""
    try:
        encoded = read_columns(split, column)[column].dictionary_encode().unify_dictionaries()
    except pyarrow.ArrowException as error:
        raise UserError(f"label_column={column} holds {split.features[column]}: set it to a column with one class a row") from error
    indices = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary.to_pylist(), np.concatenate(indices)


def _class_values(values: list, column: str, rows: int) -> list:
    """`values` sorted, whole numbers as such. Raises `UserError` where they are no classes."""
    values = [value for value in values if value is not None and value == value]
    if any(isinstance(value, float) and value % 1 for value in values):
        raise UserError(f"label_column={column} holds decimal numbers: set it to a column with classes")
    if len(values) > max(20, rows / 4):
        raise UserError(f"label_column={column} has {len(values)} different values in {rows} rows: is it the right column?")
    values = sorted(values, key=lambda value: (str(type(value)), value))
    return [int(value) if isinstance(value, float) else value for value in values]


def encode_label_lists(raw: dict[str, Dataset], column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Each split's labels as 0 or 1 (rows, labels), float32, from lists of them or from texts that name several."""
    feature = raw["train"].features[column]
    pairs = {split: _pairs(rows, column) for split, rows in raw.items()}
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel):
        names, known = feature.feature.names, list(range(len(feature.feature.names)))
    else:
        known = sorted(pairs["train"][1])
        names = [str(label) for label in known]
    if len(names) < 2:
        raise UserError(f"label_column={column}: train has fewer than two labels, {names}: is it the right column?")
    position, found = {label: i for i, label in enumerate(known)}, {}
    for split, (there, distinct, codes) in pairs.items():
        if unknown := [label for label in distinct if label not in position]:
            raise UserError(
                f"label_column={column}: split {split} has labels that train lacks: {', '.join(map(repr, unknown[:5]))}"
            )
        found[split] = np.zeros((len(raw[split]), len(names)), dtype=np.float32)
        found[split][there, np.array([position[label] for label in distinct], dtype=np.int64)[codes]] = 1
    return found, names


def _pairs(rows: Dataset, column: str) -> tuple[np.ndarray, list, np.ndarray]:
    """Of each label of each text the text's row, the distinct labels, and the label's position among them."""
    lists = read_columns(rows, column)[column].combine_chunks()
    if pyarrow.types.is_string(lists.type) or pyarrow.types.is_large_string(lists.type):
        lists = pyarrow.compute.split_pattern_regex(lists, pattern=SEPARATORS)
    if not (pyarrow.types.is_list(lists.type) or pyarrow.types.is_large_list(lists.type)):
        raise UserError(
            f"label_column={column} holds {rows.features[column]}: several labels a text are lists, or texts with commas"
        )
    there, labels = pyarrow.compute.list_parent_indices(lists), pyarrow.compute.list_flatten(lists)
    some = labels.is_valid()
    if pyarrow.types.is_string(labels.type) or pyarrow.types.is_large_string(labels.type):
        labels = pyarrow.compute.utf8_trim_whitespace(labels)
        some = pyarrow.compute.not_equal(labels, "")
    there, labels = there.filter(some), labels.filter(some)
    encoded = labels.dictionary_encode()
    return there.to_numpy(), encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def encode_label_columns(raw: dict[str, Dataset], columns: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The same from columns of 0 and 1, whose names are the labels."""
    if len(columns) < 2:
        raise UserError(f"label_column: {', '.join(columns)} is one column; name several of 0 and 1, or leave the comma out")
    found = {}
    for split, rows in raw.items():
        table = read_columns(rows, *columns).to_pandas()[columns]
        if wrong := [name for name in columns if not table[name].isin([0, 1]).all()]:
            raise UserError(f"label_column: split {split} holds more than 0 and 1 in {', '.join(wrong)}; name columns of 0 and 1")
        found[split] = table.to_numpy(np.float32)
    return found, columns
