"""Find the words that decided a text's label, by integrated gradients."""

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.tokens import refuse_long, require_fast, special_tokens, truncate
from finetuning.errors import UserError

STEPS = 32  # points at which the integral is evaluated


def explain(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, config: Config) -> list[tuple[str, float]]:
    """Return (word, contribution) for the words that the model reads, in the order of the text.

    Contributions are integrated gradients (arXiv 1703.01365), on the path from padding tokens to the text, of the predicted label's
    logit minus the mean of the other logits. The contributions of all tokens, including special ones, sum to the difference between
    text and padding. A positive contribution speaks for the predicted label.
    """
    require_fast(tokenizer)
    encoded = tokenizer(text, return_offsets_mapping=True)
    first, last = map(len, special_tokens(tokenizer))
    refuse_long([len(encoded["input_ids"])], config)
    kept = truncate(list(range(len(encoded["input_ids"]))), config.max_length, config.truncation, first, last)
    ids = torch.tensor([encoded["input_ids"][i] for i in kept], device=model.device)
    blank = ids.clone()  # with padding in place of all tokens but the special ones at the start and the end
    blank[first : len(ids) - last] = tokenizer.pad_token_id
    contributions = _integrated_gradients(model, ids, blank)
    words = {}
    for position, contribution in zip(kept, contributions, strict=True):
        if (word := encoded.word_ids()[position]) is not None:
            start, end = encoded["offset_mapping"][position]
            word_start, _, word_contribution = words.get(word, (start, end, 0.0))
            words[word] = (word_start, end, word_contribution + contribution)
    return [(text[start:end], contribution) for start, end, contribution in words.values()]


def _integrated_gradients(model: PeftModel, ids: torch.Tensor, blank: torch.Tensor) -> list[float]:
    """Return the contribution of each token. `ids` and `blank` have shape (tokens,)."""
    embed = model.get_input_embeddings()
    end, start = embed(ids).detach().float(), embed(blank).detach().float()
    fractions = (torch.arange(STEPS, device=ids.device) + 0.5) / STEPS
    points = (start + fractions[:, None, None] * (end - start)).requires_grad_()
    with torch.no_grad():
        label = int(model(input_ids=ids[None]).logits.argmax())
    mask = torch.ones(STEPS, len(ids), dtype=torch.long, device=ids.device)
    try:
        logits = model(inputs_embeds=points.to(embed.weight.dtype), attention_mask=mask).logits
    except TypeError as error:  # None in place of `input_ids`, which Longformer reads too
        raise UserError(
            f"--explain is not for {model.config.model_type}, which can't do without token ids: leave it out"
        ) from error
    others = [i for i in range(logits.shape[1]) if i != label]
    (gradient,) = torch.autograd.grad((logits[:, label] - logits[:, others].mean(dim=1)).sum(), points)
    return (gradient.float().mean(dim=0) * (end - start)).sum(dim=-1).tolist()
