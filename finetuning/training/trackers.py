"""Experiment trackers: one tracker run gets a run's settings, losses and test metrics, all through the Trainer's callbacks.

A resumed run and evaluate.py find the tracker run by its name. Trackers that `CONTINUED` lacks get no test metrics.
"""

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import patch_environment
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from config import Config
from finetuning.disk import read_json
from finetuning.processes import by_first

CONTINUED = ("tensorboard", "wandb", "trackio")  # trackers that find a run by its name


class Arguments(TrainingArguments):
    """The Trainer's arguments. Trackers show their `to_dict`, here with the settings of config.py."""

    def __init__(self, config: Config, **arguments) -> None:
        self.config = config
        super().__init__(**arguments)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {f"config/{name}": value for name, value in asdict(self.config).items()}


def prepare(folder: Path, config: Config) -> None:
    """Make the Trainer's callbacks write into the run folder, and continue the tracker run if it exists."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs")
    if "wandb" in config.report_to:
        os.environ |= {"WANDB_RUN_ID": run_name(folder), "WANDB_RESUME": "allow"}
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run and wandb.run.id != run_name(folder):  # of another fold of label_errors.py
            wandb.finish()


def run_name(folder: Path) -> str:
    """Return the name of the tracker run: that of the folder and the fingerprint of its config.json, which no other run has."""
    name = folder.name if not re.fullmatch(r"fold-\d+", folder.name) else f"{folder.parent.name}-{folder.name}"
    file = folder / "config.json"
    return f"{name}-{read_json(file).get('sha256', '')[:8]}" if file.is_file() else name


@by_first
def send_test(folder: Path, arguments: Arguments, metrics: dict) -> None:
    """Send the test metrics, named test/METRIC, to the tracker run of the training, if the tracker is installed here.

    `arguments` are those of the training: trackers show them in place of those that they have stored.
    """
    prepare(folder, arguments.config)
    numbers = {f"test_{name}": value for name, value in metrics.items() if isinstance(value, float)}
    state, control = TrainerState(global_step=metrics["validation"]["step"]), TrainerControl()
    for name in {*arguments.report_to} & {*CONTINUED} & {*get_available_reporting_integrations()}:
        callback = INTEGRATION_TO_CALLBACK[name]()
        with patch_environment(WANDB_LOG_MODEL="false"):  # the callback would want the model
            callback.on_log(arguments, state, control, logs=numbers)
            callback.on_train_end(arguments, state, control)
