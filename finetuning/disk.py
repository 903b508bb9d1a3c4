"""Files that are written completely or not at all."""

import json
import os
from pathlib import Path


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    to_disk(partial)
    os.replace(partial, path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk, so that they survive a power cut."""
    if path.is_file() or os.name == "posix":  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
