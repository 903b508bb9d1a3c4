"""Use a language model: continue a prompt, or fill in masked tokens."""

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from finetuning.errors import UserError


def continue_text(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: list[int], options: dict) -> str:
    """Return the text with which a causal language model continues a prompt, given as token ids.

    `options` are `max_new_tokens`, `temperature`, `top_p` and `seed`. Temperature 0 always takes the most probable token. If the
    prompt is longer than the model can read, only its end is read. Raise `UserError` for options out of range.
    """
    _check(options)
    positions = getattr(model.config, "max_position_embeddings", None)  # models with relative positions have none
    if positions and positions <= options["max_new_tokens"]:
        raise UserError(f"--max_new_tokens {options['max_new_tokens']} exceeds the model's {positions} positions: lower it")
    max_prompt_length = positions - options["max_new_tokens"] if positions else len(prompt)
    ids = torch.tensor([prompt[-max_prompt_length:]], device=model.device)
    sampling = {name: options[name] for name in ("temperature", "top_p")} | {"top_k": 0} if options["temperature"] else {}
    set_seed(options["seed"])
    with torch.no_grad():
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options["max_new_tokens"],
            do_sample=bool(sampling),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=True,
            **sampling,
        )
    return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)


def _check(options: dict) -> None:
    for name, valid, requirement in (
        ("max_new_tokens", options["max_new_tokens"] >= 1, "at least 1"),
        ("temperature", 0 <= options["temperature"] < float("inf"), "0 or more"),
        ("top_p", 0 < options["top_p"] <= 1, "above 0 and at most 1"),
        ("seed", 0 <= options["seed"] < 2**32, "0 or more"),
    ):
        if not valid:
            raise UserError(f"--{name} {options[name]} is out of range: it must be {requirement}")


def fill_masks(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, text: list[int], n: int) -> list[list[dict]]:
    """Return the `n` most probable tokens for each mask token of a text, given as token ids: `word` and `probability` of each."""
    ids = torch.tensor(text, device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, ids == tokenizer.mask_token_id]
    probabilities, tokens = logits.float().softmax(dim=-1).topk(n)
    return [
        [{"word": tokenizer.decode([token]).strip(), "probability": round(p, 6)} for token, p in zip(*of_mask, strict=True)]
        for of_mask in zip(tokens.tolist(), probabilities.tolist(), strict=True)
    ]
