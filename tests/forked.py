"""Run scripts in forked processes, several at once or killed at a chosen point.

The processes are forked from a process that has loaded the libraries, which saves each of them some seconds.
"""

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
_FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["finetuning.tasks", "finetuning.training.search", "finetuning.results.evaluation", "finetuning.use.predicting"]
PRELOADED += ["matplotlib.pyplot", "scipy.stats", "sklearn.metrics", "transformers.models.distilbert.modeling_distilbert"]
_FORKS.set_forkserver_preload(PRELOADED)


@dataclass
class Kill:
    """A signal that stops `process` at the `call`th call of `target`: "module:name", or a file operation such as "os.rename".

    The file operations are audit events of Python; "open" means for writing. Only those in the working directory count. With `half`
    the signal comes in the middle of the call: a file is half written, a folder half deleted. With `times`, it comes again at the
    calls that follow.
    """

    target: str
    call: int = 1
    half: bool = False
    signal: int = signal.SIGKILL
    process: int = 0
    times: int = 1

    def prepare(self, replace: Callable = setattr) -> None:
        """Let the calls of `target` send the signal."""
        n_calls = [0]

        def before(original, arguments: tuple, named: dict) -> None:
            n_calls[0] += 1
            if self.call <= n_calls[0] < self.call + self.times:
                if self.half and self.target.endswith("rmtree"):
                    file = next((file for file in Path(arguments[0]).rglob("*") if file.is_file()), None)
                    if file:
                        file.unlink()
                elif self.half:
                    original(*arguments, **named)
                    file = next(part for part in arguments if isinstance(part, str | Path) and os.path.isfile(part))
                    os.truncate(file, os.path.getsize(file) // 2)
                os.kill(os.getpid(), self.signal)

        watch(self.target, before, replace)


def watch(target: str, before: Callable[[Callable | None, tuple, dict], None], replace: Callable = setattr) -> None:
    """Call `before` with the function and its arguments before each call of `target`, which is as in `Kill`."""
    module, colon, name = target.partition(":")
    if not colon:
        working_folder = os.getcwd()

        def audit(event: str, arguments: tuple) -> None:
            if event == target and (event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
                path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else "/"
                if not os.path.isabs(path) or path.startswith(working_folder):
                    before(None, arguments, {})

        return sys.addaudithook(audit)
    holder = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        holder = getattr(holder, part)
    original = getattr(holder, name)

    def watched(*arguments, **named):
        before(original, arguments, named)
        return original(*arguments, **named)

    replace(holder, name, watched)


def _main(script: str | Path, flags: list[str], folder: Path, environment: dict, kill, output: Path) -> None:
    assert not (missing := {*PRELOADED} - {*sys.modules}), f"{missing} would be imported once more in each process"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # `nohup` and shells ignore some for jobs in the background
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if kill:
        kill.prepare()
    sys.argv = [str(script), *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def fork(script: str | Path, flags: list[str], folder: Path, environment: dict, kill, output: Path) -> multiprocessing.Process:
    """Start a script in `folder`, with more environment variables; it prints into the file `output`. `kill` is as in `run`."""
    with contextlib.chdir(ROOT):  # before Python 3.12.4 the server looks for the libraries in its working directory
        multiprocessing.forkserver.ensure_running()
    process = _FORKS.Process(target=_main, args=(script, flags, folder, environment, kill, output))
    process.start()
    return process


def run(
    folder: Path,
    script: str | Path,
    *flags,
    processes: int = 1,
    machines: int = 1,
    kill: Kill | None = None,
    within: float = 240,
) -> list[tuple[int, str]]:
    """Run a script and return each process's exit code and output.

    Several processes get the environment variables that torchrun sets on `machines` machines, each with equally many of them.
    A process is killed after `within` seconds. Instead of a `Kill` another object may be given; its `prepare` is called in
    each process if its `process` is None.
    """
    per_machine = processes // machines
    with socket.socket() as reserved:  # until all have ended, so that no other test takes the port
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        common = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=per_machine)
        started = []
        for rank in range(processes):
            ranks = dict(RANK=rank, LOCAL_RANK=rank % per_machine)
            environment = {k: str(v) for k, v in (common | ranks).items()} if processes > 1 else {}
            output = folder / f"{Path(script).name}-{rank}.out"
            own_kill = kill if kill and kill.process in (rank, None) else None
            started.append((fork(script, [str(flag) for flag in flags], folder, environment, own_kill, output), output))
        results = []
        for process, output in started:
            process.join(within)
            if process.exitcode is None:
                process.kill()
            results.append((process.exitcode, output.read_text()))
    return results


# Seven steps an epoch, a validation and a checkpoint every five steps, a log entry every two.
FLAGS = dict(num_train_epochs=3, eval_steps=5, early_stopping_patience=0, batch_size=8, learning_rate=0.003, precision="float32")
STEP = "transformers:Trainer.training_step"


def flags_of(settings: dict, model_dir: Path, data_file: Path, name: str) -> list[str]:
    """Return the flags of a short run of fine_tune.py on 56 rows, with `settings`."""
    settings = dict(model_name=model_dir, dataset_name=data_file, max_length=32, run_name=name) | FLAGS | settings
    if "eval_strategy" in settings:
        del settings["eval_steps"]
    return [str(part) for setting, value in settings.items() for part in (f"--{setting}", value)]


def outcome(run: Path) -> dict:
    """Return the parts of a finished run that do not depend on the clock: adapter, log, validation, calibration."""
    training = json.loads((run / "training.json").read_text())
    log = [{k: v for k, v in entry.items() if "runtime" not in k and "second" not in k} for entry in training["log_history"]]
    log = [entry for entry in log if {"loss", "eval_loss"} & set(entry)]
    return {"adapter": load_file(run / "adapter" / "adapter_model.safetensors"), "log": log} | {
        name: training[name] for name in ("validation", "calibration")
    }


def wait_for_checkpoint(process: subprocess.Popen, run: Path) -> None:
    """Read what a run prints, a line for each validation, until it has saved a checkpoint."""
    for _ in process.stdout:
        if list(run.glob("checkpoints/checkpoint-*/whole.json")):
            break


def end_at_checkpoint(run: Path) -> None:
    """Lower the number of epochs of an interrupted run, so that its checkpoint is beyond the last step."""
    from finetuning.disk import write_json
    from finetuning.fingerprints import seal

    record = json.loads((run / "config.json").read_text())
    del record["sha256"]
    record["config"]["num_train_epochs"] = 0.01
    write_json(run / "config.json", seal(record))
