"""Measure how fast a run translates its test: with transformers' `generate`, the project's own search, and CTranslate2.

    python benchmarks/generation.py outputs/RUN --name two-cores

All translate the same texts with the same number of beams. The time is that from token ids to texts, without loading. Writes
results/generation-NAME.json.
"""

import argparse
import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import machine_file, speeds
from sacrebleu.metrics import BLEU

from finetuning import console, tasks
from finetuning.data import splits, tokens
from finetuning.disk import write_json
from finetuning.results import run_folder
from finetuning.tasks.translation import references
from finetuning.training.prediction import Predictor

BATCH_SIZE = 16  # rows in the order of the file, as a plain `generate` has them

Translator = Callable[[], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of translation")
    parser.add_argument("--name", required=True, help="name of the machine, for the record's file")
    parser.add_argument("--rows", type=int, default=1000, help="number of test rows")
    arguments = parser.parse_args()
    console.quiet_libraries()
    run = run_folder.open_run(arguments.run, tasks.pick)
    data = splits.load_data(run.task, run.config, run.origins["dataset"])
    test = data.test.select(range(min(arguments.rows, len(data.test))))
    tokenizer = run_folder.load_predictor(run, run_folder.find_base_model(run)).tokenizer
    encoded = tokens.encode(run.task, test, tokenizer, run.config)
    with tempfile.TemporaryDirectory() as folder:
        translators = build_translators(run, encoded, Path(folder))
        ways = [measure(way, translate, tokenizer, test) for way, translate in translators.items()]
    record = {"num_beams": run.config.num_beams, "rows": len(test), "model": run.record["model"]["name"], "ways": ways}
    record |= {"ctranslate2": importlib.metadata.version("ctranslate2"), "environment": run_folder.environment()}
    write_json(machine_file("generation", arguments.name), record)


def build_translators(run, encoded, folder: Path) -> dict[str, Translator]:
    """Return by name functions that translate the encoded rows."""
    source, in_float32 = run_folder.find_base_model(run), replace(run.config, precision="float32")
    default = run_folder.load_predictor(run, source, show_progress=False)
    exact = run_folder.load_predictor(replace(run, config=in_float32), source, show_progress=False)
    tokenizer, beams, ids = default.tokenizer, run.config.num_beams, encoded.inputs["input_ids"]
    to_merge = run_folder.load_predictor(replace(run, config=in_float32), source).model
    to_merge.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    merged = run.task.auto_class.from_pretrained(folder / "merged").eval()

    def generate() -> list[str]:
        texts = []
        for start in range(0, len(ids), BATCH_SIZE):
            batch = tokenizer.pad({"input_ids": ids[start : start + BATCH_SIZE]}, return_tensors="pt")
            with torch.no_grad():
                generated = merged.generate(**batch, num_beams=beams, max_new_tokens=run.config.max_length, use_cache=True)
            texts += tokenizer.batch_decode(generated, skip_special_tokens=True)
        return texts

    def translator(model, config) -> Translator:
        predictor = Predictor(run.task, model, tokenizer, config, show_progress=False)
        return lambda: run.task.translate(predictor, encoded, beams)

    translators = {
        f"transformers, batches of {BATCH_SIZE} as they come": generate,
        "transformers, in our batches": translator(merged, replace(in_float32, speedups=False)),
        "ours, float32": translator(exact.model, in_float32),
        "ours": translator(default.model, run.config),
    }
    exports = {name: export(folder / "merged", folder / name, tokenizer) for name, export in run.task.exporters().items()}
    return translators | {name: translator(model, in_float32) for name, model in exports.items()}


def measure(way: str, translate: Translator, tokenizer, test) -> dict:
    """Return the speed of a translator and the BLEU of its translations."""
    translate()  # warm-up
    texts, measured = speeds(translate, tokenizer)
    bleu = BLEU().corpus_score(texts, [references(test)]).score
    print(f"{way:<46}{measured['rows_per_s']:>9.1f} rows/s{measured['tokens_per_s']:>10.1f} tokens/s   BLEU {bleu:.2f}", flush=True)
    return {"way": way, **measured, "bleu": bleu}


if __name__ == "__main__":
    main()
