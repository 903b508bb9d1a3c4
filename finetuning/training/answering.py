"""Answers of a decoder to prompts: prompts of similar length share a batch, and each process writes a part of the answers."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel

from finetuning.model.generation import sampling
from finetuning.speed import greedy_search
from finetuning.speed.memory import give_back_freed_memory
from finetuning.speed.precision import autocast
from finetuning.training.prediction import Predictor
from finetuning.training.progress import RowBar

TOKENS_PER_BATCH = 8_192  # of prompts and answers, with padding; a batch may hold one longer prompt


def write_answers(predictor: Predictor, prompts: list[list[int]], ends: list[int], options: dict) -> list[str]:
    """Return the answers to prompts, given as token ids, in their order.

    `ends` are the tokens that end an answer. `options` are those of `continue_text`; with temperature 0, an answer does not depend
    on the other prompts.
    """
    state, numbered_answers = PartialState(), []
    lengths = np.array([len(prompt) for prompt in prompts])
    batches = [*_batches(lengths, options["max_new_tokens"])][state.process_index :: state.num_processes]
    bar = RowBar(lengths[[row for rows in batches for row in rows]], predictor.show_progress, "writing answers")
    for rows in batches:
        answers = _answer_batch(predictor, [prompts[row] for row in rows], ends, options)
        numbered_answers += zip(rows.tolist(), answers, strict=True)
        bar.update(len(rows))
    if predictor.config.speedups:
        give_back_freed_memory()
    return [text for _, text in sorted(gather_object(numbered_answers) if state.num_processes > 1 else numbered_answers)]


def _batches(lengths: np.ndarray, max_new_tokens: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, the longest prompts first."""
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, TOKENS_PER_BATCH // (int(lengths[order[start]]) + max_new_tokens))
        yield order[start : start + size]
        start += size


def _answer_batch(predictor: Predictor, prompts: list[list[int]], ends: list[int], options: dict) -> list[str]:
    """Return the answer to each prompt. Prompts are padded on the left, so that answers begin in the same column."""
    model, tokenizer = predictor.model.eval(), predictor.tokenizer
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    fast = predictor.config.speedups and not options["temperature"] and greedy_search.supports(plain.generation_config)
    with torch.no_grad(), autocast(predictor.config):
        if fast:
            written = greedy_search.search(plain, ids, mask, options["max_new_tokens"], ends, tokenizer.pad_token_id)
        else:
            generated = plain.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options["max_new_tokens"],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
                use_cache=True,
                **sampling(options),
            )
            written = generated[:, ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
