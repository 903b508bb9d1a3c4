"""Beam search for an encoder and a decoder: what transformers' `generate` finds, in less time.

`generate` goes over all words of all beams some seven times a token, and goes on with a whole batch until its last row is done. Here
the words are gone over twice, the first token is that of one beam, and a row that is done leaves the batch.
"""

import torch
from torch.nn.functional import log_softmax
from transformers import GenerationConfig, PreTrainedModel

NONE = -1e9  # the score of what is not there
HONOURED = {"length_penalty", "early_stopping", "bad_words_ids", "renormalize_logits", "forced_eos_token_id", "eos_token_id"}
GIVEN = {"num_beams", "max_length", "max_new_tokens", "forced_bos_token_id", "use_cache"}  # to `search` by its caller
OF_SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}
OF_THE_MODEL = {"decoder_start_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}


def honours(settings: GenerationConfig) -> bool:
    """Whether `search` does all that a model's settings ask for; no repeated n-grams, for instance, are left to `generate`."""
    asked = {name for name, value in settings.to_diff_dict().items() if value}
    ends = (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id)
    known = HONOURED | GIVEN | OF_SAMPLING | OF_THE_MODEL
    return asked <= known and None not in ends and all(len(word) == 1 for word in settings.bad_words_ids or ())


def search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_beams: int,
    max_new_tokens: int,
    forced_bos_token_id: int | None = None,
) -> torch.Tensor:
    """The likeliest text found for each row of `input_ids` (rows, tokens): token ids (rows, tokens), padded.

    The rules are those of transformers' `generate` with the same `num_beams`; one beam is greedy search.
    """
    settings, device = model.generation_config, input_ids.device
    ends = torch.tensor(settings.eos_token_id, device=device).reshape(-1)
    banned = [word for (word,) in settings.bad_words_ids or () if word not in ends]
    candidates = max(2, 1 + len(ends)) * num_beams  # so many that `num_beams` of them go on, whichever have ended
    early = settings.early_stopping is True or num_beams == 1
    penalty = 1.0 if settings.length_penalty is None else settings.length_penalty
    found = torch.full((len(input_ids), max_new_tokens), settings.pad_token_id, device=device)

    rows = torch.arange(len(input_ids), device=device)  # those that are not done; all below is theirs
    encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    cache, texts = None, torch.full((len(rows), 1, 1), settings.decoder_start_token_id, device=device)  # (rows, beams, tokens)
    scores = torch.zeros(len(rows), 1, device=device)
    ended, ended_scores = found[:, None].expand(-1, num_beams, -1), torch.full((len(rows), num_beams), NONE, device=device)
    for length in range(1, max_new_tokens + 1):
        out = model(
            attention_mask=attention_mask,
            decoder_input_ids=texts[..., -1].flatten()[:, None],
            encoder_outputs=(encoded,),
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        if settings.renormalize_logits:
            logits[:, banned] = -torch.inf
        likely = log_softmax(logits, dim=-1)
        likely[:, banned] = -torch.inf
        forced = forced_bos_token_id if length == 1 else settings.forced_eos_token_id if length == max_new_tokens else None
        if forced is not None:
            likely.fill_(-torch.inf)[:, forced] = 0.0
        # The best continuations of each beam, and of those the best of each row.
        best, words = likely.topk(min(candidates, likely.shape[1]))
        totals, at = (scores.reshape(-1, 1) + best).view(len(rows), -1).topk(min(candidates, best.numel() // len(rows)))
        beams, word = at // best.shape[1], words.view(len(rows), -1).gather(1, at)
        texts = torch.cat([texts.take_along_dim(beams[..., None], 1), word[..., None]], dim=2)
        over = torch.isin(word, ends) | (length == max_new_tokens)

        now = (totals / length**penalty).masked_fill(~over, NONE)[:, :num_beams]
        new = found.new_full((*now.shape, max_new_tokens), settings.pad_token_id)
        new[..., :length] = texts[:, :num_beams, 1:]
        ended_scores, keep = torch.cat([ended_scores, now], dim=1).topk(num_beams)
        ended = torch.cat([ended, new], dim=1).take_along_dim(keep[..., None], 1)

        scores, keep = totals.masked_fill(over, NONE).topk(min(num_beams, totals.shape[1]))
        texts, beams = texts.take_along_dim(keep[..., None], 1), beams.gather(1, keep)
        longest = max_new_tokens if settings.early_stopping == "never" and penalty > 0 else length
        better = scores[:, 0] / longest**penalty > ended_scores[:, -1]
        goes_on = (ended_scores[:, -1] == NONE) | (better & (not early))
        if length == max_new_tokens or not goes_on.any():
            found[rows] = ended[:, 0]
            break
        found[rows[~goes_on]] = ended[~goes_on, 0]

        width = len(logits) // len(rows)  # beams so far: one at first
        order = (torch.arange(len(rows), device=device)[:, None] * width + beams)[goes_on].flatten()
        cache.self_attention_cache.reorder_cache(order)
        if len(order) != len(logits):
            cache.cross_attention_cache.reorder_cache(order)
            encoded, attention_mask = encoded[order], attention_mask[order]
            rows, texts, scores, ended, ended_scores = (one[goes_on] for one in (rows, texts, scores, ended, ended_scores))
    return found
