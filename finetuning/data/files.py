"""Find the files of a data set, tell their splits from their names, and open them in their encoding."""

import codecs
import gzip
import io
import re
import zipfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, AnyStr, NoReturn

import chardet

from finetuning.errors import UserError, listed

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # words in the names of files, such as test, testset or testdata -> splits
    word + ending: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev", "testa"),
        "test": ("test", "testing", "eval", "evaluation", "testb"),
    }.items()
    for word in words
    for ending in ("", "set", "data")
}
SNIFFED_BYTES = 2**16  # at the start of a file, to see whether it is text and which separator it has
MAX_LINE = 10_000_000  # characters; a novel has a million
MAX_UNPACKED = 2**31  # bytes of a file that is read into memory at once
NO_ROWS = ("readme", "license", "licence", "notice", "changelog")  # names of files without rows
BYTES_FOR_GUESS = 2**18  # of lines that are not UTF-8, to guess the encoding
MAX_BY_CHANCE = 0.1  # lines that are UTF-8 by chance, for each line that is not
MIN_CONFIDENCE = 0.1  # of chardet; below it, Windows-1252 is as probable


# --- files and their splits ----------------------------------------------------------------------------------------------


def visible_files(folder: Path) -> list[Path]:
    """Return all files in a folder and those below it, without hidden ones such as .ipynb_checkpoints/train.csv."""
    hidden = (".", "~$")  # Excel locks train.xlsx with ~$train.xlsx
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [file for file in files if not any(part.startswith(hidden) for part in file.relative_to(folder).parts)]


def ending(file: Path) -> str:
    """Return the ending of a file, in lower case; of a .gz or .zip that of the file in it."""
    name = file.name.lower()
    return Path(_packed_name(file) if name.endswith(".zip") else name.removesuffix(".gz")).suffix.lower()


def split_files(path: Path, files: list[Path], split_names: Collection[str] = ()) -> dict[str, list[Path]]:
    """Return the files of each split of a folder, by their names: train-1.csv, corpus.dev.en, test/rows.csv, eng.testa.

    `split_names`: further names of splits, which the user gave. If no file belongs to train, the files without a split do. Raise
    `UserError` for a file without a split beside a file of train, for files of a split with different words for it, such as test
    and eval, and for a file that is there packed and unpacked.
    """
    splits: dict[str, list[Path]] = {}
    unpacked: dict[Path, Path] = {}
    for file in files:
        if (other := unpacked.setdefault(file.parent / f"{stem(file)}{ending(file)}", file)) is not file:
            raise UserError(f"{path}: {other.name} and {file.name} seem to be one file, packed and unpacked: keep one of them")
        splits.setdefault(split_of(file.relative_to(path), split_names), []).append(file)
    for split, alike in splits.items():
        by_words = {frozenset(split_words_of(file.relative_to(path))): file for file in alike}
        if len(by_words) > 1:
            both = " and ".join(str(file.relative_to(path)) for file in by_words.values())
            remedy = "" if split == "train" else f", or set validation_split or test_split to {stem(alike[0])}"
            raise UserError(
                f"{path}: {both} use different words for the split {split}: keep one, or use the same word ({split}-1.csv, "
                f"{split}-2.csv){remedy}"
            )
    unknown = [file for file in splits.pop("", []) if stem(file).lower() not in NO_ROWS]
    names = [file.relative_to(path) for file in unknown]
    if unknown and "train" in splits:
        raise UserError(
            f"{path}: the name of {listed(names)} tells no split, and {splits['train'][0].name} is train already: give one file, move it "
            "elsewhere, put train, validation or test into its name, or set test_split or validation_split to its name, "
            f"{stem(unknown[0])}"
        )
    stems = [stem(file).lower() for file in unknown]
    if not splits and len({"train" in name for name in stems if re.search("train|test|dev|val", name)}) > 1:
        raise UserError(
            f"{path}: the names {listed(names)} tell no split, so all would be train: write train, validation or test as a word of its "
            "own (test-set.csv)"
        )
    if unknown:
        splits = {"train": unknown} | splits
    return {split: splits[split] for split in (*SPLITS, *splits) if split in splits}


def split_of(file: Path, split_names: Collection[str] = ()) -> str:
    """Return the split that the name of a file tells, or else the name of its nearest folder; "" if no name does."""
    if stem(file) in split_names:
        return stem(file)
    splits = {*split_words_of(file).values()}
    if len(splits) > 1:
        raise UserError(f"{file}: its name tells several splits, {', '.join(sorted(splits))}: rename it")
    return "".join(splits)


def split_words_of(file: Path) -> dict[str, str]:
    """Return the words that tell the split of a file, each with the split: those in its name, or else in its nearest folder's."""
    return next(filter(None, map(split_words, (file.name, *reversed(file.parent.parts)))), {})


def split_words(name: str) -> dict[str, str]:
    """Return the words in a name that tell a split, each with the split."""
    return {word: SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_WORDS}


def stem(file: Path) -> str:
    """Return the name of a file without its ending and without .gz or .zip."""
    return Path(re.sub(r"(\.zip)?(\.gz)?$", "", file.name, flags=re.IGNORECASE)).stem


# --- opening and encodings -----------------------------------------------------------------------------------------------


def _packed_name(file: Path) -> str:
    """Return the name of the file that a .zip holds."""
    with zipfile.ZipFile(file) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise UserError(f"{file}: it contains {len(names)} files, and only one is allowed: unpack it, and give the folder")
    return names[0]


def open_bytes(file: Path) -> io.BufferedIOBase:
    """Open a file for reading; of a .gz or .zip the file in it."""
    if file.suffix.lower() == ".gz":
        return gzip.open(file)
    if file.suffix.lower() != ".zip":
        return file.open("rb")
    try:
        return zipfile.ZipFile(file).open(_packed_name(file))
    except RuntimeError as error:  # it has a password, or a compression that Python lacks
        raise UserError(f"{file}: it can't be unpacked ({error}): unpack it, and give the file in it") from error


def read_bytes(file: Path) -> bytes:
    """Return the content of a file; of a .gz or .zip the file in it. Raise `UserError` for more than `MAX_UNPACKED`."""
    with open_bytes(file) as opened:
        return read_all(opened, file)


def read_all(opened: IO[AnyStr], file: Path) -> AnyStr:
    """Return the content of an opened file. Raise `UserError` for more than `MAX_UNPACKED` bytes or characters."""
    parts, size = [], 0
    while part := opened.read(2**20):
        parts.append(part)
        size += len(part)
        if size > MAX_UNPACKED:
            limit = f"{MAX_UNPACKED / 2**30:g} GiB"
            raise UserError(f"{file}: its content has more than {limit}: save it as .jsonl or as several files")
    return opened.read(0).join(parts)


def open_text(file: Path, encoding: str | None) -> io.TextIOWrapper:
    """Open a text file for reading. Without `encoding` it is UTF-8, or UTF-16 by its byte order mark. Only line feeds end a line.

    Raise `UserError` for a binary file.
    """
    with open_bytes(file) as opened:
        start = opened.read(SNIFFED_BYTES)
    if encoding is None:
        encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        if encoding == "utf-8" and b"\0" in start:
            _refuse_nul(file, start.count(b"\n", 0, start.index(b"\0")) + 1)
    text = io.TextIOWrapper(open_bytes(file), encoding=encoding, newline="\n")
    if text.read(1) != "\ufeff":  # a byte order mark, which is no part of the text
        text.seek(0)
    return text


def _refuse_nul(file: Path, line: int) -> NoReturn:
    """Raise `UserError` for a NUL character in this line."""
    raise UserError(
        f"{file}: it is binary, or text with NUL characters (the first in line {line:,}): save it as text in UTF-8, or remove "
        "these characters (tr -d '\\000')"
    )


def lines_of(file: Path, encoding: str | None, keep_ends: bool = False, longest: int = MAX_LINE) -> Iterator[str]:
    """Yield the lines of a text file, without line feeds and carriage returns unless `keep_ends`.

    Raise `UserError` for a NUL character, and for a line of more than `longest` characters.
    """
    with open_text(file, encoding) as opened:
        for number, line in enumerate(iter(partial(opened.readline, longest + 1), ""), 1):
            if len(line) > longest:
                raise UserError(f"{file}: line {number:,} has more than {longest:,} characters: divide it into several rows")
            if "\0" in line:
                _refuse_nul(file, number)
            yield line if keep_ends else line.removesuffix("\n").removesuffix("\r")


def guess_encoding(files: list[Path]) -> tuple[str, str] | None:
    """Return the most probable encoding of files, and a word by which the user can check it; None if they are UTF-8.

    Raise `UserError` if some lines are not UTF-8, and too many others are.
    """
    sample, first, n_utf8, n_others = bytearray(), None, 0, 0
    for file in files:
        with open_bytes(file) as opened:
            for number, line in enumerate(opened, 1):
                if line.decode(errors="ignore").encode() != line:  # not UTF-8
                    sample += line
                    first, n_others = first or (file, number), n_others + 1
                elif not line.isascii():
                    n_utf8 += 1
                if len(sample) > BYTES_FOR_GUESS:
                    break
    if not sample:
        return None
    if n_utf8 > MAX_BY_CHANCE * n_others:
        raise UserError(
            f"{first[0]}: line {first[1]:,} is not UTF-8, but {n_utf8:,} other lines are: save all lines in UTF-8, or set encoding if "
            "all are in one other encoding"
        )
    detected = chardet.detect(bytes(sample))
    guess = detected["encoding"] if detected["encoding"] and detected["confidence"] > MIN_CONFIDENCE else "Windows-1252"
    words = bytes(sample).decode(guess, errors="replace").split()
    return guess, next((word for word in words if not word.isascii()), "")[:40]
