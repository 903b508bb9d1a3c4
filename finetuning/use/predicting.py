"""Predict with a finished run: texts one by one, or a file at a time."""

import functools
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset, List, Value

from finetuning.data.formats import READERS, read_lines
from finetuning.data.reading import read
from finetuning.data.splits import flat, load_data
from finetuning.data.tokens import encode
from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.results.run_folder import Run, find_base_model, load_predictor
from finetuning.speed import openvino
from finetuning.speed.precision import on_cpu, pick_precision
from finetuning.training.prediction import Predictor

ROWS_IN_MEMORY = 2048  # at a time
ROWS_FOR_OPENVINO = 1_500  # from which on the four or five seconds to build it are made up for (benchmarks/engines.py)
CALIBRATION_ROWS = 300  # training texts whose activations give the ranges of 8 bits


def pick_engine(wanted: str, run: Run, texts: int) -> str:
    """Return what `wanted`, an --engine of predict.py, is for this many texts: torch, openvino or int8.

    Raise `UserError` if it is not installed or not possible.
    """
    able = "onnx" in run.task.export_formats and on_cpu() and PartialState().num_processes == 1
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if able and installed and run.config.speedups and texts >= ROWS_FOR_OPENVINO else "torch"
    if wanted == "torch":
        return wanted
    if not able:
        raise UserError(f"--engine {wanted}: only for labels and entities, on a CPU, by one process; leave it out")
    needed = ("openvino",) if wanted == "openvino" else ("openvino", "nncf")
    if missing := [library for library in needed if not importlib.util.find_spec(library)]:
        raise UserError(f"--engine {wanted}: {', '.join(missing)} missing: pip install -r requirements-extras.txt")
    return wanted


def load_engine(run: Run, engine: str) -> Predictor:
    """Return a predictor of the run's model, computed by PyTorch or by OpenVINO."""
    source = find_base_model(run)
    if engine == "torch":
        return load_predictor(run, source, show_progress=False)
    exact = replace(run, config=replace(run.config, precision="float32"))
    predictor = load_predictor(exact, source, show_progress=False)
    merged = predictor.model.merge_and_unload().eval()
    batches = functools.partial(_calibration_batches, run, predictor) if engine == "int8" else None
    model = openvino.OpenVino(merged, pick_precision(run.config.precision)[0], batches)
    return Predictor(run.task, model, predictor.tokenizer, run.config, show_progress=False)


def _calibration_batches(run: Run, predictor: Predictor) -> list[dict[str, torch.Tensor]]:
    """Return training texts, one per batch."""
    train = load_data(run.task, run.config, run.origins["dataset"]).train
    sample = train.select(np.random.default_rng(0).permutation(len(train))[:CALIBRATION_ROWS])
    tokens = encode(run.task, sample, predictor.tokenizer, run.config).unlabelled()
    examples = (tokens.__getitems__([row]) for row in range(len(tokens)))
    return [dict(run.task.collate(example, predictor.tokenizer, run.config)) for example in examples]


class Answers:
    """Answers of a run's model to new texts."""

    def __init__(self, run: Run, engine: str = "torch", **options) -> None:
        """`engine`: as `pick_engine` gives it; `options`: the task's. Raise `UserError` for options that it does not know."""
        if unknown := [name for name in options if name not in run.task.options]:
            raise UserError(f"--{unknown[0]} is not for {run.config.task}: leave it out")
        self.run, self.predictor = run, load_engine(run, engine)
        self.predictor.options = run.task.options | options

    def explain(self, text: str) -> list[tuple[str, float]]:
        """Return the words that decided. Raise `UserError` if the task can't explain."""
        return self.run.task.explain(self.predictor, text)

    def each(self, rows: Dataset, columns: dict[str, str]) -> Iterator[dict]:
        """Yield `rows` with the task's answers, in their order, as soon as they are computed."""
        for start in range(0, len(rows), ROWS_IN_MEMORY):
            yield from self.add_to(rows.select(range(start, min(start + ROWS_IN_MEMORY, len(rows)))), columns, rows_before=start)

    def add_to(self, rows: Dataset, columns: dict[str, str], show_progress: bool = False, rows_before: int = 0) -> Dataset:
        """Return `rows` with the task's answers as further columns; on disk, some at a time in memory."""

        def answer(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
            inputs = {name: batch[column] for name, column in columns.items()}
            return self.answer_batch(inputs, rows_before + positions[0])

        if show_progress and sys.stderr.isatty():
            datasets.enable_progress_bars()
        fingerprint = datasets.fingerprint.generate_random_fingerprint()  # the model would be pickled to make one
        size = ROWS_IN_MEMORY
        return rows.map(answer, with_indices=True, batched=True, batch_size=size, new_fingerprint=fingerprint, desc="predicted")

    def answer_batch(self, inputs: dict[str, list], rows_before: int = 0) -> dict[str, list]:
        """Return columns of answers to rows with the task's input columns."""
        task, empty = self.run.task, self.run.task.empty_answer
        arguments = self.run.label_names, self.run.calibration
        for values in inputs.values():
            _check_values(values, task.input_types, rows_before, may_be_empty=empty is not None)
        if empty is None:
            return task.answers(self.predictor, inputs, *arguments)
        (texts,) = inputs.values()
        filled = [i for i, text in enumerate(texts) if (text or "").strip()]
        some = {name: [texts[i] for i in filled] for name in inputs}
        columns = task.answers(self.predictor, some, *arguments) if filled else {name: [] for name in empty}
        answers = {name: dict(zip(filled, values, strict=True)) for name, values in columns.items()}
        return {name: [answers[name].get(i, value) for i in range(len(texts))] for name, value in empty.items()}


def _check_values(values: list, kinds: tuple[type, ...], rows_before: int, may_be_empty: bool) -> None:
    """Raise `UserError` for a value that is no text, and for an empty one unless it may be empty."""
    for number, value in enumerate(values, rows_before + 1):
        if value is not None and not isinstance(value, kinds):
            raise UserError(f"text {number} is {value!r}, which is no text: set --text_column to the column with the texts")
        if not may_be_empty and (not value or (isinstance(value, str) and not value.strip())):
            raise UserError(f"text {number} is empty: every text gets an answer, so remove the empty ones")


@by_first
def read_stdin() -> list[str]:
    """Return the lines of the standard input, a text each."""
    return sys.stdin.read().splitlines()


def rows_of(texts: list[str]) -> Dataset:
    """Return texts as rows with the column `text`. Raise `UserError` if there is none."""
    if not texts:
        raise UserError("no texts: give them as arguments, with --file, or on the standard input, one per line")
    return Dataset.from_dict({"text": texts})


def read_file(path: Path, encoding: str | None, cache: str) -> tuple[Dataset, list[str]]:
    """Return the rows of a file, on disk in the folder `cache`, and notes on them. Raise `UserError` if it can't be read."""
    if not path.is_file():
        raise UserError(f"--file {path}: there is no such file")
    splits, remarks, _ = read(path, READERS | {".txt": read_lines}, "--file ", encoding, cache)
    if len(splits) > 1:
        raise UserError(f"--file {path}: it holds several splits, {', '.join(splits)}: give a file with one")
    return next(iter(flat(splits).values())), remarks


def _write_csv(rows: Dataset, file: Path, **options) -> None:
    """Write lists as text with semicolons between their items; lists of more than words as JSON."""
    lists = {name: feature.feature for name, feature in rows.features.items() if isinstance(feature, List)}

    def as_text(batch: dict[str, list]) -> dict[str, list[str]]:
        def text(name: str, values: list) -> str:
            plain = isinstance(lists[name], Value | ClassLabel)
            return "; ".join(map(str, values)) if plain else json.dumps(values, ensure_ascii=False)

        return {name: [text(name, values or []) for values in batch[name]] for name in lists}

    (rows.map(as_text, batched=True) if lists else rows).to_csv(file, **options)


def _write_json_list(rows: Dataset, file: Path) -> None:
    """Write one list with an object on each line; the library can write a list only if all of it is in memory."""
    with tempfile.TemporaryFile() as objects, file.open("wb") as out:
        rows.to_json(objects, force_ascii=False)
        objects.seek(0)
        out.write(b"[")
        for number, line in enumerate(objects):
            out.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
        out.write(b"\n]\n")


WRITERS = {
    ".csv": _write_csv,
    ".tsv": lambda rows, file: _write_csv(rows, file, sep="\t"),
    ".json": _write_json_list,
    ".jsonl": lambda rows, file: rows.to_json(file, force_ascii=False),
    ".parquet": Dataset.to_parquet,
}


@by_first
def check_out(path: Path) -> None:
    """Raise `UserError` if `write_file` could not write."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out {path}: not one of {', '.join(WRITERS)}")
    if path.exists():
        raise UserError(f"--out {path}: it exists already; take another name")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")


@by_first
def write_file(rows: Dataset, path: Path) -> None:
    """Write rows in the format of `path`'s ending, completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    WRITERS[path.suffix.lower()](rows, partial)
    os.replace(partial, path)
