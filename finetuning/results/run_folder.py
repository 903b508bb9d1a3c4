"""The run folder: write it (each file completely or not at all), open it, and load its model.

config.json        settings, sources, environment; written before training starts
checkpoints/       the Trainer's checkpoints; deleted when training ends
adapter/           LoRA weights and the head, the tokenizer
training.json      validation metrics, calibration, the log of losses, times; written last, so it marks a finished run

config.json has its own fingerprint, and training.json those of all files that decide the run's numbers. A run is opened only if
none has changed.
"""

import contextlib
import datetime
import errno
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path

import accelerate
import psutil
import torch

from config import Config
from finetuning import fingerprints
from finetuning.cli import check
from finetuning.data.sources import Source, find_model
from finetuning.data.splits import Data
from finetuning.disk import as_utf8, keep_reserved, lock, move, partial_of, remove_reserved, reserve, sha256, unlock, write_json
from finetuning.errors import UserError
from finetuning.model.base import build_base, load_tokenizer, save_tokenizer
from finetuning.model.lora import check_finite, load_adapter
from finetuning.processes import by_first
from finetuning.speed.precision import pick_precision
from finetuning.task import Task
from finetuning.training.prediction import Predictor

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate")  # whose versions are recorded
SETTINGS = tuple(field.name for field in fields(Config) if field.name != "output_dir")  # a resumed run may have been moved


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
        """The values that `Task.calibrate` fitted on validation."""
        return self.training["calibration"]

    @property
    def origins(self) -> dict[str, str]:
        """The origins of the run's model and dataset, as in `Source.origin`."""
        return {part: self.record[part]["origin"] for part in ("model", "dataset")}

    @property
    def stand_in(self) -> bool:
        return "stand-in" in self.origins.values()


@by_first
def choose_folder(config: Config, model: Source) -> Path:
    """Return the folder of a new run and reserve its name, so that no other run gets it.

    Without `run_name`, a number is added to a name that is taken. Raise `UserError` if `run_name` is taken, or if the folder can't
    be written.
    """
    for setting in ("output_dir", "run_name"):
        if (value := getattr(config, setting)) and value != as_utf8(value):
            raise UserError(f"{setting}={as_utf8(value)}: it is not UTF-8, so the tokenizer can't be saved there: use another name")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = config.run_name or as_utf8(f"{Path(model.name).name}-{Path(config.dataset_name).name.split('.')[0]}-{stamp}")
    try:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = Path(config.output_dir) / (name if number == 1 else f"{name}-{number}")
            if not (problem := _reserve(folder)):
                return folder
            if config.run_name:
                raise UserError(f"run_name={name}: {problem}; use another name")
    except OSError as error:
        is_name = error.errno == errno.ENAMETOOLONG and os.path.isdir(config.output_dir)
        setting = "run_name" if is_name else "output_dir"
        raise UserError(f"{setting}={getattr(config, setting)}: cannot write there ({error})") from error


def _reserve(folder: Path) -> str:
    """Reserve the name `folder`, and check that there is room to write. Return why the name is taken, "" if it was free."""
    try:
        reserve(partial_of(folder))
    except FileExistsError:
        return "another run with this name is starting"
    if folder.exists():
        remove_reserved()
        return f"{folder} exists and is never overwritten"
    probe = partial_of(folder) / "probe"
    probe.write_bytes(b"\0" * 2**20)
    probe.unlink()
    return ""


@by_first
def start_run(folder: Path, model: Source, data: Data) -> None:
    """Create the run folder with its config.json."""
    record = {
        "config": asdict(data.config),
        "command": as_utf8(shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])),
        "model": {"name": as_utf8(model.name), "origin": model.origin, "sha256": model.sha256}
        | {"files": fingerprints.of_model_settings(Path(model.path))},
        "dataset": {
            "name": as_utf8(data.source.name),
            "origin": data.source.origin,
            "sha256": data.sha256,
            "label_names": data.label_names,
            "rows": data.n_rows,
            "test_split": data.test_split,
            "validation_split": data.validation_split,
        },
        "environment": environment(),
    }
    write_json(partial_of(folder) / "config.json", fingerprints.seal(record))
    keep_reserved(partial_of(folder), folder)
    lock(folder, "trained")


@by_first
def finish_run(folder: Path, predictor: Predictor, base_name: str, training: dict) -> None:
    """Save the adapter, then training.json, which marks the run as finished; delete the checkpoints.

    Raise `UserError` if a weight of the adapter is NaN or infinite.
    """
    check_finite(predictor.model, folder)
    partial = folder / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    base = local_base(*_read_config(folder)) or base_name  # for a model of the Hub its name, not the path of its cached files
    predictor.model.peft_config["default"].base_model_name_or_path = base
    predictor.model.save_pretrained(str(partial), save_embedding_layers=False)
    save_tokenizer(predictor.tokenizer, predictor.task, predictor.config, partial)
    (partial / "README.md").unlink(missing_ok=True)  # peft's model card, a template without content
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # it exists if the run was interrupted just before training.json
    move(partial, folder / "adapter")
    names = ["config.json", *sorted(f"adapter/{file.name}" for file in (folder / "adapter").iterdir())]
    write_json(folder / "training.json", fingerprints.seal(training, folder, names))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def open_run(folder: Path, pick: Callable[[Config], Task]) -> Run:
    """Open a finished run folder; `pick` returns the task of its settings.

    Raise `UserError` if the folder is no run folder, if the run is unfinished, or if a file has changed since training.
    """
    folder = folder if folder.name.strip(".") else folder.resolve()  # `.` and `..` have no name for pages and files
    record, config = _read_config(folder)
    file, remedy = folder / "training.json", "restore it, or train again"
    if not file.is_file():
        raise UserError(f"{folder} is unfinished: python fine_tune.py --resume {folder} continues it")
    training = fingerprints.read_sealed(file, remedy)
    if any((folder / name).exists() for name in ("process.lock", "checkpoints")):  # left by a process that was stopped at its end
        with contextlib.suppress(UserError, OSError):
            lock(folder, "opened")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            unlock()
    try:
        pick_precision(config.precision)
    except UserError:
        config = replace(config, precision="float32")
        note = f"{folder} was trained in bf16, which this machine lacks: it predicts in float32, so some predictions may differ"
        by_first(print)(f"note: {note}", file=sys.stderr)
    return Run(folder, pick(config), config, record, training)


def find_earlier(config: Config, resume: str | None, resume_if_exists: bool, pick: Callable[[Config], Task]) -> Run | None:
    """Return the run that --resume or --resume_if_exists continue, locked; None to start a new one.

    `resume` names its folder, "" means the unfinished run that was started last. The run of --resume_if_exists has the settings'
    `run_name`, and may be finished. Raise `UserError` if the folder is no run folder, if the run of --resume is finished, or if
    another process trains it.
    """
    if resume is not None:
        folder = Path(resume) if resume else newest_unfinished(Path(config.output_dir))
    elif resume_if_exists:
        folder = Path(config.output_dir) / config.run_name
        if not by_first(folder.is_dir)():
            return None
        if by_first((folder / "training.json").is_file)():
            return open_run(folder, pick)
    else:
        return None
    record, config = _read_config(folder)
    _require_unfinished(folder)
    by_first(lock)(folder, "trained")
    _require_unfinished(folder)  # another process may have finished it before the lock
    return Run(folder, pick(config), config, record, {})


def _require_unfinished(folder: Path) -> None:
    if (folder / "training.json").is_file():
        raise UserError(f"--resume {folder}: this run is finished; python evaluate.py {folder} evaluates it")


def check_same_data(run: Run, data: Data) -> None:
    """Raise `UserError` if the data set has changed since `run` was started, or if the code now splits it in another way.

    In both cases the model may have learned from rows of the test.
    """
    if data.sha256 != run.record["dataset"]["sha256"]:
        raise UserError(
            f"{run.folder}: {run.config.dataset_name} has changed since training, so the model may have learned from rows that are now in the test: "
            "restore the data, or start a new run with another run_name"
        )
    if data.n_rows != run.record["dataset"]["rows"]:
        before, now = (
            ", ".join(f"{n:,} {name}" for name, n in rows.items()) for rows in (run.record["dataset"]["rows"], data.n_rows)
        )
        raise UserError(
            f"{run.folder}: the code now splits {run.config.dataset_name} in another way (rows before: {before}; now: {now}), so the model may "
            "have learned from rows that are now in the test: use the code of the training, or start a new run with another run_name"
        )


def check_same_settings(run: Run, config: Config, names: Iterable[str] = SETTINGS) -> None:
    """Raise `UserError` if one of the settings `names` differs from that in `run`."""
    for name in names:
        if (value := getattr(config, name)) != getattr(run.config, name):
            raise UserError(
                f"{name}={value}: {run.folder} was started with {getattr(run.config, name)}; use that, or another run_name"
            )


def _read_config(folder: Path) -> tuple[dict, Config]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run folder")
    file, remedy = folder / "config.json", "restore it, or train again"
    if not file.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.json")
    record = fingerprints.read_sealed(file, remedy)
    try:
        config = Config(**record["config"])
        check(replace(config, report_to="none"))  # the tracker may be missing here
    except (TypeError, UserError) as error:
        raise UserError(f"{folder}: config.json has other settings than this version ({error}); train again") from error
    return record, config


def newest_unfinished(output_dir: Path) -> Path:
    """Return the folder of the unfinished run that was started last. Raise `UserError` if there is none."""
    unfinished = [file for file in output_dir.glob("*/config.json") if not file.with_name("training.json").is_file()]
    if not unfinished:
        raise UserError(f"--resume: no unfinished run in {output_dir}; name the folder of the run")
    return max(unfinished, key=lambda file: file.stat().st_mtime).parent


def newest_run(output_dir: Path) -> Path:
    """Return the folder of the run that finished last. Raise `UserError` if there is none."""
    finished = sorted(output_dir.expanduser().glob("*/training.json"), key=lambda file: file.stat().st_mtime)
    if not finished:
        raise UserError(f"no finished run in {output_dir}: run python fine_tune.py first, or name a run folder")
    return finished[-1].parent


def find_base_model(run: Run) -> Source:
    """Return the base model of a run. Raise `UserError` if its weights, config or tokenizer have changed since training."""
    source = find_model(run.config.model_name, run.origins["model"])
    if source.sha256 != run.record["model"]["sha256"]:
        raise UserError(
            f"{run.folder}: the adapter was trained on another base model; the weights in {source.path} are different: restore them, "
            "or train again"
        )
    files, template = fingerprints.of_model_settings(Path(source.path)), run.folder / "adapter" / "chat_template.jinja"
    saved = {template.name: sha256(template)} if template.is_file() and template.name in files else {}  # older records lack it
    if differing := sorted({name for name, _ in files.items() ^ (saved | run.record["model"]["files"]).items()}):
        raise UserError(
            f"{run.folder}: the base model has changed since training: {differing[0]} in {source.path} is different, missing or new; "
            "restore it, or train again"
        )
    return source


def local_base(record: dict, config: Config) -> str | None:
    """Return the path of the base model's folder, as the user gave it; None if the model is from the Hub or is a stand-in."""
    return as_utf8(str(Path(config.model_name).expanduser())) if record["model"]["origin"] == "local path" else None


def load_predictor(run: Run, source: Source, show_progress: bool = False) -> Predictor:
    """Load the base model and the adapter that training ended with, and return a predictor that can also answer new texts."""
    base = build_base(run.task, source, run.label_names, run.config)
    model = load_adapter(base, run.folder / "adapter", run.config)
    tokenizer = load_tokenizer(run.task, source, run.config)
    answering = dict(label_names=run.label_names, calibration=run.calibration)
    return Predictor(run.task, model, tokenizer, run.config, show_progress, **answering)


def environment() -> dict:
    """Return the machine, library versions and commit, which times and memory depend on."""
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        capabilities = torch.cpu.get_capabilities()
        bf16 = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        cores = torch.get_num_threads()
        hardware = f"{cores} CPU core{'s' * (cores > 1)} ({', '.join([platform.machine(), *bf16])})"
    if (processes := accelerate.PartialState().num_processes) > 1:
        hardware = f"{processes} processes, {'' if torch.cuda.is_available() else 'each with '}{hardware}"
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = shutil.which("git") and subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "hardware": hardware,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "versions": {"python": platform.python_version(), "sklearn": version("scikit-learn")}
        | {name: version(name) for name in LIBRARIES},
        "commit": (git and git.stdout.strip()) or None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def peak_memory_gib() -> float:
    """Return the peak memory of this process so far, in GiB: the GPU's if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
