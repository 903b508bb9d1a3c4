"""Print the terminal output of the scripts."""

import logging
import math
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import transformers
from tabulate import tabulate

from config import Config
from finetuning.errors import printable, shorten
from finetuning.task import MAX_EXAMPLE_CHARACTERS, Metric, Statistics, Task

MAX_REMARKS = 20  # notes on the data that are printed
MAX_LABELS = 10  # labels that are printed with their counts
FEW_STEPS = 300  # in 260 steps, pairs of sentences were learned badly (results/kinds-of-labels.md)


def quiet_libraries() -> None:
    """Silence the libraries' warnings about things that are intended here, such as a new head or long texts."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # model/lora.py does it
    for message in ("Attempting to run cuBLAS", "The AccumulateGrad node's stream"):  # harmless, while CUDA graphs are recorded
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # in a picture: a box in place of a letter
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\.")


def show(text: str) -> None:
    """Print text that comes from files or names, with escapes for characters that could control the terminal."""
    print(printable(text))


def duration(seconds: float) -> str:
    """Return a rounded duration: "40 s", "6 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s" if seconds > 10 else f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_sources(model, data) -> None:
    """Print which model (a `Source`) and rows (`Data`) are used. If one of them is a stand-in, a warning comes first."""
    stand_ins, replaced = [], []
    if model.origin == "stand-in":
        stand_ins.append(f"{model.name.split('/')[-1]} (smaller, lower-cases every text)")
        replaced.append(data.config.model_name)
    if data.source.origin == "stand-in":
        stand_ins.append(data.source.name)
        replaced.append(f"the official test of {data.config.dataset_name}")
    if stand_ins:
        show(f"STAND-IN  The Hugging Face Hub does not answer. This run uses {' and '.join(stand_ins)} instead.")
        show(f"          Its numbers are real, but they are not those of {' or '.join(replaced)}.")
    show(f"model  {model.name} ({model.origin})")
    show(
        f"data   {data.source.name} ({data.source.origin})\n       {len(data.train):,} train, "
        f"{len(data.validation):,} validation ({data.validation_split}), {len(data.test):,} test ({data.test_split})"
    )
    if sum(map(len, data.source.files.values())) > 1:
        origins = (f"{split} from {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for split, names in data.source.files.items())
        show(f"       files: {'; '.join(origins)}")
    if counts := data.task.label_counts(data.train, data.label_names):
        shown = {name: name if name.isprintable() and "," not in name else repr(name) for name in [*counts][:MAX_LABELS]}
        labels = ", ".join(f"{label} {counts[name]:,}" for name, label in shown.items())
        show(f"       labels in train: {labels}{f', ... ({len(counts)} labels)' if len(counts) > MAX_LABELS else ''}")
    if data.remarks:
        show(f"note   {len(data.remarks):,} note{'s' * (len(data.remarks) > 1)} on the data:")
        show("\n".join(f"       {remark}" for remark in data.remarks[:MAX_REMARKS]))
    if len(data.remarks) > MAX_REMARKS:
        show("       ...")


def show_tokens(data, tokens, tokenizer) -> None:
    """Print the first training example as the model reads it, and notes on texts that are cut and on few steps."""
    config, task, n = data.config, data.task, len(tokens)
    for line in task.first_example(tokens, tokenizer):
        show(line)
    if labels := task.show_labels(data.train.select([0]), data.label_names):
        show(f"       label: {shorten(labels[0], MAX_EXAMPLE_CHARACTERS)}")
    if n_longer := int((tokens.lengths > config.max_length).sum()):
        fraction, note = n_longer / len(tokens.lengths), task.truncation_note(config)
        show(f"cut    {n_longer:,} training texts ({fraction:.1%}) to max_length={config.max_length} tokens ({note})")
    steps = math.ceil(n / (config.batch_size * config.gradient_accumulation_steps))
    if config.num_train_epochs == Config.num_train_epochs and steps < FEW_STEPS:
        count = f"{steps:,} step{'s' * (steps > 1)}"
        show(f"note   one epoch of {n:,} training examples has only {count}: more epochs may help (--num_train_epochs 3)")


def show_trained(folder: Path, metric: Metric, best_validation: dict, seconds: float) -> None:
    """Print the validation metric of the best checkpoint, the run folder, and the next command."""
    value, interval, n, split, step = (best_validation[name] for name in (metric.name, "ci95", "n", "split", "step"))
    show(
        f"\nvalidation  {_result(metric, value, interval, n, split)}\n"
        f"            from the best checkpoint, step {step:,}; training took {duration(seconds)}\n"
        f"run folder  {folder}\n"
        f"next        python evaluate.py {shlex.quote(folder.as_posix())}"
    )


def show_learned_nothing(task: Task, statistics: Statistics, data, name: str) -> None:
    """Print a warning if the predictions for the split `name` show that the model has learned nothing."""
    if common := task.learned_nothing(statistics, data.label_names):
        show(
            f"warning     every one of the {len(statistics['rows']):,} {name} rows {common}: the model has learned nothing, or no "
            f"other answer is ever more probable; lower learning_rate ({data.config.learning_rate:g}), or train longer"
        )


def _result(metric: Metric, value: float, interval: Sequence[float] | None, n: int, split: str) -> str:
    return f"{metric.name} {metric.show(value)} ({metric.show_interval(interval)}), {n:,} rows, {split}"


def show_metrics(run, metrics: dict, sections: list) -> None:
    """Print the numbers of a `Run`'s report, its tables that are marked `in_terminal`, and the next command."""
    task = run.task
    show(
        f"\nmodel      {metrics['model']} ({metrics['model_origin']}), {metrics['method']}, "
        f"{metrics['trainable_parameters']:,} trainable parameters\n"
        f"test       {metrics['dataset']} ({metrics['dataset_origin']}), {metrics['split']}, n = {metrics['n']:,}"
    )
    show(tabulate(sections[0].numbers, tablefmt="plain", disable_numparse=True))
    for section in sections:
        for table in section.tables:
            if table.in_terminal:
                show("\n" + format_table([table.columns, *table.rows]))
    if remark := task.remark(metrics):
        show(f"\n{remark}")
    metric = task.metrics[0]
    inputs = "--file PAIRS.csv" if run.config.text_pair_column else f'"{task.placeholder}"'
    result = _result(metric, metrics[metric.name], metrics.get(f"{metric.name}_ci95"), metrics["n"], metrics["split"])
    show(f"\ntest        {result}")
    unseen = metrics["unseen"]
    if unseen[metric.name] is not None and unseen["n"] < metrics["n"]:
        show(
            f"            {metric.name} {metric.show(unseen[metric.name])} on the {unseen['n']:,} rows whose text is not in train or validation"
        )
    show(f"report      {run.folder / 'report.html'}")
    show(f"next        python predict.py --run {shlex.quote(run.folder.as_posix())} {inputs}")


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as aligned text: the first column aligned to the left, the others to the right."""
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    alignment = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignment)


def show_comparison(task: Task, names: tuple[str, str], results: list[dict], differences_file: Path) -> None:
    """Print the metrics of two runs on the same rows, their differences, and the file with the rows that differ."""
    rows = [("metric", *names, "difference", "95 % interval", "p")]
    metrics = {metric.name: metric for metric in task.metrics}
    for result in results:
        metric, interval = metrics[result["metric"]], result["difference_ci95"]
        p = "" if result["p"] is None else f"{result['p']:.2g}"
        difference, *ends = (f"{value:+{metric.format}}" for value in (result["difference"], *(interval or ())))
        values = (metric.show(value) for value in result["values"])
        rows.append((metric.name, *values, difference, " to ".join(ends), p))
    show(
        f"{format_table(rows)}\n\nBoth runs were measured on the same {results[0]['n']:,} rows. The intervals and p are about these two models:"
    )
    show("another seed can change which one is better.")
    show(f"rows with different predictions: {differences_file}")


def show_exports(exports: list[dict], metric: Metric, folder: Path) -> None:
    """Print a table of the exports. Its first row is the run's own model."""
    columns = {"MiB": ("mib", ".1f"), "rows/s": ("rows_per_s", ".1f"), metric.name: (metric.name, ".4f")}
    columns |= {"equal answers": ("equal_labels", ".1%"), "largest difference": ("largest_difference", ".2g")}
    columns = {title: column for title, column in columns.items() if any(column[0] in export for export in exports)}
    rows = [("", *columns, "")]
    for export in exports:
        cells = (f"{export[name]:{form}}" if name in export else "" for name, form in columns.values())
        written = "" if export is exports[0] else "written" if export["agrees"] else "NOT written: does not agree"
        rows.append((export["format"], *cells, written))
    usual_speed = exports[0]["rows_per_s_usual"]
    show(format_table(rows))
    show(
        f"\nThe table is for float32 and batches of 16. predict.py --engine torch reaches {usual_speed:.1f} rows/s on this machine."
    )
    show(f"written to {folder}; the same numbers are in export.json")


def show_label_errors(judged, folder: Path) -> None:
    """Print how many labels may be wrong (`Judged`), which ones, and where they are listed."""
    n_wrong = len(judged.wrong())
    print(f"\nlabels      {n_wrong:,} of {len(judged.rows):,} may be wrong ({n_wrong / len(judged.rows):.1%})")
    for given, likely, n in judged.pairs()[:MAX_LABELS]:
        show(f"            {n:,}: given {given}, likely {likely}")
    show(f"judged by   {judged.source}; {judged.headline}")
    show(f"lists       {folder / 'label_errors.html'}, label_errors.csv and label_quality.parquet")
