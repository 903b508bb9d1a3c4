"""The files of a data set: which belong to which split, and how they are opened."""

import gzip
import io
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import chardet

from finetuning.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # in the names of files
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "testa"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testb"), "test"),
}
SNIFFED_BYTES = 2**16  # of a file, to see whether it is text
ABOUT = ("readme", "license", "licence", "notice", "changelog")  # files with these names hold no rows
GUESS_BYTES = 2**18  # of lines that are not UTF-8, to guess the encoding
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MIN_CONFIDENCE = 0.1  # of chardet; below it the encoding of Western European spreadsheets is as probable


# --- files and their splits ----------------------------------------------------------------------------------------------


def known(path: Path, endings: Collection[str]) -> list[Path]:
    """Return the files with one of `endings`, without hidden ones."""
    inside = [file for file in sorted(path.rglob("[!.]*")) if file.is_file()] if path.is_dir() else [path]
    return [file for file in inside if ending(file) in endings]


def ending(file: Path) -> str:
    """Return a file's ending, or that of the file that is packed in it."""
    name = file.name.lower()
    return Path(_member(file) if name.endswith(".zip") else name.removesuffix(".gz")).suffix.lower()


def split_files(path: Path, files: list[Path], named: Collection[str] = ()) -> dict[str, list[Path]]:
    """Return the files of a folder by split, as their names tell: train-1.csv, corpus.dev.en, test/rows.csv, eng.testa.

    Files whose names tell nothing are all of train; beside a file of train that would be a guess, so raise `UserError`, unless the
    file is called like one of the splits `named`.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(path), named), []).append(file)
    unknown = [file for file in splits.pop("", []) if stem(file).lower() not in ABOUT]
    if unknown and "train" in splits:
        names = ", ".join(str(file.relative_to(path)) for file in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"{path}: beside {splits['train'][0].name} there is {names}, whose name tells no split: give one file, move it elsewhere, call it after "
            f"train, validation or test, or set test_split or validation_split to its name, {stem(unknown[0])}"
        )
    if unknown:
        splits = {"train": unknown} | splits
    return dict(sorted(splits.items(), key=lambda item: SPLITS.index(item[0]) if item[0] in SPLITS else len(SPLITS)))


def split_of(file: Path, named: Collection[str] = ()) -> str:
    """Return the split that a file's name tells, or else the nearest of its folders' names; "" if none does."""
    if stem(file) in named:
        return stem(file)
    for part in (file.name, *reversed(file.parent.parts)):
        found = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(found) > 1:
            raise UserError(f"{file}: its name tells several splits, {', '.join(sorted(found))}: rename it")
        if found:
            return found.pop()
    return ""


def stem(file: Path) -> str:
    """Return a file's name without its ending, and without that of its packing."""
    return Path(file.name.removesuffix(".gz").removesuffix(".zip")).stem


# --- opening and encodings -----------------------------------------------------------------------------------------------


def _member(file: Path) -> str:
    """Return the name of the file that a .zip holds."""
    with zipfile.ZipFile(file) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise UserError(f"{file}: {len(names)} files are packed in it: unpack it, and give the folder")
    return names[0]


def open_bytes(file: Path) -> io.BufferedIOBase:
    if file.suffix.lower() == ".gz":
        return gzip.open(file)
    return zipfile.ZipFile(file).open(_member(file)) if file.suffix.lower() == ".zip" else file.open("rb")


def open_text(file: Path, encoding: str | None) -> io.TextIOWrapper:
    """Open a text file, UTF-8 or UTF-16 if no `encoding` is given. Only line feeds end a line: others may be part of a text.

    Raise `UserError` for a binary file.
    """
    if encoding is None:
        with open_bytes(file) as opened:
            start = opened.read(SNIFFED_BYTES)
        encoding = "utf-16" if start.startswith(UTF_16) else "utf-8-sig"
        if encoding == "utf-8-sig" and b"\0" in start:
            _refuse_nul(file, start.count(b"\n", 0, start.index(b"\0")) + 1)
    return io.TextIOWrapper(open_bytes(file), encoding=encoding, newline="\n")


def _refuse_nul(file: Path, line: int) -> None:
    raise UserError(
        f"{file}: it is binary, or text with NUL characters (the first in line {line:,}): save it as text in UTF-8, or take these characters "
        "out (tr -d '\\000')"
    )


def lines_of(file: Path, encoding: str | None, keep_ends: bool = False) -> Iterator[str]:
    """Yield the lines of a text file; a carriage return before the line feed belongs to the end. Raise `UserError` for a NUL character."""
    with open_text(file, encoding) as opened:
        for number, line in enumerate(opened, 1):
            if "\0" in line:
                _refuse_nul(file, number)
            yield line if keep_ends else line.removesuffix("\n").removesuffix("\r")


def guess_encoding(files: list[Path]) -> tuple[str, str] | None:
    """Return the most probable encoding of text that is not UTF-8, and a word of it to judge that by; None if it is UTF-8."""
    sample = bytearray()
    for file in files:
        with open_bytes(file) as opened:
            for line in opened:
                sample += b"" if _is_utf8(line) else line
                if len(sample) > GUESS_BYTES:
                    break
    if not sample:
        return None
    detected = chardet.detect(bytes(sample))
    guess = detected["encoding"] if detected["encoding"] and detected["confidence"] > MIN_CONFIDENCE else "Windows-1252"
    words = bytes(sample).decode(guess, errors="replace").split()
    return guess, next((word for word in words if not word.isascii()), "")[:40]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
