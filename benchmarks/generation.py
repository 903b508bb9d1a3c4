"""Measure how fast a run translates its test, or answers its prompts: with transformers' `generate`, and with the project's own code.

    python benchmarks/generation.py outputs/RUN --name two-cores

All write texts for the same rows: translations with the run's `num_beams`, also with CTranslate2, or greedy answers of at most
`max_new_tokens`. The time is that from token ids to texts, without loading. Writes results/generation-NAME.json for translations and
results/answering-NAME.json for answers.
"""

import argparse
import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import write_record
from sacrebleu.metrics import BLEU

from finetuning import console, tasks
from finetuning.data import splits, tokens
from finetuning.data.chat_tokens import end_tokens
from finetuning.results import run_folder
from finetuning.tasks.chat import number_prompts
from finetuning.tasks.translation import references
from finetuning.training.prediction import Predictor
from finetuning.training.writing import write_answers

Writer = Callable[[], list[str]]


def generate(model, tokenizer, rows: list[list[int]], batch_size: int, **settings) -> list[str]:
    """Return a text for each row of token ids, with transformers, in the order of the rows."""
    texts, is_decoder = [], not model.config.is_encoder_decoder
    for start in range(0, len(rows), batch_size):
        ids = {"input_ids": rows[start : start + batch_size]}
        batch = tokenizer.pad(ids, padding_side="left" if is_decoder else "right", return_tensors="pt")
        with torch.no_grad():
            generated = model.generate(**batch, pad_token_id=tokenizer.pad_token_id, use_cache=True, **settings)
        generated = generated[:, batch["input_ids"].shape[1] :] if is_decoder else generated
        texts += tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [text.strip() for text in texts]


def measure(way: str, write: Writer, tokenizer, score: Callable[[list[str]], dict[str, float]]) -> dict:
    """Return how many rows and tokens `write` writes per second, and the score of its texts."""
    started = time.perf_counter()
    texts = write()
    seconds = time.perf_counter() - started
    ids = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
    measured = {"rows_per_s": len(texts) / seconds, "tokens_per_s": sum(map(len, ids)) / seconds} | score(texts)
    print(f"{way:<50}" + "   ".join(f"{name} {value:.4g}" for name, value in measured.items()), flush=True)
    return {"way": way} | measured


def load(run: run_folder.Run, **settings) -> Predictor:
    """Return the run's predictor, with other settings."""
    run = replace(run, config=replace(run.config, **settings))
    return run_folder.load_predictor(run, run_folder.find_base_model(run))


def translations(run: run_folder.Run, n_rows: int, folder: Path) -> dict:
    """Return the record of a run of translation; `folder` is for the exported models."""
    data = splits.load_data(run.task, run.config, run.origins["dataset"])
    test = data.test.select(range(min(n_rows, len(data.test))))
    default, exact = load(run), load(run, precision="float32")
    tokenizer, beams = default.tokenizer, run.config.num_beams
    encoded = tokens.encode(run.task, test, tokenizer, run.config)
    load(run, precision="float32").model.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    merged = run.task.auto_class.from_pretrained(folder / "merged").eval()
    settings = dict(num_beams=beams, max_new_tokens=run.config.max_length)

    def translator(model, config=exact.config) -> Writer:
        predictor = Predictor(run.task, model, tokenizer, config)
        return lambda: run.task.translate(predictor, encoded, beams)

    ways = {
        "transformers, batches of 16 as they come": lambda: generate(
            merged, tokenizer, encoded.inputs["input_ids"], 16, **settings
        ),
        "transformers, in our batches": translator(merged, replace(exact.config, speedups=False)),
        "ours, float32": translator(exact.model),
        "ours": translator(default.model, default.config),
    }
    for name, export in run.task.exporters.items():
        ways[name] = translator(export(folder / "merged", folder / name, tokenizer))
    results = []
    for way, write in ways.items():
        write()  # warm-up
        results.append(measure(way, write, tokenizer, lambda texts: {"bleu": BLEU().corpus_score(texts, [references(test)]).score}))
    return {"num_beams": beams, "rows": len(test), "ways": results, "ctranslate2": importlib.metadata.version("ctranslate2")}


def answers(run: run_folder.Run, n_prompts: int) -> dict:
    """Return the record of a run on prompts. The score is the fraction of answers that equal those of transformers."""
    data = splits.load_data(run.task, replace(run.config, test_samples=0), run.origins["dataset"])  # all prompts of the test
    default, exact = load(run), load(run, precision="float32")
    tokenizer, ends = default.tokenizer, end_tokens(default.tokenizer)
    prompts = number_prompts(tokens.encode(run.task, data.test, tokenizer, run.config))[1][:n_prompts]
    options = run.task.options | {"max_new_tokens": run.config.max_new_tokens}
    merged = load(run, precision="float32").model.merge_and_unload()
    settings = dict(max_new_tokens=options["max_new_tokens"], do_sample=False, eos_token_id=ends)
    ways = {
        "transformers, batches of 8 as they come, float32": lambda: generate(merged, tokenizer, prompts, 8, **settings),
        "ours, float32": lambda: write_answers(exact, prompts, ends, options),
        "ours": lambda: write_answers(default, prompts, ends, options),
    }
    reference = next(iter(ways.values()))()  # also the warm-up

    def score(texts: list[str]) -> dict[str, float]:
        return {"equal_answers": sum(map(str.__eq__, texts, reference)) / len(texts)}

    results = [measure(way, write, tokenizer, score) for way, write in ways.items()]
    return {"prompts": len(prompts), "max_new_tokens": options["max_new_tokens"], "ways": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of translation, or of prompts and answers")
    parser.add_argument("--name", required=True, help="name of the machine, for the record's file")
    parser.add_argument("--rows", type=int, default=500, help="number of test rows or prompts")
    arguments = parser.parse_args()
    console.quiet_libraries()
    run = run_folder.open_run(arguments.run, tasks.pick)
    if run.config.task == "translation":
        with tempfile.TemporaryDirectory() as folder:
            kind, record = "generation", translations(run, arguments.rows, Path(folder))
    else:
        kind, record = "answering", answers(run, arguments.rows)
    write_record(f"{kind}-{arguments.name}", record | {"model": run.record["model"]["name"]})


if __name__ == "__main__":
    main()
