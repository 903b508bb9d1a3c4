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
from datasets import Dataset, DatasetDict, Features, Translation, Value

from config import PRESETS, Config
from finetuning.disk import map_once, read_columns, reopened
from finetuning.errors import UserError
from finetuning.files import SPLITS
from finetuning.processes import require_same
from finetuning.sources import Source, find_rows
from finetuning.tasks import task_of

FIRST = 5  # of what is told of many
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
    remarks: list[str]  # on the data: what was not taken as it is, and what is wrong with it
    source: Source
    test_split: str  # in words: "official test" or "held out from train"
    validation_split: str
    sha256: str  # of every text and label of the data set's splits, before any sampling


def load_data(config: Config, origin: str | None = None) -> Data:
    """Load, check, split and sample the rows that `config` names; `origin` as in `sources.find_rows`.

    Raises `UserError` for data that can't be had, can't be read, or can't be trained on.
    """
    found, source = find_rows(config.dataset_name, origin, task_of(config).READERS, config.encoding)
    found = flat(found)
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
    raw, labels, label_names, remarks = task.read_rows(raw, columns, config)
    frames = {name: scan(task, rows, labels[name]) for name, rows in raw.items()}
    sha256 = hashlib.sha256(b"".join(frame.row.to_numpy().tobytes() for frame in frames.values())).hexdigest()
    require_same("data", sha256)
    frames, left_out = usable(frames, columns, official, config)
    contradicted = contradictions(frames) if label_names else []
    frames = {name: sample(frame, name, config) for name, frame in split(frames, config).items()}
    words = {name: f"official {official[name]}" if name in raw else "held out from train" for name in SPLITS}

    def rows_of(name: str) -> Split:
        frame, whole = frames[name], name if name in raw else "train"
        rows = frame.index.to_numpy(np.int64)
        return Split(raw[whole], rows, labels[whole][rows], frame.hash.to_numpy())

    splits = {name: rows_of(name) for name in SPLITS}
    absences = absent(splits, label_names) if hasattr(task, "labelled") else []
    return Data(
        **splits,
        config=config,
        label_names=label_names,
        remarks=[*source.remarks, *remarks, *left_out, *contradicted, *absences],
        source=source,
        test_split=words["test"],
        validation_split=words["validation"],
        sha256=sha256,
    )


def flat(found: DatasetDict) -> DatasetDict:
    """The Hub's dictionaries of translations as a column for each language: `translation.en` and `translation.de`."""
    nested = any(isinstance(rows.features.get("translation"), dict | Translation) for rows in found.values())
    return found.flatten() if nested else found


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
    found = (
        (given if given in columns else None)
        if given
        else next((by_lower[name.lower()] for name in usual if name.lower() in by_lower), None)
    )
    if found is None:
        what = f"{knob}={given} is not there" if given else f"no column with a usual name ({', '.join(usual)})"
        no_names = any(len(column.split()) > 4 or column.replace(".", "", 1).isdigit() for column in columns)
        header = " (a row of data, it seems: is the line with the columns' names missing?)" if no_names else ""
        raise UserError(f"{what}; the columns are {', '.join(columns)}{header}: set {knob} to one of them")
    return found


def scan(task: ModuleType, split: Dataset, labels: np.ndarray) -> pd.DataFrame:
    """Of each row hashes, uint64, of its text (`hash`), of text and label (`said`), and of these and its number (`row`); its
    `stratum`; whether its text is `blank` and whether it has a label (`labelled`)."""

    def hash_batch(batch: dict[str, list], rows: list[int]) -> dict[str, np.ndarray]:
        texts, said = task.contents(batch, labels[rows])
        frame = pd.DataFrame({"text": texts, "label": said}, index=rows)
        return {
            "hash": pd.util.hash_array(np.array(texts, dtype=object)),
            "said": pd.util.hash_pandas_object(frame, index=False).to_numpy(),
            "row": pd.util.hash_pandas_object(frame).to_numpy(),
            "blank": [not text.strip() for text in texts],
        }

    features = Features(dict.fromkeys(("hash", "said", "row"), Value("uint64")) | {"blank": Value("bool")})
    code = Path(task.__file__).read_bytes()
    found = read_columns(map_once(split, hash_batch, features, [labels, code]), *features).to_pandas()
    labelled = task.labelled(labels) if hasattr(task, "labelled") else True
    return found.assign(stratum=task.strata(labels), labelled=labelled)


def usable(
    frames: dict[str, pd.DataFrame], columns: dict[str, str], official: dict[str, str], config: Config
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The rows of each split that have a text and a label, and which were left out, in words.

    Raises `UserError` where there are others and `on_bad_rows` does not skip them, and where nothing is left.
    """
    said = []
    for name, frame in frames.items():
        if frame.blank.all():
            knobs = " or ".join(f"{column}_column" for column in columns if not column.startswith("label"))
            raise UserError(f"{knobs}: all texts of split {official[name]} are empty: set it to the column that has them")
        if not frame.labelled.any():
            others = "" if name == "train" else f", or {name}_split to a split that has"
            raise UserError(
                f"label_column={columns['label']}: split {official[name]} has no label in it: set label_column to the column with "
                f"them{others}"
            )
        for what, bad in (("with an empty text", frame.blank), ("without a label", ~frame.labelled)):
            if len(rows := np.flatnonzero(bad)):
                first = ", ".join(map(str, rows[:FIRST])) + (", ..." if len(rows) > FIRST else "")
                said.append(f"{len(rows):,} of {len(frame):,} rows of split {official[name]} {what} (row {first})")
    if said and config.on_bad_rows == "error":
        raise UserError(f"{'; '.join(said)}: mend them, or set on_bad_rows to skip, which leaves them out")
    kept = {name: frame[~frame.blank & frame.labelled] for name, frame in frames.items()}
    if empty := [official[name] for name, frame in kept.items() if frame.empty]:
        raise UserError(f"split {empty[0]} has no row with both a text and a label")
    return kept, [f"{one}: left out" for one in said]


def contradictions(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Whether one text comes with two labels, in words; the rows stay."""
    every = pd.concat([frame[["hash", "said"]] for frame in frames.values()]).drop_duplicates()
    texts = every.hash[every.hash.duplicated()].unique()
    if not len(texts):
        return []
    rows = {name: frame.index[frame.hash.isin(texts)] for name, frame in frames.items()}
    where = ", ".join(
        f"rows {', '.join(map(str, found[:FIRST]))}{', ...' if len(found) > FIRST else ''} of {name}"
        for name, found in rows.items()
        if len(found)
    )
    return [f"{len(texts):,} texts come with more than one label ({where}): not all of them can be right"]


def absent(splits: dict[str, Split], label_names: list[str]) -> list[str]:
    """Labels that a split has no row of, in words: what can't be learned, chosen by, or tested."""
    found = []
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(label_names))
        if missing := [f"{label_names[i]!r}" for i in np.flatnonzero(counts == 0)]:
            names = ", ".join(missing[:FIRST]) + (f" and {len(missing) - FIRST:,} more" if len(missing) > FIRST else "")
            found.append(f"no {name} row has the label {names}")
    return found


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
