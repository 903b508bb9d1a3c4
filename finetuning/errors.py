"""Exceptions that end a script early and are not bugs."""


class UserError(Exception):
    """A wrong call or wrong input. The message names the setting, what is wrong, and what would be right. Exit code 2."""


class NotFinite(UserError):
    """The loss, its gradient or a weight is NaN or infinite."""


class Terminated(KeyboardInterrupt):
    """The signal SIGTERM, from a scheduler, or from torchrun after another process of the run has ended. Exit code 143."""
