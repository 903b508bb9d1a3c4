"""Compute columns of a data set once, and keep them on disk for the next run.

They are in the cache of the library `datasets` (HF_HOME), under a name made from everything that they depend on. Files are
memory-mapped. The pages that were read count as memory of the process, also for a cluster's scheduler, until the mapping ends. So
files are mapped again (`reopened`) for each pass over them, or after some thousand rows.
"""

import inspect
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import datasets
import pandas
import pyarrow
import tokenizers
import transformers
from accelerate import PartialState
from datasets import Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher

from finetuning import fingerprints
from finetuning.disk import room_in, write_json
from finetuning.errors import NoRoom

MOVE_CACHE = "set the environment variable HF_HOME to another folder"
ROWS_PER_FILE = 50_000  # an interrupted computation continues after the last complete file


def map_once(split: Dataset, function: Callable[[dict, list[int]], dict], features: Features, depends_on: list) -> Dataset:
    """Return the columns that `function` computes from batches of rows and their positions; from disk if they are there.

    The name on disk is made from `split`, `depends_on`, the versions of the libraries and the source of `function` and the
    functions that it calls. A file gets its name when it is complete, and then its fingerprint, so an interruption does no harm, and
    a damaged file is computed again. One process per machine computes.
    """
    versions = [library.__version__ for library in (pandas, tokenizers, transformers)]
    key = Hasher.hash([split._fingerprint, depends_on, versions, source_of(function)])

    def compute(start: int) -> Dataset:
        rows = reopened(split.select(range(start, min(start + ROWS_PER_FILE, len(split)))))
        file = Path(rows._get_cache_file_path(f"{key}-{start}")) if rows.cache_files else None
        sealed = file and file.with_suffix(".json")
        is_intact = not file or fingerprints.is_intact(sealed)
        if not is_intact and sealed.is_file():
            print(f"note: {file} in the cache was damaged; it is computed again", file=sys.stderr)
        result = rows.map(
            lambda batch, positions: function(batch, [start + position for position in positions]),
            with_indices=True,
            batched=True,
            features=features,
            remove_columns=split.column_names,
            new_fingerprint=f"{key}-{start}",
            load_from_cache_file=is_intact,
        )
        if not is_intact:
            write_json(sealed, fingerprints.seal({}, file.parent, [file.name]))
        return result

    folders = {Path(file["filename"]).parent for file in split.cache_files}
    with (
        PartialState().local_main_process_first(),
        _removing_partial(folders),
        room_in(datasets.config.HF_DATASETS_CACHE, MOVE_CACHE),
    ):
        return concatenate_datasets([compute(start) for start in range(0, len(split), ROWS_PER_FILE)])


@contextmanager
def _removing_partial(folders: set[Path]) -> Iterator[None]:
    """If the disk is full, remove the temporary files that `datasets` then leaves in folders.

    After another error they may belong to another process, which is still writing them.
    """

    def files() -> set[Path]:
        return {file for folder in folders for file in folder.glob("tmp*")}

    files_before = files()
    try:
        yield
    except NoRoom:
        for file in files() - files_before:
            file.unlink(missing_ok=True)
        raise


def source_of(function: Callable) -> dict[str, str]:
    """Return name -> source for a function, and for all functions, classes and constants of this package that it uses."""
    package, sources, queue, owners = __name__.partition(".")[0], {}, [function], {}

    def is_ours(value) -> bool:
        return (getattr(value, "__module__", None) or getattr(value, "__name__", None) or "").partition(".")[0] == package

    while queue:
        current = queue.pop()
        name = f"{current.__module__}.{current.__qualname__}"
        if name in sources:
            continue
        sources[name] = inspect.getsource(current)
        if inspect.isclass(current):
            continue
        names, scope = _used_names(current.__code__), current.__globals__
        global_values = {key: scope[key] for key in names if key in scope}
        for key, value in (global_values | inspect.getclosurevars(current).nonlocals).items():
            if inspect.isfunction(value) or inspect.isclass(value):
                queue += [value] if is_ours(value) else []
            elif inspect.ismodule(value) and is_ours(value):
                owners[value.__name__] = value
            elif is_ours(type(value)):  # an object: the function may call its methods, and those of its base classes
                owners |= {owner.__qualname__: owner for owner in type(value).__mro__ if is_ours(owner)}
            elif key in global_values and isinstance(value, str | int | float | tuple | dict | re.Pattern):
                sources[f"{current.__module__}.{key}"] = repr(value)
        attributes = [getattr(owner, key, None) for owner in owners.values() for key in names]
        queue += [value for value in attributes if inspect.isfunction(value) and is_ours(value)]
    return dict(sorted(sources.items()))


def _used_names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes in the code of a function, with its comprehensions and inner functions."""
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return {*code.co_names}.union(*map(_used_names, inner))


def read_columns(rows: Dataset, *names: str) -> pyarrow.Table:
    """Return all rows of the columns `names`, in memory."""
    return reopened(rows).select_columns(list(names)).with_format("arrow")[:]


def reopened(rows: Dataset) -> Dataset:
    """Return the same rows with a new memory mapping. The pages that are read through it are freed when it ends."""
    return pickle.loads(pickle.dumps(rows))
