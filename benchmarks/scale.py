"""Measure what many rows cost (memory, seconds to the first step, rows tokenised per second) and what two processes gain.

    python benchmarks/scale.py --name NAME            writes results/scale-NAME.json; half an hour on two cores
    python benchmarks/scale.py --rows 25000 100000    fewer rows
    python benchmarks/scale.py --parts evaluation     one part alone; the record keeps the others

Rows are repeated training reviews of IMDb; each copy ends with its number, so no two are equal. fine_tune.py trains on all rows and
is stopped after its third step, first with an empty cache, then again with the cache of that run. evaluate.py evaluates a run of a
few steps on as many test rows, at 16 tokens each, so that it takes minutes. Memory is that of the process alone (USS), the maximum
over five measurements per second.

For the processes, one process with all cores and two under torchrun with half the cores each train on the same 1,600 reviews in turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
from common import RESULTS, ROOT, flags, python, run_script, worker
from pyarrow.parquet import ParquetWriter
from transformers import TrainerCallback

from config import PRESETS, Config
from finetuning import console, tasks
from finetuning.data import tokens
from finetuning.data.splits import load_data
from finetuning.data.text import clean
from finetuning.disk import read_json, write_json
from finetuning.results.run_folder import environment

ROWS = (25_000, 100_000, 1_000_000)
SCRIPT = str(ROOT / "fine_tune.py")
TRAINING = dict(dataset_name="train.parquet", train_samples=0, output_dir="outputs")
EVALUATION = dict(train_samples=640, max_length=16, eval_batch_size=256, test_samples=0, output_dir="outputs", run_name="run")
SHARED = dict(train_samples=1600, val_samples=200, eval_strategy="epoch", output_dir=".", run_name="run")


def make_rows(file: Path, rows: int) -> None:
    """Write `rows` reviews with their labels as parquet, in an order that mixes labels and lengths."""
    config = Config(**PRESETS["full"])
    reviews = load_data(tasks.pick(config), config).train
    texts = np.array(clean(reviews.columns()["text"]), dtype=object)
    schema = pyarrow.schema({"text": pyarrow.string(), "label": pyarrow.string()})
    with ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 10_000):
            numbers = np.arange(start, min(start + 10_000, rows))
            order = np.random.default_rng(start).permutation(len(reviews))[numbers - start]
            numbered = [f"{text} {number}" for text, number in zip(texts[order], numbers, strict=True)]
            labels = np.array(["neg", "pos"])[reviews.labels[order]]
            writer.write_table(pyarrow.table({"text": numbered, "label": labels}, schema=schema))


class Watch(TrainerCallback):
    """Records the memory and the seconds of this process, and stops its training after the third step."""

    def __init__(self) -> None:
        self.process, self.done, self.tokenised = psutil.Process(), threading.Event(), []
        self.encode_of_project = tokens.encode
        self.record = {"uss_gib": 0.0}

    def measure_memory(self) -> None:
        self.record["uss_gib"] = max(self.record["uss_gib"], self.process.memory_full_info().uss / 2**30)

    def measure_repeatedly(self) -> None:
        while not self.done.wait(0.2):
            self.measure_memory()

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == 0:
            self.record["seconds_to_first_step"] = self.seconds()

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == 3:
            raise SystemExit

    def seconds(self) -> float:
        return time.time() - self.process.create_time()

    def encode(self, task, split, *arguments):
        started = time.perf_counter()
        encoded = self.encode_of_project(task, split, *arguments)
        self.tokenised.append((len(split), time.perf_counter() - started))
        return encoded


def watched(script: str, arguments: list[str]) -> dict:
    """Run a script in this process, fine_tune.py to its third step, and return its memory and its seconds."""
    watch = Watch()
    tokens.encode = watch.encode
    thread = threading.Thread(target=watch.measure_repeatedly, daemon=True)
    thread.start()
    try:
        run_script(script, *arguments, callback=watch)
    except SystemExit as stop:
        if stop.code:
            raise
    watch.done.set()
    thread.join()
    watch.measure_memory()
    rows, seconds = max(watch.tokenised)
    return watch.record | {"tokenised_rows_per_s": rows / seconds, "seconds": watch.seconds()}


def training(rows: int) -> dict:
    """Return memory and seconds of fine_tune.py for `rows` rows, with an empty cache and again."""
    with tempfile.TemporaryDirectory() as folder:
        make_rows(Path(folder) / "train.parquet", rows)
        return {"rows": rows} | {
            cache: worker(__file__, "fine_tune.py", *flags(**TRAINING, run_name=cache), folder=folder) for cache in ("cold", "warm")
        }


def evaluation(rows: int) -> dict:
    """Return memory and seconds of evaluate.py for `rows` test rows."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows"
        data.mkdir()
        make_rows(data / "train.parquet", 5_000)
        make_rows(data / "test.parquet", rows)
        python(SCRIPT, *flags(dataset_name="rows", **EVALUATION), folder=folder, HF_HUB_OFFLINE="1")
        return {"rows": rows} | worker(__file__, "evaluate.py", "outputs/run", folder=folder)


def processes(repeats: int = 3) -> dict:
    """Return the training reviews per second and the final validation loss, for one process and for two."""
    ways = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc_per_node", "2"]}
    measured = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, command in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                python(*command, SCRIPT, *flags(**SHARED), folder=folder, HF_HUB_OFFLINE="1")
                run = read_json(Path(folder) / "run" / "training.json")
                measured[name].append((1600 / run["seconds"]["training"], run["validation"]["loss"]))
                print(repeat + 1, name, "process", *measured[name][-1], flush=True)
    return {
        name: {"train_reviews_per_s": statistics.median(rate for rate, _ in runs), "validation_loss": runs[0][1]}
        for name, runs in measured.items()
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print("\n" + json.dumps(watched(sys.argv[2], sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="name of the machine, for the record's file; without it the results are only printed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    measures = {"processes": processes, "training": training, "evaluation": evaluation}
    parser.add_argument("--parts", nargs="+", choices=measures, default=[*measures])
    arguments = parser.parse_args()
    console.quiet_libraries()
    file = RESULTS / f"scale-{arguments.name}.json"
    record = read_json(file) if file.exists() else {}
    for part in arguments.parts:
        measure = measures[part]
        results = processes() if part == "processes" else {"sizes": [measure(rows) for rows in arguments.rows]}
        record[part] = results | {"environment": environment()}
        print(json.dumps(record[part], indent=1), flush=True)
        if arguments.name:
            write_json(file, record)


if __name__ == "__main__":
    main()
