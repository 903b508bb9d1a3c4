"""How fast training and prediction are, beside the recipe that tutorials use, on this machine.

    python benchmarks/speed.py --name NAME     writes results/speed-NAME.json; 12 minutes a repeat on two cores
    python benchmarks/speed.py --repeats 1     a quicker look
    python benchmarks/speed.py --device cuda --quick --name NAME    results/gpu-NAME.json: three models at 512 tokens, some minutes

On a CPU each variant adds to the one before (STEPS); on a GPU each is another way to run the same steps (WAYS).

Each measurement is a process of its own. The variants take turns (A B A B ...), and medians are reported. Rows are real IMDb
reviews. Ours trains on every eighth of the steps that batches.py makes of 3,200 reviews, so that their lengths are those of a whole
epoch. The baseline pads every review to max_length, so that a few of them suffice.
"""

import argparse
import functools
import itertools
import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
import transformers
from common import flags, machine_file, run_script, worker
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning import console, speed, tasks
from finetuning.data import splits, tokens
from finetuning.data.sources import find_model
from finetuning.data.text import clean
from finetuning.disk import write_json
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
LADDER = ("distilbert", 256)  # where each step is measured; elsewhere only the first and the last
STEPS = {  # from the baseline to ours, each on top of those before it
    "baseline": "float32, padded to max_length, dropout 0.1, LoRA on query and value, batches of 16",
    "no dropout": "neither the model's own nor LoRA's",
    "by length": "batches of like length, padded to their longest review",
    "autocast": "bf16 autocast",
    "all linear": "LoRA on all linear layers, batches of 32: more work, for accuracy",
    "bf16 weights": "frozen weights stored in bf16, in place of autocast",
    "fused LoRA": "each adapter in one autograd node",
    "attention": "some reviews at a time, so that their scores stay in the cache",
    "ours": "memory that was freed kept for the next step",
}
WAYS = {  # on a GPU
    "baseline": STEPS["baseline"],
    "peft": "batches of like length, bf16 autocast, LoRA on all linear layers by peft's own code",
    "fused LoRA": "frozen weights stored in bf16, in place of autocast, and each adapter in one autograd node",
    "ours": "as fine_tune.py does it: recorded as CUDA graphs too, batches padded to one of eight lengths",
}


def tutorial(model_path: str, reviews, max_length: int, **settings):
    """Return a Trainer, a function that predicts, and lengths: the baseline, as a tutorial writes it, on the stock libraries.

    `settings` are those of its TrainingArguments.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    rows = Dataset.from_dict({"text": clean(reviews.columns()["text"]), "label": reviews.labels})
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, padding="max_length", max_length=max_length), batched=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    names = {"distilbert": ["q_lin", "v_lin"], "gpt2": ["c_attn"]}.get(model.config.model_type, ["query", "value"])
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=names))
    settings = dict(per_device_train_batch_size=16, per_device_eval_batch_size=16, num_train_epochs=1, report_to="none") | settings
    stock = transformers.Trainer(model=model, args=transformers.TrainingArguments(**settings), train_dataset=rows)
    return stock, lambda: stock.predict(rows), [sum(mask) for mask in rows["attention_mask"]]


def leave_out(step: str) -> Config:
    """Turn off in this process what comes after `step`; return the settings of `fine_tune.py` that remain."""
    on_gpu = torch.cuda.is_available() or step not in STEPS
    included = [*STEPS][: [*STEPS].index("ours" if on_gpu else step) + 1]
    settings = dict(length_warmup=0.0, early_stopping_patience=0, cuda_graphs=step == "ours")
    if "by length" not in included:
        settings |= dict(padding="max_length")
    if "all linear" not in included:
        settings |= dict(target_modules="query-value", lora_r=8, lora_alpha=16, batch_size=16)
    if "bf16 weights" not in included:
        settings |= dict(precision="float32")
        arguments = precision.machine_arguments
        for module in (trainer, prediction):
            module.machine_arguments = lambda config: arguments(config) | {"bf16": "autocast" in included}
    if "fused LoRA" not in included:
        speed.fuse_lora = lambda *_, **__: None
    if "attention" not in included:
        attention.ATTENTION = "sdpa"
    if step == "peft":
        speed.uses_autocast = precision.uses_autocast = lambda config: True
    if "ours" not in included:
        speed.keep_freed_memory = lambda: None
    return Config(**settings)


def product(step: str, model_path: str, reviews, max_length: int):
    """Return what `tutorial` does, of fine_tune.py's own code without the steps that come after `step`."""
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
    batches.steps_of_epoch = lambda lengths, size, *_: np.array_split(np.arange(len(lengths)), len(lengths) // size)  # that order
    fine_tuner.args.load_best_model_at_end = False
    predictor = prediction.Predictor(task, model, tokenizer, config)
    return fine_tuner, lambda: task.predict(predictor, rows), np.minimum(rows.lengths, max_length).tolist()


def measure(step: str, model_path: str, max_length: int, rows: int) -> dict:
    """Train and predict with one variant. Tokens and multiply-adds are those of the reviews, without padding."""
    console.quiet_libraries()
    torch.manual_seed(0)
    config, on_gpu = Config(train_samples=rows), torch.cuda.is_available()
    reviews = splits.load_data(tasks.pick(config), config).train
    reviews = reviews.select(np.random.default_rng(0).permutation(len(reviews)))
    if step == "baseline":
        reviews = reviews.select(range(rows // 4 if on_gpu else 48))
    build = functools.partial(product, step) if step != "baseline" else tutorial
    model_trainer, predict, lengths = build(model_path, reviews, max_length)
    model_trainer.args.eval_strategy = model_trainer.args.save_strategy = model_trainer.args.logging_strategy = "no"
    model_trainer.args.disable_tqdm = True
    model_trainer.args.max_steps = -1 if on_gpu else 2
    model_trainer.train()  # warm-up; on a GPU with all lengths, as its libraries plan each one anew
    model_trainer.args.max_steps = -1
    train_seconds, seconds_before = timed_training(model_trainer)
    memory = peak_memory_gib()
    if on_gpu:
        predict()
    predict_seconds, rate = timed(predict), matrix_rate()
    return {
        "train_reviews_per_s": len(lengths) / train_seconds,
        "train_tokens_per_s": sum(lengths) / train_seconds,
        "seconds_before_training": seconds_before,
        "predict_reviews_per_s": len(lengths) / predict_seconds,
        "predict_tokens_per_s": sum(lengths) / predict_seconds,
        "peak_memory_gib": memory,
        "matrix_product_tflops": 2 * rate / 1e12,
        "share_of_limit": multiply_adds(model_trainer.model, lengths) / train_seconds / rate,
    }


class Start(transformers.TrainerCallback):
    """Notes when the first epoch begins; `stop` ends the process at the first step with the seconds since its start."""

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop

    def on_epoch_begin(self, *_, **__) -> None:
        self.at = time.perf_counter()

    def on_step_begin(self, *_, **__) -> None:
        if self.stop:
            raise SystemExit(json.dumps({"seconds_to_first_step": time.time() - psutil.Process().create_time()}))


def timed_training(model_trainer: transformers.Trainer) -> tuple[float, float]:
    """Return seconds of training, and those until the first epoch, in which CUDA graphs are recorded: once a run, however long it is."""
    started, start = time.perf_counter(), Start()
    model_trainer.add_callback(start)
    seconds = timed(model_trainer.train)
    return started + seconds - start.at, start.at - started


def timed(call) -> float:
    """Return the seconds that `call` takes, a GPU's work included."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate() -> float:
    """Return the multiply-adds per second of a large bf16 matrix product: the best of five, 4096 x 4096 x 4096."""
    a, b = torch.randn(2, 4096, 4096, device="cuda" if torch.cuda.is_available() else "cpu").bfloat16()
    return 4096**3 / min(timed(lambda: a @ b) for _ in range(5))


def multiply_adds(model, lengths: list[int]) -> float:
    """Return those that one training step over reviews of these lengths can't do without.

    A frozen linear layer: one for each weight and token forward, one backward (the gradient of its input). An adapter:
    three (forward, input, weight). Attention: tokens x tokens x width, two products forward and four backward.
    Embeddings, the head and everything elementwise count as nothing.
    """
    weights = {True: 0, False: 0}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and re.search(r"\.(layer|h)\.\d+\.", name):
            weights["lora_" in name] += module.weight.numel()
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    return sum((2 * weights[False] + 3 * weights[True]) * n + 6 * layers * width * n * n for n in lengths)


def start_up() -> dict:
    """Return the seconds from the start of `python fine_tune.py` to its first training step, default settings, caches warm."""
    try:
        run_script("fine_tune.py", *flags(output_dir="outputs", run_name="start-up"), callback=Start(stop=True))
    except SystemExit as stop:
        return json.loads(stop.code)
    raise RuntimeError("fine_tune.py ended before its first step")


def save_shape(model_type: str, folder: str) -> str:
    """Save a model's true shape with random weights and the stand-in's tokenizer, whose vocabulary is that of BERT and DistilBERT."""
    stand_in = find_model("distilbert-base-uncased", "stand-in").path
    if model_type == "stand-in":
        return str(stand_in)
    path = f"{folder}/{model_type}"
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type)).save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(stand_in).save_pretrained(path)
    return path


def measure_all(arguments: argparse.Namespace) -> dict:
    """Return the record: medians of the variants, each in a process of its own."""
    models, steps = (MODELS, STEPS) if arguments.device == "cpu" else (SHAPES, WAYS)
    repeats, lengths = (1, LENGTHS[:1]) if arguments.quick else (arguments.repeats, LENGTHS)
    variants = itertools.product(arguments.models or models, lengths, arguments.variants or steps)
    everywhere = {"baseline", "ours", *WAYS} if steps is WAYS else {"baseline", "ours"}
    seen = {(m, n, step): [] for m, n, step in variants if step in everywhere or (m, n) == LADDER}
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {model: save_shape(model, folder) for model, _, _ in seen}
        for repeat in range(repeats):
            if steps is STEPS:
                starts.append(worker(__file__, "start-up")["seconds_to_first_step"])
            for (model, length, step), measured in seen.items():
                measured.append(worker(__file__, step, paths[model], str(length), str(arguments.rows)))
                values = "  ".join(f"{key} {value:.3g}" for key, value in measured[-1].items())
                print(f"{repeat + 1}  {models[model]:<36} {length}  {step:<13}  {values}", flush=True)
    rows = [
        {"model": models[model], "max_length": length, "variant": step}
        | {key: median(m[key] for m in measured) for key in measured[0]}
        for (model, length, step), measured in seen.items()
    ]
    return {"repeats": repeats, "rows": rows, "steps": steps} | ({"seconds_to_first_step": median(starts)} if starts else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the machine, in the name of its record; not given: only printed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which variants: STEPS or WAYS")
    parser.add_argument("--quick", action="store_true", help="one repeat, 512 tokens only")
    parser.add_argument("--models", nargs="+", help=f"some of {', '.join(MODELS | SHAPES)}")
    parser.add_argument("--variants", nargs="+", help=f"some of {', '.join(STEPS | WAYS)}")
    parser.add_argument("--rows", type=int, default=3200, help="reviews")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name and arguments.variants:
        parser.error("--variants are printed, a record has all of them: leave --name out")
    if arguments.worker:
        step, *rest = arguments.worker
        print(json.dumps(start_up() if step == "start-up" else measure(step, rest[0], *map(int, rest[1:]))))
        return
    record = measure_all(arguments)
    if "seconds_to_first_step" in record:
        print(f"start of the process to the first training step: {record['seconds_to_first_step']:.1f} s")
    if arguments.name:
        file = machine_file("speed" if arguments.device == "cpu" else "gpu", arguments.name)
        write_json(file, record | {"environment": environment()})


if __name__ == "__main__":
    main()
