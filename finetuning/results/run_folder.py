"""The run folder: what it holds, how it is written (completely or not at all), and how it is opened again.

config.json        settings, sources, environment: written before training starts
checkpoints/       the Trainer's, while it trains
adapter/           LoRA weights and the head, the tokenizer
training.json      validation metrics, calibration, the log of losses, times: written last, so it marks a finished run
"""

import datetime
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path

import accelerate
import datasets
import peft
import psutil
import sklearn
import torch
import transformers

from config import Config
from finetuning.data.sources import Source, find_model
from finetuning.data.splits import Data
from finetuning.disk import as_utf8, keep_reserved, read_json, remove_reserved, reserve, to_disk, write_json
from finetuning.errors import UserError
from finetuning.model.base import build_base, load_tokenizer, save_tokenizer
from finetuning.model.lora import load_adapter
from finetuning.processes import by_first
from finetuning.task import Task
from finetuning.training.prediction import Predictor

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Run:
    """An opened run folder. `record` is its config.json, `training` its training.json."""

    folder: Path
    task: Task
    config: Config
    record: dict
    training: dict

    @property
    def label_names(self) -> list[str]:
        return self.record["dataset"]["label_names"]

    @property
    def calibration(self) -> dict:
        """What `Task.calibrate` fitted on validation."""
        older = {name: self.training[name] for name in ("temperature", "threshold", "direction") if name in self.training}
        return self.training.get("calibration", older)

    @property
    def origins(self) -> dict[str, str]:
        """Where the run's model and dataset came from, as in `Source.origin`."""
        return {part: self.record[part]["origin"] for part in ("model", "dataset")}

    @property
    def stand_in(self) -> bool:
        return "stand-in" in self.origins.values()


@by_first
def choose_folder(config: Config, model: Source) -> Path:
    """Return the folder of a new run, whose name no other run gets from now on.

    A name that was not given gets a number if it is taken. Raise `UserError` if a given name is taken, or nothing can be written there.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = config.run_name or f"{Path(model.name).name}-{Path(config.dataset_name).name.split('.')[0]}-{stamp}"
    names = chain([name], () if config.run_name else (f"{name}-{number}" for number in count(2)))
    try:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        return next(folder for name in names if (folder := _reserve(Path(config.output_dir) / name, bool(config.run_name))))
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot write there ({error})") from error


def _reserve(folder: Path, is_given: bool) -> Path | None:
    """Return `folder` if its name is free, and reserve it; else return None, or raise `UserError` if the user gave the name."""
    try:
        reserve(_partial(folder))
    except FileExistsError:
        problem = "another run with this name is starting: take another name"
    else:
        if not folder.exists():
            probe = _partial(folder) / "probe"
            probe.write_bytes(b"\0" * 2**20)
            probe.unlink()
            return folder
        remove_reserved()
        problem = f"{folder} exists and is never overwritten; take another name"
    if is_given:
        raise UserError(f"run_name={folder.name}: {problem}")


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@by_first
def start_run(folder: Path, model: Source, data: Data) -> None:
    """Create the run folder with its config.json."""
    record = {
        "config": asdict(data.config),
        "command": as_utf8(" ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])),
        "model": {"name": as_utf8(model.name), "origin": model.origin, "sha256": model.sha256},
        "dataset": {
            "name": as_utf8(data.source.name),
            "origin": data.source.origin,
            "sha256": data.sha256,
            "label_names": data.label_names,
            "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            "test_split": data.test_split,
            "validation_split": data.validation_split,
        },
        "environment": environment(),
    }
    write_json(_partial(folder) / "config.json", record)
    keep_reserved(_partial(folder), folder)


@by_first
def finish_run(folder: Path, predictor: Predictor, base_name: str, training: dict) -> None:
    """Save the adapter, then training.json, which marks the run as finished; delete the checkpoints."""
    partial = folder / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    base = local_base(*_read_config(folder)) or base_name  # not this machine's path of a model of the Hub
    predictor.model.peft_config["default"].base_model_name_or_path = base
    predictor.model.save_pretrained(str(partial), save_embedding_layers=False)
    save_tokenizer(predictor.tokenizer, predictor.task, predictor.config, partial)
    (partial / "README.md").unlink(missing_ok=True)  # peft's empty template of a model card
    for path in (*partial.iterdir(), partial):
        to_disk(path)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # if an earlier end was interrupted before training.json
    partial.rename(folder / "adapter")
    write_json(folder / "training.json", training | {"adapter_sha256": _sha256(folder / "adapter" / ADAPTER_FILES[1])})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def open_run(folder: Path, pick: Callable[[Config], Task]) -> Run:
    """Open a finished run folder; `pick` gives its task. Raise `UserError` if it is none, is unfinished, or its adapter is damaged."""
    record, config = _read_config(folder)
    if not (folder / "training.json").is_file():
        raise UserError(f"{folder} is unfinished: python fine_tune.py --resume {folder} continues it")
    training = read_json(folder / "training.json")
    for name in ADAPTER_FILES:
        if not (folder / "adapter" / name).is_file():
            raise UserError(f"{folder}: adapter/{name} is missing; copy it back, or train again")
    if _sha256(folder / "adapter" / ADAPTER_FILES[1]) != training["adapter_sha256"]:
        raise UserError(
            f"{folder}: adapter/{ADAPTER_FILES[1]} is cut short or changed since training; copy it back, or train again"
        )
    return Run(folder, pick(config), config, record, training)


def reopen(folder: Path, pick: Callable[[Config], Task]) -> Run:
    """Open an unfinished run folder to continue it."""
    record, config = _read_config(folder)
    if (folder / "training.json").is_file():
        raise UserError(f"--resume {folder}: this run is finished; python evaluate.py {folder} evaluates it")
    return Run(folder, pick(config), config, record, {})


def check_same_data(folder: Path, data: Data) -> None:
    """Raise `UserError` if the data set has changed since the run in `folder` was started: held-out rows might be others now."""
    record, config = _read_config(folder)
    if data.sha256 != record["dataset"]["sha256"]:
        raise UserError(
            f"{folder}: {config.dataset_name} has changed since training, so its test may hold rows it was trained on; train again"
        )


def _read_config(folder: Path) -> tuple[dict, Config]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run folder")
    try:
        record = read_json(folder / "config.json")
        return record, Config(**record["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no run folder of this version: its config.json is missing or does not fit ({error})"
        ) from error


def newest_run(output_dir: Path) -> Path:
    """Return the run folder that finished last. Raise `UserError` if there is none."""
    finished = sorted(output_dir.glob("*/training.json"), key=lambda file: file.stat().st_mtime)
    if not finished:
        raise UserError(f"no finished run in {output_dir}: run python fine_tune.py first, or name a run folder")
    return finished[-1].parent


def find_base_model(run: Run) -> Source:
    """Return the base model of a run. Raise `UserError` if its weights are not those that the adapter was trained on."""
    source = find_model(run.config.model_name, run.origins["model"])
    if source.sha256 != run.record["model"]["sha256"]:
        raise UserError(
            f"{run.folder}: the adapter belongs to another base model; the weights in {source.path} are not those it was trained on"
        )
    return source


def local_base(record: dict, config: Config) -> str | None:
    """Return the folder of the base model, as the user named it; None if the model is from the Hub or a stand-in."""
    return as_utf8(str(Path(config.model_name).expanduser())) if record["model"]["origin"] == "local path" else None


def load_predictor(run: Run, source: Source, show_progress: bool = True) -> Predictor:
    """Return base model and adapter as they were when training ended, ready to predict."""
    base = build_base(run.task, source, run.label_names, run.config)
    model = load_adapter(base, run.folder / "adapter", run.config)
    return Predictor(run.task, model, load_tokenizer(run.task, source, run.config), run.config, show_progress)


def environment() -> dict:
    """Return machine, library versions and commit: what a measured time or memory depends on."""
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        capabilities = torch.cpu.get_capabilities()
        bf16 = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        cores = torch.get_num_threads()
        hardware = f"{cores} CPU core{'s' * (cores > 1)} ({', '.join([platform.machine(), *bf16])})"
    if (processes := accelerate.PartialState().num_processes) > 1:
        hardware = (
            f"{processes} processes, each with {hardware}"
            if not torch.cuda.is_available()
            else f"{processes} processes, {hardware}"
        )
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = shutil.which("git") and subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    libraries = (torch, transformers, peft, datasets, accelerate, sklearn)
    return {
        "hardware": hardware,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "versions": {"python": platform.python_version()} | {library.__name__: library.__version__ for library in libraries},
        "commit": (git and git.stdout.strip()) or None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def peak_memory_gib() -> float:
    """Return the largest memory this process has held so far, in GiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
