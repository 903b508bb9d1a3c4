"""From raw rows to the rows of a run: columns, labels, splits, samples.

Texts stay on disk. Of each row its number in the file, its label and a hash of its text are held in memory, as NumPy arrays.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Translation, Value

from config import Config
from finetuning.data.cache import map_once, read_columns, reopened
from finetuning.data.files import SPLITS
from finetuning.data.sources import Source, find_rows
from finetuning.errors import UserError
from finetuning.processes import require_same
from finetuning.task import Rows, Task

MAX_LISTED = 5  # row numbers or labels that a message names
SAMPLE_SETTINGS = {"train": "train_samples", "validation": "val_samples", "test": "test_samples"}


@dataclass(frozen=True)
class Split:
    """Rows of a split; the arrays hold one value per row."""

    raw: Dataset  # the data set's split that they are part of, with the columns that the task reads
    rows: np.ndarray  # their numbers in it, int64
    labels: np.ndarray  # (rows,) int64, or (rows, labels), or what else the task holds of each in memory
    hashes: np.ndarray  # of what makes two rows equal, uint64

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self) -> dict[str, list]:
        """Return all columns, in memory: of many rows `select` some first."""
        return reopened(self.raw)[self.rows.tolist()]

    def select(self, positions: Sequence[int]) -> "Split":
        return Split(self.raw, self.rows[positions], self.labels[positions], self.hashes[positions])


@dataclass(frozen=True)
class Data:
    """Three splits, and what a reader of a metric must know about them."""

    train: Split
    validation: Split
    test: Split
    task: Task  # the data may decide between two
    config: Config  # with the settings that the data decided
    label_names: list[str]  # [] where the task has none
    remarks: list[str]  # notes on the data: what was changed or left out, and what looks wrong
    source: Source
    test_split: str  # for readers: "official test", "official validation" or "held out from train"
    validation_split: str
    sha256: str  # of all texts and labels of the data set's splits, before any sampling


def load_data(task: Task, config: Config, origin: str | None = None, given: Collection[str] = ()) -> Data:
    """Load, check, split and sample the rows that `config` names.

    `origin`: as in `sources.find_rows`. `given`: the settings that the user gave, not a preset or a default. Raise `UserError` for
    data that can't be found, read, or trained on.
    """
    named = (config.validation_split, config.test_split)
    dataset, source = find_rows(config.dataset_name, origin, task.readers, config.encoding, named)
    dataset = flat(dataset)
    official = official_splits(dataset, config)
    raw = {name: dataset[their_name] for name, their_name in official.items()}
    task, config = task.settle(raw["train"], config)
    columns = task.columns(raw["train"].column_names, config)
    for name, rows in raw.items():
        if missing := set(columns.values()) - set(rows.column_names):
            files = f" ({', '.join(source.files[official[name]])})" if official[name] in source.files else ""
            remedy = (
                "" if name == "train" else f"; add it, or give the file of train alone, of which a {name} split is then held out"
            )
            raise UserError(
                f"dataset_name={config.dataset_name}: split {official[name]}{files} has no column {', '.join(missing)}{remedy}"
            )
        if len(rows) == 0:
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no rows")
    read = task.read(raw, columns, config)
    frames = {name: scan(task, read, name) for name in read.columns}
    sha256 = hashlib.sha256(b"".join(frame.row.to_numpy().tobytes() for frame in frames.values())).hexdigest()
    require_same("data", sha256)
    frames, left_out = usable(task, frames, columns, official, config)
    remarks = [*source.remarks, *read.remarks, *left_out]
    if read.label_names:
        remarks += contradictions(frames)
    frames = split(frames, config)
    remarks += check_sample_sizes(frames, config, given)
    frames = {name: sample(frame, name, config) for name, frame in frames.items()}
    splits = {name: _rows_of(frame, name if name in raw else "train", read) for name, frame in frames.items()}
    if task.labels_are_classes:
        remarks += absent(splits, read.label_names)
    names = {name: f"official {official[name]}" if name in raw else "held out from train" for name in SPLITS}
    return Data(
        **splits,
        task=task,
        config=config,
        label_names=read.label_names,
        remarks=remarks,
        source=source,
        test_split=names["test"],
        validation_split=names["validation"],
        sha256=sha256,
    )


def _rows_of(frame: pd.DataFrame, split: str, read: Rows) -> Split:
    rows = frame.index.to_numpy(np.int64)
    return Split(read.columns[split], rows, read.labels[split][rows], frame.hash.to_numpy())


def flat(dataset: DatasetDict) -> DatasetDict:
    """Turn the Hub's dictionaries of translations into a column per language: `translation.en` and `translation.de`."""
    nested = any(isinstance(rows.features.get("translation"), dict | Translation) for rows in dataset.values())
    return dataset.flatten() if nested else dataset


def official_splits(dataset: DatasetDict, config: Config) -> dict[str, str]:
    """Return which of train, validation and test the data set has: our name -> its name."""
    wanted = {"train": "train", "validation": config.validation_split, "test": config.test_split}
    for name in ("validation", "test"):
        if wanted[name] == "train":
            raise UserError(
                f"{name}_split=train: a model is not measured on the rows it learns from; leave it out, and rows of train are held out"
            )
    for name, their_name in wanted.items():
        if their_name not in dataset and (name == "train" or their_name != name):
            raise UserError(
                f"dataset_name={config.dataset_name}: no split {their_name}, only {', '.join(dataset)}"
                + ("" if name == "train" else f": set {name}_split to one of them")
            )
    if config.validation_split == config.test_split:  # a test must not choose anything
        del wanted["validation"]
    return {name: their_name for name, their_name in wanted.items() if their_name in dataset}


def scan(task: Task, read: Rows, split: str) -> pd.DataFrame:
    """Return a frame with a line per row of a split.

    Hashes, uint64, of its text (`hash`), of text and label (`content`), and of these and its number (`row`); its `stratum`; whether its
    text is `blank`, whether it is `labelled`, and whether the task leaves it out (`left_out`).
    """
    rows, labels = read.columns[split], read.labels[split]

    def hash_batch(batch: dict[str, list], positions: list[int]) -> dict[str, np.ndarray]:
        texts, label_texts = task.contents(batch, labels[positions])
        frame = pd.DataFrame({"text": texts, "label": label_texts}, index=positions)
        return {
            "hash": pd.util.hash_array(np.array(texts, dtype=object)),
            "content": pd.util.hash_pandas_object(frame, index=False).to_numpy(),
            "row": pd.util.hash_pandas_object(frame).to_numpy(),
            "blank": [not text.strip() for text in texts],
        }

    features = Features(dict.fromkeys(("hash", "content", "row"), Value("uint64")) | {"blank": Value("bool")})
    frame = read_columns(map_once(rows, hash_batch, features, [labels]), *features).to_pandas()
    left_out = read.left_out.get(split, np.zeros(len(rows), dtype=bool))
    return frame.assign(stratum=task.strata(labels), labelled=task.has_label(labels), left_out=left_out)


def usable(
    task: Task, frames: dict[str, pd.DataFrame], columns: dict[str, str], official: dict[str, str], config: Config
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the rows of each split that have a text and a label, and notes on those that were left out.

    Raise `UserError` if rows lack one of them and `on_bad_rows` does not skip them, and if nothing is left.
    """
    problems = []
    for name, frame in frames.items():
        frame = frame[~frame.left_out]
        if frame.blank.all():
            settings = " or ".join(f"{column}_column" for column in columns if not column.startswith("label"))
            raise UserError(f"{settings}: all texts of split {official[name]} are empty: set it to the column that has them")
        missing = ~frame.labelled & task.labels_required
        if missing.all():
            others = "" if name == "train" else f", or {name}_split to a split that has"
            raise UserError(
                f"label_column={columns['label']}: split {official[name]} has no label in it: set label_column to the column with "
                f"them{others}"
            )
        for problem, bad in (("with an empty text", frame.blank), ("without a label", missing)):
            if len(rows := frame.index[bad]):
                problems.append(f"{len(rows):,} of {len(frame):,} rows of split {official[name]} {problem} (row {listed(rows)})")
    if problems and config.on_bad_rows == "error":
        raise UserError(f"{'; '.join(problems)}: correct them, or set on_bad_rows to skip, which leaves them out")
    kept = {
        name: frame[~frame.left_out & ~frame.blank & (frame.labelled | (not task.labels_required))]
        for name, frame in frames.items()
    }
    if empty := [official[name] for name, frame in kept.items() if frame.empty]:
        raise UserError(f"split {empty[0]} has no row with both a text and a label")
    return kept, [f"{problem}: left out" for problem in problems]


def listed(items: Sequence) -> str:
    """Return the first items, for a message."""
    return ", ".join(map(str, items[:MAX_LISTED])) + (", ..." if len(items) > MAX_LISTED else "")


def contradictions(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Return a note if one text comes with two labels; the rows stay."""
    rows = pd.concat([frame[["hash", "content"]] for frame in frames.values()]).drop_duplicates()
    texts = rows.hash[rows.hash.duplicated()].unique()
    if not len(texts):
        return []
    rows_by_split = {name: frame.index[frame.hash.isin(texts)] for name, frame in frames.items()}
    places = ", ".join(f"rows {listed(rows)} of {name}" for name, rows in rows_by_split.items() if len(rows))
    return [f"{len(texts):,} texts come with more than one label ({places}): not all of them can be right"]


def absent(splits: dict[str, Split], label_names: list[str]) -> list[str]:
    """Return notes on labels that a split has no row of: they can't be learned, or not be measured."""
    notes = []
    for name, part in splits.items():
        counts = np.bincount(part.labels, minlength=len(label_names))
        if missing := [f"{label_names[i]!r}" for i in np.flatnonzero(counts == 0)]:
            names = ", ".join(missing[:MAX_LISTED])
            names += f" and {len(missing) - MAX_LISTED:,} more" if len(missing) > MAX_LISTED else ""
            notes.append(f"no {name} row has the label {names}")
    return notes


def split(frames: dict[str, pd.DataFrame], config: Config) -> dict[str, pd.DataFrame]:
    """Hold out from train the splits that the data set lacks, stratified; decided by `split_seed` alone.

    A frame has the columns `hash` (of the text), `stratum` and `labelled`; its index is the rows' numbers. Equal texts stay on one side:
    each held-out text is held out once, and its copies leave train. Rows without a label, which a language model reads, are never held
    out: so it holds out the same rows as a classifier of the same data.
    """
    frames = dict(frames)
    labelled = frames["train"][frames["train"].labelled]
    unlabelled = frames["train"][~frames["train"].labelled]
    rows, least = len(labelled), min(2, labelled.stratum.nunique())
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in frames:
            frames[name] = stratified(labelled.drop_duplicates("hash"), round(rows * fraction), config.split_seed)
            labelled = labelled[~labelled.hash.isin(frames[name].hash)]
            unlabelled = unlabelled[~unlabelled.hash.isin(frames[name].hash)]
            if any(part.stratum.nunique() < least for part in (frames[name], labelled)):
                raise UserError(f"{rows} rows are too few to hold out {fraction:.0%} for {name}: set {name}_fraction, or add rows")
    frames["train"] = pd.concat([labelled, unlabelled]).sort_index()
    return {name: frames[name] for name in SPLITS}


def stratified(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return `n` rows in their old order, with the fraction of each stratum kept. A smaller sample is part of a larger one."""
    shuffled = frame.sample(frac=1, random_state=seed)
    strata = shuffled.groupby("stratum").stratum
    fraction_before = (strata.cumcount() + 0.5) / strata.transform("size")
    return shuffled.loc[fraction_before.sort_values(kind="stable").index[:n]].sort_index()


def check_sample_sizes(frames: dict[str, pd.DataFrame], config: Config, given: Collection[str]) -> list[str]:
    """Raise `UserError` if the user asks for more rows than a split has; return a note if a preset does."""
    notes = []
    for name, frame in frames.items():
        setting, n = SAMPLE_SETTINGS[name], getattr(config, SAMPLE_SETTINGS[name])
        if n <= len(frame):
            continue
        problem = f"{setting}={n:,} is more than the {len(frame):,} rows of split {name}"
        if setting in given:
            hint = "" if name == "train" else f" (or raise {name}_fraction)"
            raise UserError(f"{problem}: lower it, or set it to 0 for all{hint}")
        if n != getattr(Config, setting):
            notes.append(f"{problem}: all are used")
    return notes


def sample(frame: pd.DataFrame, name: str, config: Config) -> pd.DataFrame:
    """Return the stratified sample of a split that `train_samples`, `val_samples` or `test_samples` asks for; 0 is all."""
    setting, n = SAMPLE_SETTINGS[name], getattr(config, SAMPLE_SETTINGS[name])
    if not 0 < n < len(frame):
        return frame
    chosen = stratified(frame, n, config.split_seed)
    if name == "train" and chosen.stratum.nunique() < min(2, frame.stratum.nunique()):
        raise UserError(f"{setting}={n} leaves one class only: raise it")
    return chosen
