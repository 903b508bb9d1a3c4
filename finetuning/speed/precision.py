"""The precision of a run, and the settings that depend on the machine."""

import contextlib
import os
import platform

import torch

from config import Config
from finetuning.errors import UserError


def on_cpu() -> bool:
    """Return whether models run on the CPU because there is no GPU."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def pick_precision(wanted: str) -> tuple[str, str]:
    """Return ("bf16" or "float32", why) for this machine. Trainable parameters are stored in float32 in any case."""
    if wanted == "float32":
        return wanted, "as the config says"
    if torch.cuda.is_available():
        has, why = torch.cuda.is_bf16_supported(including_emulation=False), f"on {torch.cuda.get_device_name()}"
    elif not on_cpu():
        has, why = False, "Apple's GPU is faster without bf16"
    else:
        # Limited by ATEN_CPU_CAPABILITY, PyTorch's attention fails in bf16; limited by ONEDNN_MAX_CPU_ISA, matrix products take 60 times as long.
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        x86 = ("amx_bf16", "avx512_bf16") if wide else ()
        instructions = [name for name in (*x86, "bf16") if torch.cpu.get_capabilities().get(name)]
        has = bool(instructions)
        why = f"the CPU has {instructions[0]}" if has else "the CPU has no bf16 instructions that PyTorch uses"
    if wanted == "bf16" and not has:
        raise UserError(f"precision=bf16: not on this machine ({why}); use auto or float32")
    return ("bf16" if has else "float32"), why


def uses_autocast(config: Config) -> bool:
    """Return whether bf16 is left to autocast. Otherwise frozen weights are stored in bf16 (speed/frozen_bf16.py)."""
    return config.method == "full" or config.train_embeddings or config.quantization != "none" or not config.speedups


def autocast(config: Config) -> contextlib.AbstractContextManager:
    """Return the context in which the Trainer computes, for what is computed outside of it."""
    if not uses_autocast(config) or pick_precision(config.precision)[0] != "bf16":
        return contextlib.nullcontext()
    return torch.autocast("cpu" if on_cpu() else "cuda", torch.bfloat16)


def rows_to_predict(config: Config) -> int:
    """Return how many texts a forward pass predicts, per process. A GPU wants more of them at once, and has the memory."""
    return config.eval_batch_size or (32 if on_cpu() else 256)


def machine_arguments(config: Config) -> dict:
    """Return the TrainingArguments that depend on the machine, the same for training and prediction."""
    workers = min(4, os.cpu_count() // 2)  # to read batches ahead of a GPU; a CPU has none to spare
    return dict(
        bf16=uses_autocast(config) and pick_precision(config.precision)[0] == "bf16",
        use_cpu=on_cpu(),
        per_device_eval_batch_size=rows_to_predict(config),
        dataloader_pin_memory=not on_cpu(),
        dataloader_num_workers=workers if torch.cuda.is_available() and platform.system() == "Linux" else 0,
        logging_nan_inf_filter=False,  # it asks the GPU for each step's loss, and hides one that is not a number
        log_on_each_node=False,
        remove_unused_columns=False,
    )
