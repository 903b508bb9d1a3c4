"""Trackers of experiments: a run's settings and losses, and its test's figures, in one and the same tracker run.

The Trainer's own callbacks send losses and validation. What they lack is here: the settings of config.py, the id by which a resumed
run and evaluate.py find the tracker run again, and what evaluate.py measured. Others than those of `SENDERS` get the losses alone.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from config import Config
from finetuning.disk import write_json
from finetuning.processes import by_first

FILE = "trackers.json"  # in the run folder: tracker -> id of its run


def prepare(folder: Path, config: Config) -> None:
    """Have the Trainer's callbacks write where the run is, and go on with the tracker run of an interrupted one."""
    known = _ids(folder)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "logs"))
    if "wandb" in config.report_to:
        os.environ |= {"WANDB_RUN_ID": known.get("wandb", folder.name), "WANDB_RESUME": "allow"}
    if "mlflow" in known:
        os.environ["MLFLOW_RUN_ID"] = known["mlflow"]


class Settings(TrainerCallback):
    """Sends the settings of config.py, and keeps the trackers' ids."""

    def __init__(self, folder: Path, config: Config, callbacks: Callable[[], list[TrainerCallback]]) -> None:
        self.folder, self.config, self.callbacks = folder, config, callbacks

    def on_train_begin(self, args, state, control, **_) -> None:
        if not state.is_world_process_zero or self.config.report_to == "none":
            return
        settings, ids = {f"config/{knob}": value for knob, value in asdict(self.config).items()}, {}
        for name in self.config.report_to.split(","):
            if name == "tensorboard":
                (writer,) = (one.tb_writer for one in self.callbacks() if isinstance(one, TensorBoardCallback))
                writer.add_text("config", f"```\n{json.dumps(asdict(self.config), indent=1)}\n```")
            if name == "wandb":
                import wandb

                wandb.config.update(settings, allow_val_change=True)
                ids[name] = wandb.run.id
            if name == "mlflow":
                import mlflow

                mlflow.log_params(settings)
                ids[name] = mlflow.active_run().info.run_id
            if name == "trackio":
                import trackio

                trackio.config.update(settings, allow_val_change=True)
        if (self.folder / "config.json").is_file():  # no run folder while searching
            write_json(self.folder / FILE, ids)


def _ids(folder: Path) -> dict[str, str]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.is_file() else {}


@by_first
def send_test(folder: Path, config: Config, metrics: dict) -> None:
    """Send the test's figures, as test/NAME, and its pictures to the tracker run of training."""
    figures = {f"test/{name}": value for name, value in metrics.items() if isinstance(value, float)}
    pictures = {file.stem: file for file in sorted(folder.glob("*.png"))}
    step = metrics["validation"]["step"]
    for name in config.report_to.split(","):
        if name in SENDERS:
            if importlib.util.find_spec(name):
                SENDERS[name](folder, figures, pictures, step)
            else:
                print(f"{name} is not installed here, so the test's figures were not sent to it")


def _tensorboard(folder: Path, figures: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "logs") as writer:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        for name, file in pictures.items():
            writer.add_image(f"test/{name}", imread(file)[..., :3], step, dataformats="HWC")


def _wandb(folder: Path, figures: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    import wandb

    with wandb.init(project=os.getenv("WANDB_PROJECT", "huggingface"), id=_ids(folder)["wandb"], resume="allow") as run:
        run.log(figures | {f"test/{name}": wandb.Image(str(file)) for name, file in pictures.items()})


def _mlflow(folder: Path, figures: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    import mlflow

    with mlflow.start_run(run_id=_ids(folder)["mlflow"]):
        mlflow.log_metrics(figures, step=step)
        for file in pictures.values():
            mlflow.log_artifact(str(file), "test")


def _trackio(folder: Path, figures: dict[str, float], pictures: dict[str, Path], step: int) -> None:
    import trackio

    (before,) = (run.config for run in trackio.Api().runs("huggingface") if run.name == folder.name)
    settings = {name: value for name, value in before.items() if not name.startswith("_")}  # or they would be gone
    trackio.init(project="huggingface", name=folder.name, resume="allow", config=settings)
    trackio.log(figures | {f"test/{name}": trackio.Image(str(file)) for name, file in pictures.items()})
    trackio.finish()


SENDERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
