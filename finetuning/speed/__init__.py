"""Faster training and prediction, with equal results up to rounding. `--speedups False` turns all of this off, except precision.

module         task                                                  called from
precision      choose bf16 or float32, and settings for the machine  everywhere
(this file)    store frozen weights in bf16                          `prepare` in this file
fused_lora     compute LoRA's update in one autograd node            `prepare` in this file
memory         keep freed memory from step to step                   `prepare` in this file, training/
(this file)    merge LoRA into float32 weights before predicting     evaluate.py; `load_engine` in use/predicting.py; use/exporting.py
attention      attention with a fast backward pass on a CPU          model/base.py, `build_base`
cuda_graphs    record training steps as CUDA graphs                  training/trainer.py, `build_trainer`
beam_search    beam search for translation                           training/writing.py, `translate`
greedy_search  greedy search for answers to prompts                  training/writing.py, `write_answers`
openvino       predict with OpenVINO instead of PyTorch              use/predicting.py, `load_engine`
"""

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from config import Config
from finetuning.speed.fused_lora import fuse_lora
from finetuning.speed.memory import keep_freed_memory
from finetuning.speed.precision import on_cpu, pick_precision, uses_autocast


def prepare(model: PeftModel, config: Config) -> None:
    """Apply the speedups for this machine to a model, in place. Training and prediction both call this."""
    bf16 = pick_precision(config.precision)[0] == "bf16"
    if torch.cuda.is_available():  # TF32 for weights that stay in float32; a run in float32 after one in bf16 turns it off again
        torch.set_float32_matmul_precision("high" if config.speedups and bf16 else "highest")
    if not config.speedups:
        return
    if on_cpu():
        keep_freed_memory()
    if uses_autocast(config):
        return
    if bf16:
        store_frozen_in_bf16(model)
    if not torch.backends.mps.is_available():  # never tried on Apple's GPU
        fuse_lora(model, bias_as_rank=on_cpu())


def store_frozen_in_bf16(model: PeftModel) -> None:
    """Convert all frozen parameters to bf16, in place. The head computes in float32, also if its weights are frozen.

    Autocast would cast each of them again in every step. Activations between layers are now bf16 too; with autocast they would be
    float32.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and ".modules_to_save." not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("embed_positions.weights"):  # of M2M100, which adds them to the embeddings
            buffer.data = buffer.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    if (output_layer := model.get_base_model().get_output_embeddings()) is not None:  # it may follow a head in float32
        output_layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype), *inputs[1:]))


def merge(model: PeftModel, config: Config) -> None:
    """Add LoRA's update to the frozen weights of a model that only predicts, in place: a layer then has one product instead of three.

    Weights in bf16 or 4 bits stay as they are: rounded to these, the sum would lose a part of the update. The weights also stay as
    they are if the output layer is adapted and tied to the embeddings: the update would change the embeddings too.
    """
    base = model.get_base_model()
    is_shared = base.config.get_text_config().tie_word_embeddings and isinstance(base.get_output_embeddings(), LoraLayer)
    is_exact = config.quantization == "none" and pick_precision(config.precision)[0] == "float32" and not is_shared
    if config.speedups and config.method == "lora" and is_exact:
        model.merge_adapter()
