"""The one exception that is for the person at the keyboard."""


class UserError(Exception):
    """A wrong call or input: the message says what was wrong, which knob, and what would be right. Exit code 2."""
