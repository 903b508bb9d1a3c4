"""Exports of a run: merged into its base, as ONNX, as ONNX with 8-bit weights; each checked against the run's model."""

import importlib.util
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from finetuning import data
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.report import ADAPTER_FILES, Run, check_same_data, load_model

NEEDED = {"merged": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("onnx", "onnxscript", "onnxruntime")}
LARGEST_DIFFERENCE = 1e-3  # of a logit, in float32
LARGEST_LOSS = 0.005  # of accuracy, with 8-bit weights
BATCH = 16


def export(run: Run, formats: Sequence[str], n: int) -> list[dict]:
    """Write the exports and export.json into the run's folder `export`; what it says of each, the run's model first.

    All is compared on `n` rows of the test split, in float32. Raises `UserError` for a missing library, an export that is
    there already, or one that does not agree with the run's model; nothing is written then.
    """
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
    labels = test.labels

    in_float32 = replace(run, config=replace(run.config, precision="float32"))
    model, tokenizer, _ = load_model(in_float32)
    inputs = run.task.tokenize(test.columns(), tokenizer, run.config)
    del inputs["length"]
    reference, original = _measure("run", _by_torch(model), inputs, tokenizer, run.folder / "adapter" / ADAPTER_FILES[1])
    decided = run.task.decide(reference, run.training)
    original["accuracy"] = _share_of_equal(decided, labels)
    found = [original]

    def add(name: str, predict: Predictor, file: Path) -> None:
        logits, about = _measure(name, predict, inputs, tokenizer, file)
        here = run.task.decide(logits, run.training)
        about["accuracy"], about["equal_labels"] = _share_of_equal(here, labels), _share_of_equal(here, decided)
        about["largest_difference"] = float(abs(logits - reference).max())
        found.append(about)

    shutil.rmtree(partial, ignore_errors=True)
    merged = model.merge_and_unload().eval()
    merged.save_pretrained(partial / "merged")
    tokenizer.save_pretrained(partial / "merged")
    plain = run.task.MODEL.from_pretrained(partial / "merged", attn_implementation="eager").eval()
    if "merged" in formats:
        add("merged", _by_torch(plain), partial / "merged" / "model.safetensors")
    if "onnx" in formats or "int8" in formats:
        _write_onnx(plain, [*inputs, "attention_mask"], partial / "model.onnx")
    if "onnx" in formats:
        add("onnx", _by_onnx(partial / "model.onnx"), partial / "model.onnx")
    if "int8" in formats:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(partial / "model.onnx", partial / "model.int8.onnx", per_channel=True)
        add("int8", _by_onnx(partial / "model.int8.onnx"), partial / "model.int8.onnx")

    for one in found[1:]:
        loss = original["accuracy"] - one["accuracy"]
        if (one["format"] == "int8" and loss > LARGEST_LOSS) or (
            one["format"] != "int8" and one["largest_difference"] > LARGEST_DIFFERENCE
        ):
            shutil.rmtree(partial)
            raise UserError(
                f"{one['format']}: does not agree with the run's model on {len(labels)} rows (largest difference of a logit "
                f"{one['largest_difference']:.2g}, accuracy {one['accuracy']:.4f} instead of {original['accuracy']:.4f}), so nothing "
                "was written; leave it out of --formats"
            )
    for name, path in (("merged", "merged"), ("onnx", "model.onnx")):
        if name not in formats:
            shutil.rmtree(partial / path) if (partial / path).is_dir() else (partial / path).unlink(missing_ok=True)
    write_json(
        partial / "export.json", {"rows": len(labels), "split": rows.test_split, "label_names": rows.label_names, "exports": found}
    )
    partial.rename(folder)
    return found


Predictor = Callable[[dict[str, np.ndarray]], np.ndarray]  # what the model takes, by name, (batch, tokens) each -> logits


def _measure(
    name: str, predict: Predictor, inputs: dict[str, list], tokenizer: PreTrainedTokenizerBase, file: Path
) -> tuple[np.ndarray, dict]:
    """Logits row for row, and what export.json says of it."""
    order, logits, seconds = np.argsort([len(ids) for ids in inputs["input_ids"]]), {}, 0.0
    for start in range(0, len(order), BATCH):
        here = order[start : start + BATCH]
        batch = tokenizer.pad({name: [column[i] for i in here] for name, column in inputs.items()}, return_tensors="np")
        batch = {name: array.astype(np.int64) for name, array in batch.items()}
        started = time.perf_counter()
        out = predict(batch)
        seconds += time.perf_counter() - started
        logits |= zip(here, out, strict=True)
    logits = np.stack([logits[i] for i in range(len(order))])
    return logits, {"format": name, "rows_per_s": len(order) / seconds, "mib": file.stat().st_size / 2**20}


def _share_of_equal(a: np.ndarray, b: np.ndarray) -> float:
    """Of rows that are equal as a whole."""
    return float((a == b).reshape(len(a), -1).all(axis=1).mean())


def _by_torch(model: torch.nn.Module) -> Predictor:
    @torch.no_grad()
    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()

    return predict


def _by_onnx(path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], batch)[0]


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
