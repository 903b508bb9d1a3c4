"""The command line: from flags to a checked `Config`."""

import argparse
import difflib
import gc
import inspect
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator
from transformers import HfArgumentParser

from config import PRESETS, Config
from finetuning.errors import UserError

SETTINGS_OF_LORA = (
    *("lora_r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    *("loraplus_lr_ratio", "train_embeddings", "quantization"),
)


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries in the `with` block. Python's garbage collector pauses, and ignores the imported objects from then on.

    Otherwise the collector would scan the growing heap again and again, and free almost nothing. The imports of predict.py took
    8.8 s of CPU time in place of 10.1 s (AMD EPYC, AVX2).
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # a second call would also keep the objects of an earlier run in memory forever
            gc.freeze()
        gc.enable()


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Format --help: keep the line breaks of the examples, show each flag's type, and its default if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        choices = "{" + ",".join(action.choices) + "}" if action.choices else None
        kind = {"string_to_bool": "BOOL", "Path": "PATH", "int": "INT", "float": "FLOAT"}.get(getattr(action.type, "__name__", ""))
        return f"{action.option_strings[0]} {action.metavar or choices or kind or 'TEXT'}"


class Parser(HfArgumentParser):
    """A parser that raises `UserError`. `about` is a script's docstring: --help shows its first line first and the rest last."""

    def __init__(self, about: str | None = None, settings: type | None = None, **options) -> None:
        """`settings` is a dataclass whose fields become flags."""
        first, _, rest = (about or "").partition("\n")
        options |= dict(description=first, epilog=rest.strip("\n"), formatter_class=_Help, allow_abbrev=False)
        super().__init__(settings, **options)

    def error(self, message: str) -> None:
        raise UserError(message)


def _group(parser: argparse.ArgumentParser) -> None:
    """Show the flags of `Config` in --help under the headings of the sections of config.py."""
    all_flags, group = parser._action_groups[1], None
    for line in inspect.getsource(Config).splitlines():
        if section := re.match(r"    # --- (.+?) -+$", line):
            group = parser.add_argument_group(section[1])
        elif field := re.match(r"    (\w+): ", line):
            actions = [action for action in all_flags._group_actions if action.dest == field[1]]  # a switch has two: --x, --no_x
            all_flags._group_actions[:] = [action for action in all_flags._group_actions if action not in actions]
            group._group_actions.extend(actions)


def parse_config(args: Sequence[str] | None = None, about: str | None = None) -> tuple[Config, argparse.Namespace]:
    """Read the flags of fine_tune.py; `about` is its docstring, for the help.

    Return the checked `Config` and a namespace. The namespace has the flags that are no settings of a run: `preset`, `resume` (empty
    for the newest run), `resume_if_exists` and `search`. Its `given` has the names of the settings that were given as flags. Raise
    `UserError` for an unknown flag, and for a value of the wrong type or out of range.
    """
    usage = "python fine_tune.py [--preset NAME] [--SETTING VALUE ...]"
    parser = Parser(about, Config, usage=usage)
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="a named set of defaults, see config.py")
    resume_help = "continue the interrupted run in this folder, with its own settings; without RUN: the newest one in outputs/"
    parser.add_argument("--resume", metavar="[RUN]", nargs="?", const="", help=resume_help)
    parser.add_argument(
        "--resume_if_exists",
        action="store_true",
        help="continue the run named --run_name if it exists, else start it: for jobs that a scheduler starts again",
    )
    parser.add_argument(
        "--search", metavar="N", type=int, help="try N settings of SEARCH_SPACE in config.py with Optuna, on validation"
    )
    _group(parser)
    known, unknown = parser.parse_known_args(args)
    if unknown:
        similar = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "python fine_tune.py --help lists all flags"
        raise UserError(f"unknown argument {unknown[0]}: {hint}")
    if unknown_names := PRESETS[known.preset].keys() - get_type_hints(Config).keys():
        raise UserError(f"preset {known.preset!r} in config.py has settings that do not exist: {', '.join(sorted(unknown_names))}")
    parser.set_defaults(**PRESETS[known.preset])
    config, extra = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    config.output_dir = os.path.expanduser(config.output_dir)  # shells leave --output_dir=~/runs as it is
    arguments = sys.argv[1:] if args is None else args
    flags = (argument[2:].partition("=")[0] for argument in map(str, arguments) if argument.startswith("--"))
    # --train-samples is --train_samples, and --no_speedups is --speedups False
    extra.given = {flag.replace("-", "_").removeprefix("no_") for flag in flags}
    if extra.resume is not None and extra.given != {"resume"}:
        raise UserError("--resume continues with the run's own settings: leave the other flags out")
    if extra.search is not None and extra.search < 1:
        raise UserError(f"--search {extra.search}: the number of trials must be at least 1")
    if extra.search is not None and (extra.resume is not None or extra.resume_if_exists):
        raise UserError("--search continues if the same command is given again: leave --resume and --resume_if_exists out")
    if extra.search is not None and config.report_to != "none":
        raise UserError("--search stores its trials itself, in search.db: leave report_to out")
    for name in ("save_steps", "eval_steps"):
        if config.eval_strategy == "epoch" and (name in extra.given or (name == "save_steps" and config.save_steps)):
            raise UserError(f"{name} is for eval_strategy steps, and this run validates and saves after each epoch: leave it out")
    if config.lr_scheduler_type == "constant" and "warmup_steps" in extra.given:
        raise UserError("warmup_steps is not used if lr_scheduler_type is constant: leave it out, or use constant_with_warmup")
    if config.padding == "max_length" and config.length_warmup and "length_warmup" in extra.given:
        raise UserError(f"length_warmup={config.length_warmup} saves no time with padding=max_length: leave one of the two out")
    unread = [name for name in SETTINGS_OF_LORA if name in extra.given and getattr(config, name) != getattr(Config, name)]
    if config.method != "lora" and unread:
        raise UserError(f"{unread[0]}={getattr(config, unread[0])} is for LoRA, and method is {config.method}: leave it out")
    if extra.resume_if_exists and (config.run_name is None or extra.resume is not None):
        raise UserError("--resume_if_exists needs the run's name: give it with --run_name, and leave --resume out")
    check(config)
    return config, extra


def check_encoding(encoding: str | None) -> None:
    """Raise `UserError` for an encoding that Python does not know, or that is not for text, such as hex."""
    try:
        "".encode("utf-8" if encoding is None else encoding)
    except (LookupError, UnicodeError):
        raise UserError(f"encoding={encoding} is not known: utf-8, latin-1, cp1252, cp1251, utf-16, shift_jis, ...") from None


def check(config: Config) -> None:
    """Raise `UserError` for a value of the wrong type or out of range, or one that does not fit another. All of this is fast."""
    check_types(config)
    check_ranges(config)
    check_encoding(config.encoding)
    check_combinations(config)


def check_types(config: Config) -> None:
    """Raise `UserError` for a value of the wrong type."""
    for name, hint in get_type_hints(Config).items():
        value = getattr(config, name)
        try:
            type_validator(name, value, hint | int if float in (hint, *get_args(hint)) else hint)
        except TypeError as error:
            kind = inspect.formatannotation(hint)
            raise UserError(f"{name}={reprlib.repr(value)} has the wrong type: it must be {kind}") from error


def check_ranges(config: Config) -> None:
    """Raise `UserError` for a number out of range."""

    def require(condition: bool, name: str, requirement: str) -> None:
        if not condition:
            raise UserError(f"{name}={reprlib.repr(getattr(config, name))} is out of range: it must be {requirement}")

    require(config.lora_alpha >= 1, "lora_alpha", "at least 1")
    for name in ("lora_r", "batch_size", "eval_batch_size", "gradient_accumulation_steps", "num_beams"):
        require(getattr(config, name) is None or 1 <= getattr(config, name) < 2**31, name, f"from 1 to {2**31 - 1:,}")
    for name in ("train_samples", "val_samples", "test_samples", "early_stopping_patience", "seed", "split_seed"):
        require(0 <= getattr(config, name) < 2**32, name, f"from 0 to {2**32 - 1:,}")
    require(0 <= config.length_warmup <= 1, "length_warmup", "a fraction from 0 to 1")
    for name in ("dropout", "lora_dropout", "label_smoothing_factor"):
        require(0 <= getattr(config, name) < 1, name, "at least 0 and below 1")
    for name in ("test_fraction", "validation_fraction", "mlm_probability"):
        require(0 < getattr(config, name) < 1, name, "above 0 and below 1")
    require(0 < config.learning_rate < 1, "learning_rate", "above 0 and below 1, for LoRA usually 1e-4 to 2e-3")
    require(config.loraplus_lr_ratio > 0, "loraplus_lr_ratio", "above 0, for LoRA+ usually 4 to 16")
    require(8 <= config.max_length < 2**31, "max_length", f"from 8 to {2**31 - 1:,} tokens")
    require(config.num_train_epochs > 0, "num_train_epochs", "above 0")
    require(config.weight_decay >= 0, "weight_decay", "0 or more")
    require(config.folds == 0 or 2 <= config.folds < 2**31, "folds", "0, or at least 2")
    require(
        1 <= config.fold <= max(1, config.folds),
        "fold",
        f"from 1 to folds, which is {config.folds}" if config.folds else "1, unless folds is set",
    )
    require(config.test_fraction + config.validation_fraction < 1, "validation_fraction", "below 1 - test_fraction")
    for name, value in vars(config).items():
        require(not isinstance(value, int | float) or abs(value) < 1e300, name, "a number that is not so large")
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        value = getattr(config, name)
        if value is not None:
            is_high_enough = value >= 0 if name == "warmup_steps" else value > 0
            require(is_high_enough and (value < 1 or value == int(value)), name, "a whole number of steps, or a fraction below 1")


def check_combinations(config: Config) -> None:
    """Raise `UserError` for a value that does not fit another, a tracker that is not installed, and a name that is a path."""
    if config.eval_strategy == "steps" and config.save_steps is not None:
        validations_per_save = config.save_steps / config.eval_steps
        same_unit = (config.save_steps < 1) == (config.eval_steps < 1)
        whole_number = abs(validations_per_save - round(validations_per_save)) <= 1e-9
        if not same_unit or validations_per_save < 1 or not whole_number:
            raise UserError(
                f"save_steps={config.save_steps:g} and eval_steps={config.eval_steps:g} do not fit together: the best checkpoint "
                "can only be chosen among steps with a validation. Leave save_steps out, or make it a multiple of eval_steps"
            )
    if config.report_to != "none":
        from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

        for name in config.report_to.split(","):
            if name not in INTEGRATION_TO_CALLBACK:
                raise UserError(
                    f"report_to={name} is not known: set it to none, or to one or more of {', '.join(INTEGRATION_TO_CALLBACK)}"
                )
            if name not in get_available_reporting_integrations():
                raise UserError(f"report_to={name}: it is not installed: pip install {name}, or leave report_to out")
    # of LoRA's settings, only these would change a run of another method
    for name, off in (("quantization", "none"), ("train_embeddings", False), ("loraplus_lr_ratio", 1)):
        if config.method != "lora" and getattr(config, name) != off:
            raise UserError(f"{name}={getattr(config, name)} is for LoRA, and method is {config.method}: leave it out")
    if config.quantization != "none" and config.init_lora_weights == "pissa":
        raise UserError("init_lora_weights=pissa needs weights that are not quantized: leave it out, or leave quantization out")
    if config.run_name is not None and (config.run_name in ("", ".", "..") or "/" in config.run_name or "\\" in config.run_name):
        raise UserError(
            f"run_name={config.run_name!r} must be a name, not a path: set output_dir to the folder that holds the run folder"
        )
