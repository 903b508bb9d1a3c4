"""Use a language model: continue a prompt, or fill in masked tokens."""

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer, set_seed

from finetuning.errors import UserError


def continue_text(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: list[int], options: dict) -> str:
    """Return the text with which a causal language model continues a prompt, given as token ids.

    `options` are `max_new_tokens`, `temperature`, `top_p` and `seed`. Temperature 0 always takes the most probable token. If the
    prompt is longer than the model can read, only its end is read.
    """
    batch = _batch(model, prompt, options)
    set_seed(options["seed"])
    with torch.no_grad():
        generated = generate(model, tokenizer, batch, tokenizer.eos_token_id, options)
    whole, start = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (generated[0], batch["input_ids"][0]))
    if whole.startswith(start):  # decoded alone, a continuation may lose the space before its first word
        return whole[len(start) :]
    return tokenizer.decode(generated[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def stream_text(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    ends: list[int],
    options: dict,
    precision: AbstractContextManager,
) -> Iterator[str]:
    """Yield the answer to a prompt in pieces, as the model writes it in another thread.

    `ends` are the tokens that end the answer. `options` are those of `continue_text`. `precision` is the context in which the model
    computes. If the caller stops early, so does the model.
    """
    streamer, stopped, errors = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), threading.Event(), []
    batch = _batch(model, prompt, options)
    stopping = StoppingCriteriaList([lambda ids, _: torch.full_like(ids[:, 0], stopped.is_set()).bool()])

    def write() -> None:
        try:
            with torch.no_grad(), precision:  # autocast holds for one thread only
                generate(model, tokenizer, batch, ends, options, streamer=streamer, stopping_criteria=stopping)
        except BaseException as error:
            errors.append(error)
            streamer.end()

    set_seed(options["seed"])
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield from streamer
    finally:
        stopped.set()
        writer.join()
    if errors:
        raise errors[0]


def generate(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, torch.Tensor],
    ends: int | list[int] | None,
    options: dict,
    **arguments,
) -> torch.Tensor:
    """Return the prompts of a batch, each with its continuation: token ids, (rows, tokens), padded.

    `ends` are the tokens that end a continuation, `options` are those of `continue_text`, and `arguments` are passed to the model's
    `generate`.
    """
    if options["temperature"]:
        sampling = dict(do_sample=True, temperature=options["temperature"], top_p=options["top_p"], top_k=0)
    else:
        sampling = dict(do_sample=False)
    settings = dict(max_new_tokens=options["max_new_tokens"], pad_token_id=tokenizer.pad_token_id, eos_token_id=ends, num_beams=1)
    # `stop_strings` in the model's generation_config.json need the tokenizer
    return model.generate(**batch, **settings, **sampling, tokenizer=tokenizer, use_cache=True, **arguments)


def _batch(model: torch.nn.Module, prompt: list[int], options: dict) -> dict[str, torch.Tensor]:
    """Return a batch with one prompt, of which only the end is read if it is too long."""
    ids = torch.tensor([prompt[-longest_prompt(model, options) :]], device=model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def longest_prompt(model: torch.nn.Module, options: dict) -> int:
    """Return the number of tokens that a prompt may have, so that the model has positions for `max_new_tokens` more."""
    positions = getattr(model.config, "max_position_embeddings", None)  # models with relative positions have none
    if positions and positions <= options["max_new_tokens"]:
        raise UserError(f"--max_new_tokens {options['max_new_tokens']} exceeds the model's {positions} positions: lower it")
    return positions - options["max_new_tokens"] if positions else sys.maxsize


def check_options(options: dict, given: Iterable[str]) -> None:
    """Raise `UserError` for options out of range, and for `given` ones without effect."""
    for name, valid, requirement in (
        ("max_new_tokens", options["max_new_tokens"] >= 1, "at least 1"),
        ("temperature", 0 <= options["temperature"] < float("inf"), "0 or more"),
        ("top_p", 0 < options["top_p"] <= 1, "above 0 and at most 1"),
        ("seed", 0 <= options["seed"] < 2**32, "0 or more"),
    ):
        if not valid:
            raise UserError(f"--{name} {options[name]} is out of range: it must be {requirement}")
    if not options["temperature"] and (idle := sorted({"seed", "top_p"} & {*given})):
        raise UserError(f"--{idle[0]} has no effect with temperature 0: add --temperature, such as 0.8, or leave it out")


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
