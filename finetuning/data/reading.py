"""Read a file or folder: the rows of each split, notes on them, and which file each split is from.

What stands in a file is read by data/formats.py. The rows are kept in the cache of the library `datasets` (HF_HOME), under a name made
of the files' contents, and are mapped into memory from there.
"""

import errno
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock

from finetuning.data import formats
from finetuning.data.cache import source_of
from finetuning.data.content import Reader
from finetuning.data.files import ending, guess_encoding, known, split_files
from finetuning.errors import UserError

ROWS_PER_BATCH = 10_000  # in an Arrow file: opening it maps 64 KiB of each batch into memory
HASHED_BYTES = 2**20  # at a time

UNREADABLE = (
    datasets.exceptions.DatasetsError,
    pyarrow.ArrowException,
    ValueError,
    EOFError,
    OSError,
    StopIteration,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class Reading(NamedTuple):
    """The splits of a file or folder, notes on how they were read, and the files that each split is from."""

    splits: DatasetDict
    remarks: list[str]
    files: dict[str, list[str]]


def read(
    path: Path,
    readers: dict[str, Reader],
    prefix: str,
    encoding: str | None = None,
    cache: str | None = None,
    named: Collection[str] = (),
) -> Reading:
    """Return the splits of a file or folder; only "train" if it has none.

    `readers`: `formats.READERS` or others like them. Without an `encoding` it is UTF-8, or else guessed. `named`: splits that the user
    names. Raise `UserError`, which begins with `prefix`, for what can't be read.
    """
    folder = Path(cache or datasets.config.HF_DATASETS_CACHE) / "files"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"the cache {folder} cannot be written ({error}): set HF_HOME to a folder that can") from error
    try:
        return _read(path, readers, encoding, folder, named)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
    except UNREADABLE as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        wrong = (
            f"it is not in {encoding}: set encoding to the one it has"
            if isinstance(error, UnicodeError)
            else "it is empty or cut short"
        )
        raise UserError(f"{prefix}{path}: cannot be read, {wrong} ({error})") from error


def _read(path: Path, readers: dict[str, Reader], encoding: str | None, cache: Path, named: Collection[str]) -> Reading:
    if (path / "aclImdb").is_dir():
        path = path / "aclImdb"
    if path.name.endswith((".tar.gz", ".tgz")) or (path / "train" / "pos").is_dir():
        files = sorted(path.glob("t*/*/*.txt")) if path.is_dir() else [path]
        splits, remarks = stored(files, lambda *_: formats.acl_imdb(path), encoding, cache)
        return Reading(DatasetDict(splits), remarks, dict.fromkeys(splits, [path.name]))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():  # of save_to_disk
        saved = load_from_disk(str(path))
        saved = saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
        return Reading(saved, [], dict.fromkeys(saved, [path.name]))
    card = path / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]:
        copy = load_dataset(str(path))  # a copy from the Hub: the library knows how to read it
        return Reading(copy, [], dict.fromkeys(copy, [path.name]))
    files = known(path, readers)
    if not files:
        raise UserError(f"{path}: {'no file in it is' if path.is_dir() else 'not'} one of {', '.join(readers)}, .tar.gz")
    if path.is_file() and readers[ending(path)] is formats.read_parallel:
        files = formats.in_other_languages(path)
    splits, remarks, names = {}, [], {}
    for split, several in (split_files(path, files, named) if path.is_dir() else {"train": files}).items():
        if len(endings := {ending(file) for file in several}) > 1 and len({readers[end] for end in endings}) > 1:
            listed = ", ".join(file.name for file in several)
            raise UserError(f"{path}: the files of split {split} are of several kinds, {listed}: keep one kind")
        found, notes = stored(several, readers[ending(several[0])], encoding, cache)
        if len(found) > 1 and path.is_dir():
            raise UserError(f"{several[0]}: it holds the splits {', '.join(found)}: give this file, not its folder")
        found = {split: next(iter(found.values()))} if len(found) == 1 else found
        splits |= found
        remarks += notes
        names |= dict.fromkeys(found, [str(file.relative_to(path)) if path.is_dir() else file.name for file in several])
    return Reading(DatasetDict(splits), remarks, names)


# --- the copy on disk ----------------------------------------------------------------------------------------------------


def stored(files: list[Path], reader: Reader, encoding: str | None, cache: Path) -> tuple[dict[str, Dataset], list[str]]:
    """Return the splits that `reader` finds in files, and its notes; from the cache if files with these contents were read before."""
    key = _digest(files, [reader.__qualname__, str(encoding), str(source_of(reader))])
    folder, done = cache / key, cache / key / "remarks.json"
    with FileLock(cache / f"{key}.lock"):  # other processes wait, and find the copy
        if not done.is_file():
            partial = cache / f"{key}.partial"
            remarks = _write(partial, files, reader, encoding)
            (partial / done.name).write_text(json.dumps(remarks), encoding="utf-8")
            os.replace(partial, folder)
    splits = {}
    for file in sorted(folder.glob("[0-9]-*.arrow")):
        split = file.stem[2:]
        splits[split] = Dataset.from_file(str(file), split=datasets.NamedSplit(split))
        splits[split]._fingerprint = f"{key}{split}"  # of what is computed from the rows: equal contents, equal results
    return splits, json.loads(done.read_text(encoding="utf-8"))


def _write(folder: Path, files: list[Path], reader: Reader, encoding: str | None) -> list[str]:
    """Write the rows of each split as an Arrow file; return the reader's notes. Text that is not UTF-8 is read as it is guessed."""
    try:
        return _write_read(folder, files, reader, encoding)
    except UnicodeDecodeError:
        if encoding or not (guessed := guess_encoding(files)):
            raise
        encoding, word = guessed
        note = f"{files[0].name} is not UTF-8; read as {encoding}, with words such as {word!r}: if wrong, set encoding"
        return [note, *_write_read(folder, files, reader, encoding)]


def _write_read(folder: Path, files: list[Path], reader: Reader, encoding: str | None) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    remarks: list[str] = []
    contents = reader(files, encoding, remarks)
    for number, (split, content) in enumerate((contents if isinstance(contents, dict) else {"train": contents}).items()):
        file = str(folder / f"{number}-{split}.arrow")
        with ArrowWriter(path=file, features=content.features, writer_batch_size=ROWS_PER_BATCH) as writer:
            for table in content.tables:
                writer.write_table(table)
            if writer.finalize()[0] == 0:
                raise UserError(f"{files[0]}: it is empty, there are no rows in it")
    return remarks


def _digest(files: list[Path], more: list[str]) -> str:
    """Return a hash of the files' names and contents."""
    digest = hashlib.sha256("\0".join(more).encode())
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name} {os.path.getsize(file)} ".encode())
            while chunk := opened.read(HASHED_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:32]
