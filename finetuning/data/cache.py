"""Columns computed from a data set once and kept on disk, memory-mapped, so that the next run finds them.

They are kept beside the data set in the cache of the library `datasets` (HF_HOME), under a name made of all that they depend on.
Pages of mapped files count as a process's memory, for a cluster's scheduler too, until the mapping ends. So files are mapped anew
(`reopened`) for each pass over them, or after some thousand rows.
"""

import inspect
import pickle
import re
from collections.abc import Callable
from types import CodeType

import pandas
import pyarrow
import tokenizers
import transformers
from accelerate import PartialState
from datasets import Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher

ROWS_PER_FILE = 50_000  # an interrupted computation continues after the last complete file


def map_once(split: Dataset, function: Callable[[dict, list[int]], dict], features: Features, depends_on: list) -> Dataset:
    """Return what `function` makes of batches of rows and their positions; from disk if it was made before.

    The name on disk is made of `split`, `depends_on`, the libraries' versions and the source of all functions that are called. A file
    is moved to its place when it is complete, so an interruption does no harm. One process of a machine computes.
    """
    versions = [library.__version__ for library in (pandas, tokenizers, transformers)]
    key = Hasher.hash([split._fingerprint, depends_on, versions, source_of(function)])

    def compute(start: int) -> Dataset:
        rows = reopened(split.select(range(start, min(start + ROWS_PER_FILE, len(split)))))
        return rows.map(
            lambda batch, positions: function(batch, [start + position for position in positions]),
            with_indices=True,
            batched=True,
            features=features,
            remove_columns=split.column_names,
            new_fingerprint=f"{key}-{start}",
        )

    with PartialState().local_main_process_first():
        return concatenate_datasets([compute(start) for start in range(0, len(split), ROWS_PER_FILE)])


def source_of(function: Callable) -> dict[str, str]:
    """Return the source of a function, and of the functions, classes and constants of this package that it uses, by their names."""
    package, sources, waiting, owners = __name__.partition(".")[0], {}, [function], {}

    def is_ours(value) -> bool:
        return (getattr(value, "__module__", None) or getattr(value, "__name__", None) or "").partition(".")[0] == package

    while waiting:
        current = waiting.pop()
        name = f"{current.__module__}.{current.__qualname__}"
        if name in sources:
            continue
        sources[name] = inspect.getsource(current)
        if inspect.isclass(current):
            continue
        names, scope = _used_names(current.__code__), current.__globals__
        global_values = {label: scope[label] for label in names if label in scope}
        for label, value in (global_values | inspect.getclosurevars(current).nonlocals).items():
            if inspect.isfunction(value) or inspect.isclass(value):
                waiting += [value] if is_ours(value) else []
            elif inspect.ismodule(value) and is_ours(value):
                owners[value.__name__] = value
            elif is_ours(type(value)):  # an object: its methods, those of its base classes too, may be called
                owners |= {owner.__qualname__: owner for owner in type(value).__mro__ if is_ours(owner)}
            elif label in global_values and isinstance(value, str | int | float | tuple | dict | re.Pattern):
                sources[f"{current.__module__}.{label}"] = repr(value)
        attributes = [getattr(owner, label, None) for owner in owners.values() for label in names]
        waiting += [value for value in attributes if inspect.isfunction(value) and is_ours(value)]
    return dict(sorted(sources.items()))


def _used_names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes that a function uses, also in its comprehensions and inner functions."""
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return {*code.co_names}.union(*map(_used_names, inner))


def read_columns(rows: Dataset, *names: str) -> pyarrow.Table:
    """Return some columns, all rows, in memory."""
    return reopened(rows).select_columns(list(names)).with_format("arrow")[:]


def reopened(rows: Dataset) -> Dataset:
    """Return the same rows through a mapping of their own: the pages that are read through it are freed with it."""
    return pickle.loads(pickle.dumps(rows))
