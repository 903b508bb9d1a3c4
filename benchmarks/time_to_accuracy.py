"""How long until a model labels reviews well: the first command beside a tutorial's recipe, from the start of the process.

    python benchmarks/time_to_accuracy.py --name two-cores --seeds 0 1 2

Both train on the rows of `python fine_tune.py`; the tutorial's recipe is that of speed.py, its learning rate the one of peft's
quick tour. What trains is copied some times an epoch. When the training is over, or its time is, the copies label the reviews that
the first command holds out as its test (the tutorial's in bf16 too), the last one first, until one misses the lower target. So a
target counts as reached by the first copy from which on none misses it. Each way and seed is a process of its own; one that the
record has is not run again.
"""

import argparse
import contextlib
import json
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

WAYS = {"first command": None, "tutorial, 256 tokens": 256, "tutorial, 512 tokens": 512}
TARGETS = (0.88, 0.9)
ROWS = 1_600  # between two copies
RECIPE = dict(learning_rate=1e-3, num_train_epochs=3)  # of the tutorial; else speed.py has it


class Enough(Exception):
    """The training is over, or its time is."""


def first_command(clock, seed: int, folder: str) -> None:
    from finetuning.training import trainer as training

    build = training.build_trainer

    def with_clock(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(clock)
        return trainer

    training.build_trainer = with_clock
    sys.argv = ["fine_tune.py", "--output_dir", folder, "--run_name", "run", "--seed", str(seed)]
    runpy.run_path(str(ROOT / "fine_tune.py"), run_name="__main__")


def tutorial(clock, seed: int, folder: str, max_length: int) -> None:
    from speed import tutorial

    from config import Config
    from finetuning.data import sources
    from finetuning.data import splits as data

    config = Config()
    rows = data.load_data(config).train
    trainer, *_ = tutorial(
        str(sources.find_model(config.model_name).path),
        rows,
        max_length,
        seed=seed,
        output_dir=folder,
        save_strategy="no",
        **RECIPE,
    )
    trainer.add_callback(clock)
    trainer.train()


def measure(way: str, seed: int, minutes: float) -> dict:
    """Seconds since the start of the process, and accuracy, of the copies that were asked, in their order."""
    import psutil
    from transformers import TrainerCallback

    from config import Config
    from finetuning import console
    from finetuning.data import sources
    from finetuning.data import splits as data
    from finetuning.data import tokens as tokenizing
    from finetuning.model import lora as model
    from finetuning.results import run_folder
    from finetuning.tasks import text_classification

    console.quiet_libraries()
    started = psutil.Process().create_time()
    copies = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_) -> None:
            passed = time.time() - started
            over = passed > 60 * minutes
            if over or state.global_step % (ROWS // args.train_batch_size) == 0 or state.global_step == state.max_steps:
                trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
                copies.append((passed, trained))
                self.model = model
            if over:
                raise Enough

        def on_train_end(self, *_, **__) -> None:
            raise Enough

    clock, max_length = Clock(), WAYS[way]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        first_command(clock, seed, folder) if max_length is None else tutorial(clock, seed, folder, max_length)
    config = Config() if max_length is None else Config(max_length=max_length, truncation="head", method="full")  # so: by autocast
    rows = data.load_data(config)
    source = sources.find_model(config.model_name)
    tokenizer = model.load_tokenizer(source, config)
    tokens = tokenizing.encode(rows.test, tokenizer, config)
    marks = []
    while copies and (not marks or marks[0]["accuracy"] >= TARGETS[0]):
        seconds, trained = copies.pop()
        with torch.no_grad():
            for name, parameter in clock.model.named_parameters():
                if name in trained:
                    parameter.copy_(trained[name])
        logits = text_classification.predict(clock.model, tokenizer, tokens, config, show_progress=False)
        marks.insert(0, {"seconds": seconds, "accuracy": float((logits.argmax(axis=-1) == rows.test.labels).mean())})
        print(f"{seconds:7.0f} s  {marks[0]['accuracy']:.2%}", file=sys.stderr, flush=True)
    about = {
        "model": {"name": source.name, "origin": source.origin},
        "n": len(rows.test),
        "dataset": rows.source.name,
        "split": rows.test_split,
        "train": len(rows.train),
    }
    return {"way": way, "seed": seed, "marks": marks, **about, "environment": run_folder.environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the machine, in the record's name")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=15, help="after so many a run is given up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, *arguments.seeds, arguments.minutes)))
        return

    from finetuning.results import run_folder

    file = ROOT / "results" / f"time-{arguments.name}.json"
    record = json.loads(file.read_text()) if file.exists() else {"targets": TARGETS, "minutes": arguments.minutes, "runs": []}
    done = {(run["way"], run["seed"]) for run in record["runs"]}
    for seed in arguments.seeds:
        for way in arguments.ways:
            if (way, seed) in done:
                continue
            print(f"{way}, seed {seed}", flush=True)
            command = [sys.executable, __file__, "--worker", way, "--seeds", str(seed), "--minutes", str(arguments.minutes)]
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
            record["runs"].append(json.loads(found.stdout.splitlines()[-1]))
            run_folder.write_json(file, record)


if __name__ == "__main__":
    main()
