"""How fast new texts are labelled: the ways that a user could take, on the same reviews, beside predict.py's engines.

    python benchmarks/engines.py outputs/RUN --name two-cores

RUN is a run of text classification. Its test texts are labelled, or the first `--rows` of them, from words to labels, loading and
building left out. Labels are compared with those of PyTorch in float32. Then texts are asked one at a time, as predict.py asks them,
and a process each. Writes results/engines-NAME.json.
"""

import argparse
import functools
import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from timeit import timeit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WARM = 64  # texts before the clock starts
ALONE = (20, 100, 400)  # tokens of the texts that are asked one at a time
TIMES = 100  # so many of each
PROCESSES = 5  # each asked one text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder of text classification")
    parser.add_argument("--name", required=True, help="of the machine, in the record's name")
    parser.add_argument("--rows", type=int, default=2000)
    arguments = parser.parse_args()

    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import pipeline

    from finetuning import console
    from finetuning.data import splits as data
    from finetuning.results import run_folder
    from finetuning.tasks.text_classification import clean
    from finetuning.use import exporting
    from finetuning.use import predicting as labelling

    console.quiet_libraries()
    run = run_folder.open_run(arguments.run)
    exact = replace(run, config=replace(run.config, precision="float32"))
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    test = rows.test.select(np.random.default_rng(0).permutation(len(rows.test))[: arguments.rows])
    texts, gold = clean(test.columns()["text"]), np.array([rows.label_names[i] for i in test.labels])

    def labeller(of, using: str = "torch"):
        made = labelling.Labeller(of, using)
        return lambda some: made.answer(Dataset.from_dict({"text": some}), {"text": "text"})["prediction"]

    def onnx(file: Path, batch: int):
        made = labelling.Labeller(replace(run, config=replace(run.config, eval_batch_size=batch)))
        made.model = exporting._Onnx(file)
        return lambda some: made.answer(Dataset.from_dict({"text": some}), {"text": "text"})["prediction"]

    def plain(folder: Path):
        made = pipeline("text-classification", model=str(folder), device=-1)
        return lambda some: [one["label"] for one in made(some, batch_size=16, truncation=True, max_length=run.config.max_length)]

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tokenizer, _ = run_folder.load_model(exact)
        merged = model.merge_and_unload().eval()
        merged.set_attn_implementation("sdpa")
        for part in (merged, tokenizer):
            part.save_pretrained(folder / "merged")
        exporting._write_onnx(merged.eval(), ["input_ids", "attention_mask"], folder / "model.onnx")
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folder / "model.onnx", folder / "model.int8.onnx", per_channel=True)
        ways = {
            "ours, float32": lambda: labeller(exact),
            "transformers' pipeline, batches of 16": lambda: plain(folder / "merged"),
            "ONNX Runtime, float32, batches of 8": lambda: onnx(folder / "model.onnx", 8),
            "ONNX Runtime, 8 bits (dynamic), batches of 8": lambda: onnx(folder / "model.int8.onnx", 8),
            "ours (--engine torch)": lambda: labeller(run),
            "OpenVINO (--engine openvino)": lambda: labeller(run, "openvino"),
            "OpenVINO, 8 bits (--engine int8)": lambda: labeller(run, "int8"),
        }
        reference = None
        for way, build in ways.items():
            started = time.perf_counter()
            label = build()
            label(texts[:WARM])
            built = time.perf_counter() - started
            started = time.perf_counter()
            labels = np.array(label(texts))
            seconds = time.perf_counter() - started
            reference = labels if reference is None else reference
            about = {"texts_per_s": len(texts) / seconds, "seconds_to_build": built, "accuracy": float((labels == gold).mean())}
            about["equal_labels"] = float((labels == reference).mean())
            found.append({"way": way, **about})
            print(f"{way:<46}" + "   ".join(f"{name} {value:.4g}" for name, value in about.items()), flush=True)
    label, ids = labeller(run), tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    alone = {}
    for n in ALONE:
        pieces = [tokenizer.decode(ids[i * n : (i + 1) * n]) for i in range(TIMES)]
        label(pieces[:1])
        p50, p95 = np.percentile([1000 * timeit(functools.partial(label, [text]), number=1) for text in pieces], [50, 95])
        alone[n] = {"p50_ms": float(p50), "p95_ms": float(p95)}
    command = [sys.executable, str(ROOT / "predict.py"), "--run", str(arguments.run), "A film to remember."]
    first = statistics.median(
        timeit(lambda: subprocess.run(command, check=True, capture_output=True), number=1) for _ in range(PROCESSES)
    )
    print(f"one text alone: {alone}; from the start of the process to its label {first:.1f} s")
    versions = {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "onnxruntime")}
    about = {
        "rows": len(texts),
        "split": rows.test_split,
        "model": run.record["model"],
        "dataset": rows.source.name,
        "versions": versions,
        "alone": alone,
        "seconds_to_first_label": first,
    }
    record = about | {"max_length": run.config.max_length, "threads": torch.get_num_threads(), "ways": found}
    run_folder.write_json(ROOT / "results" / f"engines-{arguments.name}.json", record | {"environment": run_folder.environment()})


if __name__ == "__main__":
    main()
