"""Read prompts and answers as conversations, and turn conversations into token ids.

A conversation is a list of messages, each with a `role` (system, user or assistant) and a `content`. A prompt with its answer is a
conversation with one message of the user and one of the assistant.

The tokenizer's chat template turns a conversation into text. Without a template, a text is the prompt, a line break, the answer and
the end token. The answers are found in the tokens by rendering the conversation up to each of them.
"""

import contextlib
import os
import zlib
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.data.annotations import parse_list
from finetuning.data.text import find_column
from finetuning.data.tokens import start_token
from finetuning.errors import UserError

Messages = list[dict[str, str]]

CONVERSATION_COLUMNS = ("messages", "conversations")
PROMPT_AND_ANSWER_COLUMNS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("meaning_representation", "human_reference"),  # E2E
)
PROMPT_COLUMNS, ANSWER_COLUMNS = (tuple(dict.fromkeys(names)) for names in zip(*PROMPT_AND_ANSWER_COLUMNS, strict=True))
INPUT_COLUMNS = ("input", "context")  # of an instruction, in Alpaca and Dolly
SYSTEM_COLUMNS = ("system", "system_prompt")
OTHER_COLUMNS = ("history", "tools", "label")  # they belong to conversations, but are not read
ROLES = {role: role for role in ("system", "user", "assistant")} | {"human": "user", "gpt": "assistant"}  # ShareGPT's names too
KEYS = (("role", "content"), ("from", "value"))  # of a message
WEIGHT_KEYS = ("weight", "train", "training")  # of an answer; OpenAI's and Axolotl's names
# Of an answer: a model would learn to answer without them.
UNREAD_KEYS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
SEPARATOR = "\n"  # between prompt and answer, for a tokenizer without a chat template
SYSTEM_MARK = "systemmessage"  # in place of a system message, to see whether the template writes it
PROMPT_FRACTION = 0.25  # the end of an answer is cut only after the prompt has been cut to this fraction of `max_length`


# --- columns and messages --------------------------------------------------------------------------------------------------


def find_chat_columns(available: list[str], config: Config) -> dict[str, str]:
    """Return the columns of prompts and answers: `prompt`, `completion`, `input` and `system`; {} if there are none.

    A column with whole conversations is `prompt`, without `completion`. The columns are those that the settings name, or else
    those with usual names. If the settings then name the columns that were found, the same are found again.
    """
    by_name, columns = {plain(column): column for column in available}, {}
    if config.prompt_column or config.completion_column:
        others = [column for column in available if column not in (config.prompt_column, config.completion_column)]
        searched = available if config.prompt_column else others
        columns["prompt"] = find_column("prompt_column", config.prompt_column, PROMPT_COLUMNS, searched)
        if config.completion_column:
            columns["completion"] = find_column("completion_column", config.completion_column, (), available)
        elif plain(columns["prompt"]) not in CONVERSATION_COLUMNS and {*ANSWER_COLUMNS} & {*map(plain, others)}:
            columns["completion"] = find_column("completion_column", None, ANSWER_COLUMNS, others)
    elif conversations := [by_name[name] for name in CONVERSATION_COLUMNS if name in by_name]:
        columns["prompt"] = conversations[0]
    elif pairs := [pair for pair in PROMPT_AND_ANSWER_COLUMNS if {*pair} <= {*by_name}]:
        columns["prompt"], columns["completion"] = (by_name[name] for name in pairs[0])
    return with_more(columns, available)


def with_more(columns: dict[str, str], available: list[str]) -> dict[str, str]:
    """Add the columns that belong to prompts, if there are any: `system`, and `input` if the prompts are called instruction."""
    by_name = {plain(column): column for column in available if column not in columns.values()}
    is_instruction = plain(columns.get("prompt", "")) == "instruction"
    parts = {"input": INPUT_COLUMNS if is_instruction else (), "system": SYSTEM_COLUMNS if columns else ()}
    found = {part: [by_name[name] for name in names if name in by_name] for part, names in parts.items()}
    return columns | {part: matches[0] for part, matches in found.items() if matches}


def unread_columns(columns: dict[str, str], available: list[str]) -> list[str]:
    """Return the columns whose names say that they belong to conversations, but that are not among `columns`."""
    names = (*CONVERSATION_COLUMNS, *PROMPT_COLUMNS, *INPUT_COLUMNS, *SYSTEM_COLUMNS, *ANSWER_COLUMNS, *OTHER_COLUMNS)
    return [column for column in available if plain(column) in names and column not in columns.values()]


def plain(name: str) -> str:
    return name.strip().lower()


def conversation(row: dict) -> Messages:
    """Return the conversation of a row with the columns of `find_chat_columns`. Raise `ValueError` if it is none."""
    for name in ("input", "system"):
        if not isinstance(row.get(name) or "", str):
            raise ValueError(
                f"its {name} is {_kind(row[name])}, which is no text: rename the column if it is no part of the prompts"
            )
    messages = _messages_of(row["prompt"], "user") or [{"role": "user", "content": ""}]
    if more := row.get("input"):
        messages[-1]["content"] = f"{messages[-1]['content']}\n\n{more}".strip()
    system = _messages_of(row.get("system"), "system")
    if messages[:1] != system:
        if system and messages[0]["role"] == "system":
            raise ValueError("its column of the system differs from the system's message in the conversation: remove one of them")
        messages = system + messages
    messages += _messages_of(row.get("completion"), "assistant")
    _check_roles(messages)
    return messages


def _messages_of(value: Any, role: str) -> Messages:
    """Return a value as messages: a text is one message of `role`. Raise `ValueError` for other values."""
    if isinstance(value, str):
        value = conversation_of_text(value) or value
    if value is None or isinstance(value, str):
        return [{"role": role, "content": value.strip()}] if value and value.strip() else []
    if not isinstance(value, Sequence) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{_kind(value)} is neither a text nor a list of messages")
    return [_message_of(message) for message in value]


def conversation_of_text(text: str) -> list[dict] | None:
    """Return the messages of a text that JSON or Python wrote for a conversation, as in csv files; None for other texts."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, UserError):
            value = parse_list(text)
            if value and all(isinstance(message, dict) and any({*keys} <= {*message} for keys in KEYS) for message in value):
                return value
    return None


def _kind(value: Any) -> str:
    """Return what a value is, for an error without the value itself: rows with equal errors are counted together."""
    names = {str: "text", bool: "truth value", int: "number", float: "number", dict: "dictionary", list: "list"}
    name = names.get(type(value), type(value).__name__)
    return f"a list of {names.get(type(value[0]), 'other value')}s" if isinstance(value, list) and value else f"a {name}"


def _message_of(message: dict) -> dict[str, str]:
    role_key, content_key = next((keys for keys in KEYS if {*keys} <= {*message}), (None, None))
    if role_key is None:
        raise ValueError(f"a message has the keys {', '.join(message)}, not role and content, or from and value")
    role, content = message[role_key], message[content_key]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"the role {role!r} is not known, only {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"the content of a message is {_kind(content)}, which is no text")
    for key in WEIGHT_KEYS:
        if ROLES[role] == "assistant" and message.get(key) not in (None, 1):
            raise ValueError(f"an answer has the {key} {message[key]!r}, but the loss counts all answers alike")
    if extra := [key for key in UNREAD_KEYS if ROLES[role] == "assistant" and message.get(key)]:
        raise ValueError(f"an answer has {' and '.join(extra)}, but only its {content_key} would be learned")
    return {"role": ROLES[role], "content": content.strip()}


def _check_roles(messages: Messages) -> None:
    """Raise `ValueError` unless user and assistant take turns, perhaps after one message of the system."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    # data/splits.py counts the rows whose last prompt or answer is empty.
    if empty := [number for number in range(len(roles) - len(turns), len(roles) - 2) if not messages[number]["content"]]:
        raise ValueError(f"its message {empty[0] + 1} ({roles[empty[0]]}) is empty")
    for number, role in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise ValueError(f"the roles are out of order: {role} where {expected} should come ({', '.join(roles[:6])})")


def split_last_answer(messages: Messages) -> tuple[Messages, str]:
    """Return the messages before the last answer, and that answer; "" if there is no answer, or no prompt before it."""
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if len(messages) < 2 or not messages[-2]["content"]:
        return messages, ""
    return messages[:-1], messages[-1]["content"]


def as_text(messages: Messages) -> str:
    """Return messages as one text for people: the content of a single one, else each after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


# --- token ids -------------------------------------------------------------------------------------------------------------


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
    messages = shorten(messages, tokenizer, config.max_length)
    ids, end = render(messages, tokenizer, answer_follows=False), end_of_answer(tokenizer)
    targets, skipped = [-100] * len(ids), 0
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(messages[:number], tokenizer, answer_follows=True)
            through = render(messages[: number + 1], tokenizer, answer_follows=False)
            answer = slice(len(before), len(through) - len(end) + 1)  # with the token that ends it
            is_found = through[: answer.start] == before and through[answer.stop - 1 :] == end
            if not is_found or ids[: answer.stop] != through[: answer.stop]:
                if number < len(messages) - 1:
                    skipped += 1
                    continue
                problem = "does not render a conversation from its beginning on, so its answers can't be found"
                if through[: answer.start] != before:
                    problem = (
                        "writes something else before a new answer than before one in the data, such as the start of a thought"
                    )
                raise UserError(
                    f"the chat template of {tokenizer.name_or_path} {problem}; in the conversation that begins "
                    f"{as_text(messages)[:60]!r}: set model_name to another model"
                )
            _check_answer(messages[: number + 1], tokenizer)
            if inner := {end[0], tokenizer.eos_token_id} & {*ids[answer][:-1]}:
                raise UserError(
                    f"the answer {message['content'][:60]!r} holds {tokenizer.decode([*inner])}, the token that ends an answer: remove it from "
                    "the data, because it is added after each answer"
                )
            targets[answer] = ids[answer]
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


def _check_answer(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the template changes the last message, an answer, or writes words before it, which would be learned too."""
    if not tokenizer.chat_template:
        return
    before = templated(messages[:-1], tokenizer, answer_follows=True)
    answer = templated(messages, tokenizer, answer_follows=False)[len(before) :]
    header, found, _ = answer.partition(messages[-1]["content"])
    words = tokenizer.decode(_ids(header, tokenizer), skip_special_tokens=True).strip()
    if words or not found:
        problem = f"writes {words!r} before an answer" if found else "changes an answer"
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} {problem}, and this would be learned; in the conversation that begins "
            f"{as_text(messages)[:60]!r}: change the data, or set model_name to another model"
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
