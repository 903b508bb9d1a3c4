"""The rows of each training step: a function of the data, the seed, the epoch, the effective batch size and the texts' lengths.

They do not depend on earlier random numbers, so an interrupted run continues as if it had not been interrupted. They do not depend
on the number of processes or on `gradient_accumulation_steps` either, which only divide a step's rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from accelerate import PartialState

from config import Config
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError

SHORT_LENGTH = 128  # tokens; a text is truncated to them during `length_warmup`
STEPS_PER_WINDOW = 50  # rows are sorted by length within a window of this many steps, as in transformers' LengthGroupedSampler


def count_steps(rows: int, size: int) -> int:
    """Return the number of steps of an epoch with steps of at most `size` rows."""
    return -(-rows // size)


def check_step_size(rows: int, config: Config) -> None:
    """Raise `UserError` if a step has too few rows to give each process one row in each of its forward passes."""
    size, processes = config.batch_size * config.gradient_accumulation_steps, PartialState().num_processes
    parts, fewest_rows = config.gradient_accumulation_steps * processes, rows // count_steps(rows, size)
    if fewest_rows < parts:
        raise UserError(
            f"batch_size={config.batch_size}, gradient_accumulation_steps={config.gradient_accumulation_steps}: the smallest step "
            f"of {rows:,} training rows has {fewest_rows}, too few for {config.gradient_accumulation_steps} forward passes of "
            f"{processes} processes; raise batch_size, or lower gradient_accumulation_steps or the number of processes"
        )


def steps_of_epoch(
    lengths: np.ndarray, size: int, seed: int, epoch: int, by_length: bool = True, shuffle_steps: bool = False
) -> list[np.ndarray]:
    """Return the rows of each step. Each row occurs once, in as few steps of at most `size` rows as possible.

    The sizes of two steps differ by at most one row. With `by_length`, the rows of a step have similar `lengths` (rows,), and the
    step with the longest row comes first: it shows at once whether memory suffices. Lengths fall from step to step within a window
    of `STEPS_PER_WINDOW` steps; with `shuffle_steps`, the steps come in random order.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if by_length:
        window = np.arange(len(order)) // (STEPS_PER_WINDOW * size)
        order = order[np.lexsort([-lengths[order].astype(np.int64), window])]
    steps = np.array_split(order, count_steps(len(order), size))
    if shuffle_steps:
        steps = [steps[i] for i in rng.permutation(len(steps))]
    if by_length:
        step_with_longest = int(np.argmax([lengths[rows].max() for rows in steps]))
        steps[0], steps[step_with_longest] = steps[step_with_longest], steps[0]
    return steps


@dataclass
class Batches:
    """A batch sampler: this process's part of each step. It yields one list of (step of the run, epoch, row) per forward pass."""

    lengths: np.ndarray  # (rows,) tokens
    size: int  # the effective batch size
    seed: int
    by_length: bool
    shuffle_steps: bool
    passes: int  # forward passes per step: gradient_accumulation_steps
    processes: int
    process: int
    epoch: Callable[[], int]  # returns the number of the epoch; called when an epoch begins

    def __len__(self) -> int:
        return count_steps(len(self.lengths), self.size) * self.passes

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = self.epoch()
        steps = steps_of_epoch(self.lengths, self.size, self.seed, epoch, self.by_length, self.shuffle_steps)
        for step, rows in enumerate(steps, start=epoch * len(steps)):
            for rows_of_pass in np.array_split(rows, self.passes):
                yield [(step, epoch, row) for row in np.array_split(rows_of_pass, self.processes)[self.process].tolist()]


@dataclass(frozen=True)
class TrainingRows:
    """The examples whose numbers `Batches` yields. The task's `augment` changes them, in the steps `short` also its `shorten`."""

    tokens: Tokens
    augment: Callable[[dict, int, int], dict] | None = None
    shorten: Callable[[dict], dict] | None = None
    short: range = range(0)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> list[dict]:
        items = self.tokens.__getitems__([row for *_, row in keys])
        if self.augment:
            items = [self.augment(item, epoch, row) for item, (_, epoch, row) in zip(items, keys, strict=True)]
        return [self.shorten(item) if step in self.short else item for item, (step, *_) in zip(items, keys, strict=True)]
