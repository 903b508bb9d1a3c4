"""What evaluate.py writes into a run folder: metrics, predictions, mistakes, pictures, one page of them, a model card.

metrics.json, predictions.parquet, errors.csv, report.html, curves.json, *.png     into the run folder
README.md                                                                          into its adapter folder
"""

import base64
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import jinja2
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from scipy.special import softmax

from finetuning import plots
from finetuning.data import Split
from finetuning.errors import UserError
from finetuning.metrics import accuracy_by_length, calibration, classification_metrics, paired_difference
from finetuning.processes import by_first
from finetuning.report import Run, write_json
from finetuning.sources import hub_answers

METHODS = {"lora": "LoRA", "full": "all weights fine-tuned", "head": "the head alone"}
MISTAKES = 20  # of each kind on the page
CHUNK = 250  # rows whose texts are in memory at a time, each with some 64 KiB of the file around it


def measure(run: Run, logits: np.ndarray, labels: np.ndarray, lengths: np.ndarray, label_names: list[str]) -> dict:
    """All that metrics.json says of `logits` (n, labels), against `labels` (n,); `lengths` are in tokens, before any cut."""
    temperature = run.training["temperature"]
    return classification_metrics(logits, labels, label_names) | {
        "temperature": temperature,
        "calibration": {
            "as_trained": calibration(softmax(logits, axis=-1), labels),
            "scaled": calibration(softmax(logits / temperature, axis=-1), labels),
        },
        "by_length": accuracy_by_length(logits.argmax(axis=-1) == labels, lengths),
    }


@by_first
def write(run: Run, metrics: dict, test: Split, logits: np.ndarray, lengths: np.ndarray) -> None:
    """Write everything into the run folder; all files are whole before the first takes its place.

    predictions.parquet has one row for each of `test`, in its order: `row` (number in the split), `label`, `prediction`,
    `probability` (of the prediction, after temperature scaling), `logits`, `tokens` (before the cut) and `truncated`.
    errors.csv has those of its rows that are wrong, most confident first, with their text.
    """
    names, labels, predicted = metrics["label_names"], test.labels, logits.argmax(axis=-1)
    probabilities = softmax(logits / metrics["temperature"], axis=-1)
    probability, truncated = probabilities.max(axis=-1), lengths > run.config.max_length
    predictions = pyarrow.table(
        {
            "row": test.rows,
            "label": pyarrow.array(names).take(pyarrow.array(labels)),
            "prediction": pyarrow.array(names).take(pyarrow.array(predicted)),
            "probability": probability,
            "logits": pyarrow.FixedSizeListArray.from_arrays(logits.ravel(), logits.shape[1]),
            "tokens": lengths,
            "truncated": truncated,
        }
    )

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "row": test.rows[positions],
                "text": test.select(positions).texts(),
                "actual": [names[i] for i in labels[positions]],
                "predicted": [names[i] for i in predicted[positions]],
                "probability": probability[positions],
                "tokens": lengths[positions],
                "truncated": truncated[positions],
            }
        )

    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probability[wrong], kind="stable")]
    kinds = {
        (names[i], names[j]): rows_at(found[:MISTAKES]).to_dict("records")
        for i, j in np.ndindex(len(names), len(names))
        if len(found := wrong[(labels[wrong] == i) & (predicted[wrong] == j)])
    }
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".evaluation-") as name:
        partial = Path(name)
        pyarrow.parquet.write_table(predictions, partial / "predictions.parquet")
        _write_csv(partial / "errors.csv", wrong, rows_at)
        write_json(partial / "metrics.json", metrics)
        curves = plots.curves(probabilities, labels, names)
        write_json(partial / "curves.json", curves)
        plots.plot_confusion_matrix(metrics, partial / "confusion_matrix.png")
        plots.plot_training(run.training["log_history"], metrics["validation"], partial / "training.png")
        plots.plot_curves(curves, partial / "roc.png", partial / "precision_recall.png")
        plots.plot_reliability(*metrics["calibration"].values(), partial / "reliability.png")
        plots.plot_by_length(metrics["by_length"], run.config.max_length, partial / "by_length.png")
        (partial / "report.html").write_text(_page(run, metrics, kinds, len(wrong), partial), encoding="utf-8")
        for file in sorted(partial.iterdir()):
            os.replace(file, run.folder / file.name)
    model_card(run, metrics).save(run.folder / "adapter" / "README.md")


def _write_csv(path: Path, positions: np.ndarray, rows_at: Callable[[np.ndarray], pd.DataFrame]) -> None:
    """What `rows_at` says of `positions`, a chunk at a time: their texts may be too many for the memory."""
    for start in range(0, max(len(positions), 1), CHUNK):
        rows_at(positions[start : start + CHUNK]).to_csv(path, mode="a", header=start == 0, index=False)


def _page(run: Run, metrics: dict, kinds: dict[tuple[str, str], list[dict]], mistakes: int, pictures: Path) -> str:
    """report.html: one file with its pictures inside, so that it opens anywhere; text is escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    images = {file.stem: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in pictures.glob("*.png")}
    last = run.training["log_history"][-1]
    planned = run.config.num_train_epochs
    ended = f"It ran for {last['step']:,} steps, {last['epoch']:.3g} of {planned:g} epochs"
    ended += "; early stopping cut the rest." if last["epoch"] < planned - 0.01 else "."
    return environment.get_template("report.html").render(
        m=metrics, pictures=images, kinds=kinds.items(), mistakes=mistakes, ended=ended
    )


def model_card(run: Run, metrics: dict) -> ModelCard:
    """The adapter's README.md, with the header that the Hub reads; figures with the split and number of rows behind them."""
    rows = f"{metrics['split']}, {metrics['n']:,} rows"
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=metrics["dataset"],
            dataset_name=f"{metrics['dataset']} ({metrics['dataset_origin']}; {rows})",
            dataset_split="test" if metrics["split"] == "official test" else "train",
            metric_type=name,
            metric_value=metrics[name],
        )
        for name in ("accuracy", "f1")
    ]
    data = ModelCardData(
        base_model=metrics["model"],
        datasets=[metrics["dataset"]] if metrics["dataset_origin"] == "hub" else None,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "peft"] if run.config.method == "lora" else ["peft"],
        metrics=["accuracy", "f1"],
        model_name=run.folder.name,
        eval_results=results,
    )
    low, high = metrics["accuracy_ci95"]
    stand_in = (
        "\n> The Hugging Face Hub did not answer when this was trained, so a stand-in was used for the model, the data or both.\n"
        if metrics["stand_in"]
        else ""
    )
    text = f"""---
{data.to_yaml()}
---

# {run.folder.name}

{metrics["method"]} of `{metrics["model"]}` for the labels {", ".join(f"`{name}`" for name in metrics["label_names"])},
trained on {metrics["run"]["dataset"]["rows"]["train"]:,} texts of {metrics["dataset"]}.
{stand_in}
Accuracy {metrics["accuracy"]:.2%} (95 % interval {low:.2%} to {high:.2%}) on {rows}. Expected calibration error
{metrics["calibration"]["scaled"]["expected_calibration_error"]:.2%} after dividing the logits by the temperature {metrics["temperature"]:.3f}.

Texts were cut to {run.config.max_length} tokens ({run.config.truncation}).

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{metrics["model"]}", num_labels={len(metrics["label_names"])})
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
    """Two evaluated runs on the same rows of `test`: `metrics.paired_difference` and counts; the rows where they differ, as csv.

    Raises `UserError` if one is not evaluated, or their test rows are not the same.
    """
    found = []
    for run in (a, b):
        if not (run.folder / "predictions.parquet").is_file():
            raise UserError(f"{run.folder} is not evaluated yet: python evaluate.py {run.folder}")
        columns = ["row", "label", "prediction", "probability"]
        found.append(pd.read_parquet(run.folder / "predictions.parquet", columns=columns))
    first, second = found
    if a.record["dataset"]["sha256"] != b.record["dataset"]["sha256"] or not first[["row", "label"]].equals(
        second[["row", "label"]]
    ):
        raise UserError(f"{a.folder} and {b.folder} were tested on different rows: only runs on the same ones can be compared")
    right = [(one.prediction == one.label).to_numpy() for one in found]
    both = first.merge(second.drop(columns="label"), on="row", suffixes=("_a", "_b"))

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        rows = both.iloc[positions].assign(text=test.select(positions).texts())
        return rows[["row", "text", "label", "prediction_a", "probability_a", "prediction_b", "probability_b"]]

    differ = np.flatnonzero(both.prediction_a != both.prediction_b)
    file = a.folder / f"against-{b.folder.name}.csv"
    file.unlink(missing_ok=True)
    _write_csv(file, differ, rows_at)
    return paired_difference(*right) | {
        "n": len(first),
        "accuracy": [float(r.mean()) for r in right],
        "only_a_right": int((right[0] & ~right[1]).sum()),
        "only_b_right": int((right[1] & ~right[0]).sum()),
        "labels_differ": len(differ),
    }, file
