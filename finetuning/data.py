"""From raw rows to token ids: columns and labels, clean text, splits, samples, tokens.

Until the tokens, a split is a pandas frame with the columns `text` and `label` (int); its index is the row's number in
the split it came from, and stays with the row into predictions.parquet.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from config import PRESETS, Config
from finetuning.errors import UserError
from finetuning.sources import Source, find_rows

TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "message", "body")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Three frames (see the module's docstring), and what a reader of a figure must know about them."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
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
    frames, label_names = read_frames(raw, config)
    sha256 = _fingerprint(frames)
    own_splits = set(frames)
    frames = split(frames, config)
    frames = {name: sample(frame, name, config) for name, frame in frames.items()}
    words = {name: f"official {name}" if name in own_splits else "held out from train" for name in SPLITS}
    return Data(
        **frames,
        label_names=label_names,
        source=source,
        test_split=words["test"],
        validation_split=words["validation"],
        sha256=sha256,
    )


def read_frames(raw: DatasetDict, config: Config) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The raw splits as frames with clean text and integer labels, and the labels' names in that order."""
    if "train" not in raw:
        raise UserError(f"dataset_name={config.dataset_name}: no train split, only {', '.join(raw)}")
    columns = raw["train"].column_names
    text = find_column("text_column", config.text_column, TEXT_COLUMNS, columns)
    label = find_column("label_column", config.label_column, LABEL_COLUMNS, columns)
    if text == label:
        raise UserError(f"text_column and label_column are both {text!r}: name the two columns, out of {', '.join(columns)}")
    frames = {}
    for name in SPLITS:
        if name in raw:
            if missing := {text, label} - set(raw[name].column_names):
                raise UserError(f"dataset_name={config.dataset_name}: split {name} has no column {', '.join(missing)}")
            frame = raw[name].select_columns([text, label]).to_pandas()
            frames[name] = frame.rename(columns={text: "text", label: "label"})
    feature = raw["train"].features[label]
    names = feature.names if isinstance(feature, ClassLabel) else _encode_labels(frames, label)
    for name, frame in frames.items():
        if len(frame) == 0:
            raise UserError(f"dataset_name={config.dataset_name}: split {name} has no rows")
        if (unlabelled := ~frame.label.between(0, len(names) - 1)).any():
            raise UserError(f"label_column={label}: {unlabelled.sum()} rows of split {name} have no label")
        frame["label"] = frame.label.astype(int)
        frame["text"] = clean(frame.text, name)
    counts = frames["train"].label.value_counts()
    if len(counts) < 2:
        raise UserError(f"label_column={label}: train has one class only, {names[counts.index[0]]!r}; a classifier needs two")
    return frames, [str(name) for name in names]


def find_column(knob: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    by_lower = {column.lower(): column for column in columns}
    found = (given if given in columns else None) if given else next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        what = f"{knob}={given} is not there" if given else f"no column with a usual name ({', '.join(usual)})"
        raise UserError(f"{what}; the columns are {', '.join(columns)}: set {knob} to one of them")
    return found


def _encode_labels(frames: dict[str, pd.DataFrame], column: str) -> list:
    """Replace label values by their position among train's sorted values, which are the names. Missing ones become -1."""
    train = frames["train"].label
    if pd.api.types.is_float_dtype(train) and (train.dropna() % 1 != 0).any():
        raise UserError(f"label_column={column} holds decimal numbers: set it to a column with classes")
    values = sorted(train.dropna().unique().tolist(), key=lambda value: (str(type(value)), value))
    values = [int(value) if isinstance(value, float) else value for value in values]
    if len(values) > max(20, len(train) / 4):
        raise UserError(f"label_column={column} has {len(values)} different values in {len(train)} rows: is it the right column?")
    for name, frame in frames.items():
        if unknown := set(frame.label.dropna().unique()) - set(values):
            raise UserError(
                f"label_column={column}: split {name} has labels that train lacks: {', '.join(map(repr, sorted(map(str, unknown))[:5]))}; "
                f"train has {', '.join(map(repr, values[:5]))}"
            )
        frame["label"] = frame.label.map({value: position for position, value in enumerate(values)}).fillna(-1)
    return values


def clean(text: pd.Series, split_name: str) -> pd.Series:
    """HTML line breaks become spaces (5 % of IMDb's tokens); raises `UserError` for texts that are empty or no text."""
    cleaned = text.str.replace(r"<br\s*/?>", " ", regex=True) if pd.api.types.is_string_dtype(text) else None
    if cleaned is None or (empty := cleaned.isna() | (cleaned.str.strip() == "")).all():
        raise UserError(f"text_column: split {split_name} holds no text in it; set text_column to the column that does")
    if empty.any():
        raise UserError(
            f"text_column: {empty.sum()} empty texts in split {split_name}, the first in row {empty.idxmax()}: remove them"
        )
    return cleaned


def split(frames: dict[str, pd.DataFrame], config: Config) -> dict[str, pd.DataFrame]:
    """Hold out from train the splits the data set lacks, stratified; fixed by `split_seed` alone.

    Equal texts stay on one side: each held-out text is held out once, and its copies leave train.
    """
    frames = dict(frames)
    rows = len(frames["train"])
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in frames:
            train = frames["train"]
            frames[name] = stratified(train.drop_duplicates("text"), round(rows * fraction), config.split_seed)
            frames["train"] = train[~train.text.isin(frames[name].text)]
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


def _fingerprint(frames: dict[str, pd.DataFrame]) -> str:
    hashes = [pd.util.hash_pandas_object(frame[["text", "label"]]).to_numpy().tobytes() for frame in frames.values()]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def tokenize(texts: pd.Series, tokenizer: PreTrainedTokenizerBase, config: Config) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of each text cut to `max_length`, and each text's length in tokens before the cut."""
    encoded = tokenizer(texts.tolist(), return_attention_mask=False, return_token_type_ids=False, padding=False, truncation=False)
    ids = encoded["input_ids"]
    first, last = special_tokens(tokenizer)
    return [truncate(row, config.max_length, config.truncation, first, last) for row in ids], np.array([len(row) for row in ids])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and behind a text, e.g. (1, 1) for [CLS] ... [SEP]."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return first, len(whole) - first - len(bare)


def truncate(ids: list[int], max_length: int, side: str, first: int = 1, last: int = 1) -> list[int]:
    """At most `max_length` ids from the head, the tail, or both (a quarter and the rest, as in arXiv 1905.05583).

    The `first` and `last` special tokens stay in any case.
    """
    if len(ids) <= max_length:
        return ids
    head = {"head": max_length - last, "tail": first, "head+tail": max_length // 4}[side]
    return ids[:head] + ids[len(ids) - (max_length - head) :]


def encode(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, config: Config) -> Dataset:
    """A split as the Trainer wants it: `input_ids`, `labels`, and `length` in tokens, row for row."""
    ids, _ = tokenize(frame.text, tokenizer, config)
    return Dataset.from_dict({"input_ids": ids, "labels": frame.label.tolist(), "length": [len(row) for row in ids]})
