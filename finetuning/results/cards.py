"""Model cards and stand-alone loading code for published models; uploads to the Hub."""

import json
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError

from finetuning.data.chat_tokens import SEPARATOR
from finetuning.data.hub import NOT_ON_HUB, hub_answers
from finetuning.data.text import LINE_BREAK
from finetuning.disk import read_json
from finetuning.errors import UserError, printable
from finetuning.processes import by_first
from finetuning.results.report import template
from finetuning.results.run_folder import Run, local_base
from finetuning.speed.precision import uses_autocast
from finetuning.task import Converses

METHODS = {"lora": "LoRA", "full": "all weights fine-tuned", "head": "only the head trained"}
# Our metrics that the Hub knows, with the Hub's names.
HUB_METRICS = {"accuracy": "accuracy", "f1": "f1", "perplexity": "perplexity", "bleu": "bleu"}
HUB_METRICS |= {"mae": "mae", "pearson": "pearsonr", "spearman": "spearmanr"}


def of_adapter(run: Run, metrics: dict) -> ModelCard:
    """Return the adapter's README.md: a header for the Hub, the test metrics, and code that needs only peft and transformers."""
    settings = run.task.model_settings(run.label_names)  # {} for a model that predicts tokens
    load = _render(
        "load_adapter.py.jinja",
        auto_class=run.task.auto_class.__name__,
        base_model=json.dumps(local_base(run.record, run.config) or run.record["model"]["name"], ensure_ascii=False),
        settings=settings,
        ties_words=run.config.method == "full" and not settings,
    )
    tags = ["lora", "peft"] if run.config.method == "lora" else ["peft"]
    return _card(run, metrics, _code(run, load, run.calibration), library_name="peft", tags=tags)


def of_export(run: Run, exports: dict) -> ModelCard:
    """Return the merged model's README.md, with test metrics if the run is evaluated. `exports` is the content of export.json."""
    load = _render("load_merged.py.jinja", auto_class=run.task.auto_class.__name__)
    file = run.folder / "metrics.json"
    metrics = read_json(file) if file.is_file() else None
    code = _code(run, load, calibration_of_export(run.calibration))
    return _card(run, metrics, code, exports, library_name="transformers", tags=None)


def calibration_of_export(calibration: dict) -> dict:
    """Return the calibration of exports. Their last layer has `Task.output_scale` already."""
    merged = {"temperature": 1.0, "label_mean": 0.0, "label_std": 1.0}
    return calibration | {name: value for name, value in merged.items() if name in calibration}


def _code(run: Run, load: str, calibration: dict) -> str:
    """Return Python code with the answers of predict.py. The lines `load` define its `model` and `tokenizer`."""
    factor, offset = run.task.output_scale(calibration)
    variables = dict(task=run.task, config=run.config, calibration=calibration, load=load, factor=factor, offset=offset)
    return _render(run.task.code_template, **variables, line_break=LINE_BREAK.pattern, separator=SEPARATOR)


def _render(template_name: str, **variables) -> str:
    return template(template_name).render(**variables).strip()


def _card(run: Run, metrics: dict | None, code: str, exports: dict | None = None, **header) -> ModelCard:
    dataset, model, folder = run.record["dataset"], run.record["model"], local_base(run.record, run.config)
    names = [metric.name for metric in run.task.metrics if metric.name in HUB_METRICS] if metrics else []
    data = ModelCardData(
        base_model=None if folder else model["name"],  # the Hub accepts only names of its models
        datasets=[dataset["name"]] if dataset["origin"] == "hub" else None,
        pipeline_tag=run.task.pipeline_tag,
        metrics=[HUB_METRICS[name] for name in names] or None,
        model_name=printable(run.folder.resolve().name),
        eval_results=[_result(run, metrics, name) for name in names] or None,
        **header,
    )
    content = _render(
        "card.md.jinja",
        header=data.to_yaml(),
        name=run.folder.resolve().name,
        method=METHODS[run.config.method],
        run=run,
        model=model,
        folder=folder,
        dataset=dataset,
        metrics=metrics,
        first=run.task.metrics[0],
        remark=metrics and run.task.remark(metrics),
        code=code,
        exports=exports,
        writes_in_bf16=_writes_in_bf16(run),
        pipeline=exports and run.calibration.get("has_template", True) and run.task.pipeline(run.config),
    )
    return ModelCard(printable(content) + "\n")


def _writes_in_bf16(run: Run) -> bool:
    """Return whether predict.py writes texts in bf16. Continuations and masked words are computed without autocast."""
    uses_bf16 = isinstance(run.task, Converses) or run.config.task == "translation" or not uses_autocast(run.config)
    return run.task.predicts_tokens and run.training["precision"] == "bf16" and uses_bf16


def _result(run: Run, metrics: dict, name: str) -> EvalResult:
    dataset, split = run.record["dataset"], metrics["split"]
    return EvalResult(
        task_type=run.task.pipeline_tag,
        dataset_type=printable(dataset["name"]),
        dataset_name=f"{printable(dataset['name'])} ({dataset['origin']}; {split}, {metrics['n']:,} rows)",
        dataset_split=split.removeprefix("official ") if split.startswith("official ") else "train",
        metric_type=HUB_METRICS[name],
        metric_value=metrics[name],
    )


def push_to_hub(files: dict[str, Path], repo: str, private: bool, message: str) -> str:
    """Upload files to a repository on the Hub and return its address. Raise `UserError` if that fails.

    `files` has paths in the repository as keys, and the local files as values.
    """
    if not hub_answers():
        raise UserError(
            f"push_to_hub={repo}: the Hugging Face Hub does not answer, so nothing was uploaded; the files here are complete"
        )
    return _upload(files, repo, private, message)


@by_first
def _upload(files: dict[str, Path], repo: str, private: bool, message: str) -> str:
    try:
        url = huggingface_hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not huggingface_hub.repo_info(url.repo_id).private:
            raise UserError(
                f"push_to_hub={repo}: this repository is public already, so nothing was uploaded: make it private on its page, or "
                "use another name"
            )
        operations = [CommitOperationAdd(name, file) for name, file in sorted(files.items())]
        huggingface_hub.create_commit(url.repo_id, operations, commit_message=message)
    except (*NOT_ON_HUB, HFValidationError, OSError) as error:
        raise UserError(
            f"push_to_hub={repo}: nothing was uploaded ({error}). Is it ME/NAME, and are you logged in (hf auth login)?"
        ) from error
    return str(url)
