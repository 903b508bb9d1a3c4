"""The known architectures, and the linear layers of each that LoRA adapts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers.pytorch_utils import Conv1D

from finetuning.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """The layers that LoRA adapts, as regular expressions for the names of modules."""

    query_value: str  # the query and value layers; a layer that computes query, key and value together counts as both
    attention: str
    mlp: str
    first_position: int = 0  # the number of a text's first position; in RoBERTa and its relatives the padding id + 1


_BERT = Architecture(
    query_value=r".*\.attention\.self\.(query|value)",
    attention=r".*\.attention\.(self\.(query|key|value)|output\.dense)",
    mlp=r".*\.layer\.\d+\.(intermediate|output)\.dense",
)
_ROBERTA = replace(_BERT, first_position=2)
_LLAMA = Architecture(
    query_value=r".*\.self_attn\.[qv]_proj",
    attention=r".*\.self_attn\.[qkvo]_proj",
    mlp=r".*\.mlp\.(gate|up|down)_proj",
)
# Includes the decoder's attention to the encoder.
_BART = Architecture(
    query_value=r".*\.(self|encoder)_attn\.[qv]_proj",
    attention=r".*\.(self|encoder)_attn\.(q|k|v|out)_proj",
    mlp=r".*\.layers\.\d+\.fc[12]",
)
_T5 = Architecture(
    query_value=r".*\.(SelfAttention|EncDecAttention)\.[qv]",
    attention=r".*\.(SelfAttention|EncDecAttention)\.[qkvo]",
    mlp=r".*\.DenseReluDense\.w[io](_[01])?",
)
# The keys are `model_type` in the model's config. To add an architecture, add an entry.
ARCHITECTURES = {
    "distilbert": Architecture(query_value=r".*\.[qv]_lin", attention=r".*\.(q|k|v|out)_lin", mlp=r".*\.ffn\.lin[12]"),
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": replace(_ROBERTA, query_value=r".*\.attn\.[qv]", attention=r".*\.attn\.[qkvo]"),
    "albert": Architecture(
        query_value=r".*\.attention\.(query|value)",
        attention=r".*\.attention\.(query|key|value|dense)",
        mlp=r".*\.(ffn|ffn_output)",
    ),
    "deberta-v2": replace(
        _BERT,
        query_value=r".*\.attention\.self\.(query|value)_proj",
        attention=r".*\.attention\.(self\.(query|key|value)_proj|output\.dense)",
    ),
    "modernbert": Architecture(query_value=r".*\.attn\.Wqkv", attention=r".*\.attn\.(Wqkv|Wo)", mlp=r".*\.mlp\.(Wi|Wo)"),
    "gpt2": Architecture(query_value=r".*\.attn\.c_attn", attention=r".*\.attn\.c_(attn|proj)", mlp=r".*\.mlp\.c_(fc|proj)"),
    **dict.fromkeys(("marian", "bart", "mbart", "m2m_100"), _BART),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "opt": replace(_LLAMA, attention=r".*\.self_attn\.(q|k|v|out)_proj", mlp=r".*\.layers\.\d+\.fc[12]"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
}
TARGETS = ("all-linear", "attention", "mlp", "query-value")


def target_modules(base: torch.nn.Module, wanted: str, fully_trained: Sequence[str] = ()) -> str | list[str]:
    """Return peft's `target_modules`: a regular expression if `wanted` is one of `TARGETS`, else the names in `wanted` as a list.

    The layers of the modules `fully_trained`, such as the head, can't have LoRA. Raise `UserError` if `wanted` needs an entry of `ARCHITECTURES` that is missing, or names no linear layer of `base`.
    """
    architecture = ARCHITECTURES.get(base.config.model_type)
    linear_layers = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    linear_layers = [name for name in linear_layers if not any(f".{module}." in f".{name}." for module in fully_trained)]
    short_names = sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in linear_layers})
    if wanted in TARGETS:
        if architecture is None:
            raise UserError(
                f"target_modules={wanted} is not known for {base.config.model_type} (only for {', '.join(ARCHITECTURES)}): "
                f"name layers instead, with commas between them, from {', '.join(short_names)}"
            )
        if wanted == "all-linear":
            return f"({architecture.attention})|({architecture.mlp})"
        return getattr(architecture, wanted.replace("-", "_"))
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in linear_layers)]
    if unknown or not names:
        raise UserError(
            f"target_modules={wanted}: no linear layer is called {', '.join(unknown) or 'that'}. "
            f"Use {', '.join(TARGETS)}, or names from {', '.join(short_names)}"
        )
    return names
