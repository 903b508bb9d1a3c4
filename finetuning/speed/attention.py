"""Attention with a backward pass that is fast on a CPU.

In bf16, matrix products are so fast that other operations take most of the time: casts, passes over large tensors, and the backward
pass of attention. benchmarks/speed.py measures how much each speedup saves.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "sdpa_with_batched_backward"  # the name of `attention` for transformers' attn_implementation


def has_sdpa(model_class: type, model_config: PretrainedConfig) -> bool:
    """Return whether this model can use PyTorch's attention, which `attention` can then replace."""
    return model_class._model_mapping[type(model_config)]._supports_sdpa


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **_
) -> tuple[torch.Tensor, None]:
    """Return (batch, tokens, heads, width) and None; `query`, `key` and `value` are (batch, heads, tokens, width).

    These are the shapes of transformers' `AttentionInterface`.
    """
    if position_bias is not None or dropout:  # biases that are learned, of T5; dropout of attention in training
        settings = dict(dropout=dropout, scaling=scaling, position_bias=position_bias)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    query, key = query.to(value.dtype), key.to(value.dtype)  # with autocast, rotated queries and keys are float32
    if query.shape[1] != key.shape[1]:  # several query heads per key head: Llama and later models
        key, value = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (key, value))
    tokens = query.shape[2]
    if attention_mask is None and tokens > 1 and getattr(module, "is_causal", False):
        key, value = key[:, :, :tokens], value[:, :, :tokens]  # a cache of fixed size is longer than the text
        attention_mask = query.new_ones(tokens, tokens, dtype=torch.bool).tril().expand(len(query), 1, tokens, tokens)
    return _Attention.apply(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


SCORES_IN_CACHE = 2**20  # attention scores in a chunk of texts, few enough for the CPU's cache


class _Attention(torch.autograd.Function):
    """Softmax attention of one chunk of texts at a time, whose scores fit into the cache. The backward pass computes them again.

    query, key, value (batch, heads, tokens, width) -> (batch, tokens, heads, width). In bf16 without AMX, PyTorch's fused forward
    pass takes twice as long, and its backward pass two to three times as long (PyTorch 2.13). In float32, PyTorch's forward pass
    is used.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        if query.dtype == torch.float32:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2).contiguous()
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        for chunk in _chunks(query, key):
            probabilities = _probabilities(query[chunk], key[chunk], mask if mask is None else mask[chunk], scaling)
            out[chunk] = _by_text(torch.bmm(probabilities, value[chunk].flatten(0, 1)), heads)
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, mask = ctx.saved_tensors
        heads, grads = query.shape[1], [torch.empty_like(tensor.transpose(1, 2)) for tensor in (query, key, value)]
        for chunk in _chunks(query, key):
            q, k, v, g = (tensor[chunk].flatten(0, 1) for tensor in (query, key, value, grad.transpose(1, 2)))
            probabilities = _probabilities(query[chunk], key[chunk], mask if mask is None else mask[chunk], ctx.scaling)
            grad_scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), probabilities, -1, probabilities.dtype)
            parts = torch.bmm(grad_scores, k) * ctx.scaling, torch.bmm(grad_scores.transpose(1, 2), q) * ctx.scaling
            for gradient, part in zip(grads, (*parts, torch.bmm(probabilities.transpose(1, 2), g)), strict=True):
                gradient[chunk] = _by_text(part, heads)
        return *(gradient.transpose(1, 2) for gradient in grads), None, None


def _chunks(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
    """Return slices of the texts. A slice has at most `SCORES_IN_CACHE` scores, or is one text."""
    batch, heads, tokens, _ = query.shape
    size = max(1, SCORES_IN_CACHE // (heads * tokens * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch, size)]


def _probabilities(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Return the attention probabilities, (texts x heads, tokens, tokens). `mask` is true where a token may attend to another."""
    scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    if mask is not None and not (never_masked := mask.flatten(0, -2).all(dim=0)).all():
        first = int(never_masked.int().argmin())  # only keys from this one on are masked for some token, such as padding
        masked, by_text = ~mask[..., first:], scores.view(*query.shape[:2], *scores.shape[1:])
        by_text[..., first:].masked_fill_(masked, torch.finfo(scores.dtype).min)  # not -inf: a fully masked row would produce NaN
    return torch.softmax(scores, dim=-1)


def _by_text(part: torch.Tensor, heads: int) -> torch.Tensor:
    """Reshape (texts x heads, tokens, width) to (texts, tokens, heads, width)."""
    return part.unflatten(0, (-1, heads)).transpose(1, 2)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
