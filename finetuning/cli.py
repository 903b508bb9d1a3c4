"""The command line: from flags to a checked `Config`, and from an error to a message and an exit code."""

import argparse
import atexit
import codecs
import difflib
import errno
import functools
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NoReturn, TextIO

from transformers import HfArgumentParser

from config import PRESETS, Config
from finetuning.disk import remove_reserved, unlock
from finetuning.errors import Terminated, UserError


def exit_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's main: exit code 2 and one message for a wrong call or input, 130 for Ctrl-C, 143 for SIGTERM.

    Any other exception keeps its traceback and Python's exit code 1: the mistake is ours, not the user's. Of several processes, the
    first one prints.
    """

    @functools.wraps(main)
    def guarded() -> None:
        before = signal.signal(signal.SIGTERM, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a character that the terminal can't show is written as its number
                stream.reconfigure(errors="backslashreplace")
        code = 0
        try:
            main()
        except UserError as error:
            code = _stop(f"error: {error}", 2)
        except BrokenPipeError:  # `python predict.py ... | head` closed its end
            sys.stdout = None
        except Exception as error:
            if _lost_another(error):
                code = _stop("error: another process of this run has ended, so this one ends as well", 1)
            elif _cannot_write(error):
                remedy = "make room and --resume the run, or set output_dir to another folder"
                code = _stop(f"error: cannot write ({error}): {remedy}", 2)
            else:
                raise
        except KeyboardInterrupt as error:
            code = _stop("stopped", 143 if isinstance(error, Terminated) else 130)
        finally:
            signal.signal(signal.SIGTERM, before)
            remove_reserved()
            unlock()
        if "RANK" in os.environ:
            _exit_at_once(code)
        if code:
            sys.exit(code)

    return guarded


def shows_unicode(stream: TextIO) -> bool:
    """Return whether every character can be written to a stream."""
    return codecs.lookup(stream.encoding or "ascii").name.startswith("utf")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Print how to continue the run in `folder` if the block is interrupted. A `UserError` says itself what to do."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if _prints() or _lost_another(error):
            print(f"\ninterrupted: python fine_tune.py --resume {folder} continues from the last checkpoint", file=sys.stderr)
        raise


def _exit_at_once(code: int) -> NoReturn:
    """Exit one of several processes without shutting Python down, during which PyTorch's gloo threads may abort or hang the process.

    See https://github.com/pytorch/pytorch/pull/179291.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


def _terminate(*_) -> None:
    raise Terminated


def _prints() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun's number of the process


def _lost_another(error: BaseException) -> bool:
    """Return whether torch.distributed could not reach another process, over gloo or NCCL."""
    return any(base.__name__ == "DistError" for base in type(error).__mro__) or "/gloo/" in str(error)


def _cannot_write(error: Exception) -> bool:
    """Return whether there is no space or no permission to write, as Python, safetensors and torch.save report it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
    return getattr(error, "errno", None) in codes or any(words in str(error) for words in ("No space left", "inline_container"))


def _stop(message: str, code: int) -> int:
    if _prints():
        print(message, file=sys.stderr)
    return code


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples' line breaks; shows each flag's type, and its default if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        choices = "{" + ",".join(action.choices) + "}" if action.choices else None
        kind = {"string_to_bool": "BOOL", "Path": "PATH", "int": "INT", "float": "FLOAT"}.get(getattr(action.type, "__name__", ""))
        return f"{action.option_strings[0]} {action.metavar or choices or kind or 'TEXT'}"


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are `UserError`s; the help begins with a script's first line and ends with its examples."""

    def __init__(self, about: str | None = None) -> None:
        super().__init__(**_described(about), allow_abbrev=False)

    def error(self, message: str) -> None:
        raise UserError(message)


class _ConfigParser(HfArgumentParser):
    error = Parser.error


def _described(about: str | None) -> dict:
    first, _, rest = (about or "").partition("\n")
    return dict(description=first, epilog=rest.strip("\n"), formatter_class=_Help)


def _group(parser: argparse.ArgumentParser) -> None:
    """Put the flags of `Config` into the sections that config.py has."""
    flat, group = parser._action_groups[1], None
    for line in inspect.getsource(Config).splitlines():
        if section := re.match(r"    # --- (.+?) -+$", line):
            group = parser.add_argument_group(section[1])
        elif field := re.match(r"    (\w+): ", line):
            actions = [action for action in flat._group_actions if action.dest == field[1]]  # several: --speedups, --no_speedups
            flat._group_actions[:] = [action for action in flat._group_actions if action not in actions]
            group._group_actions.extend(actions)


def parse_config(args: Sequence[str] | None = None, about: str | None = None) -> tuple[Config, argparse.Namespace]:
    """Read the flags of fine_tune.py; `about` is its docstring, for the help.

    Return the checked `Config`, and a namespace with `preset`, `resume` and `search`, which are not part of a run's settings, and with
    `given`, the names of the settings that were given as flags. Raise `UserError` for an unknown flag, and for a value of the wrong
    type or out of range.
    """
    usage = "python fine_tune.py [--preset NAME] [--any_setting VALUE ...]"
    parser = _ConfigParser(Config, usage=usage, allow_abbrev=False, **_described(about))
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="a named set of defaults, see config.py")
    parser.add_argument("--resume", metavar="RUN", help="continue an interrupted run folder, with its own settings")
    parser.add_argument("--search", metavar="N", type=int, help="N trials of Optuna over SEARCH_SPACE of config.py, on validation")
    _group(parser)
    known, unknown = parser.parse_known_args(args)
    if unknown:
        flags = ["--preset", "--resume", "--search", *(f"--{field.name}" for field in fields(Config))]
        close = difflib.get_close_matches(unknown[0].split("=")[0].replace("-", "_").replace("__", "--"), flags, n=1)
        hint = f"did you mean {close[0]}?" if close else "python fine_tune.py --help lists all flags"
        raise UserError(f"unknown argument {unknown[0]}: {hint}")
    names = {field.name for field in fields(Config)}
    if wrong := set(PRESETS[known.preset]) - names:
        raise UserError(f"preset {known.preset!r} in config.py names unknown fields: {', '.join(sorted(wrong))}")
    parser.set_defaults(**PRESETS[known.preset])
    config, extra = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    words = sys.argv[1:] if args is None else args
    flags = (word[2:].partition("=")[0] for word in map(str, words) if word.startswith("--"))
    extra.given = {flag.replace("-", "_") for flag in flags}  # --train-samples is --train_samples
    if extra.resume and config != Config():
        raise UserError("--resume continues with the run's own settings: leave the other flags out")
    if extra.search is not None and (extra.search < 1 or extra.resume):
        raise UserError(
            "--search takes the number of trials, at least 1; the same command again continues a search, without --resume"
        )
    check(config)
    return config, extra


def check_encoding(encoding: str | None) -> None:
    """Raise `UserError` for an encoding that Python does not know."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise UserError(f"encoding={encoding} is not known: utf-8, latin-1, cp1252, cp1251, utf-16, shift_jis, ...") from None


def check(config: Config) -> None:
    """Check each value by itself and together with others, before anything slow starts. Raise `UserError`."""

    def require(condition: bool, name: str, what: str) -> None:
        if not condition:
            raise UserError(f"{name}={getattr(config, name)} is out of range: it must be {what}")

    for name in ("lora_r", "lora_alpha", "batch_size", "eval_batch_size", "gradient_accumulation_steps", "num_beams"):
        require(getattr(config, name) is None or getattr(config, name) >= 1, name, "at least 1")
    for name in ("train_samples", "val_samples", "test_samples", "early_stopping_patience", "seed", "split_seed"):
        require(0 <= getattr(config, name) < 2**32, name, "0 or more")
    require(0 <= config.length_warmup <= 1, "length_warmup", "a fraction from 0 to 1")
    for name in ("dropout", "lora_dropout", "label_smoothing_factor"):
        require(0 <= getattr(config, name) < 1, name, "at least 0 and below 1")
    for name in ("test_fraction", "validation_fraction", "mlm_probability"):
        require(0 < getattr(config, name) < 1, name, "above 0 and below 1")
    require(0 < config.learning_rate < 1, "learning_rate", "above 0 and below 1, for LoRA usually 1e-4 to 2e-3")
    require(config.loraplus_lr_ratio > 0, "loraplus_lr_ratio", "above 0, for LoRA+ usually 4 to 16")
    require(config.max_length >= 8, "max_length", "at least 8 tokens")
    require(0 < config.num_train_epochs < float("inf"), "num_train_epochs", "above 0")
    require(config.weight_decay >= 0, "weight_decay", "0 or more")
    require(config.test_fraction + config.validation_fraction < 1, "validation_fraction", "below 1 - test_fraction")
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        value = getattr(config, name)
        if value is not None:
            lowest = value >= 0 if name == "warmup_steps" else value > 0
            require(lowest and (value < 1 or value == int(value)), name, "a whole number of steps, or a fraction below 1")
    if config.eval_strategy == "steps" and config.save_steps is not None:
        every = config.save_steps / config.eval_steps
        same_kind = (config.save_steps < 1) == (config.eval_steps < 1)
        if not same_kind or every < 1 or abs(every - round(every)) > 1e-9:
            raise UserError(
                f"save_steps={config.save_steps:g} and eval_steps={config.eval_steps:g} do not agree: the best checkpoint can only "
                "be kept where a validation was made. Leave save_steps out, or make it a multiple of eval_steps"
            )
    check_encoding(config.encoding)
    if config.report_to != "none":
        from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

        for name in config.report_to.split(","):
            if name not in INTEGRATION_TO_CALLBACK:
                raise UserError(f"report_to={name} is not known: none, or out of {', '.join(INTEGRATION_TO_CALLBACK)}")
            if name not in get_available_reporting_integrations():
                raise UserError(f"report_to={name}: it is not installed: pip install {name}, or leave report_to out")
    if config.quantization != "none" and config.method != "lora":
        raise UserError(f"quantization={config.quantization} leaves weights that can't be trained: set method to lora")
    if config.train_embeddings and config.method != "lora":
        raise UserError(f"train_embeddings is for LoRA, and method is {config.method}: leave it out (full trains them anyway)")
    if config.run_name is not None and (config.run_name in ("", ".", "..") or "/" in config.run_name or "\\" in config.run_name):
        raise UserError(f"run_name={config.run_name!r} must be a plain folder name; output_dir says where the folder goes")
