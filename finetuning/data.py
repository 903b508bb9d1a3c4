"""From raw rows to the rows of a run: columns, labels, splits, samples.

Texts stay on disk. What is held of each row is its number, its label and a hash of its text, as NumPy arrays.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Value

from config import PRESETS, Config
from finetuning.disk import map_once, read_columns, reopened
from finetuning.errors import UserError
from finetuning.processes import require_same
from finetuning.sources import SPLITS, Source, find_rows
from finetuning.tasks import task_of

TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "message", "body")


@dataclass(frozen=True)
class Split:
    """Rows of a split; the arrays hold one thing for each."""

    raw: Dataset  # the split they are part of, with the columns that the task reads, by the task's names for them
    rows: np.ndarray  # their numbers in it, int64
    labels: np.ndarray  # what the task holds of each in memory: (rows,) int64, or (rows, labels)
    hashes: np.ndarray  # of what makes two of them equal, uint64

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self) -> dict[str, list]:
        """What they hold, all in memory: of many rows take `select` some first."""
        return reopened(self.raw)[self.rows.tolist()]

    def select(self, positions: Sequence[int]) -> "Split":
        return Split(self.raw, self.rows[positions], self.labels[positions], self.hashes[positions])


@dataclass(frozen=True)
class Data:
    """Three splits, and what a reader of a figure must know about them."""

    train: Split
    validation: Split
    test: Split
    config: Config  # with what the data decided
    label_names: list[str]  # [] where the task has none
    remarks: list[str]  # what could not be taken as it is, a row each
    source: Source
    test_split: str  # in words: "official test" or "held out from train"
    validation_split: str
    sha256: str  # of every text and label of the data set's splits, before any sampling


def load_data(config: Config, origin: str | None = None) -> Data:
    """Load, check, split and sample the rows that `config` names; `origin` as in `sources.find_rows`.

    Raises `UserError` for data that can't be had, can't be read, or can't be trained on.
    """
    found, source = find_rows(config.dataset_name, origin, task_of(config).READERS)
    official = official_splits(found, config)
    raw = {name: found[there] for name, there in official.items()}
    config = task_of(config).settle(raw["train"], config)
    task = task_of(config)
    columns = task.find_columns(raw["train"].column_names, config)
    for name, rows in raw.items():
        if missing := set(columns.values()) - set(rows.column_names):
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no column {', '.join(missing)}")
        if len(rows) == 0:
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no rows")
    raw, labels, label_names, remarks = task.read_rows(raw, columns)
    found = {name: scan(task, rows, labels[name], name) for name, rows in raw.items()}
    frames = {name: pd.DataFrame({"hash": row_hash, "stratum": task.strata(labels[name])}) for name, (row_hash, _) in found.items()}
    frames = {name: sample(frame, name, config) for name, frame in split(frames, config).items()}
    sha256 = hashlib.sha256(b"".join(row_hash.tobytes() for _, row_hash in found.values())).hexdigest()
    require_same("data", sha256)
    words = {name: f"official {official[name]}" if name in raw else "held out from train" for name in SPLITS}

    def rows_of(name: str) -> Split:
        frame, whole = frames[name], name if name in raw else "train"
        rows = frame.index.to_numpy(np.int64)
        return Split(raw[whole], rows, labels[whole][rows], frame.hash.to_numpy())

    return Data(
        **{name: rows_of(name) for name in SPLITS},
        config=config,
        label_names=label_names,
        remarks=remarks,
        source=source,
        test_split=words["test"],
        validation_split=words["validation"],
        sha256=sha256,
    )


def official_splits(found: DatasetDict, config: Config) -> dict[str, str]:
    """What is train, validation and test here -> the data set's name for it; those that it has."""
    wanted = {"train": "train", "validation": config.validation_split, "test": config.test_split}
    for name, there in wanted.items():
        if there not in found and (name == "train" or there != name):
            raise UserError(
                f"dataset_name={config.dataset_name}: no split {there}, only {', '.join(found)}"
                + ("" if name == "train" else f": set {name}_split to one of them")
            )
    if config.validation_split == config.test_split:  # what tests must not choose
        del wanted["validation"]
    return {name: there for name, there in wanted.items() if there in found}


def refuse(config: Config, task: str, *knobs: str) -> None:
    """Raises `UserError` where one of `knobs`, which mean nothing to the task, was set."""
    for knob in knobs:
        if getattr(config, knob) != getattr(Config, knob):
            raise UserError(f"{knob}={getattr(config, knob)} is not for {task}: leave it out")


def renamed(raw: dict[str, Dataset], columns: dict[str, str]) -> dict[str, Dataset]:
    """Each split's `columns` by the task's names for them."""
    names = {there: here for here, there in columns.items()}
    return {split: rows.select_columns([*names]).rename_columns(names) for split, rows in raw.items()}


def find_column(knob: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    by_lower = {column.lower(): column for column in columns}
    found = (given if given in columns else None) if given else next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        what = f"{knob}={given} is not there" if given else f"no column with a usual name ({', '.join(usual)})"
        raise UserError(f"{what}; the columns are {', '.join(columns)}: set {knob} to one of them")
    return found


def scan(task: ModuleType, split: Dataset, labels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of what makes rows equal, and of each row with its number, text and label; both (rows,) uint64.

    Raises `UserError` for rows that hold nothing.
    """

    def hash_batch(batch: dict[str, list], rows: list[int]) -> dict[str, np.ndarray]:
        texts, said = task.contents(batch, labels[rows])
        frame = pd.DataFrame({"text": texts, "label": said}, index=rows)
        return {
            "text": pd.util.hash_array(np.array(texts, dtype=object)),
            "row": pd.util.hash_pandas_object(frame).to_numpy(),
            "empty": [not text.strip() for text in texts],
        }

    features = Features({"text": Value("uint64"), "row": Value("uint64"), "empty": Value("bool")})
    code = Path(task.__file__).read_bytes()
    found = read_columns(map_once(split, hash_batch, features, [labels, code]), *features)
    empty = found["empty"].to_numpy()
    if empty.any():
        knobs = " or ".join(f"{column}_column" for column in split.column_names if not column.startswith("label"))
        remedy = f"set {knobs} to the column that has them" if empty.all() else "remove them"
        raise UserError(f"{knobs}: {empty.sum():,} empty texts in split {name}, the first in row {empty.argmax()}: {remedy}")
    return found["text"].to_numpy(), found["row"].to_numpy()


def split(frames: dict[str, pd.DataFrame], config: Config) -> dict[str, pd.DataFrame]:
    """Hold out from train the splits the data set lacks, stratified; fixed by `split_seed` alone.

    A frame has the columns `hash` (of the text) and `stratum`; its index is the rows' numbers. Equal texts stay on one side:
    each held-out text is held out once, and its copies leave train.
    """
    frames = dict(frames)
    rows, least = len(frames["train"]), min(2, frames["train"].stratum.nunique())
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in frames:
            train = frames["train"]
            frames[name] = stratified(train.drop_duplicates("hash"), round(rows * fraction), config.split_seed)
            frames["train"] = train[~train.hash.isin(frames[name].hash)]
            if any(frames[part].stratum.nunique() < least for part in (name, "train")):
                raise UserError(f"{rows} rows are too few to hold out {fraction:.0%} for {name}: set {name}_fraction, or add rows")
    return {name: frames[name] for name in SPLITS}


def stratified(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """`n` rows with each stratum's share kept, in their old order. A smaller sample is part of a larger one, seed for seed."""
    shuffled = frame.sample(frac=1, random_state=seed)
    strata = shuffled.groupby("stratum").stratum
    share_before = (strata.cumcount() + 0.5) / strata.transform("size")
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
    if not 0 < n < len(frame):
        return frame
    chosen = stratified(frame, n, config.split_seed)
    if name == "train" and chosen.stratum.nunique() < min(2, frame.stratum.nunique()):
        raise UserError(f"{knob}={n} leaves one class only: raise it")
    return chosen
