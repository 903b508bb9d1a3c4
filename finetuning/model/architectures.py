"""The linear layers that LoRA adapts, found by their names in any architecture."""

import re
from collections.abc import Sequence

import torch
from transformers.pytorch_utils import Conv1D

from finetuning.errors import UserError

TARGETS = ("all-linear", "attention", "mlp", "query-value")
# The architectures of the tests, by `model_type` in the model's config. Only these get the faster attention of speed/attention.py.
TESTED = (
    *("distilbert", "bert", "electra", "roberta", "xlm-roberta", "mpnet", "albert", "deberta-v2", "modernbert"),
    *("gpt2", "opt", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text"),
    *("marian", "bart", "mbart", "m2m_100", "t5", "mt5", "umt5"),
)
# RoBERTa and its relatives count positions from the padding id + 1, so a text's first position is 2.
_ROBERTAS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm", "data2vec-text")
FIRST_POSITIONS = dict.fromkeys((*_ROBERTAS, "ibert", "luke", "longformer", "esm"), 2)


def target_modules(base: torch.nn.Module, wanted: str, fully_trained: Sequence[str] = ()) -> str | list[str]:
    """Return peft's `target_modules`: a regular expression if `wanted` is one of `TARGETS`, else the names in `wanted` as a list.

    The words stand for linear layers of the numbered blocks. Those of the attention have "att" in their names, such as
    encoder.layer.0.attention.self.query; the MLP has the others. A layer that computes query, key and value together counts as
    query and value. The layers of the modules `fully_trained`, such as the head, can't have LoRA. Raise `UserError` if `wanted`
    names no linear layer of `base`.
    """
    linear_layers = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    linear_layers = [name for name in linear_layers if not any(f".{module}." in f".{name}." for module in fully_trained)]
    if wanted in TARGETS:
        in_blocks = [name for name in linear_layers if re.search(r"\.\d+\.", name)]
        attention = [name for name in in_blocks if "att" in name.lower()]
        layers = {
            "all-linear": in_blocks,
            "attention": attention,
            "mlp": [name for name in in_blocks if name not in attention],
            "query-value": [name for name in attention if re.match("[qv]|Wqkv|c_attn", name.rpartition(".")[2])],
        }[wanted]
        if layers:
            return "|".join(sorted({re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", name) for name in layers}))
        problem = "no layer's name shows that it belongs to this group"
    else:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in linear_layers)]
        if names and not unknown:
            return names
        problem = f"no linear layer is called {', '.join(unknown)}" if unknown else "it names no layer"
    short_names = {".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in linear_layers}
    choices = f"{', '.join(TARGETS)}, or names from {', '.join(sorted(short_names))}"
    raise UserError(f"target_modules={wanted}: {problem}. Use {choices}")
