"""Export a run: merged into its base model, as ONNX, or with 8-bit weights. Each export is compared with the run's model."""

import logging
import math
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetuning import speed
from finetuning.data.splits import Split, draw, load_data
from finetuning.data.tokens import encode
from finetuning.disk import lock, move, write_json
from finetuning.errors import UserError, require_installed
from finetuning.model.base import load, save_tokenizer
from finetuning.results import cards, metrics
from finetuning.results.run_folder import ADAPTER_FILES, Run, check_same_data, find_base_model, load_predictor
from finetuning.training.prediction import Predictor

ONNX = ("onnx", "onnxscript", "onnxruntime")
NEEDED_LIBRARIES = {"merged": (), "onnx": ONNX, "int8": ONNX, "ctranslate2": ("ctranslate2",), "ctranslate2-int8": ("ctranslate2",)}
FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx"}  # in the folder `export`; other formats are folders with their name
LARGEST_DIFFERENCE = 1e-3  # allowed for a logit, in float32
BATCH_SIZE = 16  # rows per batch in the comparison


def export(run: Run, formats: Sequence[str] | None, n: int) -> list[dict]:
    """Write the exports and export.json into the run's folder `export`. Return the results for each, the run's model first.

    Without `formats`, all formats of the task are exported. Each export is compared with the run's model on `n` rows of the test
    split, in float32, and is written only if it agrees (`agrees`). Raise `UserError` for an unknown format, a missing library, or
    if there is an export already or another process writes one.
    """
    possible = ("merged", *(() if run.task.predicts_tokens else FILES), *run.task.exporters)
    formats = tuple(formats or possible)
    lock(run.folder, "exported")
    _check(run, formats, possible)
    folder, partial = run.folder / "export", run.folder / "export.partial"
    data = load_data(run.task, run.config, run.origins["dataset"])
    check_same_data(run, data)
    strata = pd.DataFrame({"stratum": run.task.strata(data.test.labels)})
    test = data.test.select(draw(strata, n, run.config.split_seed).index)

    source = find_base_model(run)
    in_float32 = replace(run, config=replace(run.config, precision="float32", eval_batch_size=BATCH_SIZE))
    predictor = load_predictor(in_float32, source)
    comparison = _Comparison(run, predictor, test)
    comparison.add("run", predictor.model, run.folder / "adapter" / ADAPTER_FILES[1])
    usual = load_predictor(run, source)
    speed.merge(usual.model, run.config)
    comparison.measure_usual_speed(usual)
    if run.config.quantization != "none":  # the adapter is merged into the weights of the base model's file
        predictor = load_predictor(replace(run, config=replace(in_float32.config, quantization="none")), source)

    shutil.rmtree(partial, ignore_errors=True)
    _write_merged(predictor, run, source.path, partial / "merged")
    _write_formats(comparison, formats, partial)
    content = {"rows": len(test), "split": data.test_split, "label_names": data.label_names}
    content |= {"metric": comparison.metric.name, "exports": comparison.results}
    write_json(partial / "export.json", content)
    if (partial / "merged").is_dir():
        cards.of_export(run, content).save(partial / "merged" / "README.md")
    move(partial, folder)
    return comparison.results


def _write_formats(comparison: "_Comparison", formats: tuple[str, ...], folder: Path) -> None:
    """Write the formats from `folder`/merged, and compare each. Keep those that agree with the run's model."""
    task, tokenizer = comparison.run.task, comparison.predictor.tokenizer
    plain = load(task, folder / "merged", attn_implementation="eager").eval()
    if "merged" in formats:
        comparison.add("merged", plain, folder / "merged" / "model.safetensors")
    onnx_file, int8_file = folder / FILES["onnx"], folder / FILES["int8"]
    if {"onnx", "int8"} & {*formats}:
        write_onnx(plain.cpu(), comparison.input_names, onnx_file)  # the comparison has moved it to the GPU, if there is one
    if "onnx" in formats:
        comparison.add("onnx", OnnxModel(onnx_file), onnx_file)
    if "int8" in formats:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(onnx_file, int8_file, per_channel=True)
        comparison.add("int8", OnnxModel(int8_file), int8_file)
    for name, exporter in task.exporters.items():
        if name in formats:
            comparison.add(name, exporter(folder / "merged", folder / name, tokenizer), folder / name / "model.bin")
    kept = {FILES.get(result["format"], result["format"]) for result in comparison.results if result.get("agrees")}
    for path in [path for path in folder.iterdir() if path.name not in kept]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check(run: Run, formats: tuple[str, ...], possible: tuple[str, ...]) -> None:
    if unknown := [name for name in formats if name not in possible]:
        raise UserError(f"--formats {' '.join(unknown)}: {run.config.task} can be exported as {', '.join(possible)} only")
    for name in formats:
        require_installed(f"--formats {name}", *NEEDED_LIBRARIES[name])
    if (run.folder / "export").exists():
        raise UserError(f"{run.folder / 'export'} exists already; remove it to export again")


class _Comparison:
    """Measures models on the same rows. The first one is the run's model; the others are compared with it."""

    def __init__(self, run: Run, predictor: Predictor, test: Split) -> None:
        self.run, self.predictor, self.test = run, predictor, test
        self.tokens = encode(run.task, test, predictor.tokenizer, run.config)
        self.input_names = [*self.tokens.unlabelled().inputs.column_names, "attention_mask"]
        self.metric, self.results = run.task.metrics[0], []

    def add(self, name: str, model: torch.nn.Module, file: Path) -> None:
        """Predict with a model and add its results. `file` has its weights."""
        torch.set_float32_matmul_precision("highest")  # no TF32, which a run in bf16 turns on
        task, started = self.run.task, time.perf_counter()
        predictions = task.predict(replace(self.predictor, model=model), self.tokens)
        seconds = time.perf_counter() - started
        calibration = cards.calibration_of_export(self.run.calibration) if self.results else self.run.calibration
        statistics = metrics.of_rows(task, predictions, self.test, calibration)
        decisions = task.decide(predictions, calibration)
        result = {"format": name, "rows_per_s": len(self.test) / seconds, "mib": file.stat().st_size / 2**20}
        result[self.metric.name] = self.metric.of(statistics)
        if self.results:
            result |= self._agreement(name, predictions, statistics, decisions)
        else:
            self.reference, self.reference_statistics, self.reference_decisions = predictions, statistics, decisions
        self.results.append(result)

    def _agreement(self, name: str, predictions, statistics, decisions) -> dict:
        """Return how well a model agrees with the run's model: `agrees`, and the numbers that decide it.

        Logits may differ by `LARGEST_DIFFERENCE`, or by any number if the run's base model is quantized, as the export's is not.
        8-bit weights may instead lose the fraction `int8_tolerance` of the first metric. They are refused only if the
        whole 95 % interval of the loss is above that fraction.
        """
        result = {}
        if len(decisions):
            pairs = zip(decisions, self.reference_decisions, strict=True)
            result["equal_labels"] = float(np.mean([np.array_equal(a, b) for a, b in pairs]))
        factor, offset = self.run.task.output_scale(self.run.calibration)
        pairs = zip(predictions, self.reference, strict=True)
        # np.max keeps a NaN, which then does not agree; Python's max may lose it.
        result["largest_difference"] = float(np.max([abs((a - offset) / factor - b).max() for a, b in pairs]))
        if "int8" not in name:
            allowed = LARGEST_DIFFERENCE if self.run.config.quantization == "none" else sys.float_info.max
            return result | {"agrees": result["largest_difference"] <= allowed}
        difference = metrics.difference(self.metric, [self.reference_statistics], [statistics])
        low, high = difference["difference_ci95"] or [difference["difference"]] * 2
        smallest_loss = low if self.metric.better == "higher" else -high
        allowed_loss = self.run.task.int8_tolerance * abs(self.results[0][self.metric.name])
        agrees = smallest_loss <= allowed_loss and math.isfinite(result["largest_difference"])
        return result | {f"{self.metric.name}_difference_ci95": [low, high], "agrees": agrees}

    def measure_usual_speed(self, predictor: Predictor) -> None:
        """Measure the speed of predict.py with the run's model, in its own precision and batch size."""
        started = time.perf_counter()
        self.run.task.predict(predictor, self.tokens)
        self.results[0]["rows_per_s_usual"] = len(self.test) / (time.perf_counter() - started)


def _write_merged(predictor: Predictor, run: Run, source_path: str, folder: Path) -> None:
    """Merge the adapter into the base model, and `output_scale` into its last layer. Save the model for plain transformers."""
    merged = predictor.model.merge_and_unload().eval()
    if (scale := run.task.output_scale(run.calibration)) != (1.0, 0.0):
        _scale_outputs(merged, *scale)
    if run.config.problem_type:  # a pipeline needs it to choose softmax or sigmoid
        merged.config.problem_type = run.config.problem_type
    run.task.prepare_export(merged, source_path, run.calibration)
    merged.save_pretrained(folder)
    save_tokenizer(predictor.tokenizer, run.task, run.config, folder)


def _scale_outputs(model: torch.nn.Module, factor: float, offset: float) -> None:
    """Multiply the outputs of the last layer by `factor` and add `offset`.

    This is done by changing its weights and bias, so that the export gives the numbers of predict.py.
    """
    *_, head = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    if offset and head.bias is None:
        raise UserError("the head of this model has no bias for the mean of the numbers, so it can't be exported: train an encoder")
    with torch.no_grad():
        for weights in head.parameters():
            weights *= factor
        if offset:
            head.bias += offset


def files_for_the_hub(folder: Path) -> dict[str, Path]:
    """Return the files of the exports in `folder`. The keys are their paths in a repository on the Hub.

    The files of the merged model are at the top, those of other formats in folders.
    """
    others = {"onnx/model.onnx": folder / FILES["onnx"], "onnx/model_int8.onnx": folder / FILES["int8"]}
    others |= {f"{file.parent.name}/{file.name}": file for file in folder.glob("ctranslate2*/*")}
    merged = {file.name: file for file in (folder / "merged").iterdir()}
    return merged | {name: file for name, file in others.items() if file.is_file()}


class OnnxModel(torch.nn.Module):
    """An ONNX file with the interface of a model, computed by ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        (logits,) = self.session.run(["logits"], {name: ids.cpu().numpy() for name, ids in batch.items()})
        return {"logits": torch.from_numpy(logits)}


def write_onnx(model: torch.nn.Module, input_names: list[str], path: Path) -> None:
    """Write a model as an ONNX file for any number of rows and tokens. Raise `UserError` for a model that PyTorch can't convert."""
    example = {name: torch.ones(2, 16, dtype=torch.long) for name in input_names}
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        logging.disable(logging.WARNING)  # the exporter's warnings are about other types of models
        try:
            torch.onnx.export(
                model,
                kwargs=example,
                f=path,
                input_names=input_names,
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(input_names, sizes),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"--formats: PyTorch can't convert {type(model).__name__} to ONNX; give --formats merged") from error
        finally:
            logging.disable(logging.NOTSET)
