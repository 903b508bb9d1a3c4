"""What goes with a model that leaves the house: a card with its figures, and code that needs neither this repository nor its config."""

import json
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.run_folder import Run
from finetuning.sources import hub_answers

METHODS = {"lora": "LoRA", "full": "all weights fine-tuned", "head": "the head alone"}


def of_adapter(run: Run, metrics: dict) -> ModelCard:
    """The adapter's README.md: the header that the Hub reads, figures with the split and number of rows behind them, code."""
    model, labels = run.task.MODEL.__name__, ""
    if run.label_names:
        settings = run.task.model_settings(run.label_names)
        labels = ",\n" + "".join(f"    {name}={value!r},\n" for name, value in settings.items())
    load = f"""from peft import PeftModel
from transformers import {model}, AutoTokenizer

ADAPTER = "ADAPTER"  # this folder, or its name on the Hub
base = {model}.from_pretrained({"" if not labels else chr(10) + "    "}"{metrics["model"]}"{labels})
model = PeftModel.from_pretrained(base, ADAPTER).eval()
tokenizer = AutoTokenizer.from_pretrained(ADAPTER)"""
    if run.config.method == "full" and not run.label_names:
        load += """
if base.config.tie_word_embeddings and hasattr(base, base.base_model_prefix):  # words are scored by the embeddings: by those that were trained
    trained = getattr(base, base.base_model_prefix).modules_to_save["default"]
    base.get_output_embeddings().weight = trained.get_input_embeddings().weight"""
    code = f"Plain peft and transformers answer as `predict.py` does by:\n\n{_code(run, load, run.training.get('temperature'))}"
    return _card(run, metrics, code, library_name="peft", tags=["lora", "peft"] if run.config.method == "lora" else ["peft"])


def of_export(run: Run, base: str, exports: dict) -> ModelCard:
    """The merged model's README.md. `exports` is what export.json says; the figures of the test are there if it was evaluated."""
    model = run.task.MODEL.__name__
    load = f"""from transformers import {model}, AutoTokenizer

MODEL = "MODEL"  # this folder, or its name on the Hub
model = {model}.from_pretrained(MODEL).eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL)"""
    ready = ""
    if found := run.task.pipeline(run.config):
        arguments, otherwise = found
        ready = f"""```python
from transformers import pipeline

model = pipeline("{run.task.PIPELINE}", model="MODEL"{arguments})  # this folder, or its name on the Hub
```

{otherwise} """
    rows = "\n".join(f"| {one['format']} | {one[exports['metric']]:.4f} | {one['mib']:.1f} MiB |" for one in exports["exports"])
    code = f"""{ready}As `predict.py` answers:

{_code(run, load, None)}

| on {exports["rows"]:,} rows, {exports["split"]} | {exports["metric"]} | size |
|---|--:|--:|
{rows}
"""
    file = run.folder / "metrics.json"
    metrics = json.loads(file.read_text()) if file.is_file() else None
    return _card(run, metrics, code, base=base, library_name="transformers", tags=None)


def _code(run: Run, load: str, temperature: float | None) -> str:
    return f"```python\n{run.task.code(run.config, load, run.training | dict(temperature=temperature)).strip()}\n```"


def _card(run: Run, metrics: dict | None, code: str, base: str | None = None, **header) -> ModelCard:
    record, name = run.record, run.folder.name
    dataset, origin = record["dataset"]["name"], record["dataset"]["origin"]
    said, results, shown = "", [], []
    if metrics:
        rows = f"{metrics['split']}, {metrics['n']:,} rows"
        shown = [
            metric for metric in run.task.METRICS if metric in ("accuracy", "f1", "perplexity", "bleu")
        ]  # names that the Hub knows
        results = [
            EvalResult(
                task_type=run.task.PIPELINE,
                dataset_type=dataset,
                dataset_name=f"{dataset} ({origin}; {rows})",
                dataset_split="test" if metrics["split"] == "official test" else "train",
                metric_type=metric,
                metric_value=metrics[metric],
            )
            for metric in shown
        ]
        headline, interval = run.task.headline(metrics)
        said = f"{headline} ({interval}) on {rows}. {run.task.remark(metrics)}\n"
    data = ModelCardData(
        base_model=base or record["model"]["name"],
        datasets=[dataset] if origin == "hub" else None,
        pipeline_tag=run.task.PIPELINE,
        metrics=shown or None,
        model_name=name,
        eval_results=results or None,
        **header,
    )
    stand_in = (
        "\n> The Hugging Face Hub did not answer when this was trained, so a stand-in was used for the model, the data or both.\n"
        if run.stand_in
        else ""
    )
    names = f" for the labels {', '.join(f'`{label}`' for label in run.label_names)}" if run.label_names else ""
    return ModelCard(f"""---
{data.to_yaml()}
---

# {name}

{METHODS[run.config.method]} of `{record["model"]["name"]}`{names},
trained on {record["dataset"]["rows"]["train"]:,} texts of {dataset}.
{stand_in}
{said}
{code}
""")


@by_first
def push_to_hub(files: dict[str, Path], repo: str, private: bool, message: str) -> str:
    """Upload `files`, by their places in the repository; the address it has then. Raises `UserError` where that fails."""
    if not hub_answers():
        raise UserError(f"push_to_hub={repo}: the Hugging Face Hub does not answer, so nothing was uploaded; all is whole here")
    try:
        url = huggingface_hub.create_repo(repo, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(place, file) for place, file in sorted(files.items())]
        huggingface_hub.create_commit(url.repo_id, operations, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"push_to_hub={repo}: nothing was uploaded ({error}). Is it ME/NAME, and are you logged in (hf auth login)?"
        ) from error
    return str(url)
