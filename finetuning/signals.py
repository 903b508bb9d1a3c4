"""The signals that end a script: Ctrl-C, SIGTERM from a scheduler, SIGHUP from a closed terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class Stopped(KeyboardInterrupt):
    """A signal ends the script. Its exit code is that of a shell: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class AfterCheckpoint:
    """Delays a signal until training has saved a checkpoint.

    A second signal stops at once. torchrun passes a signal on to its processes, which may have got it already: they ignore a second
    one, and torchrun kills them after 30 seconds.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # the signal that has come

    def __call__(self, number: int, _frame) -> None:
        if self.number is None:
            self.number = number
            if os.environ.get("RANK", "0") == "0":
                message = b"\nstopping: a checkpoint is saved after this step or validation; a second signal stops at once\n"
                os.write(2, message)  # print could be interrupted by itself
        elif "RANK" not in os.environ:
            raise Stopped(number)


def stop_at_once(number: int, _frame) -> None:
    raise Stopped(number)


def ignore(_number: int, _frame) -> None:
    """Do nothing: cleaning up takes a moment and must not end halfway."""


@contextmanager
def handled_by(handler: Callable) -> Iterator[None]:
    """Let `handler` handle the signals in a `with` block. Signals that were ignored before, as under nohup, stay ignored."""
    previous = {number: signal.signal(number, handler) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
