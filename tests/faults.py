"""Damaged files, hostile input and failures of the Hub, for reliability.py."""

import contextlib
import copy
import gzip
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
from conftest import change_a_byte
from test_hostile import LISTS, OBJECTS
from test_hub_faults import REFUSALS, cut, stall

# --- damaged files -------------------------------------------------------------------------------------------------------


def damage(draw: random.Random, file: Path) -> str:
    """Damage a file in a random way, and return how."""
    content = file.read_bytes()
    size, ways = len(content), ["flip", "cut", "zeros", "doubled", "removed", "appended", "empty", "bytes"]
    with contextlib.suppress(ValueError):
        record = json.loads(content)
        ways += ["json"] * 8
    way, start = draw.choice(ways), draw.randrange(max(size, 1))
    end = min(size, start + draw.choice((1, 10, 100, 4096)))
    if way == "json":
        way, content = swap(draw, record)
    elif way == "flip":
        bit = draw.randrange(8)
        way, content = (
            f"bit {bit} of byte {start} flipped",
            content[:start] + bytes([content[start] ^ 1 << bit]) + content[start + 1 :],
        )
    elif way == "cut":
        way, content = f"cut to {start} bytes", content[:start]
    elif way == "zeros":
        way, content = f"zeros from {start} to {end}", content[:start] + bytes(end - start) + content[end:]
    elif way == "bytes":
        way, content = f"random bytes from {start} to {end}", content[:start] + draw.randbytes(end - start) + content[end:]
    elif way == "doubled":
        start, end = content.rfind(b"\n", 0, start) + 1, content.find(b"\n", start) + 1 or size
        way, content = f"the line from {start} to {end} doubled", content[:end] + content[start:end] + content[end:]
    elif way == "removed":
        way, content = f"bytes from {start} to {end} removed", content[:start] + content[end:]
    elif way == "appended":
        content += draw.choice((b"\n", b"{}", b"\0" * 100, b"\xff\xfe", b"x"))
    else:
        content = b""
    file.write_bytes(content)
    return way


VALUES = (None, True, -1, 0, 0.5, 10**30, 1e308, float("nan"), "", "x", "\x1b[31m", "../../x", [], {}, [[]], {"x": None})


def swap(draw: random.Random, record) -> tuple[str, bytes]:
    """Replace, remove or exchange a random value of a JSON file; return how, and the new content."""
    places = []  # (holder, key)

    def visit(value) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            places.append((value, key))
            visit(inner)

    visit(record)
    if not places:
        return "null", b"null"
    holder, key = draw.choice(places)
    way = f"{str(key)[:100]}={str(holder[key])[:100]} "
    if draw.random() < 0.2:
        way += "removed"
        del holder[key]
    else:
        other_holder, other = draw.choice(places)
        another = copy.deepcopy(other_holder[other])  # a value may hold itself otherwise
        holder[key] = draw.choice((*VALUES, another, another, str(holder[key])))
        way += f"replaced by {str(holder[key])[:100]!r}"
    return way, json.dumps(record, indent=1).encode()


# --- the Hub -------------------------------------------------------------------------------------------------------------


def send(body: bytes, status: int = 200, **headers) -> Callable:
    return lambda request: request.send(body, status, headers) or True


def longer(request) -> bool:
    """Promise more bytes than there are."""
    request.send(b"{}", headers={"Content-Length": "100"})
    request.close_connection = True
    return True


FAULTS = {name: refuse for name, (refuse, _) in REFUSALS.items()} | {
    "half of a file": lambda request: request.file is not None and request.file.is_file() and cut(request),
    "no answer": stall,
    "another byte": lambda request: (
        request.file is not None
        and request.file.is_file()
        and (request.send_file(change_a_byte(request.file.read_bytes())) or True)
    ),
    "less than promised": longer,
    "nothing": send(b""),
    "a page in place of JSON or a file": send(b"<html>proxy: please log in</html>", **{"Content-Type": "text/html"}),
    "wrong JSON": send(b'[{"type": 1}, null]'),
    "a redirection to itself": lambda request: send(b"", 302, Location=request.path)(request),
}


# --- hostile input -------------------------------------------------------------------------------------------------------


class Bomb:
    """A pickle of it makes the folder "canary" where it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def packed(name: str, content: bytes, times: int = 1) -> bytes:
    """Return a zip archive with a file `name`; its content is repeated."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened, opened.open(name, "w", force_zip64=True) as file:
        for _ in range(times):
            file.write(content)
    return archive.getvalue()


def tar(name: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        member = tarfile.TarInfo(name)
        member.size = 6
        opened.addfile(member, io.BytesIO(b"a film"))
    return archive.getvalue()


def parquet(rows: int, characters: int) -> bytes:
    """Return a small parquet file whose texts are large in memory."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), ["x" * characters])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["a", "b"] * (rows // 2)}), file := io.BytesIO())
    return file.getvalue()


def csv(*rows: str) -> bytes:
    return "\n".join(rows).encode()


LINES = [f"a film {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
ROWS = csv("text,label", *LINES)
ESCAPES = "\x1b[31m\x9b2J\u202e\x07"
# Name -> the name of the data file, and its content or a function that makes it from the path, or makes the file.
DATA = {
    "lists nested 100,000 deep": ("rows.jsonl", lambda file: f'{{"text": "a", "label": {LISTS}}}\n'.encode() * 40),
    "objects nested 100,000 deep": ("rows.json", lambda file: f'[{{"text": "a", "label": {OBJECTS}}}]'.encode()),
    "control and bidi characters": (
        "rows.csv",
        csv(f"text{ESCAPES},label", *(f"{ESCAPES}{i},{ESCAPES}{i % 2}" for i in range(40))),
    ),
    "cells that are formulas": ("rows.csv", csv("text,label", *(f"=cmd|'/c calc'!A{i},@SUM({i % 2})" for i in range(40)))),
    "bytes that are not UTF-8": ("rows.csv", ROWS.replace(b"film", b"f\xefl\xff")),
    "UTF-16 without a mark": ("rows.csv", ROWS.decode().encode("utf-16-le")),
    "numbers beyond float64": (
        "rows.jsonl",
        "".join(f'{{"text": "{i}", "label": 1e999, "n": {10**400}}}\n' for i in range(40)).encode(),
    ),
    "two columns of one name": ("rows.csv", ROWS.replace(b"text,", b"text,text,").replace(b"a film", b"x,a film")),
    "100,000 columns": ("rows.csv", csv(",".join(map(str, range(100_000))), *[",".join("a" * 100_000)] * 3)),
    "a label for each row": ("rows.csv", csv("text,label", *(f"a,{i}x" for i in range(5000)))),
    "a quote that never ends": ("rows.csv", ROWS + b'\n"' + b"a,b\n" * 2_000_000),
    "a field of 20 MB": ("rows.csv", lambda file: ROWS + b"\n" + b"film " * 4_000_000 + b",good"),
    "a word of 50 MB": (
        "rows.jsonl",
        lambda file: b"".join(b'{"text": "%s", "label": "a"}\n' % (b"x" * n) for n in [5] * 40 + [50_000_000]),
    ),
    "500 texts of 100,000 characters": (
        "rows.csv",
        lambda file: csv("text,label", *(f"{'film ' * 20_000},{i % 2}" for i in range(500))),
    ),
    "a gz of 1 GiB of zeros": ("rows.csv.gz", lambda file: gzip.compress(bytes(2**24)) * 64),
    "a zip of 1 GiB of zeros": ("rows.csv.zip", lambda file: packed("rows.csv", bytes(2**24), 64)),
    "a zip with a name outside": ("rows.csv.zip", lambda file: packed("../../canary.csv", ROWS)),
    "a tar with a name outside": ("rows.tar.gz", lambda file: tar("../canary/train/pos/1.txt")),
    "a gz that is cut": ("rows.csv.gz", lambda file: gzip.compress(ROWS)[:-20]),
    "a parquet file of 100 MB of text": ("rows.parquet", lambda file: parquet(10**4, 10**4)),
    "nothing but zeros": ("rows.csv", bytes(100_000)),
    "an empty file": ("rows.csv", b""),
    "a folder in place of a file": ("rows.csv", os.mkdir),
    "a pipe in place of a file": ("rows.csv", os.mkfifo),
    "a device in place of a file": ("rows.csv", lambda file: os.symlink("/dev/zero", file)),
    "a link to itself": ("rows.csv", lambda file: os.symlink("rows.csv", file)),
    "a name of 300 characters": ("n" * 300 + ".csv", None),
}
CODE = {
    "code of a model": ("config.json", {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "hostile"}),
    "code of a tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}),
}
