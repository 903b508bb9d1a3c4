"""OpenVINO in PyTorch's place for new texts, on a CPU that has it installed: the same model, faster.

Training and evaluation stay with PyTorch, so that a result never depends on what else is installed.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch

from finetuning.speed.attention import ATTENTION

TOLERANCE = 0.25  # largest difference of a logit in bf16


class OpenVino(torch.nn.Module):
    """Answers as `model` does; built when the first batch says which inputs there are, and compared with it on that batch."""

    def __init__(
        self, model: torch.nn.Module, precision: str, calibration_batches: Callable[[], list[dict[str, torch.Tensor]]] | None = None
    ) -> None:
        """`precision`: bf16 or float32. `calibration_batches`: gives batches for 8-bit weights and activations; None: no 8 bits."""
        super().__init__()
        self.model, self.precision, self.calibration_batches, self.compiled = model, precision, calibration_batches, None

    @torch.no_grad()
    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.compiled is None and self.model is not None:
            self.compiled = self._build([*batch])
            expected = self.model(**batch).logits
            if self.calibration_batches or np.allclose(self._compute(batch), expected, atol=TOLERANCE):
                self.model = None
            else:  # Gemma 3, for example, where padding attends to nothing
                print("note: OpenVINO does not agree with PyTorch on this model, so PyTorch predicts", file=sys.stderr)
                self._compute = lambda batch: self.model(**batch).logits
        return {"logits": torch.as_tensor(self._compute(batch))}

    def _compute(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        return np.array(self.compiled({name: ids.cpu().numpy() for name, ids in batch.items()})[0])

    def _build(self, input_names: list[str]):
        import openvino

        example = {name: torch.ones(2, 16, dtype=torch.long) for name in input_names}
        example["attention_mask"][1, 8:] = 0
        if self.model.config._attn_implementation == ATTENTION:
            self.model.set_attn_implementation("sdpa")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what tracing can't follow; the tests compare other lengths and batches
            converted = openvino.convert_model(_Logits(self.model), example_input=example)
        if self.calibration_batches:
            converted = _to_int8(converted, self.calibration_batches())
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino.Core().compile_model(converted, "CPU", hints)


class _Logits(torch.nn.Module):
    """A model from tensors to a tensor, as tracing needs it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> torch.Tensor:
        token_types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **token_types).logits


def _to_int8(model, batches: list[dict[str, torch.Tensor]]):
    arrays = [{name: ids.numpy() for name, ids in batch.items()} for batch in batches]
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        import nncf

        return nncf.quantize(model, nncf.Dataset(arrays), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(arrays))
