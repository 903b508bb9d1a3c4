"""What is written whole or not at all; columns made of a data set once, and kept in Arrow files on disk, memory-mapped.

The columns lie beside the data set in the cache of the library `datasets` (HF_HOME), under a name made of all they depend on, and
the next run finds them there. Pages of mapped files count as a process's memory, for a cluster's scheduler too, until the
mapping ends: so files are mapped anew (`reopened`) for each pass over them, or after some thousand rows.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow
import tokenizers
import transformers
from accelerate import PartialState
from datasets import Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher

PIECE = 50_000  # rows a file; what is interrupted goes on behind the last whole one


def map_once(split: Dataset, function: Callable[[dict, list[int]], dict], features: Features, depends_on: list) -> Dataset:
    """What `function` makes of batches and their rows' positions; found on disk where it was made with all it depends on.

    That is `split`, `depends_on`, the libraries and the code of the function's file. A piece is written beside and moved
    when it is whole, so an interruption does no harm. One process of a machine does it.
    """
    code = [Path(file).read_bytes() for file in (function.__code__.co_filename, __file__)]
    versions = [library.__version__ for library in (pandas, tokenizers, transformers)]
    key = Hasher.hash([split._fingerprint, depends_on, versions, code])

    def piece(start: int) -> Dataset:
        rows = reopened(split.select(range(start, min(start + PIECE, len(split)))))
        return rows.map(
            lambda batch, positions: function(batch, [start + position for position in positions]),
            with_indices=True,
            batched=True,
            features=features,
            remove_columns=split.column_names,
            new_fingerprint=f"{key}-{start}",
        )

    with PartialState().local_main_process_first():
        return concatenate_datasets([piece(start) for start in range(0, len(split), PIECE)])


def read_columns(rows: Dataset, *names: str) -> pyarrow.Table:
    """Some columns, whole."""
    return reopened(rows).select_columns(list(names)).with_format("arrow")[:]


def reopened(rows: Dataset) -> Dataset:
    """The same rows through a mapping of their own: the pages that are read through it go when it does."""
    return pickle.loads(pickle.dumps(rows))


def write_json(path: Path, content: dict) -> None:
    """Write whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    to_disk(partial)
    os.replace(partial, path)


def to_disk(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, outlast a power cut."""
    if path.is_file() or os.name == "posix":  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
