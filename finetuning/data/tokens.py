"""Convert texts to token ids, truncated to `max_length` and stored on disk; read them batch by batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.cache import map_once, read_column, reopened
from finetuning.data.content import as_rows
from finetuning.data.splits import Split
from finetuning.errors import BadRow, UserError
from finetuning.fingerprints import MODEL_FILES
from finetuning.task import Task

MAX_CHARACTERS = 250_000  # that a tokenizer gets at once, unless a single text has more; each takes about 100 bytes of memory
ROWS_PER_MAPPING = 1024  # rows that are read through one memory mapping; a new one takes 10 ms for a million rows


@dataclass
class Tokens:
    """A split as a PyTorch data set: token ids on disk, labels in memory."""

    inputs: Dataset  # `input_ids`, and the other columns of `Task.features`
    lengths: np.ndarray  # (examples,) in tokens, before truncation
    labels: np.ndarray | None = None  # (examples, ...); None if the task keeps them in `inputs`
    rows: np.ndarray | None = None  # the row of each prediction, ascending; None if an example is a row
    rows_read: int = 0  # through the current memory mapping

    def __len__(self) -> int:
        return len(self.inputs)

    def count_targets(self, column: str) -> int:
        """Return how many token ids or labels a column of `inputs` has, without those of -100, which the loss does not count."""
        values = pyarrow.compute.list_flatten(read_column(self.inputs, column))
        return int(pyarrow.compute.sum(pyarrow.compute.greater_equal(values, 0)).as_py() or 0)

    def unlabelled(self) -> "Tokens":
        """Return the same examples without labels."""
        return replace(self, labels=None, inputs=self.inputs.remove_columns({"labels"} & {*self.inputs.column_names}))

    def __getitems__(self, positions: Iterable[int]) -> list[dict]:
        """Return the examples at `positions`. PyTorch's DataLoader calls this once per batch."""
        positions = [int(position) for position in positions]
        self.rows_read += len(positions)
        if self.rows_read > ROWS_PER_MAPPING:
            self.inputs, self.rows_read = reopened(self.inputs), len(positions)
        columns = self.inputs[positions]
        if self.labels is not None:
            columns["labels"] = self.labels[positions].tolist()
        return as_rows(columns)


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` for a tokenizer that does not tell which tokens a word has."""
    if not tokenizer.is_fast:
        raise UserError(
            f"model_name: the tokenizer {type(tokenizer).__name__} does not tell which tokens a word has, as named entities and "
            "--explain need it: choose another model_name"
        )


def encode(task: Task, split: Split, tokenizer: PreTrainedTokenizerBase, config: Config) -> Tokens:
    """Return the tokens of a split in the order of its rows, at most `max_length` per example, from disk if they are there."""

    def tokenize_batch(batch: dict[str, list], positions: list[int]) -> dict:
        try:
            examples = task.tokenize(batch, tokenizer, config)
        except BadRow as error:
            raise UserError(f"row {split.rows[positions[error.position]]} of split {split.name}: {error}") from error
        if "rows" in examples:
            examples["rows"] = [[positions[0] + row for row in rows] for rows in examples["rows"]]
        return examples

    folder = Path(tokenizer.name_or_path)
    files = [file.read_bytes() for pattern in MODEL_FILES for file in sorted(folder.glob(pattern))]
    settings = {name: getattr(config, name) for name in task.token_settings}
    depends_on, features = [files, type(task), task.tokenizer_options, settings], task.features(tokenizer, config)
    examples = map_once(split.dataset.select(split.rows), tokenize_batch, features, depends_on)
    lengths = read_column(examples, "length").to_numpy()
    if "rows" not in features:
        return Tokens(examples.remove_columns("length"), lengths, split.labels)
    rows = pyarrow.compute.list_flatten(read_column(examples, "rows")).to_numpy()
    return Tokens(examples.remove_columns(["length", "rows"]), lengths, rows=rows)


def encode_batch(task: Task, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> Tokens:
    """Return the tokens of a batch in memory, such as new texts."""
    examples = task.tokenize(batch, tokenizer, config)
    lengths, rows = np.array(examples.pop("length")), examples.pop("rows", None)
    return Tokens(Dataset.from_dict(examples), lengths, rows=None if rows is None else np.concatenate([*rows, []]).astype(int))


def tokenize_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, config: Config) -> tuple[list[list[int]], np.ndarray]:
    """Return the token ids of each text, at most `max_length`, and the number of tokens before truncation, (texts,)."""
    first, last = map(len, special_tokens(tokenizer))
    rows = [*whole_ids(texts, tokenizer)]
    refuse_long([*map(len, rows)], config)
    ids = [truncate(row, config.max_length, config.truncation, first, last) for row in rows]
    return ids, np.array([*map(len, rows)])


def whole_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, argument: str = "text", special: bool = True
) -> Iterator[list[int]]:
    """Yield the token ids of each text without truncation. `argument` is that of the tokenizer: `text`, or `text_target`.

    `special`: whether the tokenizer adds its special tokens.
    """
    settings = dict(add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    for part in by_characters(map(len, texts)):
        yield from tokenizer(**{argument: texts[part]}, padding=False, truncation=False, **settings)["input_ids"]


def by_characters(lengths: Iterable[int]) -> Iterator[slice]:
    """Yield slices of consecutive texts with these `lengths`, at most `MAX_CHARACTERS` together; a longer text gets its own slice."""
    start, end, characters = 0, 0, 0
    for end, length in enumerate(lengths, 1):
        if characters and characters + length > MAX_CHARACTERS:
            yield slice(start, end - 1)
            start, characters = end - 1, 0
        characters += length
    if start < end:
        yield slice(start, end)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens that the tokenizer puts before and after a text, such as those of [CLS] and [SEP]."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    first = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    return full[:first], full[first + len(plain) :]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins a text for a causal model: the tokenizer's start token, or its end token if it has none."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def refuse_long(lengths: list[int], config: Config) -> None:
    """Raise `BadRow` for the first of these numbers of tokens above `max_length`, if `truncation` is "error"."""
    if config.truncation == "error" and (long := [row for row, length in enumerate(lengths) if length > config.max_length]):
        raise BadRow(
            f"a text of {lengths[long[0]]} tokens is longer than max_length={config.max_length}: raise it, or set truncation to head",
            long[0],
        )


def truncate(ids: list[int], max_length: int, side: str, first: int = 1, last: int = 1) -> list[int]:
    """Return at most `max_length` ids: the head, the tail, or both (head+tail: a quarter and the rest, as in arXiv 1905.05583).

    The `first` special tokens at the start and the `last` ones at the end are always kept.
    """
    if len(ids) <= max_length:
        return ids
    head = {"head": max_length - last, "tail": first, "head+tail": max_length // 4}[side]
    return [*ids[:head], *ids[len(ids) - (max_length - head) :]]
