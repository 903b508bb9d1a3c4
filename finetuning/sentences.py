"""Sentences with their words and tags: from what a data set holds to rows of one form.

A row is a text, where its words start and end, and their tags (IOB2). Read are lists of words with tags, and texts with spans as
annotation tools write them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow.compute
import regex
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from config import Config
from finetuning.disk import map_once, read_columns
from finetuning.entities import tag_names
from finetuning.errors import UserError

PLACES = {"text": Value("string"), "starts": List(Value("int32")), "ends": List(Value("int32"))}
ROWS = Features(PLACES | {"tags": List(Value("string")), "remarks": List(Value("string"))})

TAG = regex.compile(r"([BIESLUM])[-_](.+)")
_WORD, _ALONE = r"[\p{L}\p{M}\p{N}_--\p{Han}\p{Hiragana}\p{Katakana}]", r"[\p{Han}\p{Hiragana}\p{Katakana}]"
WORDS = regex.compile(  # abbreviations; words with an apostrophe, full stop, ampersand or hyphen inside; 's; signs one by one
    rf"(?V1)(?:{_WORD}\.){{2,}}|{_WORD}+(?:(?:[.&-]|['’](?!s\b)|(?<=\d),(?=\d)){_WORD}+)*|['’]s\b|{_ALONE}|\S"
)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags of IOB1, IOB2, IOBES or BILOU as IOB2. Where an entity goes on that never began, it begins.

    Raises `ValueError` with the first tag that is of none of them.
    """
    found, open_type = [], None
    for tag in tags:
        match = TAG.fullmatch(tag)
        if not match and tag != "O":
            raise ValueError(tag)
        kind, name = match.groups() if match else ("O", None)
        goes_on = kind in "IMEL" and name == open_type
        found.append("O" if kind == "O" else f"{'I' if goes_on else 'B'}-{name}")
        open_type = name if kind in "BIM" else None
    return found


def find_words(text: str) -> tuple[list[int], list[int]]:
    """Where the words of a text start and end; each sign, and each character of scripts without spaces, is one."""
    found = [match.span() for match in WORDS.finditer(text)]
    return [start for start, _ in found], [end for _, end in found]


def read_spans(value: list | None) -> list[tuple[int, int, str]]:
    """(start, end, type) from what annotation tools write: [start, end, type] or fields of their own (Doccano, Prodigy,
    Label Studio). Raises `ValueError` for anything else."""
    found = []
    for one in value or []:
        if isinstance(one, dict) and "result" in one:  # Label Studio: one annotator's work; the first counts
            return read_spans(one["result"])
        if isinstance(one, dict):
            one = one.get("value", one)
            names = next((one[name] for name in ("label", "labels", "type", "entity", "tag") if one.get(name)), None)
            start, end = (next((one[name] for name in (side, f"{side}_offset") if name in one), None) for side in ("start", "end"))
            one = (start, end, names[0] if isinstance(names, list) else names)
        if len(one) != 3 or not (isinstance(one[0], int) and isinstance(one[1], int) and isinstance(one[2], str)):
            raise ValueError(one)
        found.append(tuple(one))
    return found


def tags_of_spans(
    text: str, spans: Iterable[tuple[int, int, str]], starts: list[int], ends: list[int]
) -> tuple[list[str], list[str]]:
    """IOB2 tags of the words, and in words what could not be taken as it is: a span off the words' borders is widened to the
    words that it touches, one that overlaps a longer one is left out. Raises `UserError` for a span outside the text."""
    tags, remarks = ["O"] * len(starts), []
    for start, end, name in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if not 0 <= start < end <= len(text):
            raise UserError(f"a span from {start} to {end}, and the text has {len(text)} characters")
        inside = [i for i in range(len(starts)) if starts[i] < end and ends[i] > start]
        if not inside or any(tags[i] != "O" for i in inside):
            remarks.append(f"{name} {text[start:end]!r} left out: it {'overlaps another' if inside else 'holds no word'}")
            continue
        whole = text[starts[inside[0]] : ends[inside[-1]]]
        if whole != text[start:end].strip():
            remarks.append(f"{name} {text[start:end]!r} widened to {whole!r}")
        tags[inside[0] : inside[-1] + 1] = [f"B-{name}", *[f"I-{name}"] * (len(inside) - 1)]
    return tags, remarks


def read_rows(
    raw: dict[str, Dataset], columns: dict[str, str], config: Config
) -> tuple[dict[str, Dataset], dict[str, np.ndarray], list[str], list[str]]:
    """Texts with their words' places and tags; held of each (rows,): the rarest type in it (-1: none).

    Raises `UserError`, with the row, for what is no text, no tag, or does not fit together.
    """
    read = {split: map_once(rows, _reader(rows, columns, split), ROWS, [columns, split]) for split, rows in raw.items()}
    found = {split: _tag_counts(rows) for split, rows in read.items()}
    types = sorted({tag[2:] for tag in found["train"]} - {""})
    if not types:
        raise UserError(f"label_column={columns['label']}: train has no entity in it: is it the right column?")
    for split, tags in found.items():
        if unknown := sorted({tag[2:] for tag in tags} - {"", *types}):
            places = read_columns(read[split], "tags")["tags"]
            row = next(i for i, tags in enumerate(places.to_pylist()) if any(tag[2:] in unknown for tag in tags))
            raise UserError(
                f"label_column={columns['label']}: split {split} has entities of a type that train lacks: {', '.join(unknown[:5])} "
                f"(first in row {row}); train has {', '.join(types)}"
            )
    names = tag_names(types)
    remarks = [
        f"row {row} of {split}: {remark}"
        for split, rows in read.items()
        for row, several in enumerate(read_columns(rows, "remarks")["remarks"].to_pylist())
        for remark in several
    ]
    rows = {split: one.remove_columns("remarks").cast_column("tags", List(ClassLabel(names=names))) for split, one in read.items()}
    often = np.array([found["train"][f"B-{name}"] for name in types])
    return rows, {split: _rarest(one, often) for split, one in rows.items()}, names, remarks


def _reader(rows: Dataset, columns: dict[str, str], split: str) -> Callable[[dict, list[int]], dict]:
    """What makes rows of the form `ROWS` out of a split's own."""
    feature = rows.features[columns["label"]]
    names = feature.feature.names if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel) else None

    def read(text: str | list[str], label: list) -> dict:
        placed = place(text)
        if isinstance(text_of(text), str):
            tags, remarks = tags_of_spans(placed["text"], read_spans(label), placed["starts"], placed["ends"])
            return placed | {"tags": tags, "remarks": remarks}
        if len(text) != len(label or []):
            raise UserError(f"{len(text)} words and {len(label or [])} tags")
        if not names and any(isinstance(tag, int) for tag in label):
            raise UserError(
                "its tags are numbers, and the data set does not say what they mean: give them as words (O, B-PER, I-PER)"
            )
        tags = [names[tag] for tag in label] if names else label
        if "" in tags or None in tags:
            number = next(i for i, tag in enumerate(tags) if not tag)
            raise UserError(f"its word {number + 1}, {text[number]!r}, has no tag")
        try:
            return placed | {"tags": to_iob2(tags), "remarks": []}
        except ValueError as error:
            raise UserError(f"the tag {error.args[0]!r} is of no scheme known: IOB1, IOB2, IOBES, BILOU, as in B-PER") from error

    def read_batch(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        found = []
        for row, text, label in zip(positions, batch[columns["text"]], batch[columns["label"]], strict=True):
            try:
                found.append(read(text, label))
            except (UserError, ValueError, TypeError, KeyError, IndexError) as error:
                what = error if isinstance(error, UserError) else f"its entities are of no form known: {error}"
                raise UserError(
                    f"text_column={columns['text']}, label_column={columns['label']}: row {row} of split {split}: {what}"
                ) from error
        return {name: [one[name] for one in found] for name in ROWS}

    return read_batch


def text_of(value) -> str | list[str]:
    """A text or a list of words, out of what a row may hold (Label Studio: {"text": ...})."""
    if isinstance(value, dict):
        value = value.get("text")
    if not value or not (value.strip() if isinstance(value, str) else all(isinstance(word, str) for word in value)):
        raise UserError("it holds no words: remove it, or set text_column to the column that has them")
    return value


def place(value: str | list[str]) -> dict:
    """The text and where its words start and end; words that came by themselves are joined with spaces."""
    value = text_of(value)
    if isinstance(value, str):
        starts, ends = find_words(value)
        return {"text": value, "starts": starts, "ends": ends}
    ends = np.cumsum([len(word) + 1 for word in value]) - 1
    starts = ends - [len(word) for word in value]
    return {"text": " ".join(value), "starts": starts.tolist(), "ends": ends.tolist()}


def _tag_counts(rows: Dataset) -> Counter:
    tags = pyarrow.compute.value_counts(pyarrow.compute.list_flatten(read_columns(rows, "tags")["tags"]))
    return Counter({one["values"]: one["counts"] for one in tags.to_pylist()})


def _rarest(rows: Dataset, often: np.ndarray) -> np.ndarray:
    """Of each row the number of the type in it that train has least `often`, -1 where it has none."""
    tags = read_columns(rows, "tags")["tags"].combine_chunks()
    codes, parents = tags.flatten().to_numpy(), pyarrow.compute.list_parent_indices(tags).to_numpy()
    order = np.argsort(often, kind="stable")  # rarest first
    rank = np.full(len(rows), len(often))
    begins = codes % 2 == 1
    np.minimum.at(rank, parents[begins], np.argsort(order)[codes[begins] // 2])
    return np.append(order, -1)[rank]
