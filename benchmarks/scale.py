"""What many rows cost: memory, seconds to the first step and rows a second of tokenising, by the number of rows. What two
processes bring on one machine.

    python benchmarks/scale.py --name NAME            writes results/scale-NAME.json; half an hour on two cores
    python benchmarks/scale.py --rows 25000 100000    a quicker look
    python benchmarks/scale.py --parts evaluation     one part alone; the record keeps the others

Rows are IMDb's training reviews over and over, each copy with its number behind the text, so that no two are equal.
fine_tune.py trains on all of them and is stopped after its third step: first with an empty cache, then again, as the second
run of anybody would. evaluate.py evaluates a run of a few steps on as many test rows, of which it reads 16 tokens each, so
that the prediction takes minutes. Memory is private to the process (USS): the most of what a thread saw five times a second,
and of that what is not pages of files, which the system takes back when it needs them.

The same 1,600 reviews are trained on by one process with all cores and by two under torchrun with half of them each, in turns.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = (25_000, 100_000, 1_000_000)
TRAINING = ["--train_samples", "0", "--output_dir", "outputs"]
EVALUATION = [
    "--train_samples",
    "640",
    "--max_length",
    "16",
    "--eval_batch_size",
    "256",
    "--test_samples",
    "0",
    "--output_dir",
    "outputs",
    "--run_name",
    "run",
]


def make_rows(file: Path, rows: int) -> None:
    """`rows` reviews with their labels as parquet, in an order where labels and lengths are mixed."""
    import numpy as np
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    from config import PRESETS, Config
    from finetuning.data import splits as data
    from finetuning.tasks import text_classification

    reviews = data.load_data(Config(**PRESETS["full"])).train
    texts = np.array(text_classification.texts(reviews.columns()), dtype=object)
    schema = pyarrow.schema({"text": pyarrow.string(), "label": pyarrow.string()})
    with ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 10_000):
            numbers = np.arange(start, min(start + 10_000, rows))
            chosen = np.random.default_rng(start).permutation(len(reviews))[numbers - start]
            written = [f"{text} {number}" for text, number in zip(texts[chosen], numbers, strict=True)]
            labels = np.array(["neg", "pos"])[reviews.labels[chosen]]
            writer.write_table(pyarrow.table({"text": written, "label": labels}, schema=schema))


def watched(script: str, flags: list[str]) -> dict:
    """Run a script in this process, fine_tune.py to its third step; its memory and seconds."""
    from transformers import TrainerCallback

    from finetuning.data import tokens as tokenizing
    from finetuning.training import trainer as training

    process, found, done = psutil.Process(), {"uss_gib": 0.0, "anonymous_gib": 0.0}, threading.Event()

    def look() -> None:
        files = sum(part.private_clean for part in process.memory_maps() if part.path.endswith(".arrow"))
        uss = process.memory_full_info().uss
        found["uss_gib"] = max(found["uss_gib"], uss / 2**30)
        found["anonymous_gib"] = max(found["anonymous_gib"], (uss - files) / 2**30)

    def watch() -> None:
        while not done.wait(0.2):
            look()

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if state.global_step == 0:
                found["seconds_to_first_step"] = time.time() - process.create_time()

        def on_step_end(self, args, state, control, **_) -> None:
            if state.global_step == 3 and script == "fine_tune.py":
                raise SystemExit

    build, encode, seconds = training.build_trainer, tokenizing.encode, []

    def with_stop(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(Stop())
        return trainer

    def timed(split, *arguments):
        started = time.perf_counter()
        tokens = encode(split, *arguments)
        seconds.append((time.perf_counter() - started, len(split)))
        return tokens

    training.build_trainer, tokenizing.encode = with_stop, timed
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    sys.argv = [script, *flags]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    done.set()
    thread.join()
    look()
    took, rows = max(seconds, key=lambda pair: pair[1])
    return found | {"tokenised_rows_per_s": rows / took, "seconds": time.time() - process.create_time()}


def call(folder: Path, *command: str, **environment: str) -> str:
    """Run a command in `folder` without the Hub; what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout


def training(rows: int) -> dict:
    """fine_tune.py on `rows` rows, with an empty cache and again."""
    with tempfile.TemporaryDirectory() as name:
        make_rows(Path(name) / "train.parquet", rows)
        script = ["fine_tune.py", "--dataset_name", "train.parquet", *TRAINING]
        return {"rows": rows} | {state: watch(Path(name), *script, "--run_name", state) for state in ("cold", "warm")}


def evaluation(rows: int) -> dict:
    """evaluate.py on `rows` test rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        make_rows(folder / "rows" / "train.parquet", 5_000)
        make_rows(folder / "rows" / "test.parquet", rows)
        call(folder, str(ROOT / "fine_tune.py"), "--dataset_name", "rows", *EVALUATION)
        return {"rows": rows} | watch(folder, "evaluate.py", "outputs/run")


def watch(folder: Path, *script: str) -> dict:
    """What `watched` says of a script, in a process of its own."""
    return json.loads(call(folder, str(Path(__file__).resolve()), "--worker", *script).splitlines()[-1])


def share_out(repeats: int = 3) -> dict:
    """Reviews a second of training by one process and by two, and the validation loss that each ends with."""
    ways = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc_per_node", "2"]}
    found = {name: [] for name in ways}
    flags = ["--train_samples", "1600", "--val_samples", "200", "--eval_strategy", "epoch", "--output_dir", "."]
    for repeat in range(repeats):
        for name, command in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                call(Path(folder), *command, str(ROOT / "fine_tune.py"), *flags, "--run_name", "run")
                training = json.loads((Path(folder) / "run" / "training.json").read_text())
                found[name].append((1600 / training["seconds"]["training"], training["validation"]["loss"]))
                print(repeat + 1, name, "process", *found[name][-1], flush=True)
    return {
        name: {"train_reviews_per_s": statistics.median(rate for rate, _ in seen), "validation_loss": seen[0][1]}
        for name, seen in found.items()
    }


PARTS = ("processes", "training", "evaluation")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print("\n" + json.dumps(watched(sys.argv[2], sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the machine: the record is results/scale-NAME.json; not given: only printed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()

    from finetuning import console
    from finetuning.results import run_folder

    console.quiet_libraries()
    file = ROOT / "results" / f"scale-{arguments.name}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts:
        measure = {"training": training, "evaluation": evaluation}.get(part)
        found = {"sizes": [measure(rows) for rows in arguments.rows]} if measure else share_out()
        record[part] = found | {"environment": run_folder.environment()}
        print(json.dumps(record[part], indent=1), flush=True)
        if arguments.name:
            run_folder.write_json(file, record)


if __name__ == "__main__":
    main()
