"""Beam search for an encoder-decoder, with the results of transformers' `generate`, and faster.

For each token, `generate` passes about seven times over the scores of the vocabulary, and it computes all rows of a batch until the
last row is finished. This search passes over the scores twice, computes the first token for one beam only, and drops finished rows.
"""

import torch
from torch.nn.functional import log_softmax, pad
from transformers import GenerationConfig, PreTrainedModel

NO_SCORE = -1e9  # the score of a beam that does not exist
# The fields of a model's generation config, by what `search` does with them.
SUPPORTED = {"length_penalty", "early_stopping", "bad_words_ids", "renormalize_logits", "forced_eos_token_id", "eos_token_id"}
REPLACED = {"num_beams", "max_length", "max_new_tokens", "forced_bos_token_id", "use_cache"}  # by arguments of `search`
FOR_SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}  # ignored: `search` does not sample
WITHOUT_EFFECT = {"decoder_start_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}


def supports(settings: GenerationConfig) -> bool:
    """Return whether `search` supports all settings of a model. For example, it has no penalty for repeated n-grams."""
    changed = {name for name, value in settings.to_diff_dict().items() if value}
    known = SUPPORTED | REPLACED | FOR_SAMPLING | WITHOUT_EFFECT
    needed = (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id)
    return changed <= known and None not in needed and all(len(ids) == 1 for ids in settings.bad_words_ids or ())


def search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_beams: int,
    max_new_tokens: int,
    forced_bos_token_id: int | None = None,
) -> torch.Tensor:
    """Return the best translation of each row of `input_ids` (rows, tokens): token ids, (rows, `max_new_tokens`), padded.

    The search follows the rules of transformers' `generate` with the same `num_beams`. With one beam it is greedy search.
    """
    settings, device = model.generation_config, input_ids.device
    ends = torch.tensor(settings.eos_token_id, device=device).reshape(-1)
    banned = [token for (token,) in settings.bad_words_ids or () if token not in ends]
    candidates = max(2, 1 + len(ends)) * num_beams  # enough that at least `num_beams` of them do not end
    result = torch.full((len(input_ids), max_new_tokens), settings.pad_token_id, device=device)

    # All tensors of the loop have the unfinished rows only. A row has one beam at first, and `num_beams` later.
    rows = torch.arange(len(input_ids), device=device)
    encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    cache, scores = None, torch.zeros(len(rows), 1, device=device)
    texts = torch.full((len(rows), 1, 1), settings.decoder_start_token_id, device=device)  # (rows, beams, tokens)
    ended = _Ended(result[:, None].expand(-1, num_beams, -1), torch.full((len(rows), num_beams), NO_SCORE, device=device))
    for length in range(1, max_new_tokens + 1):
        output = model(
            attention_mask=attention_mask,
            decoder_input_ids=texts[..., -1].flatten()[:, None],
            encoder_outputs=(encoded,),
            past_key_values=cache,
            use_cache=True,
        )
        last = length == max_new_tokens
        forced = forced_bos_token_id if length == 1 else settings.forced_eos_token_id if last else None
        log_probabilities = _log_probabilities(output.logits[:, -1].float(), settings, banned, forced)
        totals, beams, tokens = _continuations(log_probabilities, scores, candidates)
        texts = torch.cat([texts.take_along_dim(beams[..., None], 1), tokens[..., None]], dim=2)
        ends_here = torch.isin(tokens, ends) | last
        padded = pad(texts[:, :num_beams, 1:], (0, max_new_tokens - length), value=settings.pad_token_id)
        ended.add(padded, (totals / length ** _penalty(settings)).masked_fill(~ends_here, NO_SCORE)[:, :num_beams])

        scores, kept = totals.masked_fill(ends_here, NO_SCORE).topk(min(num_beams, totals.shape[1]))
        texts, beams = texts.take_along_dim(kept[..., None], 1), beams.gather(1, kept)
        continues = ended.can_improve(scores[:, 0], length, settings)
        result[rows] = ended.texts[:, 0]
        if last or not continues.any():
            break

        cache, beams_before = output.past_key_values, len(output.logits) // len(rows)
        order = (torch.arange(len(rows), device=device)[:, None] * beams_before + beams)[continues].flatten()
        cache.self_attention_cache.reorder_cache(order)
        if beams_before != beams.shape[1] or not continues.all():
            cache.cross_attention_cache.reorder_cache(order)
            encoded, attention_mask = encoded[order], attention_mask[order]
            rows, texts, scores, ended = rows[continues], texts[continues], scores[continues], ended.select(continues)
    return result


def _log_probabilities(logits: torch.Tensor, settings: GenerationConfig, banned: list[int], forced: int | None) -> torch.Tensor:
    """Return the log-probability of each next token, (beams, vocabulary). `logits` have the same shape and may be changed.

    Tokens in `banned` get probability 0, and a `forced` token gets probability 1.
    """
    if settings.renormalize_logits:
        logits[:, banned] = -torch.inf
    log_probabilities = log_softmax(logits, dim=-1)
    log_probabilities[:, banned] = -torch.inf
    if forced is not None:
        log_probabilities.fill_(-torch.inf)[:, forced] = 0.0
    return log_probabilities


def _continuations(
    log_probabilities: torch.Tensor, scores: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the `n` best continuations of each row, best first: their scores, beams and next tokens, each (rows, n).

    `log_probabilities` have shape (rows * beams, vocabulary); `scores` (rows, beams) are those of the beams so far.
    """
    best, tokens = log_probabilities.topk(min(n, log_probabilities.shape[1]))  # per beam, so that the second topk has less to sort
    totals = (scores.reshape(-1, 1) + best).view(len(scores), -1)
    totals, indices = totals.topk(min(n, totals.shape[1]))
    return totals, indices // best.shape[1], tokens.view(len(scores), -1).gather(1, indices)


class _Ended:
    """The best finished translations of each row: `texts` (rows, beams, tokens) and `scores` (rows, beams), best first."""

    def __init__(self, texts: torch.Tensor, scores: torch.Tensor) -> None:
        self.texts, self.scores = texts, scores

    def add(self, texts: torch.Tensor, scores: torch.Tensor) -> None:
        """Add translations, and keep the best of old and new ones. The score of an unfinished translation is `NO_SCORE`."""
        self.scores, kept = torch.cat([self.scores, scores], dim=1).topk(self.scores.shape[1])
        self.texts = torch.cat([self.texts, texts], dim=1).take_along_dim(kept[..., None], 1)

    def can_improve(self, best: torch.Tensor, length: int, settings: GenerationConfig) -> torch.Tensor:
        """Return which rows can still improve, (rows,) bool; `best` (rows,) is the score of the best unfinished beam."""
        penalty = _penalty(settings)
        longest = self.texts.shape[2] if settings.early_stopping == "never" and penalty > 0 else length
        better = best / longest**penalty > self.scores[:, -1]
        early = settings.early_stopping is True or self.scores.shape[1] == 1
        return (self.scores[:, -1] == NO_SCORE) | (better & (not early))

    def select(self, rows: torch.Tensor) -> "_Ended":
        return _Ended(self.texts[rows], self.scores[rows])


def _penalty(settings: GenerationConfig) -> float:
    """Return the length penalty p: a translation's score is divided by its length to the power of p."""
    return 1.0 if settings.length_penalty is None else settings.length_penalty
