"""Write files completely or not at all, and reserve names of folders for one process."""

import errno
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from finetuning.errors import UserError

NAMES = dict(encoding="utf-8", errors="surrogateescape")  # for names of files that are not UTF-8 (PEP 383)
_reserved: dict[Path, FileLock] = {}  # folders of this process that `remove_reserved` removes
# Folders that only this process may change. The system releases the lock of a process that ended.
_locked: dict[Path, FileLock] = {}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, for so large a file (ulimit -f)
TORCH_CANNOT_WRITE = ("basic_ios::clear", "unexpected pos", "PytorchStreamWriter failed")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", **NAMES)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    move(partial, path)


def partial_of(path: Path) -> Path:
    """Return the name of a hidden folder beside `path`, for files that are not complete yet."""
    return path.with_name(f".{path.name}.partial")


def move(source: Path, target: Path) -> None:
    """Rename a file or folder. A file replaces an existing file of that name.

    The content and the new name survive a power failure.
    """
    for path in (*(source.rglob("*") if source.is_dir() else ()), source):
        to_disk(path)
    os.replace(source, target)
    to_disk(target.parent)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(**NAMES))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def as_utf8(argument: str) -> str:
    """Return an argument or the name of a file as UTF-8, in any locale. U+FFFD replaces all that is not valid."""
    lone_surrogates = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that do not stand for bytes (PEP 383)
    return lone_surrogates.sub("\ufffd", argument).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def why_full(error: BaseException | None) -> str | None:
    """Return why there was no room to write a file; None if the error and its causes mean something else.

    Python and Arrow report this with an error number, safetensors with the number in words, torch.save only in words.
    """
    while error:
        in_words = re.search(r"\(os error (\d+)\)", str(error))
        number = int(in_words[1]) if in_words else getattr(error, "errno", None)
        if number in FULL:
            return os.strerror(number)
        if any(words in str(error) for words in TORCH_CANNOT_WRITE):
            return "it has no room for a file"
        error = error.__cause__ or error.__context__


@contextmanager
def room_in(folder: str | Path, remedy: str) -> Iterator[None]:
    """Raise `UserError`, which names the folder and the remedy, if there is no room for the files that the `with` block writes."""
    try:
        yield
    except Exception as error:
        if reason := why_full(error):
            raise UserError(f"cannot write to {folder}: {reason}: make room, or {remedy}") from error
        raise


def reserve(folder: Path) -> None:
    """Make a folder for this process only. The script removes it at its end, unless `keep_reserved` renames it before.

    A folder that a killed process left is reused. Raise `FileExistsError` if another process has reserved it.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(folder) from error
    _reserved[folder] = lock
    folder.mkdir(exist_ok=True)


def temporary() -> Path:
    """Return a new folder in TMPDIR, which the script removes at its end. Remove those that killed processes left."""
    of_user = Path(tempfile.gettempdir()) / f"fine-tuning-{os.getuid() if os.name == 'posix' else getpass.getuser()}"
    of_user.mkdir(mode=0o700, exist_ok=True)
    if os.name == "posix" and of_user.lstat().st_uid != os.getuid():
        raise UserError(f"{of_user} belongs to another user: set the environment variable TMPDIR to a folder of your own")
    for lock_file in of_user.glob("*.lock"):
        with suppress(FileExistsError):  # its process is running
            reserve(lock_file.with_suffix(""))
            _remove(lock_file.with_suffix(""))
    while True:
        folder = of_user / uuid.uuid4().hex
        with suppress(FileExistsError):  # another process mistook the new lock for the leftover of a killed process
            reserve(folder)
            return folder


def keep_reserved(folder: Path, name: Path) -> None:
    """Rename a reserved folder to its final name. It is not removed any more."""
    folder.rename(name)
    _release(_reserved.pop(folder))


def remove_reserved() -> None:
    for folder in [*_reserved]:
        _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _release(_reserved.pop(folder))


def lock(folder: Path, action: str) -> None:
    """Lock a folder until the script ends. Raise `UserError` if another process has locked it; `action` says what it does."""
    file_lock, holder = FileLock(folder / "process.lock"), folder / "process.json"
    try:
        file_lock.acquire(timeout=0)
    except Timeout as error:
        process = "process {process} on {host}".format(**read_json(holder)) if holder.is_file() else "another process"
        raise UserError(f"{folder} is being {action} by {process}: wait until it has ended, or end it") from error
    _locked[folder] = file_lock
    write_json(holder, {"process": os.getpid(), "host": socket.gethostname()})


def unlock() -> None:
    """Release the locks of this process and remove their files."""
    while _locked:
        folder, file_lock = _locked.popitem()
        (folder / "process.json").unlink(missing_ok=True)
        _release(file_lock)


def _release(file_lock: FileLock) -> None:
    """Remove the file of a lock before releasing it. In the other order, another process could lock a file that is then removed."""
    if os.name == "posix":  # on Windows, filelock removes it
        Path(file_lock.lock_file).unlink(missing_ok=True)
    file_lock.release()


def to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk, so that they survive a power failure."""
    if path.is_file() or os.name == "posix":  # Windows can't open folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
