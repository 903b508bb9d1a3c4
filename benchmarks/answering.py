"""Measure how fast a run answers the prompts of its test: with transformers' `generate`, and with the project's batches.

    python benchmarks/answering.py outputs/RUN --name two-cores

All write greedy answers to the same prompts, with the run's `max_new_tokens`. The time is that from token ids to texts, without
loading. Writes results/answering-NAME.json.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import machine_file, speeds

from finetuning import console, tasks
from finetuning.data import splits, tokens
from finetuning.data.chats import end_tokens
from finetuning.disk import write_json
from finetuning.results import run_folder
from finetuning.tasks.chat import number_prompts
from finetuning.training.writing import write_answers

BATCH_SIZE = 8  # prompts in the order of the file, as a plain `generate` has them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of prompts and answers")
    parser.add_argument("--name", required=True, help="name of the machine, for the record's file")
    parser.add_argument("--prompts", type=int, default=64, help="number of prompts of the test")
    arguments = parser.parse_args()
    console.quiet_libraries()
    run = run_folder.open_run(arguments.run, tasks.pick)
    config = replace(run.config, test_samples=0)  # all prompts of the test
    data, source = splits.load_data(run.task, config, run.origins["dataset"]), run_folder.find_base_model(run)
    in_float32 = replace(run, config=replace(run.config, precision="float32"))
    exact, default = (run_folder.load_predictor(one, source, show_progress=False) for one in (in_float32, run))
    prompts = number_prompts(tokens.encode(run.task, data.test, default.tokenizer, run.config))[1][: arguments.prompts]
    options, ends = run.task.options | {"max_new_tokens": run.config.max_new_tokens}, end_tokens(default.tokenizer)
    merged = run_folder.load_predictor(in_float32, source, show_progress=False).model.merge_and_unload()

    def generate() -> list[str]:
        texts, tokenizer = [], exact.tokenizer
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = tokenizer.pad({"input_ids": prompts[start : start + BATCH_SIZE]}, padding_side="left", return_tensors="pt")
            settings = dict(max_new_tokens=options["max_new_tokens"], do_sample=False, eos_token_id=ends, use_cache=True)
            with torch.no_grad():
                generated = merged.generate(**batch, pad_token_id=tokenizer.pad_token_id, **settings)
            texts += tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    ways = {
        f"transformers, batches of {BATCH_SIZE} as they come, float32": generate,
        "ours, float32": lambda: write_answers(exact, prompts, ends, options),
        "ours": lambda: write_answers(default, prompts, ends, options),
    }
    first = generate()  # also the warm-up
    results = [measure(way, write, first, default.tokenizer) for way, write in ways.items()]
    record = {"prompts": len(prompts), "model": run.record["model"]["name"], "max_new_tokens": options["max_new_tokens"]}
    write_json(machine_file("answering", arguments.name), record | {"ways": results, "environment": run_folder.environment()})


def measure(way: str, write: Callable[[], list[str]], reference: list[str], tokenizer) -> dict:
    """Return the speed of a way to write answers, and the fraction of its answers that equal those of `reference`."""
    texts, measured = speeds(write, tokenizer)
    equal = sum(map(str.__eq__, texts, reference)) / len(texts)
    print(
        f"{way:<56}{measured['rows_per_s']:>8.2f} prompts/s{measured['tokens_per_s']:>9.1f} tokens/s   equal {equal:.1%}",
        flush=True,
    )
    return {"way": way, **measured, "equal_answers": equal}


if __name__ == "__main__":
    main()
