"""One process or several. torchrun starts them, accelerate connects them; the first one decides, prints and writes for all.

A run on several GPUs or machines is the same script, started by torchrun. Where its processes differ, the code calls `by_first`,
`require_same` or accelerate's `PartialState`.
"""

import atexit
import functools
import os
import shlex
import sys
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from finetuning.errors import UserError
from finetuning.speed.precision import cores, on_cpu


def start() -> None:
    """Connect the processes that torchrun started. Without torchrun, use one GPU; if there are several, print how to use all."""
    if "RANK" not in os.environ:
        if (gpus := torch.cuda.device_count()) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            command = f"torchrun --nproc_per_node {gpus} {shlex.join(sys.argv)}"
            print(f"note: this run uses 1 of {gpus} GPUs. To use all: {command}", file=sys.stderr)
        return
    if on_cpu() and os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's default on any machine
        torch.set_num_threads(max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    state = PartialState(cpu=on_cpu())
    if state.use_distributed and not on_cpu():
        atexit.register(state.destroy_process_group)  # only for NCCL: to destroy gloo's process group may hang
    if not state.is_main_process:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open until the process ends)


def by_first(function: Callable) -> Callable:
    """Decorate a function so that only the first process runs it. Every process gets its result, or its `UserError`."""

    @functools.wraps(function)
    def wrapper(*arguments, **named):
        outcome = [None, None]
        if PartialState().is_main_process:
            try:
                outcome[0] = function(*arguments, **named)
            except UserError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1]:
            raise outcome[1]
        return outcome[0]

    return wrapper


def require_same(name: str, value: str) -> None:
    """Raise `UserError` on every process unless all have the same `value`; `name` describes it in the message."""
    if len(set(gather_object([value]))) > 1:
        raise UserError(f"the processes found different {name}: every machine must see the same files")
