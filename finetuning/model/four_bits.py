"""Frozen weights in 4 bits with bitsandbytes (QLoRA, arXiv 2305.14314)."""

import torch
from transformers import BitsAndBytesConfig

from config import Config
from finetuning.speed.precision import pick_precision

# Heads, which may be new or share the weights of the embeddings: regular expressions for the beginnings of modules' names.
NOT_QUANTIZED = ["classifier", "pre_classifier", "score", "pooler", r".*\.pooler", "head", "lm_head", "qa_outputs"]
NOT_QUANTIZED += ["classification_head", "cls", "vocab_transform", "vocab_projector", "predictions", "decoder$"]
NOT_QUANTIZED += ["generator_predictions", "generator_lm_head"]


def four_bits(config: Config) -> BitsAndBytesConfig:
    """Return QLoRA's settings: NF4, the scales quantized too, products in the precision of the run.

    QLoRA's products are in bf16. On a CPU or GPU without instructions for bf16, that takes many times as long as float32.
    """
    bf16 = pick_precision(config.precision)[0] == "bf16"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )


def keep_layout(model: torch.nn.Module) -> None:
    """Keep the layout of quantized weights on a CPU.

    Otherwise bitsandbytes changes it at the first prediction: a later training step would need it back, and layers narrower than 64
    fail.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
