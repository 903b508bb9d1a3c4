"""From raw rows to the rows of a run: columns and labels, clean texts, splits, samples.

Texts stay on disk. What is held of each row is its number, its label and a hash of its text, as NumPy arrays.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from config import PRESETS, Config
from finetuning.disk import map_once, read_columns, reopened
from finetuning.errors import UserError
from finetuning.processes import require_same
from finetuning.sources import Source, find_rows

TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "message", "body")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target")
SPLITS = ("train", "validation", "test")
LINE_BREAK = re.compile(r"<br\s*/?>")


@dataclass(frozen=True)
class Split:
    """Rows of a split; the arrays are (rows,) each."""

    raw: Dataset  # the split they are part of, with its text column alone
    rows: np.ndarray  # their numbers in it, int64
    labels: np.ndarray  # int64
    hashes: np.ndarray  # of the clean texts, uint64: what is equal has equal ones

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> list[str]:
        """The clean texts, all in memory: of many rows take `select` some first."""
        (column,) = self.raw.column_names
        return clean(reopened(self.raw)[self.rows.tolist()][column])

    def select(self, positions: Sequence[int]) -> "Split":
        return Split(self.raw, self.rows[positions], self.labels[positions], self.hashes[positions])


@dataclass(frozen=True)
class Data:
    """Three splits, and what a reader of a figure must know about them."""

    train: Split
    validation: Split
    test: Split
    label_names: list[str]
    source: Source
    test_split: str  # in words: "official test" or "held out from train"
    validation_split: str
    sha256: str  # of every text and label of the data set's splits, before any sampling


def load_data(config: Config, origin: str | None = None) -> Data:
    """Load, check, split and sample the rows that `config` names; `origin` as in `sources.find_rows`.

    Raises `UserError` for data that can't be had, can't be read, or can't be trained on.
    """
    raw, source = find_rows(config.dataset_name, origin)
    text, label = find_columns(raw, config)
    codes, label_names = encode_labels(raw, label)
    found = {name: scan(raw[name], text, codes[name], name) for name in codes}
    frames = {name: pd.DataFrame({"hash": text_hash, "label": codes[name]}) for name, (text_hash, _) in found.items()}
    frames = {name: sample(frame, name, config) for name, frame in split(frames, config).items()}
    sha256 = hashlib.sha256(b"".join(row_hash.tobytes() for _, row_hash in found.values())).hexdigest()
    require_same("data", sha256)
    words = {name: f"official {name}" if name in codes else "held out from train" for name in SPLITS}

    def rows_of(name: str) -> Split:
        frame = frames[name]
        whole = raw[name if name in codes else "train"].select_columns([text])
        return Split(whole, frame.index.to_numpy(np.int64), frame.label.to_numpy(), frame.hash.to_numpy())

    return Data(
        **{name: rows_of(name) for name in SPLITS},
        label_names=label_names,
        source=source,
        test_split=words["test"],
        validation_split=words["validation"],
        sha256=sha256,
    )


def find_columns(raw: DatasetDict, config: Config) -> tuple[str, str]:
    """The names of the text and the label column, which every split must have."""
    if "train" not in raw:
        raise UserError(f"dataset_name={config.dataset_name}: no train split, only {', '.join(raw)}")
    columns = raw["train"].column_names
    text = find_column("text_column", config.text_column, TEXT_COLUMNS, columns)
    label = find_column("label_column", config.label_column, LABEL_COLUMNS, columns)
    if text == label:
        raise UserError(f"text_column and label_column are both {text!r}: name the two columns, out of {', '.join(columns)}")
    for name in SPLITS:
        if name in raw and (missing := {text, label} - set(raw[name].column_names)):
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no column {', '.join(missing)}")
        if name in raw and len(raw[name]) == 0:
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no rows")
    return text, label


def find_column(knob: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    by_lower = {column.lower(): column for column in columns}
    found = (given if given in columns else None) if given else next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        what = f"{knob}={given} is not there" if given else f"no column with a usual name ({', '.join(usual)})"
        raise UserError(f"{what}; the columns are {', '.join(columns)}: set {knob} to one of them")
    return found


def encode_labels(raw: DatasetDict, column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Each split's labels as positions (rows,) among the names, which are the data set's own or else train's sorted values."""
    found = {name: _distinct(raw[name], column) for name in SPLITS if name in raw}
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
        if unlabelled := int((codes[name] < 0).sum()):
            raise UserError(f"label_column={column}: {unlabelled:,} rows of split {name} have no label")
    if len(there := np.unique(codes["train"])) < 2:
        raise UserError(f"label_column={column}: train has one class only, {names[there[0]]!r}; a classifier needs two")
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


def clean(texts: Iterable[str]) -> list[str]:
    """HTML line breaks become spaces (5 % of IMDb's tokens)."""
    return [LINE_BREAK.sub(" ", text) for text in texts]


def scan(split: Dataset, column: str, labels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each clean text, and of each row with its number, text and label; both (rows,) uint64.

    Raises `UserError` for texts that are empty or no text.
    """
    no_text = UserError(f"text_column: split {name} holds no text in it; set text_column to the column that does")
    if getattr(split.features[column], "dtype", None) not in ("string", "large_string"):
        raise no_text

    def hash_batch(batch: dict[str, list], rows: list[int]) -> dict[str, np.ndarray]:
        texts = clean(text or "" for text in batch[column])
        frame = pd.DataFrame({"text": texts, "label": labels[rows]}, index=rows)
        return {
            "text": pd.util.hash_array(np.array(texts, dtype=object)),
            "row": pd.util.hash_pandas_object(frame).to_numpy(),
            "empty": [not text.strip() for text in texts],
        }

    features = Features({"text": Value("uint64"), "row": Value("uint64"), "empty": Value("bool")})
    found = read_columns(map_once(split, hash_batch, features, [column, labels]), *features)
    empty = found["empty"].to_numpy()
    if empty.all():
        raise no_text
    if empty.any():
        raise UserError(f"text_column: {empty.sum():,} empty texts in split {name}, the first in row {empty.argmax()}: remove them")
    return found["text"].to_numpy(), found["row"].to_numpy()


def split(frames: dict[str, pd.DataFrame], config: Config) -> dict[str, pd.DataFrame]:
    """Hold out from train the splits the data set lacks, stratified; fixed by `split_seed` alone.

    A frame has the columns `hash` (of the text) and `label`; its index is the rows' numbers. Equal texts stay on one side:
    each held-out text is held out once, and its copies leave train.
    """
    frames = dict(frames)
    rows = len(frames["train"])
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in frames:
            train = frames["train"]
            frames[name] = stratified(train.drop_duplicates("hash"), round(rows * fraction), config.split_seed)
            frames["train"] = train[~train.hash.isin(frames[name].hash)]
            if frames[name].label.nunique() < 2 or frames["train"].label.nunique() < 2:
                raise UserError(f"{rows} rows are too few to hold out {fraction:.0%} for {name}: set {name}_fraction, or add rows")
    return {name: frames[name] for name in SPLITS}


def stratified(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """`n` rows with each label's share kept, in their old order. A smaller sample is part of a larger one, seed for seed."""
    shuffled = frame.sample(frac=1, random_state=seed)
    labels = shuffled.groupby("label").label
    share_before = (labels.cumcount() + 0.5) / labels.transform("size")
    return shuffled.loc[share_before.sort_values(kind="stable").index[:n]].sort_index()


def sample(frame: pd.DataFrame, name: str, config: Config) -> pd.DataFrame:
    """The stratified share of a split that `train_samples`, `val_samples` or `test_samples` asks for; 0 is all.

    A default larger than the split means all of it; a larger number the user gave is a `UserError`.
    """
    knob = {"train": "train_samples", "validation": "val_samples", "test": "test_samples"}[name]
    n = getattr(config, knob)
    defaults = {getattr(Config, knob), *(preset.get(knob) for preset in PRESETS.values())}
    if n > len(frame) and n not in defaults:
        hint = "" if name == "train" else f" (or raise {name}_fraction)"
        raise UserError(f"{knob}={n:,} is more than the {len(frame):,} rows of split {name}: lower it, or 0 for all{hint}")
    if 0 < n < len(frame):
        frame = stratified(frame, n, config.split_seed)
    if name == "train" and frame.label.nunique() < 2:
        raise UserError(f"{knob}={n} leaves one class only: raise it")
    return frame
