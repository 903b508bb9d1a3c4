"""Kill, damage and mislead the scripts many times over, and count what they survive.

    python tests/reliability.py                              the long version: 11 minutes (two cores, AVX512-bf16)
    python tests/reliability.py --kills 10 --mutants 60 --network 4 --hostile 6
    python tests/reliability.py --only kills/17 --seed 0     one case again, with all that it printed

kills      a process is stopped at a random file operation or training step; the next command must give the same result, bit for bit
mutants    a file that is read is damaged; the same numbers, or one clear line and exit code 2
network    the Hub fails; success after a retry, or one clear line and exit code 2
hostile    files, names and texts made to do harm; the right result, or one clear line and exit code 2, with little memory
pages      30 clients ask a page of app.py at once; each gets the label that predict.py gives

A case depends on its seed and its number alone. The exit code is 1 if a case fails.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).resolve().parent))  # for a worker process

import datasets
import forked
import huggingface_hub.utils._http
import page
import torch
from conftest import BAD, GOOD, as_flags, make_model, make_rows
from entity_files import write_entity_files
from faults import CODE, DATA, FAULTS, Bomb, damage
from forked import STEP, Kill, watch
from hub import hub_for_downloads, use_hub

from finetuning import fingerprints
from finetuning.errors import CONTROLS
from finetuning.results import run_folder

# A child is forked from a process that has imported this file, and all that it imports.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
forked._FORKS.set_forkserver_preload(["reliability", *forked.PRELOADED])
KINDS = dict(kills=150, mutants=1000, network=30, hostile=30, pages=2)
SETTINGS = dict(model_name="base", dataset_name="reviews.csv", max_length=32, batch_size=8, num_train_epochs=2, eval_steps=5)
SETTINGS |= dict(learning_rate=0.003, precision="float32", early_stopping_patience=0)


class Failure(Exception):
    """The outcome of a case is wrong; the message says how to see it."""


@dataclass
class Child:
    """Prepares each process of a script: caches and temporary files are in `folder`. `kill` stops it; or its calls are recorded."""

    folder: Path
    kill: Kill | None = None
    record: str | None = None
    memory: int | None = None
    hub: tuple[str, float] | None = None
    process = None

    def prepare(self) -> None:
        datasets.config.HF_DATASETS_CACHE = str(self.folder / "cache")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.folder / "tmp")
        sys.stdin = io.StringIO("y\n" * 100)  # for a question whether to run code
        if self.hub:
            address, timeout = self.hub
            use_hub(address, self.folder, timeout)
            huggingface_hub.utils._http.time = SimpleNamespace(sleep=lambda seconds: None)
        if self.memory:
            used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (used + self.memory, used + self.memory))
        rank = int(os.environ.get("RANK", 0))
        if self.kill and self.kill.process == rank:
            self.kill.prepare()
        if self.record and rank == 0:
            record = os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for target in TARGETS:
                watch(target, lambda *_, target=target: os.write(record, f"{target}\n".encode()))


def start(folder: Path, command: list, processes: int = 1, within: float = 120, **options) -> list[tuple[int, str]]:
    """Run a command in `folder`; return each process's exit code and output."""
    (folder / "tmp").mkdir(exist_ok=True)
    return forked.run(folder, *command, processes=processes, kill=Child(folder, **options), within=within)


def succeed(folder: Path, command: list, processes: int = 1, **options) -> str:
    """Run a command that must succeed; return the first process's output."""
    results = start(folder, command, processes, **options)
    if any(code != 0 for code, _ in results):
        raise Failure(f"{' '.join(map(str, command))} ended with {results}")
    return results[0][1]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# --- the scripts and their outcomes --------------------------------------------------------------------------------------

PREPARATION = ["fine_tune.py", *as_flags(SETTINGS | dict(run_name="run"))]
RUN = Path("outputs/run")


def outcome_of_training(folder: Path, run: Path = RUN) -> dict:
    return forked.outcome(folder / run) | {"adapter": sha256(folder / run / "adapter/adapter_model.safetensors")}


def outcome_of_evaluation(folder: Path) -> dict:
    metrics = json.loads((folder / RUN / "metrics.json").read_text())
    of_the_clock = ("seconds", "environment", "run", "peak_memory_gib", "files", "sha256")
    metrics = {name: value for name, value in metrics.items() if name not in of_the_clock and "per_s" not in name}
    return metrics | {name: sha256(folder / RUN / name) for name in ("predictions.parquet", "statistics.parquet", "errors.csv")}


def outcome_of_prediction(folder: Path) -> dict:
    return {"labelled.csv": sha256(folder / "labelled.csv")}


def outcome_of_export(folder: Path) -> dict:
    return {name: sha256(folder / RUN / "export" / name) for name in files(folder / RUN / "export") if "json" not in name[-9:]}


def outcome_of_search(folder: Path) -> dict:
    import optuna

    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/outputs/search.db")
    return {"trials": sum(trial.state.is_finished() and trial.value is not None for trial in study.trials)}


@dataclass(frozen=True)
class Script:
    """A command, the folder it starts from, and a function that returns its outcome, without what depends on the clock."""

    command: list
    world: str
    outcome: Callable[[Path], dict] | None
    processes: int = 1


SCRIPTS = {
    "fine_tune.py": Script(PREPARATION, "fresh", outcome_of_training),
    "fine_tune.py --resume_if_exists": Script([*PREPARATION, "--resume_if_exists"], "fresh", outcome_of_training),
    "fine_tune.py, two processes": Script(PREPARATION, "fresh", outcome_of_training, 2),
    "evaluate.py": Script(["evaluate.py", RUN], "trained", outcome_of_evaluation),
    "predict.py": Script(
        ["predict.py", "--run", RUN, "--file", "reviews.csv", "--out", "labelled.csv"], "trained", outcome_of_prediction
    ),
    "export.py": Script(["export.py", RUN, "--formats", "merged"], "trained", outcome_of_export),
    "fine_tune.py --search": Script([*PREPARATION[:-2], "--search", 2], "fresh", outcome_of_search),
}


def build(work: Path, kinds: set[str]) -> None:
    """Make the folders that cases copy, and run every script once without a fault: `reference` has the outcomes and calls."""
    fresh, trained, complete = work / "fresh", work / "trained", work / "complete"
    make_model(fresh / "base")
    rows = make_rows()
    rows.to_csv(fresh / "reviews.csv", index=False)
    shutil.copytree(fresh, trained)
    succeed(trained, PREPARATION)
    scripts = {**SCRIPTS} if "kills" in kinds else {}
    if kinds & {"mutants", "hostile", "pages"}:
        shutil.copytree(trained, complete)
        rows.to_csv(complete / "reviews.tsv", index=False, sep="\t")
        rows.to_json(complete / "reviews.json", orient="records", indent=1)
        rows.to_json(complete / "reviews.jsonl", orient="records", lines=True)
        rows.to_parquet(complete / "reviews.parquet")
        (complete / "entities").mkdir()
        write_entity_files(complete / "entities")
        succeed(complete, [*PREPARATION, "--run_name", "other", "--seed", 1])
        for run in ("run", "other"):
            succeed(complete, ["evaluate.py", f"outputs/{run}"])
        start(complete, [*PREPARATION, "--run_name", "killed"], kill=Kill(STEP, 13))
        scripts |= READERS
    reference = {}
    for name, script in scripts.items():
        folder = shutil.copytree(work / script.world, work / f"reference-{len(reference)}")
        record = f"{work}/calls-{len(reference)}"
        succeed(folder, script.command, script.processes, record=record)
        calls = Path(record).read_text(encoding="utf-8").splitlines()
        reference[name] = {
            "outcome": script.outcome and script.outcome(folder),
            "files": files(folder),
            "calls": {target: calls.count(target) for target in sorted({*calls})},
        }
    if "network" in kinds:
        (work / "rows").mkdir()
        rows.to_parquet(work / "rows" / "train.parquet")
        folder = work / "reference-online"
        folder.mkdir()
        with hub_for_downloads({"models/me/model": fresh / "base", "datasets/me/rows": work / "rows"}) as (address, _):
            succeed(folder, ONLINE, hub=(address, 10))
        reference["online"] = {"outcome": outcome_of_training(folder)}
    (work / "reference.json").write_text(json.dumps(reference))


# --- kills ---------------------------------------------------------------------------------------------------------------

HALF = {
    "torch:save",
    "peft.peft_model:safe_save_file",
    "transformers.trainer:TrainerState.save_to_json",
    "pathlib:Path.write_text",
    "pyarrow.parquet:write_table",
    "shutil:rmtree",
}
TARGETS = [
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os:fsync",
    STEP,
    "transformers:Trainer.prediction_step",
    *sorted(HALF),
]
SIGNALS = [signal.SIGKILL] * 5 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
EXIT_CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}, signal.SIGHUP: {129, -1}}


def kill(draw: random.Random, folder: Path, work: Path, number: int) -> str:
    """Stop a script at a random call once or twice, then give the next command as a user would. Return the name of the case."""
    name = draw.choices([*SCRIPTS], (6, 2, 4, 3, 3, 2, 1))[0]
    script, reference = SCRIPTS[name], json.loads((work / "reference.json").read_text())[name]
    shutil.copytree(work / script.world, folder, dirs_exist_ok=True)
    command, case = script.command, name
    for _ in range(draw.choice((1, 1, 2))):
        target = draw.choice([*reference["calls"]])
        call = draw.randint(1, reference["calls"][target])
        half, sent = target in HALF and draw.random() < 0.5, draw.choice(SIGNALS)
        process = draw.randrange(script.processes)
        case += f", {sent.name} at call {call} of {target}{' (half)' * half}{f' of process {process}' * (script.processes > 1)}"
        results = start(folder, command, script.processes, kill=Kill(target, call, half, sent, process))
        code, output = results[process]
        if code not in EXIT_CODES[sent] | {0}:
            raise Failure(f"{case}: exit code {code}: {output}")
        if any(code is None or "Traceback" in output for code, output in results):
            raise Failure(f"{case}: a traceback or no end: {results}")
        if command == PREPARATION and (folder / RUN / "config.json").exists():
            command = ["fine_tune.py", "--resume", *draw.choice(([], [RUN]))]
        if script.world == "fresh" and (folder / RUN / "training.json").exists():
            command = ["evaluate.py", RUN]  # it is finished
            break
        written = {"export.py": RUN / "export", "predict.py": "labelled.csv"}.get(name)
        if written and (folder / written).exists():
            command = None  # it is complete, and never overwritten
            break
    if command:
        try:
            succeed(folder, command, script.processes if command[0] == "fine_tune.py" else 1)
        except Failure as failure:
            raise Failure(f"{case}: {failure}") from None
    compare(case, name, folder, output)
    expected = {*reference["files"]}
    if command and command[0] == "evaluate.py" and script.world == "fresh":
        expected |= {
            file for file in files(folder) if file.startswith(str(RUN)) and "checkpoints" not in file and "process" not in file
        }
    if command is None:  # the next predict.py removes its copies
        expected |= {file for file in files(folder) if file.startswith("tmp/fine-tuning")}
    allowed = re.compile(r"\.(out|lock)$|^cache/.*/(cache-[\w-]+\.arrow|tmp\w+)$")  # the page says so of the library's cache
    if litter := [file for file in files(folder) if file not in expected and not allowed.search(file)]:
        raise Failure(f"{case}: litter: {litter}")
    return case


# --- mutants -------------------------------------------------------------------------------------------------------------


def outcome_of_comparison(folder: Path) -> dict:
    return {"csv": sha256(folder / RUN / "against-other.csv"), "printed": (folder / "evaluate.py-0.out").read_text()}


PREDICT = SCRIPTS["predict.py"].command
SHORT = [*as_flags(SETTINGS | dict(num_train_epochs=0.1, run_name="new"))]
ENTITIES = ["--task", "token-classification"]
READERS = {
    "predict": Script(PREDICT, "complete", outcome_of_prediction),
    "evaluate": Script(["evaluate.py", RUN], "complete", outcome_of_evaluation),
    "export": Script(["export.py", RUN, "--formats", "merged"], "complete", outcome_of_export),
    "compare": Script(["evaluate.py", RUN, "outputs/other"], "complete", outcome_of_comparison),
    "resume": Script(
        ["fine_tune.py", "--resume", "outputs/killed"],
        "complete",
        functools.partial(outcome_of_training, run=Path("outputs/killed")),
    ),
    "train": Script(["fine_tune.py", *SHORT], "complete", None),
}
# The files that are damaged, the commands that read them, and how often. A new training on changed data has other numbers, rightly.
MUTANTS = [
    (
        30,
        [f"{RUN}/config.json", f"{RUN}/training.json", f"{RUN}/adapter/*"],
        ["predict", "predict", "predict", "evaluate", "export"],
    ),
    (15, [f"{RUN}/metrics.json", f"{RUN}/*.parquet"], ["compare"]),
    (15, ["base/*"], ["predict", "train"]),
    (20, ["outputs/killed/*.json", "outputs/killed/checkpoints/*/*"], ["resume"]),
    (15, ["reviews.*", "entities/*"], ["train on", "predict on"]),
    (2, ["reviews.csv"], ["evaluate"]),
]


def mutant(draw: random.Random, folder: Path, work: Path, number: int) -> str:
    """Damage a file, and give a command that reads it. Return the name of the case."""
    shutil.copytree(work / "complete", folder, dirs_exist_ok=True)
    _, patterns, names = draw.choices(MUTANTS, [weight for weight, *_ in MUTANTS])[0]
    candidates = sorted(file for file in folder.glob(draw.choice(patterns)) if file.is_file())
    file, name = draw.choice([file for file in candidates if file.suffix not in (".lock", ".png", ".md")]), draw.choice(names)
    way = damage(draw, file)
    relative = file.relative_to(folder)
    task = ENTITIES if relative.parts[0] == "entities" else []
    if name == "train on":
        command, outcome = ["fine_tune.py", *SHORT, "--dataset_name", relative, *task], None
    elif name == "predict on":
        command, outcome = [*PREDICT[:3], "--file", relative, *PREDICT[5:], *(["--text_column", "tokens"] if task else [])], None
    else:
        command, outcome = READERS[name].command, READERS[name].outcome
    case = f"{relative}: {way}; {' '.join(map(str, command))}"
    ((code, output),) = start(folder, command)
    judge(case, code, output)
    if code == 0 and outcome:
        compare(case, name, folder, output)
    return case


def compare(case: str, name: str, folder: Path, output: str) -> None:
    """Raise `Failure` unless the outcome of a script is that of the run without a fault."""
    references = json.loads((folder.parent / "reference.json").read_text(encoding="utf-8"))
    script, expected = SCRIPTS_OF_ALL_KINDS[name], references[name]["outcome"]
    measured = json.loads(json.dumps(script.outcome(folder)))
    if measured != expected:
        differing = [key for key in expected if measured.get(key) != expected[key]]
        raise Failure(f"{case}: another result: {[(measured.get(key), expected[key]) for key in differing]}. {output}")


def judge(case: str, code: int | None, output: str) -> None:
    """Raise `Failure` unless the exit code is 0, or 2 with one clear line."""
    lines = output.strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error: ")]
    if code not in (0, 2) or "Traceback" in output:
        raise Failure(f"{case}: exit code {code}: {output}")
    if code == 2 and (len(errors) != 1 or lines[-1] != errors[0] or len(errors[0]) > 1500):
        raise Failure(f"{case}: not one clear line: {output}")


# --- network -------------------------------------------------------------------------------------------------------------

ONLINE = [
    "fine_tune.py",
    *as_flags(SETTINGS | dict(model_name="me/model", dataset_name="me/rows", num_train_epochs=0.5, run_name="run")),
]


def fail_hub(draw: random.Random, folder: Path, work: Path, number: int) -> str:
    """Train with a Hub that fails, then with one that works. Return the name of the case."""
    name = [*FAULTS][number % len(FAULTS)]
    part, times = draw.choice(("/models/", "/datasets/", "/resolve/", "/api/", "/")), draw.choice((1, 2, 1000))
    case, n_faults = f"{name}, {times} times, for paths with {part}", [0]

    def fault(request) -> bool:
        path = request.path if "datasets/" in request.path else request.path.replace("/me/model", "/models/me/model")
        if path == "/" or part not in path or n_faults[0] >= times:
            return False
        n_faults[0] += 1
        return FAULTS[name](request)

    with hub_for_downloads({"models/me/model": work / "fresh/base", "datasets/me/rows": work / "rows"}) as (address, requests):
        requests.fault = fault
        ((code, output),) = start(folder, ONLINE, hub=(address, 0.3))
        judge(case, code, output)
        requests.fault = None
        if code == 2:
            succeed(folder, ONLINE, hub=(address, 10))
    compare(case, "online", folder, output)
    return case


# --- hostile input -------------------------------------------------------------------------------------------------------

MEMORY = 2 * 2**30  # bytes that a process may take beyond the libraries


# Name -> a file of the "complete" folder and the command that reads it.
PICKLES = {
    "a pickle as the base model": ("base/model.safetensors", ["fine_tune.py", *SHORT]),
    "a pickle as the adapter": (RUN / "adapter/adapter_model.safetensors", PREDICT),
    "a pickle as the optimizer": ("outputs/killed/checkpoints/checkpoint-10/optimizer.pt", READERS["resume"].command),
    "a pickle as the random state": ("outputs/killed/checkpoints/checkpoint-10/rng_state.pth", READERS["resume"].command),
}
HOSTILE = [*CODE, *PICKLES, *DATA]


def hostile(draw: random.Random, folder: Path, work: Path, number: int) -> str:
    """Give a script hostile input. Return the name of the case."""
    name = HOSTILE[number % len(HOSTILE)]
    shutil.copytree(work / "complete", folder, dirs_exist_ok=True)
    if name in CODE:
        file, entries = CODE[name]
        (folder / "base/code.py").write_text("import os\nos.mkdir('canary')\n")
        (folder / "base" / file).write_text(json.dumps(json.loads((folder / "base" / file).read_text()) | entries))
        commands = [["fine_tune.py", *SHORT]]
    elif name in PICKLES:
        file, command = PICKLES[name]
        torch.save(Bomb(), folder / file)
        seal(folder / file)
        commands = [command]
    else:
        file, content = DATA[name]
        if callable(content):
            content = content(folder / file)
        if content is not None:
            (folder / file).write_bytes(content)
        commands = [["fine_tune.py", *SHORT, "--dataset_name", file], [*PREDICT[:3], "--file", file, *PREDICT[5:]]]
    for command in commands:
        case = f"{name}: {' '.join(map(str, command))[:200]}"
        ((code, output),) = start(folder, command, within=60, memory=MEMORY)
        judge(case, code, output)
        if CONTROLS.search(output):
            raise Failure(f"{case}: control characters: {output!r}")
    if canary := [str(file) for file in (*folder.parent.glob("canary*"), *folder.glob("**/canary*"))]:
        raise Failure(f"{case}: {canary} exists: {output}")
    return name


def seal(file: Path) -> None:
    """Replace the fingerprints of a changed file of a run, as somebody does who means harm."""
    for parent in file.parents:
        for record in (parent / "whole.json", parent / "training.json"):
            if record.is_file():
                content = json.loads(record.read_text())
                names = content.pop("files")
                content.pop("sha256")
                record.write_text(json.dumps(fingerprints.seal(content, parent, names)))


# --- pages ---------------------------------------------------------------------------------------------------------------

CLIENTS = 30


def serve(draw: random.Random, folder: Path, work: Path, number: int) -> str:
    """Let `CLIENTS` clients ask the page of a run at the same time. Return the name of the case."""
    shutil.copytree(work / "complete", folder, dirs_exist_ok=True)
    texts = [f"{draw.choice(GOOD + BAD)} {draw.randrange(60)}" for _ in range(CLIENTS)]
    printed = succeed(folder, ["predict.py", "--run", RUN, "--json", *texts]).splitlines()
    labels = [json.loads(line)["label"] for line in printed if line.startswith("{")]
    with page.serving(RUN, folder) as address, ThreadPoolExecutor(CLIENTS) as clients:
        answers = [*clients.map(functools.partial(page.answer, address), texts)]
    for text, label, answer in zip(texts, labels, answers, strict=True):
        if "event: complete" not in answer or f'"label": "{label}"' not in answer:
            raise Failure(f"{text}: {label} by predict.py, {answer} by app.py")
    if "Traceback" in (errors := (folder / "app.out").read_text()):
        raise Failure(errors)
    return f"{CLIENTS} clients"


# --- the command line ----------------------------------------------------------------------------------------------------

CASES = dict(kills=kill, mutants=mutant, network=fail_hub, hostile=hostile, pages=serve)
SCRIPTS_OF_ALL_KINDS = SCRIPTS | READERS | {"online": Script(ONLINE, "fresh", outcome_of_training)}


def run_case(work: Path, seed: int, kind: str, number: int) -> tuple[str, str | None, str]:
    """Return the number of a case, None or what went wrong, and its name."""
    folder = work / f"{kind}-{number}"
    folder.mkdir()
    try:
        name, failure = CASES[kind](random.Random(f"{seed}/{kind}/{number}"), folder, work, number), None
    except Failure as error:
        name, failure = "", str(error)
    except Exception as error:  # also a failure: a file that should be there
        name, failure = "", repr(error)
    shutil.rmtree(folder, ignore_errors=True)
    return f"{kind}/{number}", failure, name


def measure(numbers: dict[str, int], seed: int, jobs: int, only: str | None = None) -> dict:
    """Run `numbers` cases of each kind, print a line for each kind and each failure, and return the record."""
    record = {"seed": seed, "environment": run_folder.environment(), "kinds": {}}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        workers = stack.enter_context(ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))) if jobs > 1 else None
        started = time.perf_counter()
        workers.submit(build, work, {*numbers}).result() if workers else build(work, {*numbers})
        print(f"preparation: {time.perf_counter() - started:.0f} s", flush=True)
        for kind, n in numbers.items():
            started, failures = time.perf_counter(), []
            cases = [int(only.partition("/")[2])] if only else range(n)
            for name, failure, case in (workers.map if workers else map)(functools.partial(run_case, work, seed, kind), cases):
                if only:
                    print(case)
                if failure:
                    failures.append(name)
                    shown = failure if len(failure) < 1500 else f"{failure[:500]}\n...\n{failure[-1000:]}"
                    print(f"FAILED {name} (python tests/reliability.py --only {name} --seed {seed}): {shown}", flush=True)
            seconds = time.perf_counter() - started
            record["kinds"][kind] = {
                "cases": len(cases),
                "failed": len(failures),
                "seconds": round(seconds),
                "failed_cases": failures,
            }
            print(f"{kind}: {len(cases)} cases, {len(failures)} failed, {seconds:.0f} s", flush=True)
    record["minutes"] = sum(kind["seconds"] for kind in record["kinds"].values()) / 60
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, n in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=n)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND/NUMBER")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    numbers = {kind: getattr(arguments, kind) for kind in CASES if getattr(arguments, kind)}
    if arguments.only:
        numbers, arguments.jobs = {arguments.only.partition("/")[0]: 1}, 1
    record = measure(numbers, arguments.seed, arguments.jobs, arguments.only)
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(kind["failed"] for kind in record["kinds"].values()))


if __name__ == "__main__":
    main()
