"""Split documents into blocks of at most `max_length` tokens for language models. No block has tokens of two documents."""

import zlib
from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.text import clean
from finetuning.data.tokens import special_tokens, whole_ids
from finetuning.errors import UserError


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of texts, without truncation and without special tokens."""
    return whole_ids(clean(texts), tokenizer, special=False)


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins a text for a causal model: the tokenizer's start token, or its end token if it has none."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def causal_blocks(ids: list[int], tokenizer: PreTrainedTokenizerBase, config: Config) -> Iterator[tuple[list[int]]]:
    """Yield the token ids of each block of a document with the token ids `ids`.

    A block begins with the last token of the block before, so each token but the first is predicted once.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"task=causal-lm: the tokenizer of {config.model_name} has no token for the end of a text: set model_name to a decoder "
            "such as gpt2, or set task to masked-lm"
        )
    ids = [start_token(tokenizer), *ids, tokenizer.eos_token_id]
    for start in range(0, len(ids) - 1, config.max_length - 1):
        yield (ids[start : start + config.max_length],)


def masked_blocks(ids: list[int], tokenizer: PreTrainedTokenizerBase, config: Config) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the result of `mask_tokens` for each block of a document. The masked tokens depend only on the block."""
    if tokenizer.mask_token_id is None:
        raise UserError(f"task=masked-lm: the tokenizer of {config.model_name} has no mask token: set task to causal-lm")
    before, after = special_tokens(tokenizer)
    ids = ids or [tokenizer.unk_token_id]  # some texts have no token at all
    width = config.max_length - len(before) - len(after)
    for start in range(0, len(ids), width):
        block = np.array([*before, *ids[start : start + width], *after])
        yield mask_tokens(block, np.random.default_rng(zlib.crc32(block.tobytes())), tokenizer, config)


def mask_tokens(
    block: np.ndarray, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Mask the fraction `mlm_probability` of the tokens, at least one. Return token ids and targets, both (tokens,).

    A masked token becomes the mask token with probability 0.8, a random token with 0.1, and stays as it is with 0.1 (BERT, arXiv
    1810.04805). Targets are the original tokens, and -100 where no token is masked.
    """
    positions = np.flatnonzero(~np.isin(block, tokenizer.all_special_ids))
    positions = positions if len(positions) else np.arange(len(block))
    positions = rng.permutation(positions)[: max(1, round(config.mlm_probability * len(positions)))]
    kind, random_tokens = rng.random(len(positions)), rng.integers(len(tokenizer), size=len(positions))
    masked, targets = block.copy(), np.full_like(block, -100)
    targets[positions] = block[positions]
    masked[positions] = np.select([kind < 0.8, kind < 0.9], [tokenizer.mask_token_id, random_tokens], block[positions])
    return masked, targets
