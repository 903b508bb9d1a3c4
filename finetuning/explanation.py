"""Which words decided a text's label."""

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.tokenizing import special_tokens, truncate

STEPS = 32  # of the integral


def explain(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, config: Config) -> list[tuple[str, float]]:
    """(word, contribution) in the order of the text, of the words that the model reads.

    Integrated gradients (arXiv 1703.01365) of the label's logit over the mean of the others', from padding to the
    text: the contributions, and those of the special tokens, sum to what the text changes. Positive ones speak for
    the label that the text gets.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    around = special_tokens(tokenizer)
    kept = truncate(list(range(len(encoded["input_ids"]))), config.max_length, config.truncation, *around)
    ids = torch.tensor([encoded["input_ids"][i] for i in kept], device=model.device)
    embed = model.get_input_embeddings()
    base = torch.full_like(ids, tokenizer.pad_token_id)
    base[: around[0]], base[len(ids) - around[1] :] = ids[: around[0]], ids[len(ids) - around[1] :]
    there, start = embed(ids).detach().float(), embed(base).detach().float()
    share = (torch.arange(STEPS, device=ids.device) + 0.5) / STEPS
    points = (start + share[:, None, None] * (there - start)).requires_grad_()
    with torch.no_grad():
        label = int(model(input_ids=ids[None]).logits.argmax())
    logits = model(
        inputs_embeds=points.to(embed.weight.dtype),
        attention_mask=torch.ones(STEPS, len(ids), dtype=torch.long, device=ids.device),
    ).logits
    others = [i for i in range(logits.shape[1]) if i != label]
    (gradient,) = torch.autograd.grad((logits[:, label] - logits[:, others].mean(dim=1)).sum(), points)
    by_token = (gradient.float().mean(dim=0) * (there - start)).sum(dim=-1).tolist()
    words = {}
    for position, contribution in zip(kept, by_token, strict=True):
        if (word := encoded.word_ids()[position]) is not None:
            first, last = encoded["offset_mapping"][position]
            before = words.get(word, (first, last, 0.0))
            words[word] = (before[0], last, before[2] + contribution)
    return [(text[first:last], contribution) for first, last, contribution in words.values()]
