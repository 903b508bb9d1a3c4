"""Exceptions for wrong input, and functions that format texts for messages."""

import importlib.util
import re
from collections.abc import Sequence

# Characters that move the cursor, change what is on the screen, or reverse the order of others (bidirectional overrides).
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MAX_LISTED = 5  # row numbers or labels in a message


def printable(text: str) -> str:
    """Return a text with an escape such as \\x1b for each character of `CONTROLS`."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shorten(text: str, length: int) -> str:
    """Return a text on one line, cut to at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(items: Sequence) -> str:
    """Return the first `MAX_LISTED` items as text."""
    return ", ".join(map(str, items[:MAX_LISTED])) + (", ..." if len(items) > MAX_LISTED else "")


class UserError(Exception):
    """A wrong call or wrong input. The message names the setting, what is wrong, and what would be right. Exit code 2.

    The message is one line: line breaks of a library's message become spaces.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().splitlines()))


class BadRow(UserError):
    """A row can't be used. `position` is its place in the batch."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class NotFinite(UserError):
    """The loss, its gradient or a weight is NaN or infinite."""


def require_installed(user: str, *packages: str) -> None:
    """Raise `UserError` if an optional package is not installed. `user` is what needs it."""
    if missing := [package for package in packages if not importlib.util.find_spec(package)]:
        raise UserError(f"{user} needs {' and '.join(missing)}: pip install -r requirements-extras.txt")
