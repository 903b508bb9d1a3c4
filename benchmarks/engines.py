"""Measure how fast new texts are labelled: the engines of predict.py beside ONNX Runtime and the pipeline of transformers.

    python benchmarks/engines.py outputs/RUN --name two-cores

RUN is a run of text classification. All engines label the same `--rows` texts of its test split. The clock starts when an engine is
loaded and built, and stops when all texts have labels. The labels are compared with those of PyTorch in float32.

Two more times are measured: for a single text with the engine loaded, and for the script predict.py from its start to its label.
Writes results/engines-NAME.json.
"""

import argparse
import functools
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from timeit import timeit

import numpy as np
import torch
import transformers
from common import ROOT, python, write_record

from finetuning import console, tasks
from finetuning.data.splits import load_data
from finetuning.data.text import clean
from finetuning.results.run_folder import find_base_model, load_predictor, open_run
from finetuning.use.exporting import OnnxModel, write_onnx
from finetuning.use.predicting import load_engine

WARM_UP_TEXTS = 64
SINGLE_TEXT_LENGTHS = (20, 100, 400)  # tokens of the texts that are labelled one at a time
SINGLE_TEXTS = 100  # texts of each length
STARTS = 5  # how often predict.py is started to label one text

Labeller = Callable[[list[str]], list[str]]


def ours(run, engine: str = "torch", model=None) -> Labeller:
    """Return a function that labels texts as predict.py does. If `model` is given, it replaces the run's model."""
    predictor = load_engine(run, engine)
    predictor.model = model or predictor.model
    return lambda texts: run.task.answers(predictor, {"text": texts})["prediction"]


def pipeline(folder: Path, max_length: int) -> Labeller:
    """Return a function that labels texts with the pipeline of transformers."""
    classify = transformers.pipeline("text-classification", model=str(folder), device=-1)
    return lambda texts: [answer["label"] for answer in classify(texts, batch_size=16, truncation=True, max_length=max_length)]


def engine_builders(run, folder: Path) -> dict[str, Callable[[], Labeller]]:
    """Return name -> a function that builds a labeller. Write the merged model and its ONNX files to `folder`."""
    from onnxruntime.quantization import quantize_dynamic

    in_float32 = replace(run, config=replace(run.config, precision="float32"))
    in_batches_of_8 = replace(run, config=replace(run.config, eval_batch_size=8))
    predictor = load_predictor(in_float32, find_base_model(run))
    merged, onnx, onnx_int8 = predictor.model.merge_and_unload().eval(), folder / "float32.onnx", folder / "int8.onnx"
    merged.set_attn_implementation("sdpa")
    for part in (merged, predictor.tokenizer):
        part.save_pretrained(folder / "merged")
    write_onnx(merged, ["input_ids", "attention_mask"], onnx)
    quantize_dynamic(onnx, onnx_int8, per_channel=True)
    return {
        "ours, float32": lambda: ours(in_float32),
        "transformers' pipeline, batches of 16": lambda: pipeline(folder / "merged", run.config.max_length),
        "ONNX Runtime, float32, batches of 8": lambda: ours(in_batches_of_8, model=OnnxModel(onnx)),
        "ONNX Runtime, 8 bits (dynamic), batches of 8": lambda: ours(in_batches_of_8, model=OnnxModel(onnx_int8)),
        "ours (--engine torch)": lambda: ours(run),
        "OpenVINO (--engine openvino)": lambda: ours(run, "openvino"),
        "OpenVINO, 8 bits (--engine int8)": lambda: ours(run, "int8"),
    }


def compare(builders: dict[str, Callable[[], Labeller]], texts: list[str], actual: np.ndarray) -> list[dict]:
    """Return the speed and accuracy of each engine, and the fraction of its labels that equal those of the first engine."""
    results, reference = [], None
    for name, build in builders.items():
        started = time.perf_counter()
        label = build()
        label(texts[:WARM_UP_TEXTS])
        built = time.perf_counter()
        labels = np.array(label(texts))
        result = {"texts_per_s": len(texts) / (time.perf_counter() - built), "seconds_to_build": built - started}
        reference = labels if reference is None else reference
        result |= {"accuracy": float((labels == actual).mean()), "equal_labels": float((labels == reference).mean())}
        results.append({"way": name} | result)
        print(f"{name:<46}" + "   ".join(f"{key} {value:.4g}" for key, value in result.items()), flush=True)
    return results


def time_single_texts(run, texts: list[str]) -> dict[int, dict[str, float]]:
    """Return number of tokens -> milliseconds to label one text with predict.py's engine: median and 95th percentile."""
    label, tokenizer, times = ours(run), load_predictor(run, find_base_model(run)).tokenizer, {}
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    for n in SINGLE_TEXT_LENGTHS:
        pieces = [tokenizer.decode(ids[i * n : (i + 1) * n]) for i in range(SINGLE_TEXTS)]
        label(pieces[:1])
        milliseconds = [1000 * timeit(functools.partial(label, [text]), number=1) for text in pieces]
        times[n] = dict(zip(("p50_ms", "p95_ms"), np.percentile(milliseconds, [50, 95]).tolist(), strict=True))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder of text classification")
    parser.add_argument("--name", required=True, help="name of the machine, part of the name of the record's file")
    parser.add_argument("--rows", type=int, default=2000, help="number of test texts")
    arguments = parser.parse_args()
    console.quiet_libraries()
    run = open_run(arguments.run, tasks.pick)
    data = load_data(run.task, run.config, run.origins["dataset"])
    test = data.test.select(np.random.default_rng(0).permutation(len(data.test))[: arguments.rows])
    texts, actual = clean(test.columns()["text"]), np.array(data.label_names)[test.labels]
    with tempfile.TemporaryDirectory() as folder:
        results = compare(engine_builders(run, Path(folder)), texts, actual)
    single_texts = time_single_texts(run, texts)
    command = [str(ROOT / "predict.py"), "--run", str(arguments.run.resolve()), "A film to remember."]
    first_label = statistics.median(timeit(lambda: python(*command), number=1) for _ in range(STARTS))
    print(f"one text at a time: {single_texts}; from the start of predict.py to its label: {first_label:.1f} s")
    record = {
        "rows": len(texts),
        "split": data.test_split,
        "model": run.record["model"],
        "dataset": data.source.name,
        "versions": {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "onnxruntime")},
        "alone": single_texts,
        "seconds_to_first_label": first_label,
        "max_length": run.config.max_length,
        "threads": torch.get_num_threads(),
        "ways": results,
    }
    write_record(f"engines-{arguments.name}", record)


if __name__ == "__main__":
    main()
