"""Frozen weights stored in bf16, where autocast would cast each of them anew in every step."""

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper


def store_frozen_in_bf16(model: PeftModel) -> None:
    """Turn all frozen parameters into bf16, in place. The head, which is trained and saved as a whole, computes in float32.

    Autocast would also keep the activations between layers in float32.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    if (output_layer := model.get_base_model().get_output_embeddings()) is not None:  # of a language model, behind such a head
        output_layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype), *inputs[1:]))
