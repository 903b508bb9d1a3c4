"""Annotations as Prodigy, Doccano and Label Studio write them, and lists that are written as text in the cell of a table."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset

from finetuning.data.cache import read_columns
from finetuning.data.labels import Encoded
from finetuning.data.text import renamed
from finetuning.errors import UserError
from finetuning.task import Rows

READINGS = {"characters": "characters", "utf-16": "UTF-16 units, as JavaScript does"}  # what `span_offsets` may count
BEYOND_16_BITS = re.compile("[\U00010000-\U0010ffff]")
ANSWERS = {"accept", "reject", "ignore"}  # in Prodigy's column `answer`


class Span(NamedTuple):
    start: int  # in characters or UTF-16 units, as the tool counts
    end: int
    label: str
    text: str | None = None  # what the span holds, if the tool writes it


class Remark(NamedTuple):
    """A remark on a row; `kind` continues the number of such remarks."""

    kind: str
    example: str


class Annotation(NamedTuple):
    """What is marked in a row."""

    marks: list  # a `Span` each, or a tag for each word
    remarks: list[Remark]
    missing: bool = False  # nobody has annotated the row


# --- Prodigy's answers ---------------------------------------------------------------------------------------------------


def accepted_rows(raw: dict[str, Dataset], columns: dict[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return which rows of each split Prodigy's column `answer` accepts, (rows,) bool, and a note on the others.

    A split without that column is not among them. Raise `UserError` if a split has no accepted row.
    """
    answers = {split: _answers(rows) for split, rows in raw.items() if "answer" in rows.column_names}
    values = {answer for split_answers in answers.values() for answer in split_answers}
    if not ANSWERS & values or not values <= {*ANSWERS, None} or "answer" in columns.values():
        return {}, []
    accepted = {split: np.array([answer == "accept" for answer in split_answers]) for split, split_answers in answers.items()}
    if nothing := [split for split, mask in accepted.items() if not mask.any()]:
        raise UserError(f"column answer: no row of split {nothing[0]} is accepted: accept some, or remove the column")
    counts = {
        answer: sum(split_answers.count(answer) for split_answers in answers.values()) for answer in ("reject", "ignore", None)
    }
    others = ", ".join(f"{count:,} {answer or 'without an answer'}" for answer, count in counts.items() if count)
    return accepted, [f"column answer, as Prodigy writes it: only rows with accept are used; left out: {others}"] if others else []


def _answers(rows: Dataset) -> list:
    feature, values = rows.features["answer"], read_columns(rows, "answer")["answer"].to_pylist()
    if isinstance(feature, ClassLabel):
        return [None if value is None else feature.names[value] for value in values]
    return values if getattr(feature, "dtype", None) in ("string", "large_string") else ["no answer of Prodigy"]


def read_accepted(raw: dict[str, Dataset], columns: dict[str, str], encode: Callable[[dict], Encoded]) -> Rows:
    """Return the rows of a data set with labels. Those that Prodigy's column `answer` does not accept are left out.

    `encode` returns the labels of some rows of each split.
    """
    accepted, remarks = accepted_rows(raw, columns)
    chosen = {split: rows.select(np.flatnonzero(accepted[split])) if split in accepted else rows for split, rows in raw.items()}
    labels, names, notes = encode(chosen)
    for split, mask in accepted.items():
        all_labels = np.zeros((len(mask), *labels[split].shape[1:]), dtype=labels[split].dtype)
        all_labels[mask] = labels[split]
        labels[split] = all_labels
    left_out = {split: ~mask for split, mask in accepted.items()}
    return Rows(renamed(raw, columns), labels, names, left_out, [*remarks, *notes])


# --- what is marked in a row ---------------------------------------------------------------------------------------------


def read_annotation(value: list | str | None, of_task: bool) -> Annotation:
    """Return the spans or the tags of a row.

    A span is [start, end, type], an object (Doccano, Prodigy, Label Studio's JSON_MIN), or a region of one of Label Studio's
    annotations. `of_task`: the row is a task of Label Studio, so that an empty list is no annotation. Raise `ValueError` for
    anything else, and `UserError` for what can be read in several ways.
    """
    items = parse_list(value)
    if (of_task and not items) or any(isinstance(item, dict) and "result" in item for item in items):
        return _annotation_of_task(items)
    if all(item is None or isinstance(item, str | int) for item in items):
        return Annotation(items, [])
    return Annotation([_span(item) for item in items], [])


def parse_list(value: list | str | None) -> list:
    """Return a list that is given as it is, or as text, as JSON or Python writes it; [] for none.

    Raise `ValueError` for anything else, and `UserError` for NumPy's form without commas, which Python reads as one long word.
    """
    items = value
    if isinstance(value, str):
        try:
            items = json.loads(value) if value.strip() else None
        except ValueError:
            items = _python_list(value.strip())
    if items is None or items != items:
        return []
    if not isinstance(items, list | tuple):
        raise ValueError(value)
    return [*items]


def _python_list(text: str):
    try:
        items = ast.literal_eval(text)
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(text) from error
    if any(kind == following == tokenize.STRING for kind, following in pairwise(kinds)):
        raise UserError(f"a list without commas, as NumPy writes it ({text[:40]}): save lists as JSON, with commas")
    return items


def _annotation_of_task(annotations: list[dict]) -> Annotation:
    """Return the spans of a task of Label Studio: those of the annotation that is ground truth, or else of the first one.

    Cancelled annotations do not count.
    """
    finished = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not finished:
        return Annotation([], [Remark("rows have no annotation, or only cancelled ones; they were left out", "")], missing=True)
    true = [annotation for annotation in finished if annotation.get("ground_truth")]
    candidates, spans, remarks = true or finished, [], []
    if len(candidates) > 1:
        remarks.append(Remark("rows have several annotations; the first one was read", f"{len(candidates)} annotations"))
    for part in candidates[0]["result"] or []:
        value = part.get("value") or {}
        if any(name.endswith("labels") and labels for name, labels in value.items()):
            spans.append(_span(value))
        else:
            kind = f"parts of annotations, of type {part.get('type')}, are no spans with labels; they were passed over"
            remarks.append(Remark(kind, ""))
    return Annotation(spans, remarks)


def _span(item: list | dict) -> Span:
    """Raise `ValueError` for what is no span, and `UserError` for one with several labels."""
    text = None
    if isinstance(item, dict):
        item = item["value"] if isinstance(item.get("value"), dict) else item
        text = item["text"] if isinstance(item.get("text"), str) else None
        names = ("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "type", "entity", "tag")
        item = [next((item[name] for name in several if item.get(name) not in (None, "", [])), None) for several in names]
    if not isinstance(item, list | tuple) or len(item) != 3:
        raise ValueError(item)
    start, end, label = item
    if isinstance(label, list) and label:
        if len({*label}) > 1:
            raise UserError(f"the span from {start} to {end} has several labels, {', '.join(map(str, label))}: keep one")
        label = label[0]
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str)):
        raise ValueError(item)
    return Span(start, end, label, text)


# --- offsets -------------------------------------------------------------------------------------------------------------


def offset_in_characters(text: str, offset: int) -> int:
    """Return an offset in UTF-16 units as one in characters; -1 if it is beyond the text or inside a character."""
    units = text.encode("utf-16-le")[: 2 * max(offset, 0)]
    try:
        return len(units.decode("utf-16-le")) if len(units) == 2 * offset else -1
    except UnicodeDecodeError:
        return -1


def in_characters(text: str, span: Span, reading: str) -> Span:
    """Return a span whose offsets count what `reading` says with offsets in characters; -1 where there is no such place."""
    if reading == "characters" or text.isascii():
        return span
    return span._replace(start=offset_in_characters(text, span.start), end=offset_in_characters(text, span.end))


def settle_offsets(text: str, span: Span, reading: str) -> Span:
    """Return a span with offsets in characters. The text that the tool wrote beside it decides, or else `reading`.

    Raise `UserError` for a span outside of the text, and for one that holds something else than it says.
    """
    if reading == "characters" and 0 <= span.start < span.end <= len(text) and span.text in (None, text[span.start : span.end]):
        return span
    placed = {name: in_characters(text, span, name) for name in sorted(READINGS, key=lambda name: name != reading)}
    inside = {name: candidate for name, candidate in placed.items() if 0 <= candidate.start < candidate.end <= len(text)}
    if span.text is not None:
        words = span.text.split()
        if fitting := [candidate for candidate in inside.values() if text[candidate.start : candidate.end].split() == words]:
            return fitting[0]
        raise UserError(
            f"the span from {span.start} to {span.end} says that it holds {span.text!r}, and the text has "
            f"{text[slice(*placed[reading][:2])]!r} there: correct its offsets or remove it"
        )
    if reading not in inside:
        length = len(text) if reading == "characters" else len(text.encode("utf-16-le")) // 2
        cause = ": correct it"
        if inside:
            other = next(iter(inside))
            cause = f"; it fits if offsets count {READINGS[other]}, where an emoji is two: set span_offsets to {other}"
        raise UserError(f"a span goes from {span.start} to {span.end}, and the text has {length} {READINGS[reading]}{cause}")
    return inside[reading]


def readings_of(text: str, annotation: Annotation) -> Iterator[dict[str, Span]]:
    """Yield each span that differs between READINGS in each of them, with offsets in characters.

    Spans with a text of their own are left out: it tells what their offsets count.
    """
    if not BEYOND_16_BITS.search(text):
        return
    for span in annotation.marks:
        if isinstance(span, Span) and span.text is None:
            readings = {name: in_characters(text, span, name) for name in READINGS}
            if len({*readings.values()}) > 1:
                yield readings
