"""Read objects in .json, .jsonl and .ndjson files as rows. A column with values of several types keeps them as JSON."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets import Features, Json, List, Value

from finetuning.data.content import Tables, as_rows, batched
from finetuning.data.files import MAX_UNPACKED, SPLITS, ending, lines_of, open_bytes, open_text, read_all, split_words
from finetuning.errors import UserError

MAX_NESTING = 100  # lists and objects inside each other, in files that `datasets` reads
NESTED = "too many lists or objects are nested in each other: remove this row"
NO_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[^\[\]{}"]+', re.DOTALL)  # strings, and what is between them
datasets.features.features.ujson_loads = json.loads  # ujson rounds decimal numbers, and fails for whole ones beyond 64 bits
ARROW_TYPES = {str: "string", bool: "bool", int: "int64", float: "float64", type(None): "null"}


def _object(pairs: list[tuple[str, Any]]) -> dict:
    """Return the object with these keys and values. Raise `UserError` if it has a key twice: one value would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key, n = Counter(key for key, _ in pairs).most_common(1)[0]
        raise UserError(f"an object has the key {key!r} {n} times: remove or rename all but one of them")
    return content


DECODER = json.JSONDecoder(parse_constant=lambda constant: None, object_pairs_hook=_object)  # NaN becomes None


def read_json(files: list[Path], encoding: str | None, remarks: list[str]) -> Tables | dict[str, Tables]:
    """Read rows in the usual forms of JSON.

    These are an object per line, a list of objects, an object with the rows under a key or with a key for each split, and an object
    with a key for each column, as pandas writes it.
    """
    if len(files) > 1 or _has_lines(files[0], encoding):
        if any(not _has_lines(file, encoding) for file in files):
            raise UserError(
                f"{files[0].parent}: a split has several .json files, which must then have an object per line: save them as .jsonl"
            )
        return _objects(files[0], lambda: (row for file in files for row in _json_lines(file, encoding)))
    with open_text(files[0], encoding) as opened:
        text = read_all(opened, files[0])
    if not text.strip():
        raise UserError(f"{files[0]}: it is empty")
    content = _load(text, files[0])
    tables = {"train": content} if isinstance(content, list) else _tables_of(content, files[0], remarks)
    for split, rows in tables.items():
        number = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
        if number is not None:
            raise UserError(f"{files[0]}: row {number} of {split} is not an object with names and values: {str(rows[number])[:80]}")
    return {split: _objects(files[0], lambda rows=rows: rows) for split, rows in tables.items()}


def _has_lines(file: Path, encoding: str | None) -> bool:
    """Return whether a file has an object on each line."""
    if ending(file) in (".jsonl", ".ndjson"):
        return True
    lines = (line for line in lines_of(file, encoding, longest=MAX_UNPACKED) if line.strip())
    try:
        return isinstance(json.loads(next(lines, "")), dict) and next(lines, None) is not None
    except (ValueError, RecursionError):
        return False


def _load(text: str, where: str | Path) -> Any:
    """Return the content of JSON; `where` begins the message of a `UserError`."""
    try:
        content = DECODER.decode(text)
    except RecursionError as error:
        raise UserError(f"{where}: {NESTED}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValueError as error:
        raise UserError(f"{where}: it is not valid JSON, or it is cut short ({error})") from error
    if "\\ud" in text or "\\uD" in text:  # U+FFFD replaces each lone surrogate, which is half of a character
        text = json.dumps(content, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        content = json.loads(text)
    return content


def check_file(file: Path) -> None:
    """Raise `UserError` for values that are nested so deep that the reader of `datasets` crashes."""
    depth = 0
    with open_bytes(file) as opened:
        for number, line in enumerate(opened, 1):
            for bracket in NO_BRACKETS.sub(b"", line):
                depth += 1 if bracket in b"[{" else -1
                if depth > MAX_NESTING:
                    raise UserError(f"{file}: line {number:,}: {NESTED}")


def _json_lines(file: Path, encoding: str | None) -> Iterator[dict]:
    """Yield the object on each line."""
    for number, line in enumerate(lines_of(file, encoding), 1):
        if line.strip() in ("[", "{"):
            remedy = "name the file .json" if line.strip() == "[" else "write it so, or name a file with a single object .json"
            raise UserError(f"{file}: line {number:,} is only {line.strip()}, but each line must be a whole object: {remedy}")
        if line.strip():
            row = _load(line, f"{file}: line {number:,}")
            if not isinstance(row, dict):
                hint = ": name a file with a list of rows .json" if isinstance(row, list) else ""
                raise UserError(f"{file}: line {number:,} is not an object with names and values: {line[:80]}{hint}")
            yield row


def _tables_of(content: dict, file: Path, remarks: list[str]) -> dict[str, list]:
    """Return the rows of each split of a file that is one object. They are train if a single key holds rows and names no other split."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: it has no rows, only {str(content)[:80]}: write a list of objects, or an object per line")
    tables = {key: value for key, value in content.items() if value and isinstance(value, list) and isinstance(value[0], dict)}
    if tables:
        others = [key for key, value in content.items() if key not in tables and isinstance(value, list | dict)]
        named = {key: re.sub(r"\W", "_", key.lower()) for key in tables if split_words(key)}
        if without_rows := [key for key in others if named and split_words(key)]:
            raise UserError(f"{file}: its key {without_rows[0]} holds no list of objects: write its rows so, or remove the key")
        if len(tables) > 1 and len({*named.values()}) < len(tables):
            keys = ", ".join(tables)
            raise UserError(f"{file}: several keys have rows, {keys}: keep one of them, or name them {', '.join(SPLITS)}")
        if others:
            remarks.append(f"{file.name}: its rows are those of {', '.join(tables)}; not read: {', '.join(others)}")
        if len(tables) == 1 and all({*split_words(key).values()} <= {"train"} for key in tables):
            return {"train": next(iter(tables.values()))}
        return {named[key]: rows for key, rows in tables.items()}
    if content and all(isinstance(value, dict) for value in content.values()):  # a data frame of pandas: column -> row -> value
        rows = list(dict.fromkeys(row for column in content.values() for row in column))
        return {"train": [{name: column.get(row) for name, column in content.items()} for row in rows]}
    if content.keys() == {"columns", "index", "data"}:
        raise UserError(f'{file}: pandas wrote it with orient="split", which is not read: write it with orient="records"')
    if any(split_words(key) and isinstance(value, list) and value and isinstance(value[0], list) for key, value in content.items()):
        raise UserError(f'{file}: its rows are lists: write them as objects with names, such as {{"text": "a text", "label": "a"}}')
    if content and all(isinstance(value, list) for value in content.values()):
        if len(lengths := {len(value) for value in content.values()}) > 1:
            raise UserError(f"{file}: its columns have different lengths, {', '.join(map(str, sorted(lengths)))}: correct them")
        return {"train": as_rows(content)}
    return {"train": [content]}


def _objects(file: Path, rows: Callable[[], Iterable[dict]]) -> Tables:
    """Yield objects as tables. `rows` is called twice: to find the types of the columns, and to write the rows."""
    kinds: dict[str, set] = {}
    for row in rows():
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    if not kinds:
        raise UserError(f"{file}: it is empty")
    features = Features({name: _feature(column_kinds) for name, column_kinds in kinds.items()})
    json_columns = [name for name, feature in features.items() if isinstance(feature, Json)]
    for batch in batched(rows()):
        columns = {name: [row.get(name) for row in batch] for name in features}
        for name in json_columns:
            columns[name] = [None if value is None else json.dumps(value, ensure_ascii=False) for value in columns[name]]
        yield pyarrow.table(columns, features.arrow_schema)


def _kind(value: Any) -> tuple:
    """Return the kind of a value: an Arrow type; "list" and the type of its items; "object" and its keys, for texts; or "json"."""
    if isinstance(value, list):
        items = {_kind(item) for item in value}
        is_plain = len(items) < 2 and items <= {("string",), ("int64",), ("float64",)}
        return ("list", *items) if is_plain else ("json",)
    if isinstance(value, dict):
        return ("object", *value) if value and all(isinstance(item, str | None) for item in value.values()) else ("json",)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return ("json",)
    return (ARROW_TYPES.get(type(value), "json"),)


def _feature(kinds: set[tuple]) -> Any:
    """Return the feature of a column with values of these kinds."""
    forms = {form for form, *_ in kinds} - {"null"} or {"string"}  # only nulls: texts
    if forms == {"list"}:
        items = {item for _, *types in kinds for (item,) in types}
        if len(items) < 2:
            return List(Value(*items or ["string"]))
    if forms == {"object"}:
        keys = max(sorted(keys for _, *keys in kinds), key=len)
        if all({*others} <= {*keys} for _, *others in kinds):  # some lack keys of another
            return dict.fromkeys(keys, Value("string"))
    return Json() if len(forms) > 1 or forms & {"list", "object", "json"} else Value(*forms)
