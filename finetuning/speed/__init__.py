"""What makes training and prediction faster without changing results beyond rounding. `--speedups False` turns all of it off.

precision    bf16 or float32; settings that depend on the machine
frozen_bf16  frozen weights stored in bf16                        on in `prepare`
fused_lora   LoRA's update in one autograd node                   on in `prepare`
memory       freed memory is kept from step to step               on in `prepare`
attention    attention with a fast backward pass on a CPU         on in model/base.py, `build_base`
cuda_graphs  training steps as CUDA graphs                        on in training/trainer.py, `build_trainer`
beam_search  beam search for translation                          on in training/translating.py, `translate`
openvino     OpenVINO in PyTorch's place for new texts            on in use/predicting.py, `pick_engine`
"""

import torch
from peft import PeftModel

from config import Config
from finetuning.speed.frozen_bf16 import store_frozen_in_bf16
from finetuning.speed.fused_lora import fuse_lora
from finetuning.speed.memory import keep_freed_memory
from finetuning.speed.precision import on_cpu, pick_precision, uses_autocast


def prepare(model: PeftModel, config: Config) -> None:
    """Make a model fast on this machine, in place, for training and prediction alike."""
    if not config.speedups:
        return
    bf16 = pick_precision(config.precision)[0] == "bf16"
    if torch.cuda.is_available() and bf16:
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
    if on_cpu():
        keep_freed_memory()
    if uses_autocast(config):
        return
    if bf16:
        store_frozen_in_bf16(model)
    if not torch.backends.mps.is_available():  # not tried on Apple's GPU
        fuse_lora(model, bias_as_rank=on_cpu())
