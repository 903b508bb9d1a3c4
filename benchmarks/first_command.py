"""Measure where the seconds of the README's first command go: fine_tune.py, then evaluate.py, each from the start of its process.

    python benchmarks/first_command.py --name NAME      writes results/first-command-NAME.json

Both run offline, with the files that are there. "train" does not include the validations and checkpoints in between. "rest" is what
no part has, up to the end of the process.
"""

import argparse
import functools
import importlib
import json
import pkgutil
import tempfile
import time
from pathlib import Path

import psutil
from common import worker, write_record

from finetuning.cli import importing

START = "start Python, import libraries"
PARTS = {  # part -> where its functions are, relative to the package
    "read the rows": ("data.splits:load_data", "data.sources:find_model"),
    "tokenize": ("model.base:load_tokenizer", "data.tokens:encode"),
    "load the model": ("model.base:build_base", "model.lora:add_lora", "results.run_folder:load_predictor"),
    "train": ("training.trainer:train",),
    "validate": ("training.trainer:FineTuner.evaluate",),
    "save and load checkpoints": ("training.trainer:FineTuner._save_checkpoint", "training.trainer:FineTuner._load_best_model"),
    "predict the test rows": ("tasks.text_task:TextClassification.predict",),
    "compute metrics and intervals": ("results.metrics:of_rows", "results.metrics:interval", "results.evaluation:measure"),
    "write files and the report": (
        *("results.run_folder:start_run", "results.run_folder:finish_run"),
        *("results.evaluation:sections_of", "results.evaluation:write"),
    ),
}


class Clock:
    """Adds up the seconds of each part. One part runs at a time; parts within "train" interrupt it, all others have what they call."""

    def __init__(self) -> None:
        self.seconds = {START: time.time() - psutil.Process().create_time()}
        self.part, self.began = "rest", time.time()

    def switch(self, part: str) -> str:
        """Let `part` run from now on; return the part that ran."""
        before, now = self.part, time.time()
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self.began
        self.part, self.began = part, now
        return before

    def timed(self, part: str, function):
        @functools.wraps(function)
        def call(*arguments, **named):
            if self.part not in ("rest", "train"):
                return function(*arguments, **named)
            before = self.switch(part)
            try:
                return function(*arguments, **named)
            finally:
                self.switch(before)

        return call


def measure(script: str) -> dict[str, float]:
    """Run a script in this process; return the seconds of its parts."""
    with importing():
        main = importlib.import_module(script).main
        functions = [(part, *f"finetuning.{name}".replace(":", ".").rpartition(".")[::2]) for part in PARTS for name in PARTS[part]]
        places = [(part, pkgutil.resolve_name(place), function) for part, place, function in functions]
    clock = Clock()
    for part, place, function in places:
        setattr(place, function, clock.timed(part, getattr(place, function)))
    main([])
    clock.switch("rest")
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="name of the machine, for the record's file; without it the results are only printed")
    parser.add_argument("--worker", choices=("fine_tune", "evaluate"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return print(json.dumps(measure(arguments.worker)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for script in ("fine_tune", "evaluate"):
            started = time.time()
            seconds = worker(__file__, script, folder=folder)
            seconds["rest"] += time.time() - started - sum(seconds.values())
            parts = [part for part in (START, *PARTS, "rest") if part in seconds]
            rows += [{"script": f"{script}.py", "part": part, "seconds": seconds[part]} for part in parts]
        metrics = json.loads(next(Path(folder).glob("outputs/*/metrics.json")).read_text(encoding="utf-8"))
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        print(f"{row['script']:<13} {row['part']:<31} {row['seconds']:7.1f} s {row['seconds'] / total:6.1%}")
    if arguments.name:
        about = {name: metrics[name] for name in ("accuracy", "n", "split")} | {"model": metrics["run"]["model"]}
        write_record(f"first-command-{arguments.name}", {"rows": rows, "seconds": total, **about})


if __name__ == "__main__":
    main()
