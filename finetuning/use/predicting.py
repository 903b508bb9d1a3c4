"""Predict with a finished run: single texts, all rows of a file, or the next answer of a conversation."""

import csv
import importlib.util
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets

from finetuning import speed
from finetuning.data.content import as_rows
from finetuning.data.formats import READERS, read_lines
from finetuning.data.reading import read
from finetuning.data.splits import flat, load_data
from finetuning.data.tokens import encode
from finetuning.disk import as_utf8, move, partial_of, reserve, room_in, temporary
from finetuning.errors import UserError, printable, require_installed
from finetuning.model.generation import check_options
from finetuning.processes import by_first
from finetuning.results.run_folder import Run, find_base_model, load_predictor
from finetuning.speed import openvino
from finetuning.speed.precision import on_cpu, pick_precision
from finetuning.task import Converses, Task
from finetuning.training.prediction import Predictor

ROWS_IN_MEMORY = 2048  # at a time
# With fewer rows, building OpenVINO's model takes longer than it saves: 4 to 5 s on two cores with AVX512-bf16 (benchmarks/engines.py).
ROWS_FOR_OPENVINO = 1_500
CALIBRATION_ROWS = 300  # training texts on which the ranges of 8-bit activations are measured
EXIT, RESET = "/exit", "/reset"  # in a conversation


def pick_engine(wanted: str, run: Run, texts: int) -> str:
    """Return the engine for this number of texts: torch, openvino or int8. `wanted` is the flag --engine of predict.py.

    Raise `UserError` if the engine is not installed or not possible.
    """
    possible = not run.task.predicts_tokens and run.config.quantization == "none"
    possible = possible and on_cpu() and PartialState().num_processes == 1
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if possible and installed and run.config.speedups and texts >= ROWS_FOR_OPENVINO else "torch"
    if wanted == "torch":
        return wanted
    if not possible:
        raise UserError(
            f"--engine {wanted} is only for labels, numbers and entities, on a CPU, in one process, without 4 bits; leave it out"
        )
    libraries = ("openvino",) if wanted == "openvino" else ("openvino", "nncf")
    require_installed(f"--engine {wanted}", *libraries)
    return wanted


def load_engine(run: Run, engine: str) -> Predictor:
    """Return a predictor with the run's model, computed by PyTorch or by OpenVINO. `engine` is a result of `pick_engine`."""
    source = find_base_model(run)
    if engine == "torch":
        predictor = load_predictor(run, source)
        speed.merge(predictor.model, run.config)
        return predictor
    in_float32 = replace(run, config=replace(run.config, precision="float32"))
    predictor = load_predictor(in_float32, source)
    merged = predictor.model.merge_and_unload().eval()
    batches = _calibration_batches(run, predictor) if engine == "int8" else None
    predictor.model, predictor.config = openvino.OpenVino(merged, pick_precision(run.config.precision)[0], batches), run.config
    return predictor


def _calibration_batches(run: Run, predictor: Predictor) -> list[dict[str, torch.Tensor]]:
    """Return batches of one training text each."""
    train = load_data(run.task, run.config, run.origins["dataset"]).train
    sample = train.select(np.random.default_rng(0).permutation(len(train))[:CALIBRATION_ROWS])
    tokens = encode(run.task, sample, predictor.tokenizer, run.config).unlabelled()
    examples = (tokens.__getitems__([row]) for row in range(len(tokens)))
    return [dict(run.task.collate(example, predictor.tokenizer, run.config)) for example in examples]


class Answers:
    """The answers of a run's model to new texts."""

    def __init__(self, run: Run, engine: str = "torch", **options) -> None:
        """`engine` is a result of `pick_engine`, `options` are the task's. Raise `UserError` for options out of range."""
        if "temperature" in run.task.options:
            check_options(run.task.options | options, options)
        self.run, self.predictor = run, load_engine(run, engine)
        self.predictor.options = options

    def each(self, rows: Dataset, columns: dict[str, str]) -> Iterator[tuple[dict, dict]]:
        """Yield (inputs, answer) for each row, in the order of the rows, as soon as they are computed.

        `columns` maps the task's names of the input columns to those of `rows`.
        """
        for inputs in _batches(rows, columns):
            yield from zip(as_rows(inputs), as_rows(self.answer_batch(inputs)), strict=True)

    def add_to(self, rows: Dataset, columns: dict[str, str]) -> Dataset:
        """Return `rows` with the task's answers as further columns. The result is on disk, with some rows at a time in memory."""
        inputs = rows.select_columns([*dict.fromkeys(columns.values())])

        def answer(batch: dict[str, list]) -> dict[str, list]:
            return self.answer_batch(_inputs(batch, rows, columns))

        if sys.stderr.isatty():
            datasets.enable_progress_bars()
        options = dict(batched=True, batch_size=ROWS_IN_MEMORY, remove_columns=inputs.column_names, desc="predicted")
        # Without features, their types would come from the first rows, which may have no labels or entities.
        options["features"] = self.run.task.answer_features
        fingerprint = datasets.fingerprint.generate_random_fingerprint()  # otherwise `map` would pickle the model for one
        with room_in(tempfile.gettempdir(), "set the environment variable TMPDIR to another folder"):
            answers = inputs.map(answer, new_fingerprint=fingerprint, **options)
        return concatenate_datasets([rows, answers], axis=1)

    def answer_batch(self, inputs: dict[str, list]) -> dict[str, list]:
        """Return columns of answers. `inputs` has the task's input columns, with values that `check_rows` lets pass."""
        task, empty = self.run.task, self.run.task.empty_answer
        if empty is None:
            return task.answers(self.predictor, inputs)
        (texts,) = inputs.values()
        nonempty = [i for i, text in enumerate(texts) if (text or "").strip()]
        nonempty_inputs = {name: [texts[i] for i in nonempty] for name in inputs}
        columns = task.answers(self.predictor, nonempty_inputs) if nonempty else {name: [] for name in empty}
        answers = {name: dict(zip(nonempty, values, strict=True)) for name, values in columns.items()}
        return {name: [answers[name].get(i, value) for i in range(len(texts))] for name, value in empty.items()}


def check_rows(task: Task, rows: Dataset, columns: dict[str, str]) -> None:
    """Raise `UserError` for the first row that the task can't answer."""
    for number, inputs in enumerate(chain.from_iterable(map(as_rows, _batches(rows, columns))), 1):
        if reason := task.refusal(inputs):
            raise UserError(f"text {number} {reason}")


def _batches(rows: Dataset, columns: dict[str, str]) -> Iterator[dict[str, list]]:
    """Yield the task's input columns of some rows at a time. `columns` is as in `Answers.each`."""
    for batch in rows.select_columns([*dict.fromkeys(columns.values())]).iter(ROWS_IN_MEMORY):
        yield _inputs(batch, rows, columns)


def _inputs(batch: dict[str, list], rows: Dataset, columns: dict[str, str]) -> dict[str, list]:
    """Return the task's input columns of a batch. Numbers and truth values among texts become texts."""
    inputs = {name: batch[column] for name, column in columns.items()}
    for name in [name for name, column in columns.items() if isinstance(rows.features[column], datasets.Json)]:
        inputs[name] = [json.dumps(value) if isinstance(value, bool | int | float) else value for value in inputs[name]]
    return inputs


def check_names(task: Task, available: list[str]) -> None:
    """Raise `UserError` if the task's answers would replace columns of a file. `available` has the names of its columns."""
    if taken := [name for name in available if name in task.answer_features]:
        raise UserError(f"--file: {', '.join(taken)}: --out adds columns with these names, so rename the columns of the file")


def chat(answers: Answers, system: str | None = None) -> None:
    """Print the model's answer to each line that is typed, as it is written. The conversation so far is read again for each answer.

    Raise `UserError` if the run's task has no conversations.
    """
    task, start = answers.run.task, [{"role": "system", "content": as_utf8(system)}] if system and system.strip() else []
    messages = [*start]
    if not isinstance(task, Converses):
        raise UserError(
            f"--chat is for runs that were trained on prompts and answers, not for {answers.run.config.task}: leave it out"
        )
    if isinstance(sys.stdin, io.TextIOWrapper):  # in most locales, input() would fail for bytes that are not UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    print(f"{EXIT} ends the conversation, {RESET} begins a new one.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == EXIT:
            return
        if line == RESET:
            messages = [*start]
            print("A new conversation begins.")
        elif line:
            messages.append({"role": "user", "content": as_utf8(line)})
            pieces = []
            for piece in task.stream(answers.predictor, messages):
                print(printable(piece), end="", flush=True)
                pieces.append(piece)
            print()
            messages.append({"role": "assistant", "content": "".join(pieces).strip()})


def read_texts(texts: list[str], encoding: str | None) -> tuple[Dataset, list[str]]:
    """Return texts as rows with the column `text`, and notes on them. Without `texts`, read the lines of the standard input.

    Raise `UserError` if there are no texts.
    """
    texts, remarks = ([*map(as_utf8, texts)], []) if texts else read_stdin(encoding)
    if not texts:
        raise UserError("no texts: give them as arguments, with --file, or on the standard input, one per line")
    return Dataset.from_dict({"text": texts}), remarks


@by_first
def read_stdin(encoding: str | None) -> tuple[list[str], list[str]]:
    """Return the lines of the standard input, each a text, and notes on how they were read: as those of a .txt file."""
    content = sys.stdin.buffer.read()
    if not content:
        return [], []
    file = temporary() / "standard-input.txt"
    file.write_bytes(content)
    try:
        splits, remarks, _ = read(file, {".txt": read_lines}, "the standard input: ", encoding, file.parent)
    except UserError as error:
        raise UserError(str(error).replace(f"{file}: ", "").replace("set encoding", "set --encoding")) from error
    remarks = [remark.replace(file.name, "the standard input").replace("set encoding", "set --encoding") for remark in remarks]
    return [text or "" for text in splits["train"]["text"]], remarks


def read_file(path: Path, encoding: str | None, cache: Path) -> tuple[Dataset, list[str]]:
    """Return the rows of a file, stored in the folder `cache`, and notes on them. Raise `UserError` if the file can't be read."""
    try:
        exists = path.is_file()
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise UserError(f"--file {path}: it can't be read ({error})") from error
    if not exists:
        raise UserError(f"--file {path}: there is no such file")
    splits, remarks, _ = read(path, READERS | {".txt": read_lines}, "--file ", encoding, cache)
    if len(splits) > 1:
        raise UserError(f"--file {path} has several splits, {', '.join(splits)}: give a file with one split")
    return next(iter(flat(splits).values())), remarks


# --- files with the rows and their answers -----------------------------------------------------------------------------------


def _lists(rows: Dataset) -> Iterator[list]:
    """Yield the values of each row as a list. NaN becomes None, as when files are read."""
    for start in range(0, len(rows), ROWS_IN_MEMORY):
        batch = rows[start : start + ROWS_IN_MEMORY]
        yield from ([None if value != value else value for value in row] for row in zip(*batch.values(), strict=True))


def _as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_text)


def _as_text(value) -> str:
    """Return a date in ISO format, and any other value without a JSON type as `str` of it. Raise `UserError` for bytes."""
    if isinstance(value, bytes):
        raise UserError("--out: the file has a column of bytes, which only a .parquet file can store: use this ending")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _field(value):
    """Return a value for the csv module. The items of a list are joined by semicolons if they are texts or numbers.

    Other lists and objects become JSON, dates ISO format.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return "; ".join(map(str, value))
    return _as_json(value) if isinstance(value, list | dict) else _as_text(value)


def _write_csv(rows: Dataset, file: Path, **options) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        # The csv module quotes a value only if it contains a character of `lineterminator`; \r\n makes it quote both. The
        # file itself gets \n.
        lines = SimpleNamespace(write=lambda line: out.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(lines, lineterminator="\r\n", **options)
        writer.writerow(rows.column_names)
        writer.writerows(map(_field, row) for row in _lists(rows))


def _write_tsv(rows: Dataset, file: Path) -> None:
    """Write without quotes, which most tools do not expect in .tsv files, unless a value needs them."""
    needs_quotes = re.compile(r'^"|[\t\n\r]').search
    texts = (_field(value) for row in chain([rows.column_names], _lists(rows)) for value in row)
    quoted = any(isinstance(text, str) and needs_quotes(text) for text in texts)
    _write_csv(rows, file, delimiter="\t", **{} if quoted else dict(quoting=csv.QUOTE_NONE, quotechar=None))


def _write_json(rows: Dataset, file: Path) -> None:
    """Write an object per line. In a .json file they are the items of a list."""
    objects = (_as_json(dict(zip(rows.column_names, row, strict=True))) for row in _lists(rows))
    begin, between, end = ("[\n", ",\n", "\n]\n") if file.suffix.lower() == ".json" else ("", "\n", "\n")
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for number, line in enumerate(objects):
            out.write((between if number else begin) + line)
        out.write(end)


WRITERS = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".json": _write_json,
    ".jsonl": _write_json,
    ".parquet": Dataset.to_parquet,
}


@by_first
def check_out(path: Path) -> None:
    """Raise `UserError` if `write_file` can't write `path`. No other process can write it then, until this one ends."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out {path}: the ending must be one of {', '.join(WRITERS)}")
    try:
        if not path.parent.is_dir():
            raise UserError(f"--out {path}: there is no folder {path.parent}")
        reserve(partial_of(path))
        if path.exists():
            raise UserError(f"--out {path}: this file exists; use another name")
    except FileExistsError:
        raise UserError(f"--out {path}: another predict.py is writing this file; use another name") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--out {path}: it can't be written ({error})") from error


@by_first
def write_file(rows: Dataset, path: Path) -> None:
    """Write rows in the format that the ending of `path` names. The file is written completely or not at all."""
    file = partial_of(path) / path.name
    with room_in(path.parent, "give --out a name in another folder"):
        WRITERS[path.suffix.lower()](rows, file)
        move(file, path)
