"""OpenVINO in PyTorch's place where new texts are labelled, on a CPU that has it installed: the same model, faster.

Training and evaluation stay with PyTorch, so that a figure never depends on what else is installed.
"""

import contextlib
import functools
import importlib.util
import sys
import warnings
from dataclasses import replace

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from finetuning import data, fast
from finetuning.errors import UserError
from finetuning.run_folder import Run, load_model
from finetuning.tokenizing import encode

PAYS = 1_500  # texts from which on the four or five seconds that building it takes come back (benchmarks/engines.py)
AGREES = 0.25  # largest difference of a logit in bf16
CALIBRATED_ON = 300  # training texts whose activations give the ranges of 8 bits


def pick(wanted: str, run: Run, texts: int) -> str:
    """What `wanted`, an --engine of predict.py, is for this many texts: torch, openvino or int8.

    Raises `UserError` for what is not installed or can't be had.
    """
    able = "onnx" in run.task.FORMATS and fast.on_cpu() and PartialState().num_processes == 1
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if able and installed and texts >= PAYS else "torch"
    if wanted == "torch":
        return wanted
    if not able:
        raise UserError(f"--engine {wanted}: only for labels and entities, on a CPU, by one process; leave it out")
    needed = ("openvino",) if wanted == "openvino" else ("openvino", "nncf")
    if missing := [library for library in needed if not importlib.util.find_spec(library)]:
        raise UserError(f"--engine {wanted}: {', '.join(missing)} missing: pip install -r requirements-extras.txt")
    return wanted


def load(run: Run, engine: str) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """What predicts in the model's place, and the tokenizer."""
    exact = replace(run, config=replace(run.config, precision="float32"))
    model, tokenizer, _ = load_model(exact)
    merged = model.merge_and_unload().eval()
    calibrate = functools.partial(_batches, run, tokenizer) if engine == "int8" else None
    return OpenVino(merged, fast.pick_precision(run.config.precision)[0], calibrate), tokenizer


class OpenVino(torch.nn.Module):
    """Answers as `model` does; built when the first batch says what goes in, and compared with it on that batch."""

    def __init__(self, model: torch.nn.Module, precision: str, calibrate=None) -> None:
        super().__init__()
        self.model, self.precision, self.calibrate, self.compiled = model, precision, calibrate, None

    @torch.no_grad()
    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.compiled is None and self.model is not None:
            self.compiled = self.build([*batch])
            expected = self.model(**batch).logits
            if self.calibrate or np.allclose(self.compute(batch), expected, atol=AGREES):
                self.model = None
            else:  # as of Gemma 3, whose padding attends to nothing
                print("note: OpenVINO does not agree with PyTorch on this model, which goes on instead", file=sys.stderr)
                self.compute = lambda batch: self.model(**batch).logits
        return {"logits": torch.as_tensor(self.compute(batch))}

    def compute(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        return np.array(self.compiled({name: ids.cpu().numpy() for name, ids in batch.items()})[0])

    def build(self, names: list[str]):
        import openvino

        example = {name: torch.ones(2, 16, dtype=torch.long) for name in names}
        example["attention_mask"][1, 8:] = 0
        if self.model.config._attn_implementation == fast.ATTENTION:
            self.model.set_attn_implementation("sdpa")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what tracing can't follow; the tests compare other lengths and batches
            converted = openvino.convert_model(_Logits(self.model), example_input=example)
        if self.calibrate:
            converted = _to_int8(converted, [{name: ids.numpy() for name, ids in batch.items()} for batch in self.calibrate()])
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino.Core().compile_model(converted, "CPU", hints)


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> torch.Tensor:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits


def _batches(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, torch.Tensor]]:
    """Training texts, one a batch."""
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    some = rows.train.select(np.random.default_rng(0).permutation(len(rows.train))[:CALIBRATED_ON])
    tokens, collate = encode(some, tokenizer, run.config).unlabelled(), run.task.collator(tokenizer, run.config)
    return [dict(collate(tokens.__getitems__([row]))) for row in range(len(tokens))]


def _to_int8(model, batches: list[dict]):
    with contextlib.redirect_stdout(sys.stderr):  # its bars
        import nncf

        return nncf.quantize(model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))
