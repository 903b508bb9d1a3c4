"""Measure the minutes until a model labels reviews well, from the start of the process: fine_tune.py beside a notebook of peft.

    python benchmarks/time_to_accuracy.py --name two-cores --seeds 0 1 2

The notebook is examples/sequence_classification/LoRA.ipynb: its settings, in a Trainer without its own extras, on the same reviews
in place of its pairs of sentences. Both train to their end. The trainable parameters are copied several times per epoch. After the
training the copies predict the reviews that fine_tune.py holds out as its test, in bf16 for the notebook too. Copies are
evaluated from the last to the first, until one is below the lower target. A target is reached at the first copy from which on all
copies reach it. Each way and seed is a process of its own. Runs that the record has are not run again.
"""

import argparse
import contextlib
import json
import tempfile
import time

import psutil
import torch
from common import RESULTS, flags, run_script, worker
from speed import plain_trainer
from transformers import TrainerCallback

from config import Config
from finetuning import console, tasks
from finetuning.data import sources, splits, tokens
from finetuning.disk import read_json, write_json
from finetuning.model.base import load_tokenizer
from finetuning.results.run_folder import environment
from finetuning.training.prediction import Predictor

TARGETS = (0.88, 0.9)
REVIEWS_BETWEEN_COPIES = 1_600
NOTEBOOK = dict(padding=False, learning_rate=3e-4, num_train_epochs=20, per_device_train_batch_size=32, warmup_steps=0.06)
NOTEBOOK |= dict(weight_decay=0.01, max_grad_norm=0, save_strategy="no")  # AdamW's own, and no clipping; `plain_trainer` has LoRA's
# Settings of fine_tune.py. With all reviews the notebook would take hours. Seven epochs are between those of the growth study.
WAYS = {
    "first command": {},
    "1,000 reviews": dict(train_samples=1_000, num_train_epochs=7),
    "1,000 reviews, peft's notebook": dict(train_samples=1_000, truncation="head"),
}


class Over(Exception):
    """Raised when the training ends."""


class Copies(TrainerCallback):
    """Copies the trainable parameters, each time with the seconds since the start of the process."""

    def __init__(self) -> None:
        self.started, self.copies = psutil.Process().create_time(), []

    def on_step_end(self, args, state, control, model, **_) -> None:
        seconds, step, self.model = time.time() - self.started, state.global_step, model
        if step % (REVIEWS_BETWEEN_COPIES // args.train_batch_size) == 0 or step == state.max_steps:
            self.copies.append((seconds, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}))

    def on_train_end(self, *_, **__) -> None:
        raise Over

    def restore_last(self) -> float:
        """Put the last copy back into the model and forget it; return its seconds."""
        seconds, weights = self.copies.pop()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return seconds


def measure(way: str, seed: int) -> dict:
    """Return the record of one run: `marks` has the seconds since the start of the process and the accuracy of its copies."""
    console.quiet_libraries()
    copies, is_notebook = Copies(), way.endswith("notebook")
    # with method "full" autocast computes in bf16, as it must for the model of the notebook
    config = Config(**WAYS[way], **(dict(method="full") if is_notebook else {}))
    task, source = tasks.pick(config), sources.find_model(config.model_name)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Over):
        if is_notebook:
            reviews = splits.load_data(task, config).train
            trainer, *_ = plain_trainer(str(source.path), reviews, config.max_length, seed=seed, output_dir=folder, **NOTEBOOK)
            trainer.add_callback(copies)
            trainer.train()
        else:
            run_script("fine_tune.py", *flags(output_dir=folder, run_name="run", seed=seed, **WAYS[way]), callback=copies)
    data, tokenizer = splits.load_data(task, config), load_tokenizer(task, source, config)
    predictor = Predictor(task, copies.model, tokenizer, config)
    encoded, marks = tokens.encode(task, data.test, tokenizer, config), []
    while copies.copies and (not marks or marks[0]["accuracy"] >= TARGETS[0]):
        seconds = copies.restore_last()
        correct = task.predict(predictor, encoded).argmax(axis=-1) == data.test.labels
        marks.insert(0, {"seconds": seconds, "accuracy": float(correct.mean())})
    about = {
        "model": {"name": source.name, "origin": source.origin},
        "n": len(data.test),
        "dataset": data.source.name,
        "split": data.test_split,
        "train": len(data.train),
    }
    return {"way": way, "seed": seed, "marks": marks, **about, "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="name of the machine, for the record's file")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, *arguments.seeds)))
        return

    file = RESULTS / f"time-{arguments.name}.json"
    record = read_json(file) if file.exists() else {"targets": TARGETS, "runs": []}
    done = {(run["way"], run["seed"]) for run in record["runs"]}
    for seed in arguments.seeds:
        for way in arguments.ways:
            if (way, seed) not in done:
                print(f"{way}, seed {seed}", flush=True)
                record["runs"].append(worker(__file__, way, "--seeds", str(seed)))
                write_json(file, record)


if __name__ == "__main__":
    main()
