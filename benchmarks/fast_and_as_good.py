"""Does what makes training fast cost accuracy? The same settings with and without it, three seeds, on the same rows.

    python benchmarks/fast_and_as_good.py      writes results/fast-and-as-good.json; a quarter of an hour on two cores

Most of finetuning/fast.py computes what the libraries compute. Three things differ: no dropout, batches of like length,
and bf16. They are compared on validation rows, which is where choices are made; the test is not touched.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from finetuning import console, data, report, training  # noqa: E402

COMMON = dict(train_samples=4000, val_samples=0, max_length=128, early_stopping_patience=0, eval_steps=0.5)
VARIANTS = {
    "fast": {},
    "slow": dict(dropout=0.1, lora_dropout=0.1, padding="max_length", precision="float32"),  # this padding also means random order
}
SEEDS = (0, 1, 2)


def correct_on_validation(variant: str, seed: int, folder: str) -> tuple[np.ndarray, dict]:
    """Train one variant; which of the validation rows it gets right, in row order, and what the run says of itself."""
    settings = COMMON | VARIANTS[variant] | dict(seed=seed, output_dir=folder, run_name=f"{variant}-{seed}")
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(ROOT / "fine_tune.py"), *flags], check=True, stdout=subprocess.DEVNULL)
    run = report.open_run(Path(folder) / f"{variant}-{seed}")
    rows = data.load_data(run.config, run.record["dataset"]["origin"]).validation
    lora, tokenizer, _ = report.load_model(run)
    ids, _ = data.tokenize(rows.text, tokenizer, run.config)
    predictions = training.predict(lora, tokenizer, ids, run.config).argmax(axis=-1)
    return predictions == rows.label.to_numpy(), run.record | {"seconds": run.training["seconds"]}


def main() -> None:
    console.quiet_libraries()
    accuracy, seconds, differences = {v: [] for v in VARIANTS}, {v: [] for v in VARIANTS}, []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            correct = {}
            for variant in VARIANTS:
                correct[variant], run = correct_on_validation(variant, seed, folder)
                accuracy[variant].append(float(correct[variant].mean()))
                seconds[variant].append(run["seconds"]["training"])
                print(
                    f"seed {seed}  {variant}  validation accuracy {accuracy[variant][-1]:.4f}  {seconds[variant][-1]:.0f} s",
                    flush=True,
                )
            differences.append(correct["fast"].astype(float) - correct["slow"].astype(float))
    by_row = np.mean(differences, axis=0)
    half = 1.96 * by_row.std(ddof=1) / len(by_row) ** 0.5
    record = {
        "model": run["model"],
        "split": "validation, held out from train",
        "n": len(by_row),
        "settings": COMMON,
        "variants": VARIANTS,
        "seeds": SEEDS,
        "accuracy": accuracy,
        "training_seconds": seconds,
        "difference_by_seed": [float(d.mean()) for d in differences],
        "difference": float(by_row.mean()),
        "difference_ci95": [float(by_row.mean() - half), float(by_row.mean() + half)],  # over rows, the seeds averaged
        "environment": report.environment(),
    }
    report.write_json(ROOT / "results" / "fast-and-as-good.json", record)
    print(json.dumps({name: record[name] for name in ("difference_by_seed", "difference", "difference_ci95")}))


if __name__ == "__main__":
    main()
