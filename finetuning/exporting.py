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
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from finetuning import data
from finetuning.errors import UserError
from finetuning.report import Run, check_same_data, load_model, write_json
from finetuning.tokenizing import tokenize

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
    folder, partial = run.folder / "export", run.folder / "export.partial"
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to export again")
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    check_same_data(run.folder, rows)
    chosen = data.stratified(pd.DataFrame({"label": rows.test.labels}), min(n, len(rows.test)), run.config.split_seed)
    test, labels = rows.test.select(chosen.index), chosen.label.to_numpy()

    in_float32 = replace(run, config=replace(run.config, precision="float32"))
    model, tokenizer, _ = load_model(in_float32)
    ids, _ = tokenize(test.texts(), tokenizer, run.config)
    reference, original = _measure(
        "run", _by_torch(model), ids, labels, tokenizer, run.folder / "adapter" / "adapter_model.safetensors"
    )
    found = [original]

    def add(name: str, predict: Predictor, file: Path) -> None:
        logits, about = _measure(name, predict, ids, labels, tokenizer, file)
        about["largest_difference"] = float(abs(logits - reference).max())
        about["equal_labels"] = float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())
        found.append(about)

    shutil.rmtree(partial, ignore_errors=True)
    merged = model.merge_and_unload().eval()
    merged.save_pretrained(partial / "merged")
    tokenizer.save_pretrained(partial / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(partial / "merged", attn_implementation="eager").eval()
    if "merged" in formats:
        add("merged", _by_torch(plain), partial / "merged" / "model.safetensors")
    if "onnx" in formats or "int8" in formats:
        _write_onnx(plain, partial / "model.onnx")
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


Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids and mask (batch, tokens) -> logits (batch, labels)


def _measure(
    name: str, predict: Predictor, ids: list[list[int]], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase, file: Path
) -> tuple[np.ndarray, dict]:
    """Logits row for row, and what export.json says of it."""
    order, logits, seconds = np.argsort([len(row) for row in ids]), {}, 0.0
    for start in range(0, len(order), BATCH):
        here = order[start : start + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in here]}, return_tensors="np")
        started = time.perf_counter()
        out = predict(batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64))
        seconds += time.perf_counter() - started
        logits |= zip(here, out, strict=True)
    logits = np.stack([logits[i] for i in range(len(ids))])
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return logits, {"format": name, "accuracy": accuracy, "rows_per_s": len(ids) / seconds, "mib": file.stat().st_size / 2**20}


def _by_torch(model: torch.nn.Module) -> Predictor:
    @torch.no_grad()
    def predict(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()

    return predict


def _by_onnx(path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]


def _write_onnx(model: torch.nn.Module, path: Path) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 16))
    logging.disable(logging.WARNING)  # the exporter's advice is about models of other kinds
    warnings.simplefilter("ignore", FutureWarning)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        f=path,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
