"""Read prompts and answers as conversations.

A conversation is a list of messages, each with a `role` (system, user or assistant) and a `content`. A prompt with its answer is a
conversation with one message of the user and one of the assistant.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from config import Config
from finetuning.data.annotations import parse_list
from finetuning.data.text import find_column
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
        part = {"user": "prompt", "assistant": "answer", "system": "system message"}[role]
        raise ValueError(f"its {part} is {_kind(value)}, which is neither a text nor a list of messages")
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
    names = {str: "a text", bool: "a truth value", int: "a number", float: "a number", dict: "an object", list: "a list"}
    if isinstance(value, list) and value:
        return f"a list of {names.get(type(value[0]), 'a value').partition(' ')[2]}s"
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


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
