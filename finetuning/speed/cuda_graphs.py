"""Training steps as CUDA graphs.

A GPU computes a small model faster than Python can start its kernels, about 800 per step. A CUDA graph starts all kernels of a
forward or backward pass at once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It always uses the same
addresses, and tensors of the same shape. So batches are padded to one of a few lengths, and each length is recorded once.
"""

import gc
import sys
import time
from collections.abc import Callable

import torch
from accelerate import PartialState
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from config import Config
from finetuning.speed.precision import uses_autocast
from finetuning.task import Task

MAX_LENGTHS = 8  # number of lengths that are recorded


def apply_to(task: Task, config: Config) -> bool:
    """Return whether a run's steps can be recorded.

    Nothing in a step may be random. A step must be one pass in one process, because each pass overwrites the gradients of the last.
    """
    return (
        config.cuda_graphs
        and config.speedups
        and torch.cuda.is_available()
        and PartialState().num_processes == 1
        and not task.predicts_tokens
        and config.padding == "longest"
        and config.gradient_accumulation_steps == 1
        and not (config.dropout or config.lora_dropout or uses_autocast(config))
    )


class Graphs(TrainerCallback):
    """Records the steps when training begins: from then on weights keep their addresses, and no thread loads batches yet."""

    def __init__(self, trainer: Trainer) -> None:
        """`trainer` is the `FineTuner` that this callback is added to."""
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model, **_) -> None:
        started, data = time.perf_counter(), self.trainer.train_dataset
        input_names = [name for name in self.trainer.data_collator(data.__getitems__([(0, 0, 0)])) if name != "labels"]
        steps = -(-len(data) // self.trainer.rows_per_step)
        rows, lengths = -(-len(data) // steps), lengths_to_record(self.trainer.lengths.max())
        model.train()
        try:
            graphs = record(model, input_names, rows, lengths)
        except RuntimeError as error:
            message = f"note: this model can't be recorded, so it trains without CUDA graphs ({str(error).splitlines()[0]})"
        else:
            padding = dict.fromkeys(input_names, 0) | {"input_ids": self.trainer.processing_class.pad_token_id}
            model.forward = padded(model, graphs, rows, padding)
            message = f"training steps recorded as CUDA graphs in {time.perf_counter() - started:.1f} s"
        gc.collect()  # frees the memory of a failed recording
        tqdm.write(message, file=sys.stdout)

    def on_train_end(self, args, state, control, model, **_) -> None:
        vars(model).pop("forward", None)
        gc.collect()  # deletes the graphs now: a forked process that loads batches would fail when it deletes them


class _Logits(torch.nn.Module):
    """A model as a function of tensors that returns a tensor, which `make_graphed_callables` needs."""

    def __init__(self, model: torch.nn.Module, input_names: list[str]) -> None:
        super().__init__()
        self.model, self.input_names, self.forward_of_model = model, input_names, model.forward

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.forward_of_model(**dict(zip(self.input_names, inputs, strict=True))).logits


def lengths_to_record(longest: int) -> list[int]:
    """Return at most `MAX_LENGTHS` lengths, multiples of 8 at equal distances, up to `longest` tokens."""
    return sorted({8 * -(-longest * part // (8 * MAX_LENGTHS)) for part in range(1, MAX_LENGTHS + 1)})


def record(model: torch.nn.Module, input_names: list[str], rows: int, lengths: list[int]) -> dict[int, torch.nn.Module]:
    """Return {length: recorded model} for each of `lengths`, in tokens.

    A recorded model maps inputs (rows, tokens), in the order of `input_names`, to logits. Raise `RuntimeError` if a step depends on
    values that must be copied from the GPU, or if memory is too small.
    """
    graphs, pool = {}, torch.cuda.graph_pool_handle()
    for tokens in reversed(lengths):  # only one graph runs at a time, so shorter ones use the memory of the longest
        inputs = {name: torch.zeros(rows, tokens, dtype=torch.long, device=model.device) for name in input_names}
        inputs["attention_mask"][:, :-1] = 1  # with ones only, transformers would drop the mask
        graphs[tokens] = torch.cuda.make_graphed_callables(_Logits(model, input_names), tuple(inputs.values()), pool=pool)
    return graphs


def padded(
    model: torch.nn.Module, graphs: dict[int, torch.nn.Module], rows: int, padding: dict[str, int]
) -> Callable[..., ModelOutput]:
    """Return a `forward` that uses `graphs` in training if the inputs fit, else the model's own.

    `rows` and the keys of `graphs`, in tokens, are the recorded sizes. `padding` has the value with which each input is padded.
    """
    plain = model.forward

    def forward(**inputs) -> ModelOutput:
        rows_given, tokens = inputs["input_ids"].shape
        fitting = [length for length in graphs if length >= tokens]
        if not model.training or rows_given > rows or not fitting:
            return plain(**inputs)
        length = min(fitting)
        missing = (0, length - tokens, 0, rows - rows_given)
        inputs = {name: pad(inputs[name], missing, value=value) for name, value in padding.items()}
        inputs["attention_mask"][rows_given:] = 1  # a fully masked row would produce NaN
        logits = graphs[length](*inputs.values())[:rows_given]
        return SequenceClassifierOutput(logits=logits if logits.dim() == 2 else logits[:, :tokens])

    return forward
