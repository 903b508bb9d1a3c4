"""Random changes of training texts that keep the label, new in each epoch. They work on token ids and cost almost no time."""

from collections.abc import Callable
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.tokens import special_tokens


def drop_tokens(ids: list[int], rng: np.random.Generator, probability: float = 0.1) -> list[int]:
    """Drop each token with this probability, and return the others."""
    return [token for token, stays in zip(ids, rng.random(len(ids)) >= probability, strict=True) if stays]


def crop(ids: list[int], rng: np.random.Generator, shortest: float = 0.7) -> list[int]:
    """Return a random window with a fraction of at least `shortest` of the tokens."""
    length = rng.integers(int(np.ceil(shortest * len(ids))), len(ids), endpoint=True)
    start = rng.integers(len(ids) - length, endpoint=True)
    return ids[start : start + length]


def shuffle_sentences(ids: list[int], rng: np.random.Generator, ends: set[int]) -> list[int]:
    """Return the sentences in random order. A sentence ends with one of the tokens `ends`."""
    cuts = [position + 1 for position, token in enumerate(ids) if token in ends]
    sentences = [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    return [token for i in rng.permutation(len(sentences)) for token in sentences[i]]


Change = Callable[[list[int], int, int], list[int]]  # (ids, epoch, row) -> ids


def augmentation(tokenizer: PreTrainedTokenizerBase, config: Config) -> Change | None:
    """Return the function that `config.augmentation` names; None for "none".

    The change of a text depends only on (seed, epoch, row). Special tokens keep their positions.
    """
    if config.augmentation == "none":
        return None
    before, after = special_tokens(tokenizer)
    ends = set(tokenizer.convert_tokens_to_ids([".", "!", "?"])) - {tokenizer.unk_token_id}
    changes = {"token-dropout": drop_tokens, "crop": crop, "sentence-shuffle": partial(shuffle_sentences, ends=ends)}
    change_text = changes[config.augmentation]

    def change(ids: list[int], epoch: int, row: int) -> list[int]:
        rng = np.random.default_rng([config.seed, epoch, row])
        return [*before, *change_text(ids[len(before) : len(ids) - len(after)], rng), *after]

    return change
