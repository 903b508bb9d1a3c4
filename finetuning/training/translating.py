"""Translation by greedy search or beam search: sources of similar length share a batch, and each process translates a part."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from finetuning.data.tokens import Tokens
from finetuning.model.scoring import padded
from finetuning.speed import beam_search
from finetuning.speed.memory import give_back_freed_memory
from finetuning.speed.precision import autocast, rows_to_predict
from finetuning.training.prediction import Predictor, by_length
from finetuning.training.progress import RowBar

TOKENS_PER_ROW = 256  # a batch has at most eval_batch_size * TOKENS_PER_ROW / number of beams tokens


def translate(predictor: Predictor, tokens: Tokens, num_beams: int, forced_bos_token_id: int | None) -> list[str]:
    """Return the translations, in the order of the rows. Each process makes a part of them and gets all."""
    model, tokenizer, config = predictor.model.eval(), predictor.tokenizer, predictor.config
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if config.speedups and isinstance(model, PreTrainedModel) and beam_search.supports(model.generation_config):
        generate = partial(beam_search.search, model)
    else:
        generate = partial(model.generate, do_sample=False, use_cache=True)
    lengths, max_tokens = np.minimum(tokens.lengths, config.max_length), TOKENS_PER_ROW * rows_to_predict(config) // num_beams
    state, numbered_texts = PartialState(), []
    batches = [*by_tokens(by_length(tokens), lengths, max_tokens)][state.process_index :: state.num_processes]
    beams = "1 beam" if num_beams == 1 else f"{num_beams} beams"
    bar = RowBar(lengths[[row for rows in batches for row in rows]], predictor.show_progress, f"translating with {beams}")
    with torch.no_grad(), autocast(config):
        for rows in batches:
            sources = padded([example["input_ids"] for example in tokens.__getitems__(rows)], tokenizer.pad_token_id)
            ids = generate(
                **{name: tensor.to(model.device) for name, tensor in sources.items()},
                num_beams=num_beams,
                max_new_tokens=config.max_length,
                forced_bos_token_id=forced_bos_token_id,
            )
            numbered_texts += zip(rows.tolist(), tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
            bar.update(len(rows))
    if config.speedups:
        give_back_freed_memory()
    return [text.strip() for _, text in sorted(gather_object(numbered_texts) if state.num_processes > 1 else numbered_texts)]


def by_tokens(order: np.ndarray, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Yield batches of the rows in `order`, longest first. A batch has at most `max_tokens` tokens with padding, or is one row."""
    start = 0
    while start < len(order):
        end = start + max(1, max_tokens // int(lengths[order[start]]))
        yield order[start:end]
        start = end
