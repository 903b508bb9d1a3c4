"""Reasons for which a script ends early that are no error of its own."""


class UserError(Exception):
    """A wrong call or input: the message says what was wrong, in which setting, and what would be right. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: from a scheduler, or from torchrun when another process of the run has ended. Exit code 143."""
