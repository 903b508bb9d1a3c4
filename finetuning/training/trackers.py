"""Experiment trackers: one tracker run gets a run's settings, losses and test metrics.

The Trainer's own callbacks send losses and validation metrics. This file adds the settings of config.py and the test metrics. A
resumed run and evaluate.py find the tracker run by its name. Trackers that `SENDERS` lacks get losses and validation metrics only.
"""

import importlib.util
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback

from config import Config
from finetuning.disk import read_json
from finetuning.processes import by_first


def prepare(folder: Path, config: Config) -> None:
    """Make the Trainer's callbacks write into the run folder, and continue the tracker run if the run was interrupted."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs")
    if "wandb" in config.report_to:
        os.environ |= {"WANDB_RUN_ID": run_name(folder), "WANDB_RESUME": "allow"}


def run_name(folder: Path) -> str:
    """Return the name of the tracker run: that of the folder and the fingerprint of its config.json, which no other run has."""
    name = folder.name if not re.fullmatch(r"fold-\d+", folder.name) else f"{folder.parent.name}-{folder.name}"
    file = folder / "config.json"
    return f"{name}-{read_json(file).get('sha256', '')[:8]}" if file.is_file() else name


class Settings(TrainerCallback):
    """Sends the settings of config.py to the trackers."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config

    def on_train_begin(self, args, state, control, **_) -> None:
        for name in self.config.report_to.split(",") if state.is_world_process_zero else ():
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                with SummaryWriter(self.folder / "logs") as writer:
                    writer.add_text("config", f"```\n{json.dumps(asdict(self.config), indent=1)}\n```")
            elif name in SENDERS:
                settings = {f"config/{setting}": value for setting, value in asdict(self.config).items()}
                importlib.import_module(name).config.update(settings, allow_val_change=True)


@by_first
def send_test(folder: Path, config: Config, metrics: dict) -> None:
    """Send the test metrics, named test/METRIC, and the pictures to the tracker run of the training."""
    numbers = {f"test/{name}": value for name, value in metrics.items() if isinstance(value, float)}
    pictures = {file.stem: file for file in sorted(folder.glob("*.png"))}
    step = metrics["validation"]["step"]
    for name in config.report_to.split(","):
        if name in SENDERS:
            if importlib.util.find_spec(name):
                SENDERS[name](folder, numbers, pictures, step)
            else:
                print(f"note: {name} is not installed, so the test metrics were not sent to it", file=sys.stderr)


def _tensorboard(folder: Path, numbers: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "logs") as writer:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        for name, file in pictures.items():
            writer.add_image(f"test/{name}", imread(file)[..., :3], step, dataformats="HWC")


def _wandb(folder: Path, numbers: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    import wandb

    with wandb.init(project=os.getenv("WANDB_PROJECT", "huggingface"), id=run_name(folder), resume="allow") as run:
        run.log(numbers | {f"test/{name}": wandb.Image(str(file)) for name, file in pictures.items()})


def _trackio(folder: Path, numbers: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    import trackio

    (stored,) = (run.config for run in trackio.Api().runs("huggingface") if run.name == run_name(folder))
    settings = {name: value for name, value in stored.items() if not name.startswith("_")}  # `init` drops those not given again
    trackio.init(project="huggingface", name=run_name(folder), resume="allow", config=settings)
    trackio.log(numbers | {f"test/{name}": trackio.Image(str(file)) for name, file in pictures.items()})
    trackio.finish()


SENDERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
