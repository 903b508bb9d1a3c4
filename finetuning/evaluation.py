"""What evaluate.py writes into a run folder: metrics, predictions, mistakes, pictures, one page of them, a model card.

metrics.json, report.html, *.png, and the task's own files     into the run folder
README.md                                                      into its adapter folder
"""

import os
import tempfile
from pathlib import Path

import pandas as pd

from finetuning import cards, fast, page, plots
from finetuning.data import Data, Split
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.run_folder import Run, environment
from finetuning.sources import Source


def about(run: Run, model: Source, data: Data, seconds: float) -> dict:
    """What a reader of the metrics must know about them; `seconds` are those of the prediction."""
    return {
        "task": run.config.task,
        "method": cards.METHODS[run.config.method],
        "model": model.name,
        "model_origin": model.origin,
        "dataset": data.source.name,
        "dataset_origin": data.source.origin,
        "split": data.test_split,
        "stand_in": run.stand_in,
        "trainable_parameters": run.training["trainable_parameters"],
        "total_parameters": run.training["total_parameters"],
        "seconds": run.training["seconds"] | {"prediction": seconds},
        "peak_memory_gib": run.training["peak_memory_gib"],
        "precision_used": fast.pick_precision(run.config.precision)[0],
        "environment": environment(),
        "run": run.record,
        "validation": run.training["validation"],
    }


@by_first
def write(run: Run, metrics: dict, test: Split, predictions, lengths) -> None:
    """Write everything into the run folder; all files are whole before the first takes its place."""
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".evaluation-") as name:
        partial = Path(name)
        write_json(partial / "metrics.json", metrics)
        sections = run.task.write(partial, run.config, metrics, test, predictions, lengths)
        log, kept = run.training["log_history"], metrics["validation"]
        plots.plot_training(log, kept, run.task.METRICS[0], partial / "training.png")
        sections.insert(
            1,
            page.Section(
                "Training",
                _ended(run),
                pictures=(("training", "losses, a metric of validation and the learning rate against the step"),),
            ),
        )
        headline, interval = run.task.headline(metrics)
        html = page.render(partial, sections, m=metrics, headline=headline, interval=interval)
        (partial / "report.html").write_text(html, encoding="utf-8")
        for file in sorted(partial.iterdir()):
            os.replace(file, run.folder / file.name)
    cards.of_adapter(run, metrics).save(run.folder / "adapter" / "README.md")


def _ended(run: Run) -> str:
    last, planned = run.training["log_history"][-1], run.config.num_train_epochs
    said = f"It ran for {last['step']:,} steps, {last['epoch']:.3g} of {planned:g} epochs"
    return said + ("; early stopping cut the rest." if last["epoch"] < planned - 0.01 else ".")


@by_first
def compare(a: Run, b: Run, test: Split) -> tuple[dict, Path]:
    """Two evaluated runs on the same rows of `test`: what their task says of the difference; the rows where they differ, as csv.

    Raises `UserError` if one is not evaluated, or their tasks or test rows are not the same.
    """
    found = []
    for run in (a, b):
        if not (run.folder / "predictions.parquet").is_file():
            raise UserError(f"{run.folder} is not evaluated yet: python evaluate.py {run.folder}")
        found.append(pd.read_parquet(run.folder / "predictions.parquet", columns=a.task.COMPARED) if run.task is a.task else None)
    asked = a.task.COMPARED[:2]
    same = a.task is b.task and a.record["dataset"]["sha256"] == b.record["dataset"]["sha256"]
    if not same or not found[0][asked].equals(found[1][asked]):
        raise UserError(f"{a.folder} and {b.folder} were tested on different rows: only runs on the same ones can be compared")
    difference, differ, rows_at = a.task.compare(*found, test)
    file = a.folder / f"against-{b.folder.name}.csv"
    file.unlink(missing_ok=True)
    page.write_csv(file, differ, rows_at)
    return difference, file
