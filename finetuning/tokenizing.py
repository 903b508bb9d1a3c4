"""From texts to token ids: cut to `max_length`, kept on disk, read a batch at a time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from config import ONLY, Config
from finetuning.data import Split
from finetuning.disk import map_once, read_columns, reopened
from finetuning.errors import UserError
from finetuning.tasks import task_of

READ = 1024  # rows read in any order through one mapping; a new one takes 10 ms for a million rows


@dataclass
class Tokens:
    """A split as the Trainer reads it: what the model takes from disk, a batch at a time; labels that lie in memory."""

    inputs: Dataset  # `input_ids`, and what else the task has on disk
    lengths: np.ndarray  # (rows,) in tokens, before any cut
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None  # where a row is more than one prediction: of each, ascending, its row
    read: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def unlabelled(self) -> "Tokens":
        return replace(self, labels=None, inputs=self.inputs.remove_columns({"labels"} & {*self.inputs.column_names}))

    def __getitems__(self, rows: Iterable[int]) -> list[dict]:
        """What PyTorch's DataLoader asks for instead of items one by one."""
        rows = [int(row) for row in rows]
        self.read += len(rows)
        if self.read > READ:
            self.inputs, self.read = reopened(self.inputs), len(rows)
        columns = self.inputs[rows]
        if self.labels is not None:
            columns["labels"] = self.labels[rows].tolist()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, config: Config) -> Tokens:
    """A split's tokens in the order of its rows, at most `max_length` each; on disk."""
    task = task_of(config)

    def tokenize_batch(batch: dict[str, list], positions: list[int]) -> dict:
        found = task.tokenize(batch, tokenizer, config)
        return found | ({"rows": [[positions[0] + row for row in rows] for rows in found["rows"]]} if "rows" in found else {})

    files = [
        file.read_bytes()
        for pattern in ("*.json", "*.txt", "*.model")
        for file in sorted(Path(tokenizer.name_or_path).glob(pattern))
    ]
    depends_on = [
        files,
        config.max_length,
        config.truncation,
        *(getattr(config, knob) for knob in ONLY),
        Path(task.__file__).read_bytes(),
    ]
    features = task.features(tokenizer, config)
    found = map_once(split.raw.select(split.rows), tokenize_batch, features, depends_on)
    lengths = read_columns(found, "length")["length"].to_numpy()
    if "rows" not in features:
        return Tokens(found.remove_columns("length"), lengths, split.labels)
    rows = pyarrow.compute.list_flatten(read_columns(found, "rows")["rows"]).to_numpy()
    return Tokens(found.remove_columns(["length", "rows"]), lengths, rows=rows)


def tokenize_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, config: Config) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of each text cut to `max_length`, and each text's length in tokens before the cut."""
    encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, padding=False, truncation=False)
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

    The `first` and `last` special tokens stay in any case. Raises `UserError` where the side is "error".
    """
    if len(ids) <= max_length:
        return ids
    if side == "error":
        raise UserError(f"a text of {len(ids)} tokens is longer than max_length={max_length}: raise it, or set truncation to head")
    head = {"head": max_length - last, "tail": first, "head+tail": max_length // 4}[side]
    return ids[:head] + ids[len(ids) - (max_length - head) :]
