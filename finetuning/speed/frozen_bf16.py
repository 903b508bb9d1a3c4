"""Frozen weights stored in bf16. Autocast would cast each of them again in every step."""

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper


def store_frozen_in_bf16(model: PeftModel) -> None:
    """Convert all frozen parameters to bf16, in place. The head, whose weights are all trained, computes in float32.

    Activations between layers are then bf16 too; with autocast they would be float32.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    if (output_layer := model.get_base_model().get_output_embeddings()) is not None:  # it may follow a head in float32
        output_layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype), *inputs[1:]))
