"""One process or many: torchrun starts them, accelerate joins them; the first one decides, speaks and writes for all.

A run on several GPUs or machines is the same script under torchrun. What differs between its processes is here, in
batches.py, and in what the Trainer does by itself.
"""

import atexit
import functools
import os
import sys
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from finetuning import fast
from finetuning.errors import UserError


def start() -> None:
    """Join the processes that torchrun started. Without torchrun, use one GPU, not silently all of them."""
    if "RANK" not in os.environ:
        if (gpus := torch.cuda.device_count()) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            print(f"{gpus} GPUs are here, this run uses one. For all: torchrun --nproc_per_node {gpus} {' '.join(sys.argv)}")
        return
    if fast.on_cpu() and os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's default, whatever the machine has
        torch.set_num_threads(max(1, os.cpu_count() // int(os.environ["LOCAL_WORLD_SIZE"])))
    state = PartialState(cpu=fast.on_cpu())
    if state.use_distributed:
        atexit.register(torch.distributed.destroy_process_group)
    if not state.is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)


def by_first(function: Callable) -> Callable:
    """Decorate what one process does for all: the first runs it, and each gets its result, or its `UserError`."""

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


def require_same(what: str, value: str) -> None:
    """Raises `UserError` on every process unless all have the same `value`."""
    if len(set(gather_object([value]))) > 1:
        raise UserError(f"the processes found different {what}: every machine must see the same files")
