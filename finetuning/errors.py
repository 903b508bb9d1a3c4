"""What a script can end with before it is done, through no fault of its own."""


class UserError(Exception):
    """A wrong call or input: the message says what was wrong, which knob, and what would be right. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: from a scheduler, or from torchrun when another process of the run has ended. Exit code 143."""
