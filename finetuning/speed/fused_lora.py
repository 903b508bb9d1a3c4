"""LoRA's update in one autograd node, with two passes over a layer's output instead of five."""

import functools
import hashlib
import inspect

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

# The SHA-256 of the source of peft's Linear.forward (0.21.2), which is replaced. Another version may compute something else.
KNOWN_FORWARD = "ec0a80f5c5ce05f5dd90027952bb5d29aaf910e9d2ab40486a90e8a03c7e1cd9"


def fuse_lora(model: PeftModel, bias_as_rank: bool) -> int:
    """Replace the forward pass of peft's LoRA layers, in place, and return the number of replaced layers.

    Layers of subclasses, and layers with a patched or edited forward pass, keep their own. So do layers whose parts have hooks,
    another class or trained base weights, also if they get these later. `bias_as_rank`: see `_FusedLora`.
    """
    forward = LoraLinear.forward
    if not inspect.isfunction(forward):
        return 0
    source = inspect.getsource(forward.__code__)  # for a function that wraps peft's, getsource(forward) would return peft's source
    if hashlib.sha256(source.encode()).hexdigest() != KNOWN_FORWARD:
        return 0
    layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, bias_as_rank=bias_as_rank)
    return len(layers)


def _is_plain(layer: LoraLinear) -> bool:
    """Return whether a layer has the forward pass of its class, and the update is only x Aᵀ Bᵀ."""
    if "forward" in vars(layer) or not all(_has_plain_parts(layer, name) for name in layer.lora_A):
        return False
    dropouts = [dropout for dropout in layer.lora_dropout.values() if not isinstance(dropout, torch.nn.Identity)]
    return not (layer.lora_variant or dropouts or any(layer.lora_bias.values()))


def _has_plain_parts(layer: LoraLinear, name: str) -> bool:
    """Return whether the fused pass computes what the base layer, A and B of the adapter `name` would."""
    base = layer.base_layer
    for part in (base, layer.lora_A[name], layer.lora_B[name]):
        if type(part) not in (torch.nn.Linear, Conv1D) or "forward" in vars(part):
            return False
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return False
    return not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))


def _forward(layer: LoraLinear, x: torch.Tensor, bias_as_rank: bool) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or not _has_plain_parts(layer, layer.active_adapters[0]):
        return LoraLinear.forward(layer, x)
    base, name = layer.base_layer, layer.active_adapters[0]
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight  # GPT-2's weights are transposed
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = _FusedLora.apply(x.reshape(-1, x.shape[-1]), weight, base.bias, a, b, layer.scaling[name], bias_as_rank)
    return rows.view(*x.shape[:-1], -1)  # a view from inside `_FusedLora` could not be changed in place, as Longformer does


class _FusedLora(torch.autograd.Function):
    """x Wᵀ + bias + (x Aᵀ) (s B)ᵀ, where only A and B are trained; s is the scaling. Computed in the dtype of x, (rows, width).

    `bias_as_rank` adds the bias as one more rank of the update. This saves a CPU a pass over the output. A GPU adds the bias
    during the multiplication, and its fast kernels need a rank that is a multiple of eight.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling, bias_as_rank):
        a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
        low, up, added = x @ a.t(), b, bias
        if bias is not None and bias_as_rank:
            low, up, added = torch.cat([low, x.new_ones(len(x), 1)], dim=1), torch.cat([b, bias[:, None]], dim=1), None
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scaling = scaling
        return linear(x, weight, added).addmm_(low, up.t())

    @staticmethod
    def backward(ctx, grad):
        x, low, weight, a, b = ctx.saved_tensors
        grad_low = grad @ b
        grad_x = (grad @ weight).addmm_(grad_low, a) if ctx.needs_input_grad[0] else None
        grad_b = (low.t() @ grad)[: len(a)].t().float() * ctx.scaling
        return grad_x, None, None, (grad_low.t() @ x).float(), grad_b, None, None
