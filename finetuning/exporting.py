"""Exports of a run: merged into its base, as ONNX, as ONNX with 8-bit weights; each checked against the run's model."""

import importlib.util
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetuning import cards, data, tokenizing
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.model import load
from finetuning.run_folder import ADAPTER_FILES, Run, check_same_data, load_model

NEEDED = {"merged": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("onnx", "onnxscript", "onnxruntime")}
NEEDED |= {"ctranslate2": ("ctranslate2",), "ctranslate2-int8": ("ctranslate2",)}
LARGEST_DIFFERENCE = 1e-3  # of a logit, in float32
LARGEST_LOSS = {"bleu": 0.5}  # of the task's first metric, with 8-bit weights; of others 0.005
BATCH = 16


def export(run: Run, formats: Sequence[str] | None, n: int) -> list[dict]:
    """Write the exports and export.json into the run's folder `export`; what it says of each, the run's model first.

    Without `formats` it is all that the task knows. All is compared on `n` rows of the test split, in float32. Raises `UserError`
    for a missing library, an export that is there already, or one that does not agree with the run's model; nothing is
    written then.
    """
    formats = formats or run.task.FORMATS
    if other := [name for name in formats if name not in run.task.FORMATS]:
        raise UserError(f"--formats {' '.join(other)}: {run.config.task} is exported as {', '.join(run.task.FORMATS)} only")
    missing = sorted({library for name in formats for library in NEEDED[name] if not importlib.util.find_spec(library)})
    if missing:
        raise UserError(f"--formats {' '.join(formats)}: {', '.join(missing)} missing: pip install -r requirements-extras.txt")
    if run.config.quantization != "none":
        raise UserError(f"{run.folder}: an adapter to weights of {run.config.quantization} can't be merged into them without loss")
    folder, partial = run.folder / "export", run.folder / "export.partial"
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to export again")
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    check_same_data(run.folder, rows)
    strata = pd.DataFrame({"stratum": run.task.strata(rows.test.labels)})
    test = rows.test.select(data.stratified(strata, min(n, len(rows.test)), run.config.split_seed).index)

    in_float32 = replace(run, config=replace(run.config, precision="float32", eval_batch_size=BATCH))
    model, tokenizer, source = load_model(in_float32)
    tokens = tokenizing.encode(test, tokenizer, run.config)
    names = [*tokens.unlabelled().inputs.column_names, "attention_mask"]
    metric, found, reference, decided = run.task.METRICS[0], [], None, None
    temperature = run.training.get("temperature", 1.0)

    def add(name: str, model: torch.nn.Module, file: Path, calibrated: dict) -> None:
        """Measure `model`; what export.json says of it, beside the run's model, which is the first."""
        nonlocal reference, decided
        started = time.perf_counter()
        predictions = run.task.predict(model, tokenizer, tokens, in_float32.config, show_progress=False)
        seconds = time.perf_counter() - started
        score = run.task.measure(predictions, test, tokens.lengths, rows.label_names, calibrated)[metric]
        about = {"format": name, "rows_per_s": len(test) / seconds, "mib": file.stat().st_size / 2**20, metric: score}
        here = run.task.decide(predictions, calibrated) if hasattr(run.task, "decide") else []
        if found:
            if len(here):
                about["equal_labels"] = float(np.mean([np.array_equal(a, b) for a, b in zip(here, decided, strict=True)]))
            about["largest_difference"] = max(
                float(abs(a - b / temperature).max()) for a, b in zip(predictions, reference, strict=True)
            )
        else:
            reference, decided = predictions, here
        found.append(about)

    add("run", model, run.folder / "adapter" / ADAPTER_FILES[1], run.training)
    usual, started = load_model(run)[0], time.perf_counter()
    run.task.predict(usual, tokenizer, tokens, run.config, show_progress=False)
    found[0]["rows_per_s_usual"] = len(test) / (time.perf_counter() - started)
    shutil.rmtree(partial, ignore_errors=True)
    merged = model.merge_and_unload().eval()
    scaled = run.training
    if "temperature" in run.training:
        _divide_logits(merged, temperature)
        scaled = run.training | dict(temperature=1.0)
    if run.config.problem_type:  # by which a pipeline knows softmax from sigmoid
        merged.config.problem_type = run.config.problem_type
    kept = run.task.left_over(source, merged) if hasattr(run.task, "left_over") else {}
    merged.save_pretrained(partial / "merged", state_dict=merged.state_dict() | kept)
    tokenizer.save_pretrained(partial / "merged")
    plain = load(run.task, partial / "merged", attn_implementation="eager").eval()
    if "merged" in formats:
        add("merged", plain, partial / "merged" / "model.safetensors", scaled)
    if "onnx" in formats or "int8" in formats:
        _write_onnx(plain, names, partial / "model.onnx")
    if "onnx" in formats:
        add("onnx", _Onnx(partial / "model.onnx"), partial / "model.onnx", scaled)
    if "int8" in formats:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(partial / "model.onnx", partial / "model.int8.onnx", per_channel=True)
        add("int8", _Onnx(partial / "model.int8.onnx"), partial / "model.int8.onnx", scaled)
    for name in [name for name in formats if name in getattr(run.task, "EXPORTS", {})]:
        add(name, run.task.EXPORTS[name](partial / "merged", partial / name, tokenizer), partial / name / "model.bin", scaled)

    for one in found[1:]:
        loss = found[0][metric] - one[metric]
        if loss > LARGEST_LOSS.get(metric, 0.005) if "int8" in one["format"] else one["largest_difference"] > LARGEST_DIFFERENCE:
            shutil.rmtree(partial)
            raise UserError(
                f"{one['format']}: does not agree with the run's model on {len(test)} rows (largest difference "
                f"{one['largest_difference']:.2g}, {metric} {one[metric]:.4f} instead of {found[0][metric]:.4f}), so nothing "
                "was written; leave it out of --formats"
            )
    for name, path in (("merged", "merged"), ("onnx", "model.onnx")):
        if name not in formats:
            shutil.rmtree(partial / path) if (partial / path).is_dir() else (partial / path).unlink(missing_ok=True)
    about = {"rows": len(test), "split": rows.test_split, "label_names": rows.label_names, "metric": metric}
    write_json(partial / "export.json", about | {"exports": found})
    if "merged" in formats:
        cards.of_export(run, source.name, about | {"exports": found}).save(partial / "merged" / "README.md")
    partial.rename(folder)
    return found


def _divide_logits(model: torch.nn.Module, temperature: float) -> None:
    """Have the last layer answer with what predict.py makes of its logits."""
    *_, head = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        for weights in head.parameters():
            weights /= temperature


def files_for_the_hub(folder: Path) -> dict[str, Path]:
    """The files of exports by their places in a repository of the Hub: the merged model's on top, ONNX in a folder."""
    others = {"onnx/model.onnx": folder / "model.onnx", "onnx/model_int8.onnx": folder / "model.int8.onnx"}
    others |= {f"{file.parent.name}/{file.name}": file for file in folder.glob("ctranslate2*/*")}
    return {file.name: file for file in (folder / "merged").iterdir()} | {at: file for at, file in others.items() if file.is_file()}


class _Onnx(torch.nn.Module):
    """A session of ONNX Runtime in the place of a model."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> dict:
        batch = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        (logits,) = self.session.run(["logits"], {name: ids.cpu().numpy() for name, ids in batch.items() if ids is not None})
        return {"logits": torch.from_numpy(logits)}


def _write_onnx(model: torch.nn.Module, inputs: list[str], path: Path) -> None:
    example = {name: torch.ones(2, 16, dtype=torch.long) for name in inputs}
    logging.disable(logging.WARNING)  # the exporter's advice is about models of other kinds
    warnings.simplefilter("ignore", FutureWarning)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs=example,
        f=path,
        input_names=inputs,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(inputs, sizes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
