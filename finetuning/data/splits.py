"""Load the rows of a run: choose columns, read labels, check rows, make splits and draw samples.

Texts stay on disk. For each row, memory holds its number in the file, its label and a hash of its text, as NumPy arrays.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Translation, Value

from config import Config
from finetuning.data.cache import map_once, read_column, reopened
from finetuning.data.content import check_classes, holds_texts
from finetuning.data.files import SPLIT_WORDS, SPLITS, split_words
from finetuning.data.sources import Source, find_rows
from finetuning.data.text import not_read
from finetuning.errors import UserError, listed
from finetuning.processes import require_same
from finetuning.task import Rows, Task

TEXT_SETTINGS = ("text_column", "text_pair_column", "source_column", "target_column", "prompt_column", "completion_column")
ROWS_CHECKED = 100  # first rows, to see whether a column assigns rows to splits
FEW_COPIES = 0.1  # with a smaller fraction of copies, fractions of rows and of texts hardly differ
MAX_PROBLEMS = 5  # kinds of rows that can't be used, in a message
SAMPLE_SETTINGS = {"train": "train_samples", "validation": "val_samples", "test": "test_samples"}


@dataclass(frozen=True)
class Split:
    """The rows of a split. The arrays hold a value per row."""

    dataset: Dataset  # the split of the data set that the rows come from, as `Task.read` returned it
    rows: np.ndarray  # (rows,) int64, row numbers in `dataset`
    labels: np.ndarray  # (rows,) int64, (rows, labels), or other values per row that the task keeps in memory
    hashes: np.ndarray  # (rows,) uint64, equal for equal texts
    groups: np.ndarray | None = None  # (rows,) int64, equal for rows that belong together; None: each row is alone
    name: str = "train"  # of `dataset` in the data set, such as dev

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self) -> dict[str, list]:
        """Return all columns of the rows, in memory. `select` some rows first if there are many."""
        return reopened(self.dataset)[self.rows.tolist()]

    def select(self, positions: Sequence[int]) -> "Split":
        """Return the rows at these positions."""
        groups = None if self.groups is None else self.groups[positions]
        return Split(self.dataset, self.rows[positions], self.labels[positions], self.hashes[positions], groups, self.name)


@dataclass(frozen=True)
class Data:
    """The three splits of a run, and facts about them that are printed and recorded."""

    train: Split
    validation: Split
    test: Split
    task: Task  # perhaps another one than before the data were read
    config: Config  # with the settings that the data decided
    label_names: list[str]  # [] if the task has none
    remarks: list[str]  # notes on the data: rows that were changed or left out, and values that look wrong
    source: Source
    test_split: str  # as it is printed: "official test", "official validation" or "held out from train"
    validation_split: str
    sha256: str  # hash of all texts and labels of the data set, before sampling

    @property
    def n_rows(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def unseen(self) -> np.ndarray:
        """Return whether each test row has a text that neither train nor validation has, (rows,) bool."""
        return ~np.isin(self.test.hashes, np.concatenate([self.train.hashes, self.validation.hashes]))


def load_data(task: Task, config: Config, origin: str | None = None, given: Collection[str] = ()) -> Data:
    """Load, check, split and sample the rows that `config` names.

    `origin`: where an earlier run found the data set, so that only this place is tried. `given`: the settings that are given as
    flags, not by a preset or default. Raise `UserError` for data that can't be found, read, or trained on.
    """
    split_names = (config.validation_split, config.test_split)
    dataset, source = find_rows(config.dataset_name, origin, task.readers, config.encoding, split_names)
    dataset = flat(dataset)
    official_names = official_splits(dataset, config)
    check_fractions(official_names, config, given)
    raw = {name: dataset[official_name] for name, official_name in official_names.items()}
    for name, rows in raw.items():
        check_classes(f"dataset_name={config.dataset_name}, split {name}", raw["train"].features, rows.features)
    task, config = task.settle(raw["train"], config, given)
    columns = task.columns(raw["train"].column_names, config)
    check_columns(raw, columns, official_names, source, config)
    check_no_split_column(raw, columns, config)
    all_rows = task.read(raw, columns, config)
    frames = {name: scan(task, all_rows, raw[name], config, name) for name in all_rows.columns}
    sha256 = sha256_of(frames)
    require_same("data", sha256)
    frames, left_out = usable(task, frames, columns, official_names, config)
    remarks = [*source.remarks, *not_read(raw["train"].column_names, columns, task, config), *all_rows.remarks, *left_out]
    if all_rows.label_names:
        remarks += contradictions(frames)
    if config.folds:
        check_labels_of_folds(task, frames["train"], all_rows, config.folds)
    n_rows = sum(map(len, frames.values()))
    frames = hold_out(frames, config, task.labels_are_classes)
    if unused := n_rows - sum(map(len, frames.values())):
        remarks.append(f"{unused:,} rows of train are not used: copies of held-out texts, or the rest of a group that is held out")
    frames, notes = draw_samples(frames, config, given, task.labels_are_classes)
    remarks += notes
    origins = {name: name if name in raw else "train" for name in frames}
    splits = {name: _as_split(frame, origins[name], all_rows, official_names[origins[name]]) for name, frame in frames.items()}
    remarks += absent(splits, task, all_rows.label_names)
    remarks += overlaps(splits)
    names = {name: f"official {official_names[name]}" if name in raw else "held out from train" for name in SPLITS}
    if config.folds:
        names["test"] = f"fold {config.fold} of {config.folds} of train"
    return Data(
        **splits,
        task=task,
        config=config,
        label_names=all_rows.label_names,
        remarks=remarks,
        source=source,
        test_split=names["test"],
        validation_split=names["validation"],
        sha256=sha256,
    )


def _as_split(frame: pd.DataFrame, split: str, all_rows: Rows, name: str = "train") -> Split:
    """Return the rows of a frame. `split` is the split that they come from, and `name` its name in the data set."""
    rows = frame.index.to_numpy(np.int64)
    groups = frame.group.to_numpy() if "group" in frame else None
    return Split(all_rows.columns[split], rows, all_rows.labels[split][rows], frame.text_hash.to_numpy(), groups, name)


def flat(dataset: DatasetDict) -> DatasetDict:
    """Turn the Hub's dictionaries of translations into a column per language, such as `translation.en` and `translation.de`."""
    nested = any(isinstance(rows.features.get("translation"), dict | Translation) for rows in dataset.values())
    return dataset.flatten() if nested else dataset


def check_fractions(official_names: dict[str, str], config: Config, given: Collection[str]) -> None:
    """Raise `UserError` for a given fraction of rows to hold out from train if the rows of that split come from elsewhere."""
    for name in ("validation", "test"):
        origin = f"the data set has the split {official_names[name]}" if name in official_names else ""
        if config.folds and name == "test":
            origin = "the test rows are a fold of train"
        if origin and f"{name}_fraction" in given:
            raise UserError(f"{name}_fraction={getattr(config, f'{name}_fraction')} has no effect, because {origin}: leave it out")


def official_splits(dataset: DatasetDict, config: Config) -> dict[str, str]:
    """Return the splits that the data set has: train, validation or test -> its name in the data set.

    Names of splits are read like names of files, so dev is validation. Raise `UserError` if several names say the same split.
    """
    names = {"train": "train", "validation": config.validation_split, "test": config.test_split}
    for name in ("validation", "test"):
        if names[name] == "train":
            raise UserError(
                f"{name}_split=train: a model must not be measured on the rows that it learned from. Leave {name}_split out, and "
                "rows of train are held out"
            )
        if name in dataset or names[name] != name or (name == "test" and config.folds):
            continue
        synonyms = [split for split in dataset if {*split_words(split).values()} == {name} and split not in names.values()]
        if len(synonyms) > 1:
            raise UserError(
                f"dataset_name={config.dataset_name}: the names of several splits say {name}, {', '.join(synonyms)}: set {name}_split "
                "to one of them"
            )
        if synonyms:  # such as dev for validation
            names[name] = synonyms[0]
    for name, official_name in names.items():
        if official_name not in dataset and (name == "train" or official_name != name):
            raise UserError(
                f"dataset_name={config.dataset_name}: it has no split {official_name}, only {', '.join(dataset)}"
                + (": a data set needs a split named train" if name == "train" else f": set {name}_split to one of them")
            )
    if config.validation_split == config.test_split:  # the test split must not choose a checkpoint: validation rows leave train
        del names["validation"]
    if config.folds:  # the test rows are a fold of train
        del names["test"]
    return {name: official_name for name, official_name in names.items() if official_name in dataset}


def check_columns(
    raw: dict[str, Dataset], columns: dict[str, str], official_names: dict[str, str], source: Source, config: Config
) -> None:
    """Raise `UserError` for a split that lacks one of `columns`, or that has no rows."""
    for name, rows in raw.items():
        if missing := set(columns.values()) - set(rows.column_names):
            files = f" ({', '.join(source.files[official_names[name]])})" if official_names[name] in source.files else ""
            problem = f"split {official_names[name]}{files} has no column {', '.join(missing)}"
            remedy = f"set {name}_split to another split, or give only the file of train, and {name} rows are held out from it"
            raise UserError(f"dataset_name={config.dataset_name}: {problem}: add it, {remedy}")
        if len(rows) == 0:
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no rows: add rows, or name another split")


def check_no_split_column(raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> None:
    """Raise `UserError` if rows would be held out although a column that is not read says which split a row belongs to."""
    if len(raw) > 1:
        return
    train = raw["train"]
    for name, feature in train.features.items():
        if name in (*columns.values(), config.group_column) or not holds_texts(feature):
            continue
        first = [value.strip().lower() for value in train[:ROWS_CHECKED][name] if value and value.strip()]
        if 2 * sum(value in SPLIT_WORDS for value in first) <= len(first):  # a few may be texts such as "test"
            continue
        values = {value.strip() for value in train.unique(name) if value}
        if len({SPLIT_WORDS.get(value.lower()) for value in values} - {None}) > 1:
            raise UserError(
                f"dataset_name={config.dataset_name}: column {name} assigns rows to splits, {listed(sorted(values))}, but only "
                "files, or the keys of a .json, are read as splits: write a file for each split into a folder and give the "
                "folder, or remove the column to hold out rows of all"
            )


def scan(task: Task, all_rows: Rows, raw: Dataset, config: Config, split: str) -> pd.DataFrame:
    """Return a frame with a line per row of a split. `raw` has all columns of the split, `all_rows` those that the task reads.

    Three columns are hashes (uint64): `text_hash` of the text, `example_hash` of text and label, `row_hash` of text, label and row
    number. `problem` is the result of `Task.problems`, and `stratum` the row's stratum. Two are bool: `labelled`, and `left_out` (by
    the task). `group` is the number of the row's group; there is no such column if each row is alone.
    """
    rows, labels = all_rows.columns[split], all_rows.labels[split]

    def hash_batch(batch: dict[str, list], positions: list[int]) -> dict[str, np.ndarray]:
        texts, label_texts = task.contents(batch, labels[positions])
        frame = pd.DataFrame({"text": texts, "label": label_texts}, index=positions)
        return {
            "text_hash": pd.util.hash_array(np.array(texts, dtype=object)),
            "example_hash": pd.util.hash_pandas_object(frame, index=False).to_numpy(),
            "row_hash": pd.util.hash_pandas_object(frame).to_numpy(),
            "problem": task.problems(batch, texts),
        }

    features = Features(dict.fromkeys(("text_hash", "example_hash", "row_hash"), Value("uint64")) | {"problem": Value("string")})
    computed = map_once(rows, hash_batch, features, [type(task), labels])
    frame = pd.DataFrame({name: read_column(computed, name).to_pandas() for name in features})
    left_out = all_rows.left_out.get(split, np.zeros(len(rows), dtype=bool))
    frame = frame.assign(stratum=task.strata(labels), labelled=task.has_label(labels), left_out=left_out)
    groups = given_groups(raw, config) if config.group_column else task.groups(frame.text_hash.to_numpy())
    return frame if groups is None else frame.assign(group=groups)


def given_groups(rows: Dataset, config: Config) -> np.ndarray:
    """Return the number of each row's group, (rows,) int64. Rows with an equal value in `group_column` are a group.

    A row without a value is alone. Raise `UserError` if there is no such column.
    """
    if config.group_column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise UserError(f"group_column={config.group_column}: there is no such column; the columns are {columns}")
    names = ("" if value is None or value != value else str(value).strip() for value in rows[config.group_column])
    return pd.util.hash_array(np.array([name or f"\0{row}" for row, name in enumerate(names)], dtype=object)).view(np.int64)


def sha256_of(frames: dict[str, pd.DataFrame]) -> str:
    """Return a hash (SHA-256) of all texts and labels, and of the groups if they decide which rows are held out."""
    parts = [frame.row_hash for frame in frames.values()]
    if "group" in frames["train"] and len(frames) < len(SPLITS):
        parts.append(frames["train"].group)
    return hashlib.sha256(b"".join(part.to_numpy().tobytes() for part in parts)).hexdigest()


def usable(
    task: Task, frames: dict[str, pd.DataFrame], columns: dict[str, str], official_names: dict[str, str], config: Config
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the rows of each split that have a text and a label, and notes on those that were left out.

    Raise `UserError` if rows lack a text or a label and `on_bad_rows` is not "skip", and if no row is left.
    """
    problems, kept = [], {}
    for name, frame in frames.items():
        frame, split_name = frame[~frame.left_out], official_names[name]
        other_split = "" if name == "train" else f", {name}_split to a split that has them, or give only the file of train"
        if (frame.problem == f"with {task.empty_text}").all():
            settings = " or ".join(f"{column}_column" for column in columns if f"{column}_column" in TEXT_SETTINGS)
            raise UserError(
                f"{settings}: all rows of split {split_name} have {task.empty_text}: set it to the column with the texts{other_split}"
            )
        lacks_label = ~frame.labelled & task.complete_rows_only
        if lacks_label.all() and "label" not in columns:
            raise UserError(
                f"label_column={config.label_column}: every row of split {split_name} has an empty cell in one of these columns: write 0 "
                "where a text lacks the label"
            )
        if lacks_label.all():
            raise UserError(
                f"label_column={columns['label']}: split {split_name} has no label in it: set label_column to "
                f"the column with the labels{other_split}"
            )
        problem = frame.problem.mask(
            lacks_label & (frame.problem == ""), "without a label" if "label" in columns else "with an empty label"
        )
        for text, rows in frame.index[problem != ""].groupby(problem[problem != ""]).items():
            problems.append(f"{len(rows):,} of {len(frame):,} rows of split {split_name} {text} (row {listed(rows)})")
        kept[name] = frame[problem == ""]
    if problems and config.on_bad_rows == "error" and task.complete_rows_only:
        remedy = "correct them, or set on_bad_rows to skip, which leaves these rows out"
        raise UserError(f"{'; '.join(problems[:MAX_PROBLEMS])}: {remedy}")
    if empty := [official_names[name] for name, frame in kept.items() if frame.empty]:
        raise UserError(
            f"no row of split {empty[0]} can be used: {'; '.join(problems[:MAX_PROBLEMS])}: check that the right columns are read"
        )
    return kept, [f"{problem}: left out" for problem in problems]


def contradictions(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Return a note if equal texts have different labels. The rows are kept."""
    rows = pd.concat([frame[["text_hash", "example_hash"]] for frame in frames.values()]).drop_duplicates()
    texts = rows.text_hash[rows.text_hash.duplicated()].unique()
    if not len(texts):
        return []
    rows_by_split = {name: frame.index[frame.text_hash.isin(texts)] for name, frame in frames.items()}
    places = ", ".join(f"rows {listed(rows)} of {name}" for name, rows in rows_by_split.items() if len(rows))
    return [f"{len(texts):,} texts have more than one label ({places}): not all of these labels can be right"]


def absent(splits: dict[str, Split], task: Task, label_names: list[str]) -> list[str]:
    """Return notes on labels that no row of a split has. They can't be learned (train) or measured (validation, test)."""
    notes = []
    for name, part in splits.items():
        if missing := [f"{label!r}" for label, n in task.label_counts(part, label_names).items() if n == 0]:
            notes.append(f"no {name} row has the label {listed(missing)}")
    return notes


def overlaps(splits: dict[str, Split]) -> list[str]:
    """Return notes on validation and test rows whose text train has too. A model may know these texts by heart."""
    notes = []
    for name in ("validation", "test"):
        if n := int(np.isin(splits[name].hashes, splits["train"].hashes).sum()):
            more = "; the entry unseen of metrics.json is the metric without them" if name == "test" else ""
            notes.append(f"{n:,} of {len(splits[name]):,} {name} texts are in train too{more}")
    return notes


def hold_out(frames: dict[str, pd.DataFrame], config: Config, has_classes: bool = False) -> dict[str, pd.DataFrame]:
    """Make the splits that the data set lacks: hold out stratified rows of train, or a fold. Only `split_seed` decides which rows.

    `frames` are from `scan`, indexed by row numbers. If a held-out text has copies, they leave train and are not used. So do the
    other rows of a group that is held out in part. Rows without a label are never held out. Only language models read such rows, so
    they hold out the same rows as a classifier. `has_classes`: strata are classes, so each part needs rows of two of them.

    A fraction is one of the rows of train. Without groups, it is one of the different texts if many rows are copies, such as a row
    for each annotator.
    """
    frames, rest = dict(frames), frames["train"]
    train = rest[rest.labelled]
    n_texts = train.text_hash.nunique()
    size = n_texts if n_texts < (1 - FEW_COPIES) * len(train) and "group" not in train else len(train)
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name in frames:
            continue
        is_fold, candidates = name == "test" and config.folds, rest[rest.labelled]
        if is_fold:
            frames[name] = candidates[folds(candidates, config) == config.fold]
        else:
            rows = candidates if "group" in candidates else candidates.drop_duplicates("text_hash")
            frames[name] = draw(rows, round(size * fraction), config.split_seed)
        for column in {"text_hash", "group"} & {*rest}:
            rest = rest[~rest[column].isin(frames[name][column])]
        for part, change in ((frames[name], "raise"), (rest[rest.labelled], "lower")):
            if _too_few(part, train, has_classes):
                held_out, remedy = ("a fold", "lower folds") if is_fold else (f"{fraction:.0%}", f"{change} {name}_fraction")
                facts = [f"{len(train):,} rows", f"{n_texts:,} different texts"]
                facts += [f"{train.group.nunique():,} groups"] if config.group_column else []
                n_rare = len(train) - train.stratum.value_counts().max()
                facts += [f"{n_rare:,} rows without the most frequent label"] if has_classes else []
                raise UserError(
                    f"train is too small to hold out {held_out} for {name} ({', '.join(facts)}): {remedy}, add rows, or check "
                    "that the right columns are read"
                )
    frames["train"] = rest
    return {name: frames[name] for name in SPLITS}


def _too_few(part: pd.DataFrame, whole: pd.DataFrame, has_classes: bool) -> bool:
    """Return whether a part has fewer than two rows, or than two classes. If the whole has one stratum, one row is enough."""
    return (part.stratum.nunique() if has_classes else len(part)) < min(2, whole.stratum.nunique())


def folds(frame: pd.DataFrame, config: Config) -> pd.Series:
    """Return the fold of each row, from 1 to `folds`. Rows with an equal text, or of one group, are in the same fold.

    The folds keep the fractions of the strata. Raise `UserError` if there are fewer texts or groups than folds.
    """
    unit = "group" if "group" in frame else "text_hash"
    shuffled = frame.drop_duplicates(unit).sample(frac=1, random_state=config.split_seed).sort_values("stratum", kind="stable")
    if len(shuffled) < config.folds:
        raise UserError(
            f"folds={config.folds}: train has only {len(shuffled)} different {'groups' if unit == 'group' else 'texts'}: "
            "lower folds, or add rows"
        )
    return frame[unit].map(pd.Series(1 + np.arange(len(shuffled)) % config.folds, index=shuffled[unit]))


def check_labels_of_folds(task: Task, train: pd.DataFrame, all_rows: Rows, n_folds: int) -> None:
    """Raise `UserError` for a label that occurs less often in train than there are folds: a fold or its training would lack it."""
    counts = task.label_counts(_as_split(train, "train", all_rows), all_rows.label_names)
    if rare := {label: count for label, count in counts.items() if 0 < count < n_folds}:
        label, count = min(rare.items(), key=lambda item: item[1])
        more = f" ({len(rare)} labels are as rare)" if len(rare) > 1 else ""
        raise UserError(
            f"folds={n_folds}: the label {label!r} occurs only {count} times in train{more}: lower folds, add rows, or remove the label"
        )


def draw(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return `n` random rows in their old order, which keep the fractions of the strata. Larger samples contain smaller ones.

    If rows have groups, draw whole groups instead, whatever their strata; the last one is cut.
    """
    if "group" in frame:
        order = frame.group.drop_duplicates().sample(frac=1, random_state=seed)
        places = frame.group.map(pd.Series(range(len(order)), index=order))
        return frame.loc[places.sort_values(kind="stable").index[:n]].sort_index()
    shuffled = frame.sample(frac=1, random_state=seed)
    strata = shuffled.groupby("stratum").stratum
    # For each row, the fraction of its stratum that comes before it. The rows with the smallest fractions keep the proportions.
    fraction_before = (strata.cumcount() + 0.5) / strata.transform("size")
    return shuffled.loc[fraction_before.sort_values(kind="stable").index[:n]].sort_index()


def draw_samples(
    frames: dict[str, pd.DataFrame], config: Config, given: Collection[str], has_classes: bool
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return a random sample of each split, of the size that its setting gives (0: all rows), and notes.

    The notes are on sizes of a preset that exceed their split. Raise `UserError` for such a size given as a flag, and for a sample
    of train with only one class, if strata are classes (`has_classes`).
    """
    frames, notes = dict(frames), []
    for name, frame in frames.items():
        setting, n = SAMPLE_SETTINGS[name], getattr(config, SAMPLE_SETTINGS[name])
        if n > len(frame):
            problem = f"{setting}={n:,} is more than the {len(frame):,} rows of split {name}"
            if setting in given:
                hint = "" if name == "train" else f" (or raise {name}_fraction)"
                raise UserError(f"{problem}: lower it, or set it to 0 for all rows{hint}")
            if n != getattr(Config, setting):  # no note on the defaults: many data sets are smaller
                notes.append(f"{problem}: all are used")
        elif n:
            frames[name] = draw(frame, n, config.split_seed)
            if name == "train" and _too_few(frames[name], frame, has_classes):
                raise UserError(f"{setting}={n} leaves only one {'class' if has_classes else 'row'}: raise it")
    return frames, notes
