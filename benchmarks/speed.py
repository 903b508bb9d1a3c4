"""How fast training and prediction are, beside the recipe that tutorials use, on this machine.

    python benchmarks/speed.py --name NAME     writes results/speed-NAME.json; 12 minutes a repeat on two cores
    python benchmarks/speed.py --repeats 1     a quicker look
    python benchmarks/speed.py --device cuda --quick --name NAME    results/gpu-NAME.json: three models at 512 tokens, some minutes

On a GPU each variant is a way of its own to run the same steps (WAYS); on a CPU each adds to the one before (STEPS).

Each measurement is a process of its own. The variants take turns (A B A B ...), and medians are reported. Rows are real
IMDb reviews; the product trains on every eighth of the steps that batches.py makes of 3,200 reviews, so that their lengths
are those of a whole epoch. The baseline pads every review to max_length, so that few of them tell its speed.
"""

import argparse
import functools
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODELS = {"distilbert": "DistilBERT's shape, random weights", "stand-in": "all-MiniLM-L6-v2 (stand-in)"}
SHAPES = {  # of a GPU
    "distilbert": MODELS["distilbert"],
    "bert": "BERT-base's shape, random weights",
    "gpt2": "GPT-2's shape, random weights",
}
LENGTHS = (512, 256)
LADDER = ("distilbert", 256)  # where each step is measured, not the first and the last only
STEPS = {  # what lies between the baseline and ours, each on top of those before it
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
    """The baseline, as a tutorial writes it, on the stock libraries: a Trainer, a function that predicts, and lengths.

    `settings` are of its TrainingArguments.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from finetuning.tasks import text_classification

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rows = Dataset.from_dict({"text": text_classification.texts(reviews.columns()), "label": reviews.labels})
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, padding="max_length", max_length=max_length), batched=True)
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    names = {"distilbert": ["q_lin", "v_lin"], "gpt2": ["c_attn"]}.get(model.config.model_type, ["query", "value"])
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=names))
    settings = dict(per_device_train_batch_size=16, per_device_eval_batch_size=16, num_train_epochs=1, report_to="none") | settings
    arguments = TrainingArguments(**settings)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    return trainer, lambda: trainer.predict(rows), [sum(mask) for mask in rows["attention_mask"]]


def product(step: str, model_path: str, reviews, max_length: int):
    """A variant through the product's own code, without the steps that come after `step`; returns what `tutorial` does."""
    import numpy as np

    from config import Config
    from finetuning.data import sources
    from finetuning.data import tokens as tokenizing
    from finetuning.model import lora as model
    from finetuning.speed import fast
    from finetuning.tasks import text_classification
    from finetuning.training import batches
    from finetuning.training import trainer as training

    on_gpu = not fast.on_cpu() or step in set(WAYS) - set(STEPS)
    last = "ours" if on_gpu else step
    has = dict.fromkeys(STEPS, False) | dict.fromkeys(list(STEPS)[: list(STEPS).index(last) + 1], True)
    settings = dict(
        model_name=model_path, max_length=max_length, length_warmup=0.0, early_stopping_patience=0, cuda_graphs=step == "ours"
    )
    if not has["by length"]:
        settings |= dict(padding="max_length")
    if not has["all linear"]:
        settings |= dict(target_modules="query-value", lora_r=8, lora_alpha=16, batch_size=16)
    if not has["bf16 weights"]:
        settings |= dict(precision="float32")
        machine = training._machine
        training._machine = lambda config: machine(config) | {"bf16": has["autocast"]}
    if not has["fused LoRA"]:
        fast.fuse_lora = lambda model: None
    if not has["attention"]:
        fast.ATTENTION = "sdpa"
    if step == "peft":
        fast.uses_autocast = training.uses_autocast = lambda config: True
    if not has["ours"]:
        fast.keep_freed_memory = lambda: None
    config = Config(**settings)
    source = sources.find_model(model_path)
    tokenizer = model.load_tokenizer(source, config)
    lora = model.add_lora(model.build_base(source, ["neg", "pos"], config), config)
    lengths = np.minimum(tokenizing.encode(reviews, tokenizer, config).lengths, max_length)
    steps = batches.steps_of_epoch(lengths, config.batch_size, seed=0, epoch=0, by_length=has["by length"])
    share = 1 if on_gpu else 8
    reviews = reviews.select(np.concatenate(steps[::share] if has["by length"] else steps[:3]))
    rows = tokenizing.encode(reviews, tokenizer, config)
    data = SimpleNamespace(train=reviews, label_names=["neg", "pos"])
    trainer = training.build_trainer(lora, tokenizer, rows, rows, data, config, Path("checkpoints"))
    batches.steps_of_epoch = lambda lengths, size, *_: np.array_split(np.arange(len(lengths)), len(lengths) // size)  # that order
    trainer.args.load_best_model_at_end = False
    return (
        trainer,
        lambda: text_classification.predict(lora, tokenizer, rows, config),
        np.minimum(rows.lengths, max_length).tolist(),
    )


def measure(step: str, model_path: str, max_length: int, rows: int) -> dict:
    """Train and predict with one variant. Tokens and multiply-adds are those of the reviews, without padding."""
    import numpy as np

    from config import Config
    from finetuning import console
    from finetuning.data import splits as data
    from finetuning.results import run_folder

    console.quiet_libraries()
    torch.manual_seed(0)
    reviews = data.load_data(Config(train_samples=rows)).train
    reviews = reviews.select(np.random.default_rng(0).permutation(len(reviews)))
    on_gpu = torch.cuda.is_available()
    if step == "baseline":
        reviews = reviews.select(range(rows // 4 if on_gpu else 48))
    build = functools.partial(product, step) if step != "baseline" else tutorial
    trainer, predict, lengths = build(model_path, reviews, max_length)
    trainer.args.eval_strategy = trainer.args.save_strategy = trainer.args.logging_strategy = "no"
    trainer.args.disable_tqdm = True
    trainer.args.max_steps = -1 if on_gpu else 2
    trainer.train()  # warm-up; on a GPU with all lengths, as its libraries plan each one anew
    trainer.args.max_steps = -1
    train_seconds, seconds_before = timed_training(trainer)
    memory = run_folder.peak_memory_gib()
    if on_gpu:
        predict()
    predict_seconds = timed(predict)
    rate = matrix_rate()
    work = multiply_adds(trainer.model, lengths)
    return {
        "train_reviews_per_s": len(lengths) / train_seconds,
        "train_tokens_per_s": sum(lengths) / train_seconds,
        "seconds_before_training": seconds_before,
        "predict_reviews_per_s": len(lengths) / predict_seconds,
        "predict_tokens_per_s": sum(lengths) / predict_seconds,
        "peak_memory_gib": memory,
        "matrix_product_tflops": 2 * rate / 1e12,
        "share_of_limit": work / train_seconds / rate,
    }


def timed_training(trainer) -> tuple[float, float]:
    """Seconds of training, and those until the first epoch, in which CUDA graphs are recorded: once a run, however long it is."""
    from transformers import TrainerCallback

    class Started(TrainerCallback):
        def on_epoch_begin(self, *_, **__) -> None:
            self.at = time.perf_counter()

    begun, started = time.perf_counter(), Started()
    trainer.add_callback(started)
    whole = timed(trainer.train)
    return begun + whole - started.at, started.at - begun


def timed(call) -> float:
    """Seconds that `call` takes, a GPU's work included."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate() -> float:
    """Multiply-adds a second of a large bf16 matrix product: the best of five, 4096 x 4096 x 4096."""
    a, b = torch.randn(2, 4096, 4096, device="cuda" if torch.cuda.is_available() else "cpu").bfloat16()
    return 4096**3 / min(timed(lambda: a @ b) for _ in range(5))


def multiply_adds(model, lengths: list[int]) -> float:
    """Those that one training step over reviews of these lengths can't do without.

    A frozen linear layer: one for each weight and token forward, one backward (the gradient of its input). An adapter:
    three (forward, input, weight). Attention: tokens x tokens x width, two products forward and four backward.
    Embeddings, the head and everything elementwise count as nothing.
    """
    from transformers.pytorch_utils import Conv1D

    frozen = adapter = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and re.search(r"\.(layer|h)\.\d+\.", name):
            adapter += module.weight.numel() if "lora_" in name else 0
            frozen += module.weight.numel() if "lora_" not in name else 0
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    return sum((2 * frozen + 3 * adapter) * n + 6 * layers * width * n * n for n in lengths)


def start_up() -> dict:
    """Seconds from the start of `python fine_tune.py` to its first training step, default settings, caches warm."""
    import psutil
    from transformers import TrainerCallback

    from finetuning.training import trainer as training

    class Stop(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            raise SystemExit(json.dumps({"seconds_to_first_step": time.time() - psutil.Process().create_time()}))

    build = training.build_trainer

    def with_stop(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(Stop())
        return trainer

    training.build_trainer = with_stop
    sys.argv = ["fine_tune.py", "--output_dir", "outputs", "--run_name", "start-up"]
    try:
        runpy.run_path(str(ROOT / "fine_tune.py"), run_name="__main__")
    except SystemExit as stop:
        return json.loads(stop.code)
    raise RuntimeError("fine_tune.py ended before its first step")


def save_shape(model_type: str, folder: str) -> str:
    """A model's true shape with random weights, and the stand-in's tokenizer, whose vocabulary is that of BERT and DistilBERT."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from finetuning.data.sources import find_model

    path = f"{folder}/{model_type}"
    AutoModel.from_config(AutoConfig.for_model(model_type)).save_pretrained(path)
    AutoTokenizer.from_pretrained(find_model("distilbert-base-uncased", "stand-in").path).save_pretrained(path)
    return path


def worker(*arguments: str) -> dict:
    """Run one measurement in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", *arguments]
        done = subprocess.run(command, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


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

    from finetuning.data.sources import find_model
    from finetuning.results import run_folder

    with tempfile.TemporaryDirectory() as folder:
        models, steps = (MODELS, STEPS) if arguments.device == "cpu" else (SHAPES, WAYS)
        models = {name: words for name, words in models.items() if name in (arguments.models or models)}
        paths = {name: save_shape(name, folder) for name in models if name != "stand-in"}
        if "stand-in" in models:
            paths["stand-in"] = find_model("distilbert-base-uncased", "stand-in").path
        lengths = LENGTHS[:1] if arguments.quick else LENGTHS
        ends = ("baseline", "ours")
        settings = [(m, n, s) for m in models for n in lengths for s in steps if s in ends or steps is WAYS or (m, n) == LADDER]
        settings = [setting for setting in settings if setting[-1] in (arguments.variants or steps)]
        seen = {setting: [] for setting in settings}
        starts = []
        for repeat in range(1 if arguments.quick else arguments.repeats):
            if steps is STEPS:
                starts.append(worker("start-up")["seconds_to_first_step"])
            for model, length, step in settings:
                found = worker(step, paths[model], str(length), str(arguments.rows))
                seen[model, length, step].append(found)
                print(
                    f"{repeat + 1}  {models[model]:<36} {length}  {step:<13}",
                    "  ".join(f"{k} {v:.3g}" for k, v in found.items()),
                    flush=True,
                )
    rows = []
    for (model, length, step), found in ((setting, found) for setting, found in seen.items() if found):
        medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
        rows.append({"model": models[model], "max_length": length, "variant": step} | medians)
    record = {"repeats": 1 if arguments.quick else arguments.repeats, "rows": rows, "steps": steps}
    if starts:
        record["seconds_to_first_step"] = statistics.median(starts)
        print(f"start of the process to the first training step: {record['seconds_to_first_step']:.1f} s")
    record["environment"] = run_folder.environment()
    if arguments.name:
        kind = "speed" if steps is STEPS else "gpu"
        run_folder.write_json(ROOT / "results" / f"{kind}-{arguments.name}.json", record)


if __name__ == "__main__":
    main()
