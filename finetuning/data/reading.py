"""Read a file or folder: the rows of each split, notes on them, and the files that each split comes from.

The readers are in data/formats.py. The rows are stored in the cache of the library `datasets` (HF_HOME), under a name made from the
contents of the files, and are memory-mapped from there.
"""

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.arrow_writer import ArrowWriter, SchemaInferenceError
from datasets.fingerprint import Hasher
from filelock import FileLock

from finetuning.data import formats, json_rows
from finetuning.data.cache import reopened, source_code
from finetuning.data.content import ROWS_PER_TABLE, Reader
from finetuning.data.files import ending, guess_encoding, split_files, split_words, split_words_of, stem, visible_files
from finetuning.disk import move, read_json, room_in, sha256, why_full, write_json
from finetuning.errors import UserError, listed

# Endings of files that may hold rows, but that are not read.
UNREAD = re.compile(r"\.(arrow|feather|orc|avro|xlsb?|ods|pkl|pickle|np[yz]|h5|hdf5|sqlite|db|xml|bz2|xz|zst|7z|rar|tar|tgz)$")
REMARKS = "remarks.json"  # in the folder of a copy: the notes of its reader

READING_ERRORS = (  # of the libraries, for a file that can't be read
    datasets.exceptions.DatasetsError,
    pyarrow.ArrowException,
    ValueError,
    EOFError,
    OSError,
    StopIteration,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    RecursionError,  # lists or objects are nested too deep
    KeyError,  # a part of an .xlsx is missing
    SyntaxError,  # of the XML in it
)


class Reading(NamedTuple):
    """The splits of a file or folder."""

    splits: DatasetDict
    remarks: list[str]  # notes on how they were read
    files: dict[str, list[str]]  # names of the files that each split comes from


def read(
    path: Path,
    readers: dict[str, Reader],
    prefix: str,
    encoding: str | None = None,
    cache: Path | None = None,
    split_names: Collection[str] = (),
) -> Reading:
    """Return the splits of a file or folder; only "train" if it has no splits.

    `readers`: ending of a file -> reader, such as `formats.READERS`. `encoding`: None: UTF-8, or guessed if the file is not UTF-8.
    `cache`: folder for the copy; None is that of `datasets`. `split_names`: further names of splits, which the user gave. Raise
    `UserError`, whose message begins with `prefix`, for a file that can't be read.
    """
    folder = Path(cache or datasets.config.HF_DATASETS_CACHE) / "files"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder} ({error}): set the environment variable HF_HOME to another folder"
        ) from error
    if path.exists() and not path.is_file() and not path.is_dir():  # such as a pipe or /dev/zero, which may have no end
        raise UserError(f"{prefix}{path}: it is neither a file nor a folder: write the rows to a file first")
    variable = "TMPDIR" if cache else "HF_HOME"
    with room_in(folder, f"set the environment variable {variable} to another folder"):
        try:
            return _read(path, readers, encoding, folder, split_names)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from error
        except READING_ERRORS as error:
            if why_full(error):
                raise
            problem = (
                f"it is not in {encoding or 'UTF-8'}: set encoding to the right one"
                if isinstance(error, UnicodeError)
                else "it is empty, damaged or cut short"
            )
            raise UserError(f"{prefix}{path}: cannot be read, {problem} ({error})") from error


def _read(path: Path, readers: dict[str, Reader], encoding: str | None, cache: Path, split_names: Collection[str]) -> Reading:
    """Return the result of `read`, with the errors of the libraries not yet converted."""
    if (path / "aclImdb").is_dir():
        path = path / "aclImdb"
    if path.name.endswith((".tar.gz", ".tgz")) or (path / "train" / "pos").is_dir():
        files = sorted(path.glob("t*/*/*.txt")) if path.is_dir() else [path]
        splits, remarks = read_once(files, lambda *_: formats.acl_imdb(path), encoding, cache)
        return Reading(DatasetDict(splits), remarks, dict.fromkeys(splits, [path.name]))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():  # written by save_to_disk
        saved = load_from_disk(str(path))
        saved = saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
        return Reading(in_utf8(saved, path), [], dict.fromkeys(saved, [path.name]))
    card = path / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]:
        for file in [file for file in visible_files(path) if ending(file) in (".json", ".jsonl", ".ndjson")]:
            json_rows.check_file(file)
        # The key of `datasets` ignores the contents of the files.
        key = Hasher.hash([(str(file.relative_to(path)), sha256(file)) for file in visible_files(path)])
        copy = in_utf8(load_dataset(str(path), cache_dir=str(cache / key)), path)  # a copy of a data set on the Hub
        return Reading(copy, [], dict.fromkeys(copy, [path.name]))
    return _read_files(path, readers, encoding, cache, split_names)


def _read_files(path: Path, readers: dict[str, Reader], encoding: str | None, cache: Path, split_names: Collection[str]) -> Reading:
    """Return the rows of a file, or of the files in a folder, in the formats of `readers`."""
    visible = visible_files(path) if path.is_dir() else [path]
    files = [file for file in visible if ending(file) in readers]
    if not files:
        problem = "no file in it has a known ending" if path.is_dir() else "its ending is not known"
        endings = [name for name in readers if name not in formats.LANGUAGE_ENDINGS]
        pairs = ["a language code of two letters such as .en and .de"] if len(endings) < len(readers) else []
        raise UserError(f"{path}: {problem}: use one of {', '.join([*endings, *pairs])}, .tar.gz")
    if path.is_file():
        if readers[ending(path)] is formats.read_parallel:  # with the same text in other languages, beside it
            siblings = [file for file in sorted(path.parent.iterdir()) if stem(file) == stem(path) and file.is_file()]
            files = [file for file in siblings if ending(file) in formats.LANGUAGE_ENDINGS]
        splits, remarks = read_once(files, readers[ending(path)], encoding, cache)
        return Reading(DatasetDict(splits), remarks, dict.fromkeys(splits, [file.name for file in files]))
    splits, names = {}, split_files(path, files, split_names)
    others = [file.relative_to(path) for file in visible if UNREAD.search(file.name.lower()) and ending(file) not in readers]
    known = {split for file in files for split in split_words_of(file.relative_to(path)).values()}
    unread = [file for file in others if {*split_words_of(file).values()} - known]
    remarks = [f"{path}: not read, because of their endings: {listed(unread)}"] if unread else []
    for split, split_paths in names.items():
        if len({readers[ending(file)] for file in split_paths}) > 1:
            several = ", ".join(file.name for file in split_paths)
            raise UserError(f"{path}: the files of split {split} have several formats, {several}: keep one format")
        contents, notes = read_once(split_paths, readers[ending(split_paths[0])], encoding, cache)
        if len(contents) > 1 or any({*split_words(key).values()} - {"train", split} for key in contents):
            raise UserError(f"{split_paths[0]}: its keys name the splits {', '.join(contents)}: give this file, not its folder")
        (splits[split],) = contents.values()
        remarks += notes
    file_names = {split: [str(file.relative_to(path)) for file in split_paths] for split, split_paths in names.items()}
    return Reading(DatasetDict(splits), remarks, file_names)


def in_utf8(splits: DatasetDict, where: str | Path) -> DatasetDict:
    """Return the splits if their texts are UTF-8. Raise `UserError` if not."""
    for rows in splits.values():
        _check_utf8(reopened(rows).data, where)
    return splits


def _check_utf8(table: pyarrow.Table | datasets.table.Table, where: str | Path) -> None:
    """Raise `UserError` if a text is not UTF-8, which Arrow's readers do not check."""
    try:
        table.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{where}: a text is damaged or not UTF-8 ({error}): write the file again, with texts in UTF-8") from error


# --- the copy on disk ----------------------------------------------------------------------------------------------------


def read_once(files: list[Path], reader: Reader, encoding: str | None, cache: Path) -> tuple[dict[str, Dataset], list[str]]:
    """Return the splits that `reader` reads from files, and its notes; from the cache if it has read the same contents before."""
    root = os.path.commonpath([file.parent for file in files] or ["."])  # the folder of a file may tell its label or its split
    hashes = [(str(file.relative_to(root)), sha256(file)) for file in files]
    key = Hasher.hash([hashes, reader.__qualname__, encoding, source_code()])
    folder = cache / key
    with FileLock(cache / f"{key}.lock"):  # other processes wait for the copy
        if not folder.is_dir():
            partial = cache / f"{key}.partial"
            try:
                write_json(partial / REMARKS, {"remarks": _write(partial, files, reader, encoding)})
                move(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    splits = {}
    try:
        for file in sorted(folder.glob("[0-9]*.arrow")):  # computed columns are there too
            split = file.stem.partition("-")[2]
            splits[split] = Dataset.from_file(str(file), split=datasets.NamedSplit(split))
            splits[split]._fingerprint = f"{key}{split}"  # equal contents have equal fingerprints, so computed columns are reused
        return splits, read_json(folder / REMARKS)["remarks"]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{files[0]}: its copy in the cache, {folder}, is damaged ({error}): remove this folder") from error


def _write(folder: Path, files: list[Path], reader: Reader, encoding: str | None) -> list[str]:
    """Write the rows of each split as an Arrow file, and return the notes of the reader. Guess the encoding if it is not UTF-8."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    remarks: list[str] = []
    try:
        splits = reader(files, encoding, remarks)
        for number, (split, tables) in enumerate((splits if isinstance(splits, dict) else {"train": splits}).items()):
            with ArrowWriter(path=str(folder / f"{number}-{split}.arrow"), writer_batch_size=ROWS_PER_TABLE) as writer:
                for table in tables:
                    _check_utf8(table, files[0])
                    writer.write_table(table)
                try:
                    writer.finalize()
                except SchemaInferenceError as error:  # no table
                    raise UserError(f"{files[0]}: it is empty, without rows") from error
        return remarks
    except UnicodeDecodeError:
        if encoding or not (guessed := guess_encoding(files)):
            raise
    guess, word = guessed
    note = f"{files[0].name} is not UTF-8; it was read as {guess}, with words such as {word!r}: if this is wrong, set encoding"
    return [note, *_write(folder, files, reader, guess)]
