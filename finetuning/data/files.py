"""From files and folders in all their formats to rows; the library `datasets` does the reading."""

import contextlib
import csv
import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import chardet
import datasets
import pandas as pd
import pyarrow
import pycountry
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns

from finetuning.errors import UserError

# Rows per batch of an Arrow file: opening it maps 64 KiB of each batch into memory. Ten times the default saves 58 MiB per million rows.
BATCH = dict(writer_batch_size=10_000)
SPLITS = ("train", "validation", "test")
SEPARATORS = ",;\t|"
SNIFFED_BYTES = 2**16  # of a file, to find its separator
GUESS_BYTES = 2**18  # of lines that are not UTF-8, to guess the encoding
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MIN_CONFIDENCE = 0.1  # of chardet; below it the encoding of Western European spreadsheets is as probable

LANGUAGE_ENDINGS = [f".{language.alpha_2}" for language in pycountry.languages if hasattr(language, "alpha_2")]

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


def read(path: Path, readers: dict, prefix: str, encoding: str | None = None, **options) -> tuple[DatasetDict, list[str]]:
    """Return the splits of a file or folder (only "train" if it has none), and notes on how they were read.

    `readers`: READERS or others like them; `options` go to `load_dataset`. Without an `encoding` it is UTF-8, or else guessed. Raise
    `UserError`, which begins with `prefix`, for what can't be read.
    """
    remarks = []
    try:
        try:
            return _read(path, readers, encoding, remarks, options), remarks
        except UNREADABLE:
            if encoding or not (guessed := guess_encoding(_known(path, readers))):
                raise
            encoding, word = guessed
            remarks[:] = [f"{path.name} is not UTF-8; read as {encoding}, with words such as {word!r}: if wrong, set encoding"]
            return _read(path, readers, encoding, remarks, options), remarks
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
    except UNREADABLE as error:
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeError):
            wrong = f"it is not in {encoding}: set encoding to the one it has"
        else:
            wrong = "it is empty, cut short or of several kinds"
        raise UserError(f"{prefix}{path}: cannot be read, {wrong} ({cause})") from error


def _read(path: Path, readers: dict, encoding: str | None, remarks: list[str], options: dict) -> DatasetDict:
    if (path / "aclImdb").is_dir():
        path = path / "aclImdb"
    if path.name.endswith((".tar.gz", ".tgz")) or (path / "train" / "pos").is_dir():
        return _acl_imdb(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():  # of save_to_disk
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    files = _known(path, readers)
    if not files:
        raise UserError(f"{path}: {'no file in it is' if path.is_dir() else 'not'} one of {', '.join(readers)}, .tar.gz")
    kinds = {readers[ending(file)] for file in files}
    builder, find_options = kinds.pop()
    card = path / "README.md"
    has_configs = card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
    if path.is_dir() and (kinds or not find_options or has_configs):  # a copy from the Hub: the library knows how to read it
        return load_dataset(str(path), **BATCH, **options)
    reader_options = find_options(files, encoding, remarks) if find_options else {}
    if isinstance(reader_options, DatasetDict):
        return reader_options
    splits = {split: [str(file) for file in several] for split, several in _splits(path, files).items()}
    return load_dataset(builder, data_files=splits, **reader_options, **BATCH, **options)


def ending(file: Path) -> str:
    """Return a file's ending, or that of the file that is packed in it."""
    name = file.name.lower()
    return Path(_member(file) if name.endswith(".zip") else name.removesuffix(".gz")).suffix.lower()


def _member(file: Path) -> str:
    """Return the name of the file that a .zip holds."""
    with zipfile.ZipFile(file) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise UserError(f"{file}: {len(names)} files are packed in it: unpack it, and give the folder")
    return names[0]


def _open(file: Path) -> io.BufferedIOBase:
    if file.suffix.lower() == ".gz":
        return gzip.open(file)
    return zipfile.ZipFile(file).open(_member(file)) if file.suffix.lower() == ".zip" else file.open("rb")


def _open_text(file: Path, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(file), encoding=encoding, newline="")


def _known(path: Path, readers: dict) -> list[Path]:
    """Return the files that can be read, without hidden ones."""
    inside = [file for file in sorted(path.rglob("[!.]*")) if file.is_file()] if path.is_dir() else [path]
    return [file for file in inside if ending(file) in readers]


def _splits(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return files by the split that their names tell, as the library sees it; it does not know CoNLL's (eng.train, eng.testa)."""
    endings = {"train": ".train", "validation": ".testa", "test": ".testb"}
    by_split = {split: [file for file in files if file.suffix == ending] for split, ending in endings.items()}
    if path.is_dir() and not by_split["train"]:
        by_pattern = DataFilesDict.from_patterns(get_data_patterns(str(path)), base_path=str(path))
        by_split = {str(split): [file for file in files if str(file.resolve()) in several] for split, several in by_pattern.items()}
    return {split: several for split, several in by_split.items() if several} if path.is_dir() else {"train": files}


def _encoding(files: list[Path]) -> str:
    """Return UTF-8, or UTF-16 if a file begins with its mark. Raise `UserError` for what is no text."""
    for file in files:
        with _open(file) as opened:
            start = opened.read(SNIFFED_BYTES)
        if start.startswith(UTF_16):
            return "utf-16"
        if b"\0" in start:
            raise UserError(f"{file} is binary, no text: give it as it was written by an editor or a spreadsheet, as UTF-8")
    return "utf-8-sig"


def guess_encoding(files: list[Path]) -> tuple[str, str] | None:
    """Return the most probable encoding of text that is not UTF-8, and a word of it to judge that by; None if it is UTF-8."""
    sample = bytearray()
    for file in files:
        with contextlib.suppress(OSError, EOFError), _open(file) as opened:
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


# --- options of the library's readers, found in the files ----------------------------------------------------------------


def _csv(files: list[Path], encoding: str | None, remarks: list[str]) -> dict:
    """Find the separator that divides the first lines best."""
    encoding = encoding or _encoding(files)
    with _open(files[0]) as opened:
        start = opened.read(SNIFFED_BYTES)
    lines = start.decode(encoding, errors="replace").splitlines(keepends=True)
    lines = lines if len(start) < SNIFFED_BYTES else lines[:-1]  # the last one is cut

    def agree(separator: str) -> tuple[float, int]:
        rows = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        return (sum(n == rows[0] for n in rows) / len(rows), rows[0]) if rows and rows[0] > 1 else (0, 0)

    separator = max(SEPARATORS, key=agree) if ending(files[0]) == ".csv" else "\t"  # of equals the first
    if separator not in (",", "\t"):
        remarks.append(f"{files[0].name}: its columns are divided by {separator!r}")
    return {"sep": separator, "encoding": encoding}


def _json(files: list[Path], encoding: str | None, remarks: list[str]) -> dict | DatasetDict:
    """The library reads an object per line, and a list of objects; one object that holds everything is read here."""
    encoding = encoding or _encoding(files)
    known = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    with _open_text(files[0], encoding) as opened:
        first = opened.readline().strip()
        try:
            a_line_each = ending(files[0]) == ".jsonl" or (isinstance(json.loads(first), dict) and opened.read(1))
        except ValueError:
            a_line_each = False
    if a_line_each or len(files) > 1 or not first.startswith("{" if not known else ("{", "[")):
        return known
    with _open_text(files[0], encoding) as opened:
        content = json.load(opened)
    content = {"train": content} if isinstance(content, list) else content  # the library knows lists in UTF-8 alone
    tables = {key: value for key, value in content.items() if value and isinstance(value, list) and isinstance(value[0], dict)}
    if len(tables) == 1:
        tables = {"train": next(iter(tables.values()))}
    if tables:
        if "train" not in tables or not tables.keys() <= {*SPLITS}:
            raise UserError(
                f"{files[0]}: rows under several keys, {', '.join(tables)}: keep those of one, or name them {', '.join(SPLITS)}"
            )
        return _frames({split: pd.DataFrame(rows) for split, rows in tables.items()})
    if content and all(isinstance(value, dict | list) for value in content.values()):  # a column a key, as pandas writes it
        return _frames({"train": pd.DataFrame(content)})
    return known


def _excel(files: list[Path], encoding: str | None, remarks: list[str]) -> DatasetDict:
    if not importlib.util.find_spec("openpyxl"):
        raise UserError(f"{files[0]}: reading it needs openpyxl: pip install -r requirements-extras.txt, or save it as csv")
    if len(files) > 1:
        raise UserError(f"{files[0].parent}: {len(files)} .xlsx files: give one, or save them as csv, named after splits")
    sheets = pd.read_excel(files[0], sheet_name=None)
    if len(sheets) > 1:
        remarks.append(f"{files[0].name}: the first of its sheets, {next(iter(sheets))!r}, was read")
    return _frames({"train": next(iter(sheets.values()))})


def _frames(frames: dict[str, pd.DataFrame]) -> DatasetDict:
    return DatasetDict({split: Dataset.from_pandas(frame, preserve_index=False) for split, frame in frames.items()})


def conll(files: list[Path], encoding: str | None, remarks: list[str]) -> dict:
    """Find the columns of files with a word and its tags per line, and an empty line after each sentence."""
    encoding = encoding or _encoding(files)
    with _open_text(files[0], encoding) as lines:
        first = next((line.split() for line in lines if line.strip() and not line.startswith("-DOCSTART-")), [""])
    between = [f"column_{number}" for number in range(2, len(first))]
    return {"column_names": ["tokens", *between, "tags"][: max(len(first), 1)], "encoding": encoding}


def documents(files: list[Path], encoding: str | None, remarks: list[str]) -> dict:
    """Plain text: each of several files is a document, unless they are named after splits. The documents of a single file are divided by
    empty lines, or are its lines if it has none."""
    encoding = encoding or _encoding(files)
    if len(files) > 1 and not any(file.stem.startswith((*SPLITS, "valid", "dev")) for file in files):
        return {"sample_by": "document", "encoding": encoding}
    empty, lines = False, 0
    with _open_text(files[0], encoding) as opened:
        for line in opened:
            lines += bool(line.strip())
            empty = empty or (lines > 0 and not line.strip())
            if empty and lines > 1:
                break
    if lines < 2 and len(files) == 1:
        raise UserError(
            f"{files[0]}: it is {'a single line' if lines else 'empty'}, and nothing can be held out of one document: divide "
            "documents by empty lines or line breaks, or give a folder with a file for each"
        )
    return {"sample_by": "paragraph" if empty else "line", "encoding": encoding}


def parallel(files: list[Path], encoding: str | None, remarks: list[str]) -> DatasetDict:
    """Read texts in several languages, line by line: train.en beside train.de and so on, a column for each ending.

    For a single file the others are those beside it whose names differ only in the language.
    """
    if len(files) == 1:
        stem, languages = _without_language(files[0])[0], {*LANGUAGE_ENDINGS}
        files = [
            file for file in sorted(files[0].parent.iterdir()) if ending(file) in languages and _without_language(file)[0] == stem
        ]
    by_stem: dict[str, dict[str, Path]] = {}
    for file in files:
        stem, name = _without_language(file)
        by_stem.setdefault(stem, {})[name] = file
    names = sorted({name for of in by_stem.values() for name in of})
    splits: dict[str, list[dict[str, Path]]] = {}
    for stem, of in sorted(by_stem.items()):
        if len(of) < 2 or [*of] != names:
            raise UserError(
                f"{files[0].parent}: of {stem} there is {', '.join(of)} only, of others {', '.join(names)}: give each in all languages"
            )
        counts = {file.name: sum(1 for _ in _lines(file, encoding or _encoding([file]))) for file in of.values()}
        if len({*counts.values()}) > 1:
            lengths = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
            raise UserError(f"{files[0].parent}: the files do not match line by line: {lengths} lines: correct them")
        split = next((split for split, starts in STARTS.items() if Path(stem).name.startswith(starts)), "train")
        splits.setdefault(split if len(by_stem) > 1 else "train", []).append(of)
    datasets_by_split = {}
    for split, several in splits.items():
        state = "".join(f"{file} {file.stat().st_mtime_ns} {encoding} " for of in several for file in of.values())
        datasets_by_split[split] = Dataset.from_generator(
            _parallel_rows,
            gen_kwargs={"files": several, "encoding": encoding},
            features=Features(dict.fromkeys(names, Value("string"))),
            split=split,
            fingerprint=hashlib.sha256(state.encode()).hexdigest()[:16],
        )
    return DatasetDict(datasets_by_split)


STARTS = {"train": ("train",), "validation": ("valid", "val", "dev"), "test": ("test",)}


def _without_language(file: Path) -> tuple[str, str]:
    stem = file.with_name(file.name.removesuffix(".gz"))
    return str(stem.with_suffix("")), stem.suffix[1:]


def _lines(file: Path, encoding: str) -> Iterator[str]:
    with io.TextIOWrapper(_open(file), encoding=encoding, newline="\n") as opened:  # other line ends may be part of a text
        for line in opened:
            yield line.rstrip("\r\n")


def _parallel_rows(files: list[dict[str, Path]], encoding: str | None) -> Iterator[dict]:
    for of in files:
        for row in zip(*(_lines(file, encoding or _encoding([file])) for file in of.values()), strict=True):
            yield dict(zip(of, row, strict=True))


def lines(files: list[Path], encoding: str | None, remarks: list[str]) -> dict:
    """Plain text, a row per line."""
    return {"encoding": encoding or _encoding(files)}


READERS = {  # by a file's ending: the library's reader, and what finds its options in the files
    ".parquet": ("parquet", None),
    ".csv": ("csv", _csv),
    ".tsv": ("csv", _csv),
    ".json": ("json", _json),
    ".jsonl": ("json", _json),
    ".xlsx": ("excel", _excel),
    ".conll": ("conll", conll),
    ".iob": ("conll", conll),
    ".iob2": ("conll", conll),
    ".bio": ("conll", conll),
}


# --- the original release of IMDb ------------------------------------------------------------------------------------------


def _acl_imdb(path: Path) -> DatasetDict:
    """The original Stanford release: {train,test}/{neg,pos}/*.txt in a folder or in its .tar.gz."""
    files = sorted(path.glob("t*/*/*.txt")) if path.is_dir() else [path]
    state = "".join(f"{file} {file.stat().st_mtime_ns} " for file in files)
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    splits = {}
    for part in ("train", "test"):
        name = hashlib.sha256(f"{part} {state}".encode()).hexdigest()[:16]  # of the copy in the cache: another when a file changes
        splits[part] = Dataset.from_generator(
            _acl_imdb_rows, features=features, gen_kwargs={"path": path, "part": part}, split=part, fingerprint=name
        )
    return DatasetDict(splits)


def _acl_imdb_rows(path: Path, part: str) -> Iterator[dict]:
    texts = {}
    if path.is_dir():
        for file in path.glob(f"{part}/*/*.txt"):
            texts[file.parts[-2:]] = file.read_text(encoding="utf-8")
    else:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".txt") and Path(member.name).parts[-3] == part:
                    texts[Path(member.name).parts[-2:]] = archive.extractfile(member).read().decode("utf-8")
    rows = [{"text": text, "label": label} for (label, _), text in sorted(texts.items()) if label in ("neg", "pos")]
    if not rows:
        raise UserError(f"no {part}/neg/*.txt and {part}/pos/*.txt in it")
    yield from rows
