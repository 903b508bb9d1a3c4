"""Texts that a model writes: answers and translations. Rows of similar length share a batch, and each process writes a part."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from finetuning.data.tokens import Tokens
from finetuning.model.generation import generate
from finetuning.speed import beam_search, greedy_search
from finetuning.speed.memory import give_back_freed_memory
from finetuning.speed.precision import autocast, rows_to_predict
from finetuning.training.prediction import Predictor, longest_first
from finetuning.training.progress import RowBar

ANSWER_TOKENS = 8_192  # in a batch of prompts and answers, with padding; a batch may hold one longer prompt
TOKENS_PER_ROW = 256  # a batch to translate has at most eval_batch_size * TOKENS_PER_ROW / number of beams tokens


def write_answers(predictor: Predictor, prompts: list[list[int]], ends: list[int], options: dict) -> list[str]:
    """Return a decoder's answers to prompts, given as token ids, in their order.

    `ends` are the tokens that end an answer. `options` are those of `continue_text`; with temperature 0, an answer does not depend
    on the other prompts.
    """
    model, tokenizer, max_new_tokens = _plain(predictor), predictor.tokenizer, options["max_new_tokens"]
    is_greedy = not options["temperature"] and greedy_search.supports(model)

    def answer(rows: np.ndarray) -> torch.Tensor:
        # Prompts are padded on the left, so that answers begin in the same column.
        batch = tokenizer.pad({"input_ids": [prompts[row] for row in rows]}, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)
        if predictor.config.speedups and is_greedy:
            return greedy_search.search(model, **batch, max_new_tokens=max_new_tokens, ends=ends, padding=tokenizer.pad_token_id)
        return generate(model, tokenizer, batch, ends, options)[:, batch["input_ids"].shape[1] :]

    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    batches = [*by_tokens(longest_first(lengths), lengths + max_new_tokens, ANSWER_TOKENS)]
    return _write(predictor, answer, batches, lengths, "writing answers")


def translate(predictor: Predictor, tokens: Tokens, num_beams: int, forced_bos_token_id: int | None) -> list[str]:
    """Return the translations, in the order of the rows, by greedy search or beam search."""
    model, config = _plain(predictor), predictor.config
    if config.speedups and isinstance(model, PreTrainedModel) and beam_search.supports(model.generation_config):
        search = partial(beam_search.search, model)
    else:
        search = partial(model.generate, do_sample=False, use_cache=True)

    def translate_batch(rows: np.ndarray) -> torch.Tensor | list[list[int]]:
        sources = {"input_ids": [example["input_ids"] for example in tokens.__getitems__(rows)]}
        return search(
            **predictor.tokenizer.pad(sources, pad_to_multiple_of=8, return_tensors="pt").to(model.device),
            num_beams=num_beams,
            max_new_tokens=config.max_length,
            forced_bos_token_id=forced_bos_token_id,
        )

    lengths, max_tokens = np.minimum(tokens.lengths, config.max_length), TOKENS_PER_ROW * rows_to_predict(config) // num_beams
    batches = [*by_tokens(longest_first(tokens.lengths), lengths, max_tokens)]
    beams = "1 beam" if num_beams == 1 else f"{num_beams} beams"
    return _write(predictor, translate_batch, batches, lengths, f"translating with {beams}")


def by_tokens(order: np.ndarray, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Yield batches of the rows in `order`, longest first. A batch has at most `max_tokens` tokens with padding, or is one row."""
    start = 0
    while start < len(order):
        end = start + max(1, max_tokens // int(lengths[order[start]]))
        yield order[start:end]
        start = end


def _plain(predictor: Predictor) -> torch.nn.Module:
    """Return the predictor's model without peft's wrapper, ready to predict."""
    model = predictor.model.eval()
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _write(predictor: Predictor, write_batch: Callable, batches: list[np.ndarray], lengths: np.ndarray, action: str) -> list[str]:
    """Return the text for each row, in the order of the rows. Each process writes a part of the batches and gets all texts.

    `write_batch` maps the rows of a batch to token ids, (rows, tokens). `lengths` (rows,) and `action` are for the progress bar.
    """
    state, numbered_texts = PartialState(), []
    batches = batches[state.process_index :: state.num_processes]
    bar = RowBar(lengths[[row for rows in batches for row in rows]], predictor.show_progress, action)
    with torch.no_grad(), autocast(predictor.config):
        for rows in batches:
            texts = predictor.tokenizer.batch_decode(write_batch(rows), skip_special_tokens=True)
            numbered_texts += zip(rows.tolist(), texts, strict=True)
            bar.update(len(rows))
    if predictor.config.speedups:
        give_back_freed_memory()
    return [text.strip() for _, text in sorted(gather_object(numbered_texts))]
