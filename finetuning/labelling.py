"""Use of a finished run on new texts, one by one or a file at a time."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, List, Value

from finetuning import engine
from finetuning.data import flat
from finetuning.errors import UserError
from finetuning.files import READERS, lines, read
from finetuning.processes import by_first
from finetuning.run_folder import Run, load_model

CHUNK = 2048  # rows in memory at a time


class Labeller:
    """A run's model, loaded once."""

    def __init__(self, run: Run, using: str = "torch", **options) -> None:
        """`using` is an engine as engine.py has it, `options` are the task's. Raises `UserError` for those it does not know."""
        if unknown := [name for name in options if name not in run.task.OPTIONS]:
            raise UserError(f"--{unknown[0]} is not for {run.config.task}: leave it out")
        self.run, self.options = run, options
        self.model, self.tokenizer = load_model(run)[:2] if using == "torch" else engine.load(run, using)

    def explain(self, text: str) -> list[tuple[str, float]]:
        """The words behind the answer. Raises `UserError` where the task knows none."""
        if not hasattr(self.run.task, "explain") or self.run.config.text_pair_column:
            raise UserError("the words that decided are known for labels of single texts only: leave --explain out")
        return self.run.task.explain(self.model, self.tokenizer, text, self.run.config)

    def each(self, rows: Dataset, columns: dict[str, str]) -> Iterator[dict]:
        """`rows` with the task's columns, in their order, a chunk as soon as it is there."""
        for start in range(0, len(rows), CHUNK):
            yield from self.answer(rows.select(range(start, min(start + CHUNK, len(rows)))), columns, before=start)

    def answer(self, rows: Dataset, columns: dict[str, str], show_progress: bool = False, before: int = 0) -> Dataset:
        """`rows` with the task's columns, in their order; kept on disk, a chunk at a time in memory. `before` them were others."""

        def answer(batch: dict[str, list], first: list[int]) -> dict[str, list]:
            inputs = {name: batch[column] for name, column in columns.items()}
            empty = getattr(self.run.task, "EMPTY", None)
            if empty is None:
                for texts in inputs.values():
                    _check_texts(texts, self.run.task.INPUTS, before=before + first[0])
                return self.run.task.answer(self.model, self.tokenizer, inputs, self.run, **self.options)
            (texts,) = inputs.values()
            full = [i for i, text in enumerate(texts) if (text or "").strip()]
            some = {name: [texts[i] for i in full] for name in inputs}
            found = self.run.task.answer(self.model, self.tokenizer, some, self.run, **self.options) if full else {}
            answers = dict(zip(full, zip(*found.values(), strict=True), strict=True))
            return {
                name: [answers[i][n] if i in answers else nothing for i in range(len(texts))]
                for n, (name, nothing) in enumerate(empty.items())
            }

        if show_progress and sys.stderr.isatty():
            datasets.enable_progress_bars()
        fingerprint = datasets.fingerprint.generate_random_fingerprint()  # the model would be pickled to make one
        return rows.map(answer, with_indices=True, batched=True, batch_size=CHUNK, new_fingerprint=fingerprint, desc="labelled")


@by_first
def read_stdin() -> list[str]:
    """A text a line of the standard input."""
    return sys.stdin.read().splitlines()


def rows_of(texts: list[str]) -> Dataset:
    """Texts as rows with the column `text`. Raises `UserError` for none."""
    if not texts:
        raise UserError("no texts: give them as arguments, with --file, or on the standard input, one a line")
    return Dataset.from_dict({"text": texts})


def _check_texts(texts: list, kinds: tuple[type, ...] = (str,), before: int = 0) -> None:
    def holds(text) -> bool:
        return isinstance(text, kinds) and bool(text.strip() if isinstance(text, str) else text)

    empty = [before + number for number, text in enumerate(texts, 1) if not holds(text)]
    if empty:
        raise UserError(f"text {empty[0]} is empty: every text gets an answer, so remove the empty ones")


def read_file(path: Path, encoding: str | None, cache: str) -> tuple[Dataset, list[str]]:
    """The rows of a file, on disk in the folder `cache`, and remarks on them. Raises `UserError`."""
    if not path.is_file():
        raise UserError(f"--file {path}: there is no such file")
    found, remarks = read(path, READERS | {".txt": ("text", lines)}, "--file ", encoding, cache_dir=cache)
    if len(found) > 1:
        raise UserError(f"--file {path}: it holds several splits, {', '.join(found)}: give a file with one")
    return next(iter(flat(found).values())), remarks


def _write_csv(rows: Dataset, file: Path, **options) -> None:
    """Lists as text with semicolons between; lists of more than words as JSON."""
    lists = {name: feature.feature for name, feature in rows.features.items() if isinstance(feature, List)}

    def as_text(batch: dict[str, list]) -> dict[str, list[str]]:
        def text(name: str, values: list) -> str:
            plain = isinstance(lists[name], Value | ClassLabel)
            return "; ".join(map(str, values)) if plain else json.dumps(values, ensure_ascii=False)

        return {name: [text(name, values or []) for values in batch[name]] for name in lists}

    (rows.map(as_text, batched=True) if lists else rows).to_csv(file, **options)


WRITERS = {
    ".csv": _write_csv,
    ".tsv": lambda rows, file: _write_csv(rows, file, sep="\t"),
    ".json": lambda rows, file: rows.to_json(file, force_ascii=False),
    ".jsonl": lambda rows, file: rows.to_json(file, force_ascii=False),
    ".parquet": Dataset.to_parquet,
}


@by_first
def check_out(path: Path) -> None:
    """Raises `UserError` where `write_file` could not write."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out {path}: not one of {', '.join(WRITERS)}")
    if path.exists() or not path.parent.is_dir():
        raise UserError(
            f"--out {path}: " + ("is there already; take another name" if path.exists() else f"there is no folder {path.parent}")
        )


@by_first
def write_file(rows: Dataset, path: Path) -> None:
    """Write rows as the ending of `path` says, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    WRITERS[path.suffix.lower()](rows, partial)
    os.replace(partial, path)
