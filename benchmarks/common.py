"""Shared by the benchmarks: the import path, runs in processes of their own, callbacks for the Trainer, names of records."""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
MACHINE_SETTINGS = ("dataset_name", "output_dir", "run_name", "report_to")  # not part of a record
sys.path.insert(0, str(ROOT))
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for a GPU must not start CUDA in a process that forks


def new_processes(n: int = 1, folder: Path | str = ROOT) -> ProcessPoolExecutor:
    """Return `n` processes at a time, a new one for each call, in `folder`.

    They are forked from a process that has imported the script.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([Path(sys.argv[0]).stem])
    folders = [str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))  # where that one finds the script
    return ProcessPoolExecutor(n, forks, initializer=os.chdir, initargs=(folder,), max_tasks_per_child=1)


def flags(**settings) -> list[str]:
    """Return settings of config.py as flags of fine_tune.py."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def python(*command: str, folder: Path | str = ROOT, **environment: str) -> str:
    """Run Python with a command in `folder`, and return what it printed; exit with its last lines if it fails."""
    variables = os.environ | environment
    process = subprocess.run([sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}:\n{process.stderr[-3000:]}")
    return process.stdout


def worker(script: str, *arguments: str, folder: Path | str | None = None) -> dict:
    """Run a benchmark with --worker, offline, in `folder` or an empty one; return the JSON of the last line that it printed."""
    with tempfile.TemporaryDirectory() as empty:
        printed = python(str(Path(script).resolve()), "--worker", *arguments, folder=folder or empty, HF_HUB_OFFLINE="1")
    return json.loads(printed.splitlines()[-1])


def run_script(script: str, *flags: str, callback) -> None:
    """Run a script of the repository in this process, with a further callback of its Trainer."""
    from transformers.trainer import DEFAULT_CALLBACKS  # delayed: first_command.py imports the libraries on its clock

    DEFAULT_CALLBACKS.append(callback)
    sys.argv = [script, *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def write_record(name: str, record: dict) -> None:
    """Write a record to results/NAME.json, with the machine, library versions and commit."""
    from finetuning.disk import write_json  # delayed: first_command.py imports the libraries on its clock
    from finetuning.results.run_folder import environment

    write_json(RESULTS / f"{name}.json", record | {"environment": environment()})
