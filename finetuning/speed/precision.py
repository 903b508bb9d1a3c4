"""The precision of a run, and settings that depend on the machine."""

import contextlib
import os
import platform

import torch

from config import Config
from finetuning.errors import UserError


def on_cpu() -> bool:
    """Return whether models run on the CPU, because there is no GPU."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def pick_precision(wanted: str) -> tuple[str, str]:
    """Return ("bf16" or "float32", the reason) for this machine; `wanted` is the setting `precision`.

    Trainable parameters are always stored in float32. Raise `UserError` if `wanted` is "bf16" and the machine can't do it.
    """
    if wanted == "float32":
        return wanted, "as the config says"
    if torch.cuda.is_available():
        has_bf16, reason = torch.cuda.is_bf16_supported(including_emulation=False), f"on {torch.cuda.get_device_name()}"
    elif not on_cpu():
        has_bf16, reason = False, "Apple's GPU is faster without bf16"
    else:
        # If ATEN_CPU_CAPABILITY limits the CPU, PyTorch's attention fails in bf16. If ONEDNN_MAX_CPU_ISA limits it, matrix products
        # take 60 times as long.
        unlimited = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        x86 = ("amx_bf16", "avx512_bf16") if unlimited else ()
        instructions = [name for name in (*x86, "bf16") if torch.cpu.get_capabilities().get(name)]
        has_bf16 = bool(instructions)
        reason = f"the CPU has {instructions[0]}" if has_bf16 else "the CPU has no bf16 instructions that PyTorch uses"
    if wanted == "bf16" and not has_bf16:
        raise UserError(f"precision=bf16 is not possible on this machine ({reason}); use auto or float32")
    return ("bf16" if has_bf16 else "float32"), reason


def uses_autocast(config: Config) -> bool:
    """Return whether autocast computes in bf16. Otherwise frozen weights are stored in bf16 (`speed.store_frozen_in_bf16`)."""
    return config.method == "full" or config.train_embeddings or config.quantization != "none" or not config.speedups


def autocast(config: Config) -> contextlib.AbstractContextManager:
    """Return the autocast context that the Trainer uses, for computations outside the Trainer."""
    if not uses_autocast(config) or pick_precision(config.precision)[0] != "bf16":
        return contextlib.nullcontext()
    return torch.autocast("cpu" if on_cpu() else "cuda", torch.bfloat16)


def rows_to_predict(config: Config) -> int:
    """Return the number of texts that a forward pass predicts in one process. A GPU is faster with more of them."""
    return config.eval_batch_size or (32 if on_cpu() else 256)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine_arguments(config: Config) -> dict:
    """Return the TrainingArguments that depend on the machine, the same for training and prediction."""
    workers = min(4, cores() // 2)  # processes that load batches for a GPU; without a GPU, training needs all cores
    return dict(
        bf16=uses_autocast(config) and pick_precision(config.precision)[0] == "bf16",
        use_cpu=on_cpu(),
        per_device_eval_batch_size=rows_to_predict(config),
        dataloader_pin_memory=not on_cpu(),
        dataloader_num_workers=workers if torch.cuda.is_available() and platform.system() == "Linux" else 0,
        logging_nan_inf_filter=False,  # it waits for each step's loss on the GPU, and hides a loss that is NaN
        log_on_each_node=False,
        remove_unused_columns=False,
    )
