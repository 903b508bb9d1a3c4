"""The precision of a run, and what makes LoRA fast on a CPU.

bf16 makes the matrix products so fast that the time goes to what surrounds them: casts, passes over large tensors,
attention's backward. benchmarks/speed.py measures what each part here is worth.
"""

import contextlib
import ctypes
import functools
import os
import platform

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning.errors import UserError

ATTENTION = "sdpa_with_batched_backward"  # a name for transformers' attn_implementation


def on_cpu() -> bool:
    """Whether the models will run on the CPU, for want of a GPU."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def pick_precision(wanted: str) -> tuple[str, str]:
    """("bf16" or "float32", why) for this machine. What trains is stored in float32 in any case."""
    if wanted == "float32":
        return wanted, "as the config says"
    if torch.cuda.is_available():
        has, why = torch.cuda.is_bf16_supported(including_emulation=False), f"on {torch.cuda.get_device_name()}"
    elif not on_cpu():
        has, why = False, "Apple's GPU is faster without bf16"
    else:
        # Held back by ATEN_CPU_CAPABILITY, PyTorch's attention fails in bf16; by ONEDNN_MAX_CPU_ISA, its products take 60 times as long.
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        x86 = ("amx_bf16", "avx512_bf16") if wide else ()
        found = [name for name in (*x86, "bf16") if torch.cpu.get_capabilities().get(name)]
        has, why = bool(found), f"the CPU has {found[0]}" if found else "the CPU has no bf16 instructions that PyTorch uses"
    if wanted == "bf16" and not has:
        raise UserError(f"precision=bf16: not on this machine ({why}); use auto or float32")
    return ("bf16" if has else "float32"), why


def uses_autocast(config: Config) -> bool:
    """Whether bf16 is autocast's work; where weights are frozen they are stored in it instead."""
    return config.method == "full" or config.train_embeddings or config.quantization != "none"


def autocast(config: Config) -> contextlib.AbstractContextManager:
    """What the Trainer computes in, for what is computed beside it."""
    if not uses_autocast(config) or pick_precision(config.precision)[0] != "bf16":
        return contextlib.nullcontext()
    return torch.autocast("cpu" if on_cpu() else "cuda", torch.bfloat16)


def rows_to_predict(config: Config) -> int:
    """Texts a forward pass, and a process, where nothing is learned. A GPU wants more of them at once; memory is no matter there."""
    return config.eval_batch_size or (32 if on_cpu() else 256)


def loading_processes() -> int:
    """Processes that read batches ahead of a GPU; a CPU has none to spare, and elsewhere than on Linux they cost more than they bring."""
    return min(4, os.cpu_count() // 2) if torch.cuda.is_available() and platform.system() == "Linux" else 0


def prepare(model: PeftModel, config: Config) -> None:
    """Make a model ready for this machine, in place, for training and prediction alike."""
    in_bf16 = pick_precision(config.precision)[0] == "bf16"
    if torch.cuda.is_available() and in_bf16:
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
    if on_cpu():
        keep_freed_memory()
    if uses_autocast(config):
        return
    if in_bf16:
        store_frozen_in_bf16(model)
    if config.lora_dropout == 0 and not config.use_dora and not torch.backends.mps.is_available():  # not tried on Apple's GPU
        fuse_lora(model)


def keep_freed_memory() -> None:
    """Let glibc keep what PyTorch frees for the next step; from the kernel a large tensor comes page by page, zeroed anew."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, m_mmap_max, m_trim_threshold = ctypes.CDLL(None).mallopt, -4, -1  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def give_back_freed_memory() -> None:
    """What `keep_freed_memory` kept, for now: small tensors that live on between the freed ones leave gaps that add up."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def store_frozen_in_bf16(model: PeftModel) -> None:
    """Turn all of a model but what trains into bf16; the head, which is saved whole, computes in float32.

    Autocast would cast every frozen weight anew in each step, and keep the activations between layers in float32.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    if (words := model.get_base_model().get_output_embeddings()) is not None:  # of a language model, behind such a head
        words.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype), *inputs[1:]))


def fuse_lora(model: PeftModel) -> None:
    """Let each LoRA layer add its update inside one autograd node: two passes over the output instead of five."""
    for module in model.modules():
        if isinstance(module, LoraLinear) and isinstance(module.base_layer, torch.nn.Linear | Conv1D):
            module.forward = functools.partial(_lora_linear, module, bias_as_rank=on_cpu())


def _lora_linear(layer: LoraLinear, x: torch.Tensor, bias_as_rank: bool) -> torch.Tensor:
    if layer.disable_adapters or layer.merged:
        return LoraLinear.forward(layer, x)
    base, name = layer.base_layer, layer.active_adapters[0]
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight  # GPT-2's are the other way round
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoraLinear.apply(x, weight, base.bias, a, b, layer.scaling[name], bias_as_rank)


class _LoraLinear(torch.autograd.Function):
    """x W' + b + (x A') (s B)', where only A and B train; computed in x's dtype.

    `bias_as_rank`: a CPU would add the bias in another pass over the output. A GPU adds it while it multiplies, and its fast kernels
    want a rank that is a multiple of eight.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling, bias_as_rank):
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
        low, up, own = rows @ a.t(), b, bias
        if bias is not None and bias_as_rank:
            low, up, own = torch.cat([low, rows.new_ones(len(rows), 1)], dim=1), torch.cat([b, bias[:, None]], dim=1), None
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.shape, ctx.scaling = x.shape, scaling
        return linear(rows, weight, own).addmm_(low, up.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = grad @ b
        grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        grad_b = (low.t() @ grad)[: len(a)].t().float() * ctx.scaling
        return grad_x, None, None, (grad_low.t() @ rows).float(), grad_b, None, None


def has_sdpa(model_class: type, model_config: PretrainedConfig) -> bool:
    """Whether the attention of this model is PyTorch's, so that `attention` may take its place."""
    return model_class._model_mapping[type(model_config)]._supports_sdpa


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **_
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, in and out as transformers' `AttentionInterface` has it: (batch, heads, tokens, width)."""
    if position_bias is not None:  # T5's, which are learned
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias
        )
    if query.shape[1] != key.shape[1]:  # several queries to a key: Llama and later ones
        key, value = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (key, value))
    if attention_mask is None and getattr(module, "is_causal", False):
        tokens = query.shape[2]
        attention_mask = query.new_ones(tokens, tokens, dtype=torch.bool).tril().expand(len(query), 1, tokens, tokens)
    if dropout:
        out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    return _Attention.apply(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


IN_CACHE = 2**20  # scores of as many texts at a time as are that many together


class _Attention(torch.autograd.Function):
    """Softmax attention of some texts at a time, so that their scores stay in the cache; the backward computes them anew.

    query, key, value (batch, heads, tokens, width) -> (batch, tokens, heads, width). PyTorch's fused forward takes twice as long in
    bf16 without AMX, its backward two to three times (2.13); in float32 the forward is its own.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        if query.dtype == torch.float32:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2).contiguous()
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        for some in _texts(query, key):
            shares = _shares(query[some], key[some], mask if mask is None else mask[some], scaling)
            out[some] = _by_text(torch.bmm(shares, value[some].flatten(0, 1)), heads)
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, mask = ctx.saved_tensors
        heads, grads = query.shape[1], [torch.empty_like(tensor.transpose(1, 2)) for tensor in (query, key, value)]
        for some in _texts(query, key):
            q, k, v, g = (tensor[some].flatten(0, 1) for tensor in (query, key, value, grad.transpose(1, 2)))
            shares = _shares(query[some], key[some], mask if mask is None else mask[some], ctx.scaling)
            grad_scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), shares, -1, shares.dtype)
            found = torch.bmm(grad_scores, k) * ctx.scaling, torch.bmm(grad_scores.transpose(1, 2), q) * ctx.scaling
            for whole, part in zip(grads, (*found, torch.bmm(shares.transpose(1, 2), g)), strict=True):
                whole[some] = _by_text(part, heads)
        return *(whole.transpose(1, 2) for whole in grads), None, None


def _texts(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
    batch, heads, tokens, _ = query.shape
    size = max(1, IN_CACHE // (heads * tokens * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch, size)]


def _shares(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """What each token attends to, (texts x heads, tokens, tokens)."""
    scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    if mask is not None and not (seen := mask.flatten(0, -2).all(dim=0)).all():
        first = int(seen.int().argmin())  # key that is hidden from someone: padding is behind it
        hidden, of_texts = ~mask[..., first:], scores.view(*query.shape[:2], *scores.shape[1:])
        of_texts[..., first:].masked_fill_(hidden, torch.finfo(scores.dtype).min)  # not -inf: padding may attend to nothing at all
    return torch.softmax(scores, dim=-1)


def _by_text(part: torch.Tensor, heads: int) -> torch.Tensor:
    """(texts x heads, tokens, width) -> (texts, tokens, heads, width)"""
    return part.unflatten(0, (-1, heads)).transpose(1, 2)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
