"""Fingerprints (sha256) of files that decide a run's numbers, to refuse those that have changed since they were written."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from finetuning.disk import read_json, sha256
from finetuning.errors import UserError

# Files of a model that are read besides its weights: config, tokenizer and chat template.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja")
# Those of them that decide its numbers: a model's folder may also hold records of training, such as trainer_state.json.
MODEL_SETTINGS = ("config.json", "generation_config.json", "*token*", "*vocab*", "merges.txt", "dict.txt", *MODEL_FILES[2:])


def of_model_settings(folder: Path) -> dict[str, str]:
    """Return the fingerprints of a model's config and tokenizer files, by name."""
    files = {file for pattern in MODEL_SETTINGS for file in folder.glob(pattern) if file.is_file()}
    return {file.name: sha256(file) for file in sorted(files) if file.suffix != ".safetensors"}


def seal(content: dict, folder: Path = Path(), names: Iterable[str] = ()) -> dict:
    """Return the content of a JSON file with the fingerprints of the files `names` in its folder, and with its own."""
    content = content | {"files": {name: sha256(folder / name) for name in names}}
    return content | {"sha256": _of_content(content)}


def read_sealed(file: Path, remedy: str) -> dict:
    """Return the content of a JSON file that `seal` made. Raise `UserError` if it, or a file that it names, is damaged or changed."""
    folder = file.parent
    try:
        content = {**read_json(file)}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}: {file.name} is damaged ({error}); {remedy}") from error
    if not isinstance(content.get("sha256"), str):
        raise UserError(f"{folder}: {file.name} is damaged, or of an older version, which this one can't read; {remedy}")
    if content["sha256"] != _of_content({name: value for name, value in content.items() if name != "sha256"}):
        raise UserError(f"{folder}: {file.name} has changed since it was written; {remedy}")
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; {remedy}")
        if sha256(folder / name) != expected:
            raise UserError(f"{folder}: {name} is cut short, or has changed since it was written; {remedy}")
    return content


def _of_content(content: dict) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
