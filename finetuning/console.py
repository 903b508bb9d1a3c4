"""What the scripts print."""

import logging
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import transformers

from config import Config
from finetuning.task import Metric, Statistics, Task

MAX_REMARKS = 20  # that are printed; all are counted
MAX_LABELS = 10  # that are printed
MAX_CHARACTERS = 110  # of an example


def quiet_libraries() -> None:
    """Keep the libraries' notes about what is intended (a new head, long texts) off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # model/lora.py ties them
    for start in ("Attempting to run cuBLAS", "The AccumulateGrad node's stream"):  # while CUDA graphs are recorded: harmless
        warnings.filterwarnings("ignore", message=start)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\.")


def duration(seconds: float) -> str:
    """Return a rounded duration: "40 s", "6 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s" if seconds > 10 else f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_sources(model, data) -> None:
    """Print which model (a `Source`) and rows (`Data`) are used, and first of all which of them are stand-ins."""
    used, configured = [], []
    if model.origin == "stand-in":
        used.append(f"{model.name.split('/')[-1]} (smaller, ignores capitals)")
        configured.append(data.config.model_name)
    if data.source.origin == "stand-in":
        used.append(data.source.name)
        configured.append(f"the official test of {data.config.dataset_name}")
    if used:
        print(f"STAND-IN  The Hugging Face Hub does not answer. This run uses {' and '.join(used)} instead.")
        print(f"          Its numbers are real, but they are not those of {' or '.join(configured)}.")
    print(f"model  {model.name} ({model.origin})")
    print(
        f"data   {data.source.name} ({data.source.origin})\n       {len(data.train):,} train, "
        f"{len(data.validation):,} validation ({data.validation_split}), {len(data.test):,} test ({data.test_split})"
    )
    if len(data.source.files) > 1:
        names = (
            f"{split} from {', '.join(several[:3])}{', ...' * (len(several) > 3)}" for split, several in data.source.files.items()
        )
        print(f"       files: {'; '.join(names)}")
    if counts := data.task.label_counts(data.train, data.label_names):
        listed = ", ".join(f"{repr(name) if ',' in name else name} {count:,}" for name, count in [*counts.items()][:MAX_LABELS])
        print(f"       labels in train: {listed}{f', ... ({len(counts)} labels)' if len(counts) > MAX_LABELS else ''}")
    if data.remarks:
        print(f"note   {len(data.remarks):,} note{'s' * (len(data.remarks) > 1)} on the data:")
        print("\n".join(f"       {remark}" for remark in data.remarks[:MAX_REMARKS]))
    if len(data.remarks) > MAX_REMARKS:
        print("       ...")


def show_example(data, tokens, tokenizer) -> None:
    """Print the first training example as the model reads it, and its label."""
    shown = {"reads  ": tokenizer.decode(tokens.inputs[0]["input_ids"])}
    if labels := data.task.show_labels(data.train.select([0]), data.label_names):
        shown["       label: "] = labels[0]
    for name, text in shown.items():
        print(name + textwrap.shorten(text, MAX_CHARACTERS, placeholder=" ..."))


def show_truncated(task: Task, lengths: np.ndarray, config: Config) -> None:
    """Print how many of the training texts are longer than what is read of them; `lengths` (rows,) in tokens."""
    if longer := int((lengths > config.max_length).sum()):
        print(
            f"cut    {longer:,} training texts ({longer / len(lengths):.1%}) to max_length={config.max_length} tokens "
            f"({task.truncation_note(config)})"
        )


def show_trained(folder: Path, metric: Metric, best: dict, seconds: float) -> None:
    """Print the `metric` that was reached on validation, where the run is, and what comes next."""
    print(
        f"\nvalidation  {_result(metric, best[metric.name], best['ci95'], best['n'], best['split'])}\n"
        f"            from the best checkpoint, step {best['step']:,}; training took {duration(seconds)}\n"
        f"run folder  {folder}\n"
        f"next        python evaluate.py {folder}"
    )


def show_learned_nothing(task: Task, statistics: Statistics, data, name: str) -> None:
    """Print a warning if the predictions for the split `name` show that the model has learned nothing."""
    if common := task.learned_nothing(statistics, data.label_names):
        print(
            f"warning     every one of the {len(statistics['rows']):,} {name} rows {common}: the model has learned nothing; "
            f"lower learning_rate ({data.config.learning_rate:g}), or train longer"
        )


def _result(metric: Metric, value: float, interval: Sequence[float] | None, n: int, split: str) -> str:
    return f"{metric.name} {metric.show(value)} ({metric.show_interval(interval)}), {n:,} rows, {split}"


def show_metrics(run, metrics: dict, sections: list) -> None:
    """Print the metrics of a `Run` on the test split, the tables of the report's sections meant for the terminal, and what comes next."""
    task = run.task
    print(
        f"\nmodel      {metrics['model']} ({metrics['model_origin']}), {metrics['method']}, "
        f"{metrics['trainable_parameters']:,} trainable parameters\n"
        f"test       {metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}"
    )
    for metric in task.metrics:
        interval = metrics.get(f"{metric.name}_ci95")
        note = f"   {metric.show_interval(interval)}" if interval else ""
        print(f"{metric.name:<10} {metric.show(metrics[metric.name])}{note}")
    for section in sections:
        for table in section.tables:
            if table.in_terminal:
                print("\n" + format_table([table.columns, *table.rows]))
    if remark := task.remark(metrics):
        print(f"\n{remark}")
    metric = task.metrics[0]
    inputs = "--file PAIRS.csv" if run.config.text_pair_column else '"YOUR TEXT"'
    result = _result(metric, metrics[metric.name], metrics.get(f"{metric.name}_ci95"), metrics["n"], metrics["split"])
    print(f"\ntest        {result}")
    print(f"report      {run.folder / 'report.html'}")
    print(f"next        python predict.py --run {run.folder} {inputs}")


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as aligned text: the first column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def show_comparison(task: Task, names: tuple[str, str], results: list[dict], differing: Path) -> None:
    """Print how two runs compare on the same rows, metric by metric."""
    rows = [("metric", *names, "difference", "95 % interval", "McNemar p")]
    known = {metric.name: metric for metric in task.metrics}
    for result in results:
        metric, interval = known[result["metric"]], result["difference_ci95"]
        p = f"{result['mcnemar_p'][0]:.2g}" if "mcnemar_p" in result else ""
        low, high = (_signed(metric, end) for end in interval) if interval else ("", "")
        values = (metric.show(value) for value in result["values"])
        rows.append((metric.name, *values, _signed(metric, result["difference"]), f"{low} to {high}", p))
    print(f"{format_table(rows)}\n\non the same {results[0]['n']:,} rows (paired bootstrap); the rows that differ: {differing}")


def _signed(metric: Metric, value: float) -> str:
    return ("+" if value >= 0 else "") + metric.show(value)


def show_exports(exports: list[dict], folder: Path) -> None:
    """Print each export beside the run's model."""
    metric = next(name for name in exports[0] if name not in ("format", "rows_per_s", "rows_per_s_usual", "mib"))
    decides = any("equal_labels" in export for export in exports)
    header = ("", "MiB", "rows/s", metric, *(["equal answers"] if decides else []), "largest difference", "")
    rows = [header]
    for export in exports:
        equal = [f"{export['equal_labels']:.1%}" if "equal_labels" in export else ""] if decides else []
        largest = f"{export['largest_difference']:.2g}" if "largest_difference" in export else ""
        written = "" if export is exports[0] else "written" if export["agrees"] else "NOT written: does not agree"
        numbers = (f"{export['mib']:.1f}", f"{export['rows_per_s']:.1f}", f"{export[metric]:.4f}")
        rows.append((export["format"], *numbers, *equal, largest, written))
    usual = exports[0]["rows_per_s_usual"]
    print(format_table(rows))
    print(
        f"\nAll in float32, batches of 16. As predict.py does it, with PyTorch, the run predicts {usual:.1f} rows/s on this machine."
    )
    print(f"written to {folder}; the same numbers are in export.json")
