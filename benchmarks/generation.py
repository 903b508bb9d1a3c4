"""How fast a run translates its test: transformers' own way, ours, and CTranslate2's.

    python benchmarks/generation.py outputs/RUN --name two-cores

Each way gets the same texts and the same number of beams; what is counted is the making of translations, from token ids to texts,
without loading. Writes results/generation-NAME.json.
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

ROWS = 16  # of a batch, as tutorials have it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="an evaluated run of translation")
    parser.add_argument("--name", required=True, help="of the machine, in the record's name")
    parser.add_argument("--rows", type=int, default=1000, help="of the test")
    arguments = parser.parse_args()

    import torch
    from sacrebleu.metrics import BLEU

    from finetuning import console, data, run_folder, tokenizing
    from finetuning.tasks import translation

    console.quiet_libraries()
    run = run_folder.open_run(arguments.run)
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    test = rows.test.select(range(min(arguments.rows, len(rows.test))))
    in_float32 = replace(run.config, precision="float32")
    tokenizer = run_folder.load_model(run)[1]
    tokens = tokenizing.encode(test, tokenizer, run.config)
    references, ids = translation.references(test), tokens.inputs["input_ids"]

    def plain(model) -> list[str]:
        texts = []
        for start in range(0, len(ids), ROWS):
            batch = tokenizer.pad({"input_ids": ids[start : start + ROWS]}, return_tensors="pt")
            with torch.no_grad():
                made = model.generate(**batch, num_beams=run.config.num_beams, max_new_tokens=run.config.max_length, use_cache=True)
            texts += tokenizer.batch_decode(made, skip_special_tokens=True)
        return texts

    def ours(model, config):
        return translation.translate(model, tokenizer, tokens, config, config.num_beams, False)

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_folder.load_model(replace(run, config=in_float32))[0].merge_and_unload().save_pretrained(folder / "merged")
        tokenizer.save_pretrained(folder / "merged")
        stock = translation.MODEL.from_pretrained(folder / "merged").eval()
        exact, model = (run_folder.load_model(one)[0] for one in (replace(run, config=in_float32), run))
        ways = {
            f"transformers, batches of {ROWS} as they come": lambda: plain(stock),
            "ours, float32": lambda: ours(exact, in_float32),
            "ours": lambda: ours(model, run.config),
        }
        for kind, build in translation.EXPORTS.items():
            engine = build(folder / "merged", folder / kind, tokenizer)
            ways[kind] = lambda engine=engine: ours(engine, in_float32)
        for way, make in ways.items():
            make()  # once unmeasured
            started = time.perf_counter()
            texts = make()
            seconds = time.perf_counter() - started
            made = sum(len(one) for one in tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"])
            about = {
                "rows_per_s": len(texts) / seconds,
                "tokens_per_s": made / seconds,
                "bleu": BLEU().corpus_score(texts, [references]).score,
            }
            found.append({"way": way, **about})
            print(
                f"{way:<46}{about['rows_per_s']:>9.1f} rows/s{about['tokens_per_s']:>10.1f} tokens/s   BLEU {about['bleu']:.2f}",
                flush=True,
            )
    record = {"num_beams": run.config.num_beams, "rows": len(test), "model": run.record["model"]["name"], "ways": found}
    record |= {"ctranslate2": importlib.metadata.version("ctranslate2")}
    run_folder.write_json(
        ROOT / "results" / f"generation-{arguments.name}.json", record | {"environment": run_folder.environment()}
    )


if __name__ == "__main__":
    main()
