"""What evaluate.py writes into a run folder: metrics, predictions, mistakes, pictures, one page of them, a model card.

metrics.json, report.html, *.png, and the task's own files     into the run folder
README.md                                                      into its adapter folder
"""

import os
import tempfile
from pathlib import Path

import huggingface_hub
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from finetuning import fast, page, plots
from finetuning.data import Data, Split
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.report import Run, environment
from finetuning.sources import Source, hub_answers

METHODS = {"lora": "LoRA", "full": "all weights fine-tuned", "head": "the head alone"}


def about(run: Run, model: Source, data: Data, seconds: float) -> dict:
    """What a reader of the metrics must know about them; `seconds` are those of the prediction."""
    return {
        "task": run.config.task,
        "method": METHODS[run.config.method],
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
    model_card(run, metrics).save(run.folder / "adapter" / "README.md")


def _ended(run: Run) -> str:
    last, planned = run.training["log_history"][-1], run.config.num_train_epochs
    said = f"It ran for {last['step']:,} steps, {last['epoch']:.3g} of {planned:g} epochs"
    return said + ("; early stopping cut the rest." if last["epoch"] < planned - 0.01 else ".")


def model_card(run: Run, metrics: dict) -> ModelCard:
    """The adapter's README.md, with the header that the Hub reads; figures with the split and number of rows behind them."""
    rows = f"{metrics['split']}, {metrics['n']:,} rows"
    shown = [name for name in run.task.METRICS if name in ("accuracy", "f1", "perplexity")]  # names that the Hub knows
    results = [
        EvalResult(
            task_type=run.task.PIPELINE,
            dataset_type=metrics["dataset"],
            dataset_name=f"{metrics['dataset']} ({metrics['dataset_origin']}; {rows})",
            dataset_split="test" if metrics["split"] == "official test" else "train",
            metric_type=name,
            metric_value=metrics[name],
        )
        for name in shown
    ]
    data = ModelCardData(
        base_model=metrics["model"],
        datasets=[metrics["dataset"]] if metrics["dataset_origin"] == "hub" else None,
        library_name="peft",
        pipeline_tag=run.task.PIPELINE,
        tags=["lora", "peft"] if run.config.method == "lora" else ["peft"],
        metrics=list(shown),
        model_name=run.folder.name,
        eval_results=results,
    )
    headline, interval = run.task.headline(metrics)
    stand_in = (
        "\n> The Hugging Face Hub did not answer when this was trained, so a stand-in was used for the model, the data or both.\n"
        if metrics["stand_in"]
        else ""
    )
    names = f" for the labels {', '.join(f'`{name}`' for name in run.label_names)}" if run.label_names else ""
    text = f"""---
{data.to_yaml()}
---

# {run.folder.name}

{metrics["method"]} of `{metrics["model"]}`{names},
trained on {metrics["run"]["dataset"]["rows"]["train"]:,} texts of {metrics["dataset"]}.
{stand_in}
{headline} ({interval}) on {rows}. {run.task.remark(metrics)}

```python
from peft import PeftModel
from transformers import {run.task.MODEL.__name__}

base = {run.task.MODEL.__name__}.from_pretrained("{metrics["model"]}"{f", num_labels={len(run.label_names)}" if run.label_names else ""})
model = PeftModel.from_pretrained(base, "ADAPTER")  # this folder, or its name on the Hub
```
"""
    return ModelCard(text)


@by_first
def push_to_hub(run: Run, repo: str) -> str:
    """Upload the adapter folder, model card included; the address it has then. Raises `UserError` where that fails."""
    if not hub_answers():
        raise UserError(
            f"push_to_hub={repo}: the Hugging Face Hub does not answer, so nothing was uploaded; the run folder is whole"
        )
    try:
        url = huggingface_hub.create_repo(repo, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=url.repo_id, folder_path=run.folder / "adapter", commit_message="Add adapter and model card"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"push_to_hub={repo}: nothing was uploaded ({error}). Is it ME/NAME, and are you logged in (hf auth login)?"
        ) from error
    return str(url)


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
