"""Full disks and reached limits: one message that names the folder and the remedy, and no partial files."""

import contextlib
import errno
import functools
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import transformers
from filelock import FileLock
from forked import Kill, run

from finetuning import disk
from finetuning.data import reading
from finetuning.disk import temporary
from finetuning.errors import UserError
from finetuning.results import evaluation, run_folder
from finetuning.use import predicting

HOME, OUTPUT = "set the environment variable HF_HOME to another folder", "--resume the run, or set output_dir"


@pytest.fixture
def at_call() -> Iterator[Callable]:
    """Return a function that makes `before` and `after` run around each call of a method or function, until its result is called."""
    with contextlib.ExitStack() as stack:

        def patch(holder, name: str, before: Callable, after: Callable = lambda: None) -> Callable:
            original = getattr(holder, name)

            @functools.wraps(original)
            def patched(*arguments, **named):
                before()
                try:
                    return original(*arguments, **named)
                finally:
                    after()

            patches = stack.enter_context(pytest.MonkeyPatch.context())
            patches.setattr(holder, name, patched)
            return patches.undo

        yield patch


@pytest.fixture
def limit_at(at_call) -> Callable:
    """Return a function that makes a method or function fail to write a file of more than 100 bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(n_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))

    return lambda holder, name: at_call(holder, name, lambda: limit(100), lambda: limit(hard))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


WRITES = {  # what writes -> the remedy
    (reading, "read_once"): HOME,
    (datasets.Dataset, "map"): HOME,
    (run_folder, "start_run"): OUTPUT,
    (transformers.Trainer, "_save"): OUTPUT,  # by safetensors
    (transformers.Trainer, "_save_optimizer_and_scheduler"): OUTPUT,  # by torch.save
    (transformers.TrainerState, "save_to_json"): OUTPUT,
    (run_folder, "finish_run"): OUTPUT,
}


def name_of(target: tuple) -> str:
    return target[1]


def assert_is_one_message(result, *words: str) -> None:
    message = result.err.splitlines()[-1]
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert message.startswith(("error: cannot write to ", "error: cannot use ")), result.err
    assert all(word in message for word in words) and "reviews.csv" not in message, message


@pytest.mark.parametrize("target", WRITES, ids=name_of)
def test_a_reached_limit_is_one_message_and_the_run_can_continue(target, call, tiny_flags, cache, limit_at, tmp_path):
    flags = [*tiny_flags, "--num_train_epochs", 2]
    release = limit_at(*target)
    assert_is_one_message(call("fine_tune.py", *flags), WRITES[target])
    release()
    partial = (cache.rglob("*.partial"), *(tmp_path.glob(name) for name in ("outputs/*.partial", "outputs/*/*.json.partial")))
    assert not [file for files in partial for file in files]
    flags = ["--resume", "outputs/run"] if (tmp_path / "outputs" / "run").exists() else flags
    result = call("fine_tune.py", *flags)
    assert result.code == 0, result.err


PREDICTIONS = {
    (reading, "read_once"): ["/temporary/", "TMPDIR"],
    (datasets.Dataset, "map"): ["/temporary: ", "TMPDIR"],
    (predicting, "write_file"): ["cannot write to labelled: ", "give --out a name in another folder"],
}


class KillWithTemporary(Kill):
    def prepare(self) -> None:
        tempfile.tempdir = str(Path("temporary").resolve())
        super().prepare()


@pytest.mark.parametrize("target", PREDICTIONS, ids=name_of)
def test_predict_names_the_folder_without_room(target, call, finished_run, data_file, limit_at, tmp_path, monkeypatch):
    (tmp_path / "labelled").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    release = limit_at(*target)
    command = ["predict.py", "--file", data_file, "--out", "labelled/rows.csv"]
    assert_is_one_message(call(*command), *PREDICTIONS[target])
    release()
    assert not list(tmp_path.glob("temporary/*/*")) and not list((tmp_path / "labelled").iterdir()), "nothing is left behind"
    assert call(*command).code == 0


def test_what_a_killed_predict_left_is_removed_by_the_next_one(call, finished_run, data_file, tmp_path, monkeypatch):
    (tmp_path / "labelled").mkdir()
    (tmp_path / "temporary").mkdir()
    command = ["predict.py", "--file", data_file, "--out", "labelled/rows.csv"]
    ((code, _),) = run(tmp_path, *command, kill=KillWithTemporary("finetuning.use.predicting:move"))
    assert code == -signal.SIGKILL
    copies = list(tmp_path.glob("temporary/*/*/files/*/*.arrow")), list(tmp_path.glob("labelled/.*/rows.csv"))
    assert all(copies), "the rows are in TMPDIR, the answers beside --out"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (of_user,) = tmp_path.glob("temporary/*")
    (of_user / "running").mkdir()
    with FileLock(of_user / "running.lock"):  # of a running process
        result = call(*command)
    assert result.code == 0, result.err
    assert {file.name for file in of_user.iterdir()} - {"running.lock"} == {"running"}
    assert [*tmp_path.glob("labelled/*")] == [tmp_path / "labelled" / "rows.csv"]


def test_a_new_lock_that_another_process_took_is_no_error(tmp_path, monkeypatch):
    """A process that removes what killed ones left may lock the new file before its own process does."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken, reserve = [], disk.reserve

    def taken_once(folder: Path) -> None:
        taken.append(folder)
        if len(taken) == 1:
            raise FileExistsError(folder)
        reserve(folder)

    monkeypatch.setattr(disk, "reserve", taken_once)
    assert temporary() == taken[1] and taken[1].is_dir()


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(UserError, match="fine-tuning-12345 belongs to another user: .* TMPDIR"):
        temporary()


def test_evaluate_names_the_output_folder_and_keeps_the_run(call, finished_run, limit_at, tmp_path):
    release = limit_at(evaluation, "write_json")
    assert_is_one_message(call("evaluate.py"), "output_dir")
    release()
    assert call("evaluate.py").code == 0


def test_an_error_number_of_a_full_disk_or_quota_is_known():
    """`small_disk` needs root, and a quota needs more."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        message = "cannot write to outputs: .*: make room, or set output_dir"
        with pytest.raises(UserError, match=message), disk.room_in("outputs", "set output_dir"):
            raise OSError(number, "no room")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Yield a folder on a disk of its own with 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    "target", [(transformers.Trainer, "_save"), (transformers.Trainer, "_save_optimizer_and_scheduler")], ids=name_of
)
def test_a_full_disk_is_one_message_and_the_run_can_continue(target, call, tiny_flags, small_disk, at_call):
    filler = small_disk / "filler"
    release = at_call(*target, lambda: fill(filler))
    flags = [*tiny_flags, "--output_dir", small_disk, "--num_train_epochs", 2]
    assert_is_one_message(call("fine_tune.py", *flags), OUTPUT)
    release()
    filler.unlink()
    result = call("fine_tune.py", "--resume", small_disk / "run")
    assert result.code == 0, result.err


@pytest.mark.parametrize("target", [(reading, "_write"), (datasets.Dataset, "map")], ids=name_of)
def test_a_full_cache_is_one_message_and_leaves_nothing_behind(target, call, tiny_flags, small_disk, at_call, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", small_disk / "cache")
    release = at_call(*target, lambda: fill(small_disk / "filler"))
    assert_is_one_message(call("fine_tune.py", *tiny_flags), str(small_disk), "No space left on device", HOME)
    release()
    assert not [*small_disk.rglob("*.partial")]
    (small_disk / "filler").unlink()
    result = call("fine_tune.py", *tiny_flags)
    assert result.code == 0, result.err


def fill(file: Path) -> None:
    """Write a file that leaves no room on its disk."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(bytes(4096)):
            pass
