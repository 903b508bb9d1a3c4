"""How a script ends: signals that interrupt it, one message in place of a traceback, and its exit code."""

import atexit
import codecs
import errno
import functools
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO

from finetuning.disk import remove_reserved, unlock, why_full
from finetuning.errors import UserError, printable

# Ctrl-C, SIGTERM from a scheduler, SIGHUP from a closed terminal
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
            if _is_first_process():
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


# --- the end of a script -------------------------------------------------------------------------------------------------


def exit_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's main, so that it ends with one message and the right exit code instead of a traceback.

    2: a wrong call or wrong input; 130: Ctrl-C; 143: SIGTERM; 129: SIGHUP; 1: another process of the run has ended. Any other
    exception is a bug: it keeps its traceback and Python's exit code 1. If a run has several processes, only the first one prints.
    """

    @functools.wraps(main)
    def run_and_exit() -> None:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed by the program that started this one
                setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open until the process ends)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # print a character that the terminal can't show as its number
                stream.reconfigure(errors="backslashreplace")
        with handled_by(ignore):  # while it cleans up
            try:
                code = _exit_code(main)
            finally:
                remove_reserved()
                unlock()
        if "RANK" in os.environ:
            _exit_at_once(code)
        if code:
            sys.exit(code)

    return run_and_exit


def _exit_code(main: Callable[[], None]) -> int:
    """Run a script's main, print what ended it early, and return the exit code."""
    try:
        with handled_by(stop_at_once):
            main()
    except UserError as error:
        return _report(f"error: {error}", 2)
    except BrokenPipeError:  # the reader of a pipe has ended, as in `python predict.py ... | head`
        sys.stdout = None
    except Exception as error:
        if _lost_other_process(error):
            return _report("error: another process of this run has ended, so this one ends as well", 1)
        is_read_only = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
        if reason := error.strerror if is_read_only else why_full(error):
            where = printable(str(getattr(error, "filename", None) or "output_dir"))
            remedy = "make room or change its permissions, and --resume the run, or set output_dir to another folder"
            return _report(f"error: cannot use {where}: {reason}: {remedy}", 2)
        raise
    except KeyboardInterrupt as error:
        return _report("stopped", getattr(error, "exit_code", 130))
    return 0


@contextmanager
def resumable(folder: Path, signals: AfterCheckpoint) -> Iterator[None]:
    """Train the run in `folder` in the `with` block: print how to continue if it is interrupted. A `UserError` has its own remedy.

    `signals` handles the signals that come meanwhile. Training must save a checkpoint and raise `Stopped` after the first one.
    """
    try:
        with handled_by(signals):
            yield
        if signals.number:  # it came after the last step
            raise Stopped(signals.number)
    except UserError:
        raise
    except BaseException as error:
        if _is_first_process() or _lost_other_process(error):
            command = f"python fine_tune.py --resume {shlex.quote(str(folder))}"
            how = "the same command" if Path(sys.argv[0]).stem == "label_errors" else command
            print(f"\ninterrupted: {how} continues from the last checkpoint", file=sys.stderr)
        raise


def shows_unicode(stream: TextIO) -> bool:
    """Return whether every character can be written to `stream`: its encoding is UTF-8, UTF-16 or UTF-32."""
    return codecs.lookup(stream.encoding or "ascii").name.startswith("utf")


def _exit_at_once(code: int) -> NoReturn:
    """Exit one of several processes at once, without Python's shutdown.

    During the shutdown, PyTorch's gloo threads may abort or hang the process: https://github.com/pytorch/pytorch/pull/179291.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun sets RANK to the number of the process


def _lost_other_process(error: BaseException) -> bool:
    """Return whether torch.distributed could not reach another process, over gloo or NCCL."""
    return any(base.__name__ == "DistError" for base in type(error).__mro__) or "/gloo/" in str(error)


def _report(message: str, code: int) -> int:
    if _is_first_process():
        with suppress(AttributeError, OSError):  # stdout is closed
            sys.stdout.flush()  # in a log file, the message comes after what was printed before
        print(message, file=sys.stderr)
    return code
