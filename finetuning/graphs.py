"""Training steps as CUDA graphs: a GPU computes a small model faster than Python can start its kernels, some 800 a step.

What is recorded runs again at the same addresses, on tensors of the same shape. So batches are padded to one of a few lengths, each
recorded once; then forward and backward are one start each. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import gc
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from config import Config
from finetuning.batches import count_steps
from finetuning.fast import uses_autocast

LENGTHS = 8  # recorded, at most


def apply_to(config: Config) -> bool:
    """Whether a run's steps can be recorded: nothing in them is drawn by chance, and gradients are of one pass in one process,
    as each pass writes over those of the last."""
    return (
        config.cuda_graphs
        and torch.cuda.is_available()
        and PartialState().num_processes == 1
        and config.task in ("text-classification", "token-classification")
        and config.padding == "longest"
        and config.gradient_accumulation_steps == 1
        and not (config.dropout or config.lora_dropout or uses_autocast(config))
    )


class Graphs(TrainerCallback):
    """Records when training begins: then the weights are where they stay, and no thread that loads batches speaks to the GPU."""

    def __init__(self, trainer: Trainer) -> None:
        """`trainer` is the one it is added to: of it are the rows of a step, their lengths and what fills them up."""
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model, **_) -> None:
        started, data = time.perf_counter(), self.trainer.train_dataset
        names = [name for name in self.trainer.data_collator(data.__getitems__([(0, 0, 0)])) if name != "labels"]
        rows = -(-len(data) // count_steps(len(data), self.trainer.rows_of_step))
        longest = np.minimum(data.tokens.lengths, self.trainer.max_length).max()
        lengths = sorted({8 * -(-longest * part // (8 * LENGTHS)) for part in range(1, LENGTHS + 1)})
        model.train()
        try:
            graphs = record(model, names, rows, lengths)
        except RuntimeError as error:
            said = f"cuda_graphs: this model can't be recorded, and trains without ({str(error).splitlines()[0]})"
        else:
            padding = dict.fromkeys(names, 0) | {"input_ids": self.trainer.processing_class.pad_token_id}
            model.forward = padded(model, graphs, rows, padding)
            said = f"training steps recorded as CUDA graphs in {time.perf_counter() - started:.1f} s"
        gc.collect()  # what a failed recording left
        tqdm.write(said, file=sys.stdout)

    def on_train_end(self, args, state, control, model, **_) -> None:
        vars(model).pop("forward", None)
        gc.collect()  # here: a process that loads batches fails when it deletes a graph that it was forked with


class _Logits(torch.nn.Module):
    """A model from tensors to a tensor, as `make_graphed_callables` wants it."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.of_model = model, names, model.forward

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.of_model(**dict(zip(self.names, inputs, strict=True))).logits


def record(model: torch.nn.Module, names: list[str], rows: int, lengths: list[int]) -> dict[int, torch.nn.Module]:
    """For each of `lengths` the model on inputs of that many tokens, (rows, tokens) each, `names` in their order; it gives logits.

    Raises `RuntimeError` where the model asks the GPU what to do next, or memory is too small.
    """
    graphs, pool = {}, torch.cuda.graph_pool_handle()
    for tokens in reversed(lengths):  # in one pool, as no two are at work at a time: the shorter find room in the longest
        inputs = {name: torch.zeros(rows, tokens, dtype=torch.long, device=model.device) for name in names}
        inputs["attention_mask"][:, :-1] = 1  # not all, as transformers would leave the mask out
        graphs[tokens] = torch.cuda.make_graphed_callables(_Logits(model, names), tuple(inputs.values()), pool=pool)
    return graphs


def padded(
    model: torch.nn.Module, graphs: dict[int, torch.nn.Module], rows: int, padding: dict[str, int]
) -> Callable[..., ModelOutput]:
    """The model's `forward` through `graphs`, where it trains and its inputs fit in; `padding` is what each input is filled up with."""
    plain = model.forward

    def forward(**inputs) -> ModelOutput:
        here, tokens = inputs["input_ids"].shape
        fitting = [length for length in graphs if length >= tokens]
        if not model.training or here > rows or not fitting:
            return plain(**inputs)
        to = min(fitting)
        inputs = {name: pad(inputs[name], (0, to - tokens, 0, rows - here), value=value) for name, value in padding.items()}
        inputs["attention_mask"][here:] = 1  # a row that attends to nothing would give no number
        logits = graphs[to](*inputs.values())[:here]
        return SequenceClassifierOutput(logits=logits if logits.dim() == 2 else logits[:, :tokens])

    return forward
