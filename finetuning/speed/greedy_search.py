"""Greedy search for a decoder, with the results of transformers' `generate`: finished rows leave the batch.

`generate` computes all rows of a batch until the last row is finished.
"""

import inspect

import torch
from transformers import PreTrainedModel

from finetuning.speed.beam_search import FOR_SAMPLING, WITHOUT_EFFECT

REPLACED = {"max_length", "max_new_tokens", "eos_token_id", "use_cache", "num_beams"}  # by arguments of `search`


def supports(model: PreTrainedModel) -> bool:
    """Return whether `search` supports a model: its settings (there is no penalty for repeated words) and its cache (not Mamba's)."""
    changed = {name for name, value in model.generation_config.to_diff_dict().items() if value}
    has_cache = "past_key_values" in inspect.signature(type(model).forward).parameters
    return has_cache and changed <= REPLACED | FOR_SAMPLING | WITHOUT_EFFECT


def search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
    ends: list[int],
    padding: int,
) -> torch.Tensor:
    """Return the most probable continuation of each row of `input_ids` (rows, tokens), which is padded on the left.

    The result has shape (rows, `max_new_tokens`). A row stops after one of the tokens `ends`, and is then filled with `padding`.
    """
    result = torch.full((len(input_ids), max_new_tokens), padding, device=input_ids.device)
    # All tensors of the loop have the unfinished rows only.
    rows, mask, cache = torch.arange(len(input_ids), device=input_ids.device), attention_mask, None
    ends = torch.tensor(ends, device=input_ids.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    only_last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    # The hidden states of the last tokens are a slice. Without a copy, PyTorch copies the output layer's weights for each row.
    with model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:])):
        for step in range(max_new_tokens):
            inputs = dict(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
            output = model(**inputs, use_cache=True, **only_last)
            tokens = output.logits[:, -1].float().argmax(dim=-1)
            result[rows, step] = tokens
            unfinished = ~torch.isin(tokens, ends)
            if not unfinished.any():
                break
            cache = output.past_key_values
            if not unfinished.all():
                cache.reorder_cache(unfinished.nonzero()[:, 0])
                rows, mask, positions, tokens = rows[unfinished], mask[unfinished], positions[unfinished], tokens[unfinished]
            input_ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return result
