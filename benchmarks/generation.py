"""How fast a run translates its test: transformers' `generate`, the project's search, and CTranslate2.

    python benchmarks/generation.py outputs/RUN --name two-cores

All get the same texts and the same number of beams. The time is that from token ids to texts, without loading. Writes
results/generation-NAME.json.
"""

import argparse
import importlib.metadata
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH_SIZE = 16  # rows in the order of the file, as in tutorials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of translation")
    parser.add_argument("--name", required=True, help="of the machine, in the record's name")
    parser.add_argument("--rows", type=int, default=1000, help="of the test")
    arguments = parser.parse_args()

    from finetuning import console, tasks
    from finetuning.data import splits, tokens
    from finetuning.disk import write_json
    from finetuning.results import run_folder

    console.quiet_libraries()
    run = run_folder.open_run(arguments.run, tasks.pick)
    data = splits.load_data(run.task, run.config, run.origins["dataset"])
    test = data.test.select(range(min(arguments.rows, len(data.test))))
    tokenizer = run_folder.load_predictor(run, run_folder.find_base_model(run)).tokenizer
    encoded = tokens.encode(run.task, test, tokenizer, run.config)
    with tempfile.TemporaryDirectory() as folder:
        ways = [measure(way, translate, tokenizer, test) for way, translate in build_ways(run, encoded, Path(folder)).items()]
    record = {"num_beams": run.config.num_beams, "rows": len(test), "model": run.record["model"]["name"], "ways": ways}
    record |= {"ctranslate2": importlib.metadata.version("ctranslate2"), "environment": run_folder.environment()}
    write_json(ROOT / "results" / f"generation-{arguments.name}.json", record)


def build_ways(run, encoded, folder: Path) -> dict:
    """Return name -> a function that returns the translations of the encoded rows."""
    import torch

    from finetuning.results import run_folder
    from finetuning.training.prediction import Predictor

    source, in_float32 = run_folder.find_base_model(run), replace(run.config, precision="float32")
    usual = run_folder.load_predictor(run, source, show_progress=False)
    exact = run_folder.load_predictor(replace(run, config=in_float32), source, show_progress=False)
    tokenizer, beams = usual.tokenizer, run.config.num_beams
    to_merge = run_folder.load_predictor(replace(run, config=in_float32), source).model
    to_merge.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    merged, ids = run.task.auto_class.from_pretrained(folder / "merged").eval(), encoded.inputs["input_ids"]

    def tutorial() -> list[str]:
        texts = []
        for start in range(0, len(ids), BATCH_SIZE):
            batch = tokenizer.pad({"input_ids": ids[start : start + BATCH_SIZE]}, return_tensors="pt")
            with torch.no_grad():
                generated = merged.generate(**batch, num_beams=beams, max_new_tokens=run.config.max_length, use_cache=True)
            texts += tokenizer.batch_decode(generated, skip_special_tokens=True)
        return texts

    def translate(model, config):
        predictor = Predictor(run.task, model, tokenizer, config, show_progress=False)
        return lambda: run.task.translate(predictor, encoded, beams)

    ways = {
        f"transformers, batches of {BATCH_SIZE} as they come": tutorial,
        "transformers, in our batches": translate(merged, replace(in_float32, speedups=False)),
        "ours, float32": translate(exact.model, in_float32),
        "ours": translate(usual.model, run.config),
    }
    for name, export in run.task.exporters().items():
        ways[name] = translate(export(folder / "merged", folder / name, tokenizer), in_float32)
    return ways


def measure(way: str, translate, tokenizer, test) -> dict:
    """Return the speed of a way, and BLEU of its translations."""
    from sacrebleu.metrics import BLEU

    from finetuning.tasks.translation import references

    translate()  # once unmeasured
    started = time.perf_counter()
    texts = translate()
    seconds = time.perf_counter() - started
    ids = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
    result = {
        "way": way,
        "rows_per_s": len(texts) / seconds,
        "tokens_per_s": sum(map(len, ids)) / seconds,
        "bleu": BLEU().corpus_score(texts, [references(test)]).score,
    }
    print(
        f"{way:<46}{result['rows_per_s']:>9.1f} rows/s{result['tokens_per_s']:>10.1f} tokens/s   BLEU {result['bleu']:.2f}",
        flush=True,
    )
    return result


if __name__ == "__main__":
    main()
