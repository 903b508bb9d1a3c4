"""Measure the speed of training and prediction on this machine, beside a plain Trainer: float32, all reviews padded.

    python benchmarks/speed.py --name NAME     writes results/speed-NAME.json; 12 minutes per repeat on two cores
    python benchmarks/speed.py --repeats 1     fewer repeats
    python benchmarks/speed.py --quick         one repeat at 512 tokens, some minutes on a GPU; given again, it continues

On a CPU each variant adds a step to the one before (STEPS). Where there is a GPU, it is measured: the variants run the same steps in
different ways (WAYS), and the record is results/gpu-NAME.json.

Each measurement is a process of its own. Variants take turns (A B A B ...), and the record has their medians. Rows are real IMDb
reviews. On a CPU, "ours" trains on every eighth step that batches.py makes of 3,200 reviews, so that their lengths are those of a
whole epoch. The baseline pads every review to max_length, so a few reviews are enough.
"""

import argparse
import functools
import itertools
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from common import RESULTS, new_processes, write_record
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning import console, speed, tasks
from finetuning.data import splits, tokens
from finetuning.data.sources import find_model
from finetuning.data.text import clean
from finetuning.disk import read_json
from finetuning.model import base, lora
from finetuning.results.run_folder import environment, peak_memory_gib
from finetuning.speed import attention, precision
from finetuning.training import batches, prediction, trainer

MODELS = {"distilbert": "DistilBERT's shape, random weights", "stand-in": "all-MiniLM-L6-v2 (stand-in)"}
SHAPES = {  # on a GPU
    "distilbert": MODELS["distilbert"],
    "bert": "BERT-base's shape, random weights",
    "gpt2": "GPT-2's shape, random weights",
}
LENGTHS = (512, 256)
LADDER = ("distilbert", 256)  # each step is measured here; elsewhere only the first and the last
STEPS = {  # from the baseline to "ours"; each adds to those before it
    "baseline": "float32, padded to max_length, dropout 0.1, LoRA on query and value, batches of 16",
    "no dropout": "neither the model's own nor LoRA's",
    "by length": "batches of similar length, padded to their longest review",
    "autocast": "bf16 autocast",
    "all linear": "LoRA on all linear layers, batches of 32: more work, for accuracy",
    "bf16 weights": "frozen weights stored in bf16 in place of autocast",
    "fused LoRA": "each adapter in one autograd node",
    "attention": "a few reviews at a time, so that their scores stay in the cache",
    "ours": "freed memory is kept for the next step",
}
WAYS = {  # on a GPU
    "baseline": STEPS["baseline"],
    "tutorial": "transformers and peft alone: bf16 autocast, each batch padded to its longest review, else as the baseline",
    "peft": "batches of similar length, bf16 autocast, LoRA on all linear layers with peft's own code",
    "fused LoRA": "also frozen weights stored in bf16 in place of autocast, and each adapter in one autograd node",
    "ours": "as in fine_tune.py: also recorded as CUDA graphs, batches padded to one of eight lengths",
}


def plain_trainer(model_path: str, reviews, max_length: int, padding: str | bool = "max_length", **settings):
    """Return the Trainer of the baseline, a function that predicts with it, and the lengths of the reviews.

    Only transformers and peft are used. With `padding` False, batches are padded to their longest review. `settings` are
    TrainingArguments.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    rows = Dataset.from_dict({"text": clean(reviews.columns()["text"]), "label": reviews.labels})
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, padding=padding, max_length=max_length), batched=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    names = {"distilbert": ["q_lin", "v_lin"], "gpt2": ["c_attn"]}.get(model.config.model_type, ["query", "value"])
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=names))
    settings = dict(per_device_train_batch_size=16, per_device_eval_batch_size=16, num_train_epochs=1, report_to="none") | settings
    arguments = transformers.TrainingArguments(**settings)
    stock = transformers.Trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return stock, lambda: stock.predict(rows), [sum(mask) for mask in rows["attention_mask"]]


def leave_out(step: str) -> Config:
    """Turn off the steps after `step` in this process, and return the settings of fine_tune.py that remain."""
    included = [*STEPS][: [*STEPS].index("ours" if torch.cuda.is_available() else step) + 1]
    settings = dict(length_warmup=0.0, early_stopping_patience=0, cuda_graphs=step == "ours")
    settings |= dict(speedups="bf16 weights" in included and step != "peft")
    if "by length" not in included:
        settings |= dict(padding="max_length")
    if "autocast" not in included:
        settings |= dict(precision="float32")
    if "all linear" not in included:
        settings |= dict(target_modules="query-value", lora_r=8, lora_alpha=16, batch_size=16)
    if "fused LoRA" not in included:
        speed.fuse_lora = lambda *_, **__: None
    if "attention" not in included:
        attention.ATTENTION = "sdpa"
    if "ours" not in included:
        speed.keep_freed_memory = lambda: None
    return Config(**settings)


def product(step: str, model_path: str, reviews, max_length: int):
    """Return the same as `plain_trainer`, but of the code of fine_tune.py without the steps after `step`."""
    config = replace(leave_out(step), model_name=model_path, max_length=max_length)
    task, source = tasks.pick(config), find_model(model_path)
    tokenizer = base.load_tokenizer(task, source, config)
    model = lora.add_lora(task, base.build_base(task, source, ["neg", "pos"], config), config)
    lengths = np.minimum(tokens.encode(task, reviews, tokenizer, config).lengths, max_length)
    by_length = config.padding == "longest"
    steps = batches.steps_of_epoch(lengths, config.batch_size, seed=0, epoch=0, by_length=by_length)
    every = 1 if torch.cuda.is_available() else 8
    reviews = reviews.select(np.concatenate(steps[::every] if by_length else steps[:3]))
    rows = tokens.encode(task, reviews, tokenizer, config)
    data = splits.Data(reviews, reviews, reviews, task, config, ["neg", "pos"], [], source, "", "", "")
    fine_tuner = trainer.build_trainer(model, tokenizer, {"train": rows, "validation": rows}, data, Path("checkpoints"))
    batches.steps_of_epoch = lambda lengths, size, *_: np.array_split(
        np.arange(len(lengths)), len(lengths) // size
    )  # keeps the order
    fine_tuner.args.load_best_model_at_end = False
    predictor = prediction.Predictor(task, model, tokenizer, config)
    return fine_tuner, lambda: task.predict(predictor, rows), np.minimum(rows.lengths, max_length).tolist()


def measure(step: str, model_path: str, max_length: int, rows: int) -> dict:
    """Train and predict with one variant, and return its row. Tokens and multiply-adds do not include padding."""
    console.quiet_libraries()
    torch.manual_seed(0)
    plain = {"baseline": plain_trainer, "tutorial": functools.partial(plain_trainer, padding=False, bf16=True)}
    config, on_gpu = Config(train_samples=rows), torch.cuda.is_available()
    reviews = splits.load_data(tasks.pick(config), config).train
    reviews = reviews.select(np.random.default_rng(0).permutation(len(reviews)))
    if step in plain:
        reviews = reviews.select(range(rows // 4 if on_gpu else 48))
    build = plain.get(step, functools.partial(product, step))
    model_trainer, predict, lengths = build(model_path, reviews, max_length)
    model_trainer.args.eval_strategy = model_trainer.args.save_strategy = model_trainer.args.logging_strategy = "no"
    model_trainer.args.disable_tqdm = True
    model_trainer.args.max_steps = -1 if on_gpu else 2
    model_trainer.train()  # warm-up; on a GPU with all lengths, because its libraries plan for each length
    model_trainer.args.max_steps = -1
    train_seconds, seconds_before = timed_training(model_trainer)
    memory = peak_memory_gib()
    if on_gpu:
        predict()
    predict_seconds, rate = timed(predict), matrix_rate()
    return {
        "train_reviews_per_s": len(lengths) / train_seconds,
        "seconds_before_training": seconds_before,
        "predict_reviews_per_s": len(lengths) / predict_seconds,
        "peak_memory_gib": memory,
        "matrix_product_tflops": 2 * rate / 1e12,
        "share_of_limit": multiply_adds(model_trainer.model, lengths) / train_seconds / rate,
    }


class Start(transformers.TrainerCallback):
    """Records when the epoch begins."""

    def on_epoch_begin(self, *_, **__) -> None:
        self.epoch_began = time.perf_counter()


def timed_training(model_trainer: transformers.Trainer) -> tuple[float, float]:
    """Return the seconds of training, and those before it, in which CUDA graphs are recorded once per run."""
    started, start = time.perf_counter(), Start()
    model_trainer.add_callback(start)
    seconds = timed(model_trainer.train)
    return started + seconds - start.epoch_began, start.epoch_began - started


def timed(call) -> float:
    """Return the seconds that `call` takes, including the work of a GPU."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate() -> float:
    """Return the multiply-adds per second of a large matrix product, 4096 x 4096 x 4096, the best of five.

    It is in the precision that the product uses on this machine: without instructions for bf16, bf16 is far slower than float32.
    """
    dtype = torch.bfloat16 if precision.pick_precision("auto")[0] == "bf16" else torch.float32
    a, b = torch.randn(2, 4096, 4096, device="cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)
    return 4096**3 / min(timed(lambda: a @ b) for _ in range(5))


def multiply_adds(model, lengths: list[int]) -> float:
    """Return the multiply-adds that a training step over reviews of these lengths cannot avoid.

    A frozen linear layer has two per weight and token (forward, gradient of the input), an adapter three (also the gradient of
    the weight). Attention has tokens x tokens x width for each of two products forward and four backward. Embeddings, the head and
    elementwise operations are not counted.
    """
    weights = {True: 0, False: 0}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and re.search(r"\.(layer|h)\.\d+\.", name):
            weights["lora_" in name] += module.weight.numel()
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    return sum((2 * weights[False] + 3 * weights[True]) * n + 6 * layers * width * n * n for n in lengths)


def save_shape(model_type: str, folder: str) -> str:
    """Save the architecture with random weights and the tokenizer of the stand-in, whose vocabulary is that of BERT and DistilBERT."""
    stand_in = find_model("distilbert-base-uncased", "stand-in").path
    if model_type == "stand-in":
        return str(stand_in)
    path = f"{folder}/{model_type}"
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type)).save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(stand_in).save_pretrained(path)
    return path


def measure_all(arguments: argparse.Namespace, name: str | None) -> None:
    """Measure each variant, in turns, each time in a process of its own. Write results/NAME.json after each: the medians so far.

    With --quick, a record of the same code and machine is continued: its rows are not measured again.
    """
    models, steps = (SHAPES, WAYS) if torch.cuda.is_available() else (MODELS, STEPS)
    repeats, lengths = (1, LENGTHS[:1]) if arguments.quick else (arguments.repeats, LENGTHS)
    variants = itertools.product(arguments.models or models, lengths, arguments.variants or steps)
    if steps is STEPS:
        variants = [variant for variant in variants if variant[2] in ("baseline", "ours") or variant[:2] == LADDER]
    measured = {variant: [] for variant in variants}
    record = {"repeats": repeats, "reviews": arguments.rows}
    if arguments.quick and (file := RESULTS / f"{name}.json").exists():
        earlier = read_json(file)
        now, then = environment(), earlier["environment"]
        is_same = record.items() <= earlier.items() and all(now[key] == then[key] for key in ("hardware", "commit", "versions"))
        for row in earlier["rows"] if is_same else ():
            (model,) = (model for model, title in models.items() if title == row["model"])
            values = {key: value for key, value in row.items() if isinstance(value, float)}
            measured[model, row["max_length"], row["variant"]] = [values]
    with tempfile.TemporaryDirectory() as folder, new_processes(folder=folder) as processes:
        paths = {model: save_shape(model, folder) for model in {model for model, _, _ in measured}}
        for repeat in range(repeats):
            for (model, length, step), results in measured.items():
                if len(results) > repeat:
                    continue
                results.append(processes.submit(measure, step, paths[model], length, arguments.rows).result())
                values = "  ".join(f"{key} {value:.3g}" for key, value in results[-1].items())
                print(f"{repeat + 1}  {models[model]:<36} {length}  {step:<13}  {values}", flush=True)
                rows = [
                    {"model": models[model], "max_length": length, "variant": step}
                    | {key: median(result[key] for result in results) for key in results[0]}
                    for (model, length, step), results in measured.items()
                    if results
                ]
                record |= {"rows": rows, "steps": steps}
                if name:
                    write_record(name, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="name of the machine, for the record's file; without it the results are only printed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat at 512 tokens only")
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(MODELS | SHAPES)}")
    parser.add_argument("--variants", nargs="+", help=f"any of {', '.join(STEPS | WAYS)}")
    parser.add_argument("--rows", type=int, default=3200, help="number of reviews")
    arguments = parser.parse_args()
    if arguments.name and arguments.variants:
        parser.error("a record has all variants: give --name or --variants, not both")
    kind = "gpu" if torch.cuda.is_available() else "speed"
    measure_all(arguments, arguments.name and f"{kind}-{arguments.name}")


if __name__ == "__main__":
    main()
