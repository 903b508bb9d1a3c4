"""Turn conversations into token ids (data/chats.py reads them).

The tokenizer's chat template turns a conversation into text. Without a template, a text is the prompt, a line break, the answer and
the end token. The answers are found in the tokens by rendering the conversation up to each of them.
"""

import os
import zlib
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.chats import Messages, as_text, split_last_answer
from finetuning.data.tokens import start_token
from finetuning.errors import UserError

SEPARATOR = "\n"  # between prompt and answer, for a tokenizer without a chat template
SYSTEM_MARK = "systemmessage"  # in place of a system message, to see whether the template writes it
PROMPT_FRACTION = 0.25  # the end of an answer is cut only after the prompt has been cut to this fraction of `max_length`


def templated(messages: Messages, tokenizer: PreTrainedTokenizerBase, answer_follows: bool) -> str:
    """Return the text that the chat template makes of a conversation. Raise `UserError` if it refuses the conversation."""
    try:  # Qwen3 answers without thinking
        settings = dict(add_generation_prompt=answer_follows, enable_thinking=False, tokenize=False)
        return tokenizer.apply_chat_template(messages, **settings)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation ({error}): change the data, or model_name"
        ) from error


def render(messages: Messages, tokenizer: PreTrainedTokenizerBase, answer_follows: bool) -> list[int]:
    """Return the token ids of a conversation. With `answer_follows` they end where the assistant's answer begins.

    Training, evaluation and predict.py all read conversations through this function. Raise `UserError` if the tokenizer can't
    render it.
    """
    name = tokenizer.name_or_path
    if tokenizer.chat_template:
        return _ids(templated(messages, tokenizer, answer_follows), tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name} has neither a chat template nor a token for the end of a text: set model_name to a decoder, such "
            "as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    if len(messages) > 2 or messages[0]["role"] != "user":
        raise UserError(
            f"the tokenizer of {name} has no chat template, so it reads only a prompt and its answer, not conversations with more "
            "messages: set model_name to a model for chats, such as one whose name ends with Instruct"
        )
    prompt, *answers = (message["content"] for message in messages)
    ids = [start_token(tokenizer), *_ids(prompt + SEPARATOR, tokenizer)]
    return [*ids, *(token for answer in answers for token in [*_ids(answer, tokenizer), tokenizer.eos_token_id])]


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode(messages: Messages, tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, Any]:
    """Return a conversation as a training example: a dictionary with the columns of the task.

    input_ids       token ids, at most `max_length`
    targets         the next token of each, where the loss counts it, else -100: the answers, each with the token that ends it
    prompt          the ids that the model reads before it writes the last answer
    whole_prompt    a number for the messages before the last answer: prompts that differ may be equal after they were cut
    length          the number of tokens before the conversation was cut
    answer_cut      whether the end of the last answer is missing
    skipped         the number of earlier answers that the loss does not count, because the template renders them in another form
                    than that in which the model writes them (Qwen3)

    Raise `UserError` if `max_length` leaves no token of an answer, or if the chat template does not suit the conversation.
    """
    while messages[-1]["role"] != "assistant":  # nothing to learn from a question without an answer
        messages = messages[:-1]
    full, length = messages, len(render(messages, tokenizer, answer_follows=False))
    prompt = prompt_ids(split_last_answer(full)[0], tokenizer, config.max_length)
    messages, end = shorten(full, tokenizer, config.max_length), end_of_answer(tokenizer)
    ids = render(messages, tokenizer, answer_follows=False)
    targets, skipped = [-100] * len(ids), 0
    for number, message in enumerate(messages, 1):
        if message["role"] != "assistant":
            continue
        answer, problem = _find_answer(messages[:number], ids, end, tokenizer)
        if not problem:
            _check_answer(messages[:number], ids[answer], end, tokenizer)
            targets[answer] = ids[answer]
        elif number < len(messages):
            skipped += 1
        else:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} {problem}; in the conversation that begins "
                f"{as_text(messages)[:60]!r}: set model_name to another model"
            )
    if not any(target >= 0 for target in targets[: config.max_length]):
        raise UserError(f"max_length={config.max_length} leaves no token for the answer to {as_text(full[:-1])[:60]!r}: raise it")
    answer_cut = any(target >= 0 for target in targets[config.max_length :])
    if not config.completion_only_loss:
        targets[1:], skipped = ids[1:], 0
    return {
        "input_ids": ids[: config.max_length],
        "targets": [*targets[1 : config.max_length], -100],
        "prompt": prompt,
        "whole_prompt": zlib.crc32(as_text(full[:-1]).encode()),
        "length": length,
        "answer_cut": answer_cut,
        "skipped": skipped,
    }


def _find_answer(messages: Messages, ids: list[int], end: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[slice, str]:
    """Return the position in `ids` of the last message, an answer with its end token, and why it is not there, "" if it is.

    `ids` are the tokens of a conversation that begins with `messages`, `end` is the result of `end_of_answer`.
    """
    before = render(messages[:-1], tokenizer, answer_follows=True)
    through = render(messages, tokenizer, answer_follows=False)
    answer = slice(len(before), len(through) - len(end) + 1)
    if through[: answer.start] != before:
        return answer, "writes something else before a new answer than before one in the data, such as the start of a thought"
    if through[answer.stop - 1 :] != end or through[: answer.stop] != ids[: answer.stop]:
        return answer, "does not render a conversation from its beginning on, so its answers can't be found"
    return answer, ""


def _check_answer(messages: Messages, ids: list[int], end: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the loss would count other tokens than those of the last message, an answer, and one end token.

    The template may change the answer or write words before it, and the answer may contain an end token. `ids` are the tokens of
    the answer with its end token.
    """
    content = messages[-1]["content"]
    if tokenizer.chat_template:
        before = templated(messages[:-1], tokenizer, answer_follows=True)
        answer = templated(messages, tokenizer, answer_follows=False)[len(before) :]
        header, unchanged, _ = answer.partition(content)
        words = tokenizer.decode(_ids(header, tokenizer), skip_special_tokens=True).strip()
        if words or not unchanged:
            problem = f"writes {words!r} before an answer" if unchanged else "changes an answer"
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} {problem}, and this would be learned; in the conversation that begins "
                f"{as_text(messages)[:60]!r}: change the data, or set model_name to another model"
            )
    if inner := {end[0], tokenizer.eos_token_id} & {*ids[:-1]}:
        raise UserError(
            f"the answer {content[:60]!r} holds {tokenizer.decode([*inner])}, the token that ends an answer: remove it from the data, "
            "because it is added after each answer"
        )


def _check_system(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the template leaves out the system message."""
    if messages[0]["role"] == "system" and tokenizer.chat_template:
        marked = [{"role": "system", "content": SYSTEM_MARK}, *messages[1:]]
        if SYSTEM_MARK not in templated(marked, tokenizer, answer_follows=True):
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} leaves out the system message: move its text into the user's message, "
                "or set model_name to a model with a system role"
            )


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens after the last answer of a conversation. The first is the special token that ends the answer.

    A template may put a line break after it, and the end token (Phi-3). Raise `UserError` if there is no special token, because a
    model could not learn where to end.
    """
    question = {"role": "user", "content": "a"}
    answers = ([question, {"role": "assistant", "content": answer}] for answer in ("a", "b"))
    one, other = (render(messages, tokenizer, answer_follows=False)[::-1] for messages in answers)
    after, special = os.path.commonprefix([one, other])[::-1], tokenizer.added_tokens_decoder
    for position, token in enumerate(after):
        if token in special:
            return after[position:]
    raise UserError(
        f"the chat template of {tokenizer.name_or_path} puts no special token after an answer, so a model can't learn where to end: "
        "set model_name to another model"
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end token, and the one that the chat template puts there."""
    return sorted({tokenizer.eos_token_id, end_of_answer(tokenizer)[0]} - {None})


def prompt_ids(messages: Messages, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """Return the token ids that the model reads before it answers, at most `max_length`."""
    _check_system(messages, tokenizer)
    return render(shorten(messages, tokenizer, max_length), tokenizer, answer_follows=True)[-max_length:]


def shorten(messages: Messages, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Messages:
    """Return a conversation that has at most `max_length` tokens, if possible.

    First the oldest turns are left out. Then the last prompt loses its beginning and the system's message its end, until the tokens
    before the answer are `PROMPT_FRACTION` of `max_length`.
    """

    def surplus() -> int:
        return len(render(messages, tokenizer, answer_follows=messages[-1]["role"] != "assistant")) - max_length

    first = 1 if messages[0]["role"] == "system" else 0
    while len(messages) > first + 2 and surplus() > 0:
        messages = [*messages[:first], *messages[first + 2 :]]
    for position in (first, 0):
        while (too_many := surplus()) > 0 and position < len(messages):
            content = messages[position]["content"]
            ids = _ids(content, tokenizer)
            before_answer = len(render(messages[: first + 1], tokenizer, answer_follows=True))
            n_cut = min(too_many, len(ids) - 1, before_answer - int(PROMPT_FRACTION * max_length))
            kept = ids[n_cut:] if position == first else ids[: len(ids) - n_cut]
            shorter = tokenizer.decode(kept).strip("\ufffd").strip() if n_cut > 0 else content  # without half a character
            if len(shorter) >= len(content):
                break
            messages = [*messages[:position], messages[position] | {"content": shorter}, *messages[position + 1 :]]
    return messages
