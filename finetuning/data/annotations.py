"""Read annotations of Prodigy, Doccano and Label Studio, and lists that are written as text, as in a table."""

import ast
import json
import re
from collections import Counter
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset

from finetuning.data.content import holds_texts
from finetuning.data.label_forms import distinct_names, read_list
from finetuning.errors import UserError

OFFSET_UNITS = {  # value of `span_offsets` -> its unit in messages
    "characters": "characters",
    "utf-16": "UTF-16 units, as JavaScript does",
}
LABEL_KEYS = ("label", "labels", "type", "entity_type", "entity_group", "category", "entity", "tag")  # of a span; the first counts
TAG = re.compile(r"O|([BIESLUM])[-_](.+)")  # of a word, in the schemes IOB1, IOB2, IOBES and BILOU
ANSWERS = {"accept", "reject", "ignore"}  # values of Prodigy's column `answer`


class Span(NamedTuple):
    """A part of a text with a label."""

    start: int  # in characters or UTF-16 units, as the tool writes it
    end: int  # the offset after the last character
    label: str
    text: str | None = None  # the text of the span, if the tool writes it


class Annotation(NamedTuple):
    """The spans or tags of a row."""

    marks: list  # of `Span`, or of tags, one for each word
    remarks: list[dict]  # `kind` and `example` of each; a message counts them by `kind`, which continues it: "3 spans ..."
    missing: bool = False  # True if nobody has annotated the row


# --- Prodigy's answers ---------------------------------------------------------------------------------------------------


def accepted_rows(raw: dict[str, Dataset], columns: dict[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return True for the rows that Prodigy's column `answer` accepts, (rows,) bool for each split, and a note on the others.

    Splits without that column are not in the result. Raise `UserError` if a split has no accepted row.
    """
    answers = {}
    for split, rows in raw.items():
        feature = rows.features.get("answer")
        if isinstance(feature, ClassLabel) or holds_texts(feature):
            cells = distinct_names(rows, "answer")
            answers[split] = cells.per_row(cells.values, None)
    counts = Counter(answer for split_answers in answers.values() for answer in split_answers)
    if not ANSWERS & counts.keys() or not counts.keys() <= {*ANSWERS, None} or "answer" in columns.values():
        return {}, []
    accepted = {split: np.array([answer == "accept" for answer in split_answers]) for split, split_answers in answers.items()}
    if empty := [split for split, mask in accepted.items() if not mask.any()]:
        raise UserError(f"column answer: no row of split {empty[0]} is accepted: accept some, or remove the column")
    left_out = [answer for answer in ("reject", "ignore", None) if counts[answer]]
    others = ", ".join(f"{counts[answer]:,} {answer or 'without an answer'}" for answer in left_out)
    return accepted, [f"column answer, as Prodigy writes it: only rows with accept are used; left out: {others}"] if others else []


# --- spans and tags ------------------------------------------------------------------------------------------------------


def read_annotation(value: list | str | None, is_task: bool) -> Annotation:
    """Return the spans or the tags of a row.

    A span is [start, end, type], an object (Doccano, Prodigy, Label Studio's JSON_MIN), or a region in an annotation of Label
    Studio. `is_task`: the row is a task of Label Studio, where an empty list means that nobody has annotated it. Raise `ValueError`
    for any other form, and `UserError` for a value that can be read in several ways.
    """
    items = parse_list(value)
    if not is_task and (value is None or value != value or (isinstance(value, str) and not value.strip())):
        return Annotation(
            [], [dict(kind="rows have no value in the label column; they were read as texts without entities", example="")]
        )
    if (is_task and not items) or any(isinstance(item, dict) and "result" in item for item in items):
        return _annotation_of_task(items)
    if all(item is None or isinstance(item, str | int) for item in items):
        return Annotation(items, [])
    return Annotation([_span(item) for item in items], [])


def parse_list(value: list | str | None) -> list:
    """Return a list, which JSON, Python or NumPy may have written as text; [] for None. Raise `ValueError` for any other value."""
    if isinstance(value, str):
        text = value.strip()
        value = read_list(text) if text else []
        value = _nested(text) if value is None else value
    if value is None or value != value:
        return []
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    return [*value]


def _nested(text: str) -> Any:
    """Return a value with lists or objects in it that JSON or Python wrote as text. Raise `ValueError` for any other text."""
    for read_text in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read_text(text)
    raise ValueError(text)


def _annotation_of_task(annotations: list[dict]) -> Annotation:
    """Return the spans of a task of Label Studio: those of its ground truth, or else of its first annotation.

    Cancelled annotations are ignored.
    """
    finished = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not finished:
        return Annotation(
            [], [dict(kind="rows have no annotation, or only cancelled ones; they were left out", example="")], missing=True
        )
    ground_truth = [annotation for annotation in finished if annotation.get("ground_truth")]
    candidates, spans, remarks = ground_truth or finished, [], []
    if len(candidates) > 1:
        remarks.append(dict(kind="rows have several annotations; the first one was read", example=f"{len(candidates)} annotations"))
    for part in candidates[0]["result"] or []:
        value = part.get("value") or {}
        if any(name.endswith("labels") and labels for name, labels in value.items()):
            spans.append(_span(value))
        else:
            kind = f"parts of annotations, of type {part.get('type')}, are no spans with labels; they were ignored"
            remarks.append(dict(kind=kind, example=""))
    return Annotation(spans, remarks)


def _span(item: list | dict) -> Span:
    """Return a span from a list or an object. Raise `ValueError` if it is no span, and `UserError` if it has several labels."""
    text = None
    if isinstance(item, dict):
        item = item["value"] if isinstance(item.get("value"), dict) else item
        text = item["text"] if isinstance(item.get("text"), str) else None
        keys = ("start", "start_offset"), ("end", "end_offset"), LABEL_KEYS
        item = [next((item[key] for key in synonyms if item.get(key) not in (None, "", [])), None) for synonyms in keys]
    if not isinstance(item, list | tuple) or len(item) != 3:
        raise ValueError(item)
    start, end, label = item
    if isinstance(label, list) and label:
        if len({*label}) > 1:
            raise UserError(f"the span from {start} to {end} has several labels, {', '.join(map(str, label))}: keep one of them")
        label = label[0]
    if not (type(start) is type(end) is int and isinstance(label, str) and label.strip()):  # True is no offset
        raise ValueError(item)
    return Span(start, end, label.strip(), text)


# --- offsets -------------------------------------------------------------------------------------------------------------


def settle_offsets(text: str, span: Span, unit: str | None) -> Span:
    """Convert the offsets of a span to characters: from the unit in which it holds its own `text`, or else from `unit`.

    Raise `UserError` for a span that is outside of the text, or whose `text` differs from the text at its offsets. If `unit` is None,
    also refuse a span that means different texts in the two units.
    """
    usual = unit or "characters"
    placed = {"characters": span, "utf-16": span}
    if not text.isascii():
        places = {n: i for i, n in enumerate(accumulate((1 + (character > "\uffff") for character in text), initial=0))}
        placed["utf-16"] = span._replace(start=places.get(span.start, -1), end=places.get(span.end, -1))  # -1: no such offset
    inside = {name: placed[name] for name in (usual, *placed) if 0 <= placed[name].start < placed[name].end <= len(text)}
    if span.text is not None:
        words = span.text.split()
        if fitting := [candidate for candidate in inside.values() if text[candidate.start : candidate.end].split() == words]:
            return fitting[0]
        raise UserError(
            f"the span from {span.start} to {span.end} has the text {span.text!r}, but the row has "
            f"{text[slice(*placed[usual][:2])]!r} at these offsets: correct the offsets, or remove the span"
        )
    if unit is None and inside and len({*placed.values()}) > 1:
        texts = {name: text[slice(*inside[name][:2])] if name in inside else "" for name in OFFSET_UNITS}
        meanings = " or ".join(f"{texts[name]!r} if offsets count {words}" for name, words in OFFSET_UNITS.items())
        raise UserError(
            f"the span from {span.start} to {span.end} is {meanings}, where an emoji counts as two: set span_offsets to "
            f"{' or '.join(OFFSET_UNITS)}"
        )
    if usual not in inside:
        length = len(text) if usual == "characters" else len(text.encode("utf-16-le")) // 2
        remedy = ": correct or remove it"
        if inside:
            other = next(iter(inside))
            remedy = f"; it fits if offsets count {OFFSET_UNITS[other]}, where an emoji counts as two: set span_offsets to {other}"
        raise UserError(f"a span goes from {span.start} to {span.end}, but the text has {length} {OFFSET_UNITS[usual]}{remedy}")
    return inside[usual]
