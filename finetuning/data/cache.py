"""Compute columns of a data set once, and keep them on disk for the next run.

They are in the cache of the library `datasets` (HF_HOME), under a name made from everything that they depend on. Files are
memory-mapped. The pages that were read count as memory of the process, also for a cluster's scheduler, until the mapping ends. So
files are mapped again (`reopened`) for each pass over them, or after some thousand rows.
"""

import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pyarrow
import tokenizers
import transformers
from accelerate import PartialState
from datasets import Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher

from finetuning.disk import room_in

MOVE_CACHE = "set the environment variable HF_HOME to another folder"
ROWS_PER_FILE = 50_000  # an interrupted computation continues after the last complete file


def map_once(split: Dataset, function: Callable[[dict, list[int]], dict], features: Features, depends_on: list) -> Dataset:
    """Return the columns that `function` computes from batches of rows and their positions; from disk if they are there.

    The name on disk is made from the arguments (only the name of `function`), the versions of the libraries and `source_code`. So
    `depends_on` must hold all values that `function` uses besides. A file gets its name when it is complete, so an interruption
    does no harm. One process per machine computes.
    """
    versions = [library.__version__ for library in (pandas, tokenizers, transformers)]
    key = Hasher.hash([split._fingerprint, function.__qualname__, features, depends_on, versions, source_code()])

    def compute(start: int) -> Dataset:
        rows = reopened(split.select(range(start, min(start + ROWS_PER_FILE, len(split)))))
        if rows.cache_files:  # else the rows are in memory, and so are the new columns
            _remove_if_damaged(Path(rows._get_cache_file_path(f"{key}-{start}")))
        return rows.map(
            lambda batch, positions: function(batch, [start + position for position in positions]),
            with_indices=True,
            batched=True,
            features=features,
            remove_columns=split.column_names,
            new_fingerprint=f"{key}-{start}",
        )

    with PartialState().local_main_process_first(), room_in(datasets.config.HF_DATASETS_CACHE, MOVE_CACHE):
        return concatenate_datasets([compute(start) for start in range(0, len(split), ROWS_PER_FILE)])


def _remove_if_damaged(file: Path) -> None:
    """Remove a file of the cache that is cut short, as by a power failure, so that it is computed again."""
    try:
        if file.is_file():
            Dataset.from_file(str(file))
    except (pyarrow.ArrowException, OSError):
        print(f"note: {file} in the cache was damaged; it is computed again", file=sys.stderr)
        file.unlink()


@functools.cache
def source_code() -> list[str]:
    """Return the source of the modules that read and tokenize rows. A change of any of them makes the columns on disk outdated.

    All modules directly in the package count, as a new one may hold code that changes texts.
    """
    package = Path(__file__).parents[1]
    files = (file for pattern in ("*.py", "data/**/*.py", "tasks/**/*.py") for file in sorted(package.glob(pattern)))
    return [file.read_text(encoding="utf-8") for file in files]


def read_column(rows: Dataset, name: str) -> pyarrow.ChunkedArray:
    """Return the values of a column for all rows, in memory."""
    return reopened(rows).select_columns(name).with_format("arrow")[:][name]


def reopened(rows: Dataset) -> Dataset:
    """Return the same rows with a new memory mapping. The pages that are read through it are freed when it ends."""
    return pickle.loads(pickle.dumps(rows))
