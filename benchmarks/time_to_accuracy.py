"""How long until a model labels reviews well: the first command beside a tutorial's recipe, from the start of the process.

    python benchmarks/time_to_accuracy.py --name two-cores --seeds 0 1 2

Both train on the rows of `python fine_tune.py`, and label the reviews that it holds out as its test, some times an epoch, while the
clock stands. Each way and seed is a process of its own; one that results/time-NAME.json has is not run again.
"""

import argparse
import json
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

WAYS = {"first command": None, "tutorial, 256 tokens": 256, "tutorial, 512 tokens": 512}
TARGETS = (0.88, 0.9)
MARKS = 10  # an epoch
RECIPE = dict(learning_rate=2e-4, num_train_epochs=3)  # of the tutorial; else speed.py has it


def first_command(clock, seed: int, folder: str) -> None:
    from finetuning import training

    build = training.build_trainer

    def with_clock(model, tokenizer, train, validation, rows, config, checkpoints):
        trainer = build(model, tokenizer, train, validation, rows, config, checkpoints)
        trainer.add_callback(clock(model, tokenizer, rows.test, config))
        return trainer

    training.build_trainer = with_clock
    sys.argv = ["fine_tune.py", "--output_dir", folder, "--run_name", "run", "--seed", str(seed)]
    runpy.run_path(str(ROOT / "fine_tune.py"), run_name="__main__")


def tutorial(clock, seed: int, folder: str, max_length: int) -> None:
    import speed

    from config import Config
    from finetuning import data, model, sources

    config = Config(seed=seed, max_length=max_length, truncation="head")
    source = sources.find_model(config.model_name)
    rows = data.load_data(config)
    trainer, *_ = speed.tutorial(
        str(source.path), rows.train, max_length, seed=seed, output_dir=folder, save_strategy="no", **RECIPE
    )
    trainer.add_callback(clock(trainer.model, model.load_tokenizer(source, config), rows.test, config))
    trainer.train()


def measure(way: str, seed: int, minutes: float) -> dict:
    """Seconds of the process and accuracy at each mark, until the last target or that many minutes are reached."""
    import psutil
    from transformers import TrainerCallback

    from finetuning import console, run_folder, tokenizing
    from finetuning.tasks import text_classification

    console.quiet_libraries()
    marks, stood, n = [], 0.0, 0

    class Clock(TrainerCallback):
        def __init__(self, model, tokenizer, test, config) -> None:
            self.model, self.tokenizer, self.test, self.config = model, tokenizer, test, config

        def on_step_end(self, args, state, control, **_) -> None:
            nonlocal stood, n
            if state.global_step % max(1, int(state.max_steps / state.num_train_epochs / MARKS)):
                return
            now = time.time()
            tokens = tokenizing.encode(self.test, self.tokenizer, self.config)
            logits = text_classification.predict(self.model, self.tokenizer, tokens, self.config, show_progress=False)
            accuracy = float((logits.argmax(axis=-1) == self.test.labels).mean())
            n = len(logits)
            marks.append((now - psutil.Process().create_time() - stood, accuracy))
            stood += time.time() - now
            print(f"{marks[-1][0]:7.0f} s  {accuracy:.2%}", file=sys.stderr, flush=True)
            if accuracy >= TARGETS[-1] or marks[-1][0] > 60 * minutes:
                raise SystemExit

    with tempfile.TemporaryDirectory() as folder:
        try:
            if WAYS[way]:
                tutorial(Clock, seed, folder, WAYS[way])
            else:
                first_command(Clock, seed, folder)
        except SystemExit:
            pass
    return {"way": way, "seed": seed, "n": n, "marks": marks, "environment": run_folder.environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the machine, in the record's name")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=60, help="after so many a run is given up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, *arguments.seeds, arguments.minutes)))
        return

    from finetuning import run_folder

    file = ROOT / "results" / f"time-{arguments.name}.json"
    record = json.loads(file.read_text()) if file.exists() else {"runs": []}
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
