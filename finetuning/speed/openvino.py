"""Predict new texts with OpenVINO instead of PyTorch, on a CPU: the same model, faster. OpenVINO is optional.

Training and evaluation always use PyTorch, so that results do not depend on what else is installed.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch

from finetuning.errors import shorten
from finetuning.speed.attention import ATTENTION

TOLERANCE = 0.25  # the largest allowed difference from PyTorch's logits, in bf16
MAX_REASON = 200  # characters of OpenVINO's error in a note


class OpenVino(torch.nn.Module):
    """`model` computed by OpenVINO, or by PyTorch if OpenVINO can't compute it. The first batch decides, with its logits."""

    def __init__(
        self, model: torch.nn.Module, precision: str, calibration_batches: list[dict[str, torch.Tensor]] | None = None
    ) -> None:
        """`precision` is bf16 or float32. With `calibration_batches`, weights and activations have 8 bits, calibrated on these."""
        super().__init__()
        self.model, self.precision, self.calibration_batches, self.compute = model, precision, calibration_batches, None

    @torch.no_grad()
    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.compute = self.compute or self._choose(batch)
        return {"logits": torch.as_tensor(self.compute(batch))}

    def _choose(self, batch: dict[str, torch.Tensor]) -> Callable:
        """Return a function of a batch that gives its logits."""
        expected = self.model(**batch).logits
        try:
            compiled = self._compile([*batch])

            def compute(batch: dict[str, torch.Tensor]) -> np.ndarray:
                return np.array(compiled({name: ids.cpu().numpy() for name, ids in batch.items()})[0])

            logits = compute(batch)
        except Exception as error:  # for example Mixtral; the errors of OpenVINO have no class in common
            problem = f"can't compute this model ({shorten(str(error), MAX_REASON)})"
        else:
            same_shape = logits.shape == expected.shape
            if same_shape and (self.calibration_batches or np.allclose(logits, expected, atol=TOLERANCE)):
                self.model = None
                return compute
            problem = "does not agree with PyTorch on this model"  # for example Longformer
        print(f"note: OpenVINO {problem}, so PyTorch predicts", file=sys.stderr)
        return lambda batch: self.model(**batch).logits

    def _compile(self, input_names: list[str]):
        import openvino

        example = {name: torch.ones(2, 16, dtype=torch.long) for name in input_names}
        example["attention_mask"][1, 8:] = 0
        if self.model.config._attn_implementation == ATTENTION:
            self.model.set_attn_implementation("sdpa")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they are about code that tracing can't follow; the tests compare other shapes
            converted = openvino.convert_model(_Logits(self.model), example_input=example)
        if self.calibration_batches:
            converted = _to_int8(converted, self.calibration_batches)
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino.Core().compile_model(converted, "CPU", hints)


class _Logits(torch.nn.Module):
    """A model as a function of tensors that returns a tensor, which tracing needs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> torch.Tensor:
        token_types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **token_types).logits


def _to_int8(model, batches: list[dict[str, torch.Tensor]]):
    """Return the model with weights and activations in 8 bits.

    Layers that read one vector per text, such as the head, keep their precision: they take hardly any time. SmoothQuant, nncf's default, is
    off: with texts of 512 tokens it moved the logits towards one label (results/engines.md).
    """
    arrays = [{name: ids.numpy() for name, ids in batch.items()} for batch in batches]
    products = [operation for operation in model.get_ops() if operation.get_type_name() == "MatMul"]
    of_texts = [product.get_friendly_name() for product in products if len(product.get_input_partial_shape(0)) == 2]
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

        return nncf.quantize(
            model,
            nncf.Dataset(arrays),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(arrays),
            ignored_scope=nncf.IgnoredScope(names=of_texts),
            advanced_parameters=AdvancedQuantizationParameters(smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1)),
        )
