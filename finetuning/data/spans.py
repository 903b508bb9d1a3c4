"""Read sentences with named entities from the rows of a data set.

A row is a list of words with a tag for each, or a text with spans, as annotation tools write it (annotations.py). It becomes a text
with the offsets of its words and an IOB2 tag for each word. Tags are stored as codes: 0 outside of entities, 1 + 2 t for the first
word of an entity of type number t, 2 + 2 t for each further word.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow.compute
from datasets import ClassLabel, Dataset, Features, List, Value

from config import Config
from finetuning.data.annotations import (
    OFFSET_UNITS,
    TAG,
    Annotation,
    Span,
    accepted_rows,
    parse_list,
    read_annotation,
    settle_offsets,
)
from finetuning.data.cache import map_once, read_column
from finetuning.data.content import class_names, holds_texts
from finetuning.data.labels import alike
from finetuning.data.words import DIVIDED, WORDS, divide_words, find_words
from finetuning.errors import UserError, listed
from finetuning.task import Rows

WORD_COLUMNS = ("tokens", "words")  # usual names of columns
TAG_COLUMNS = ("ner_tags", "tags")
SPAN_COLUMNS = ("spans", "entities", "annotations", "label", "labels")
MAX_CHARACTERS_SHOWN = 100  # of an entity that can't be read, in an error message
ROWS_CHECKED = 1_000  # first rows of a table, to see whether each is a single word

PLACES = {"text": Value("string"), "starts": List(Value("int32")), "ends": List(Value("int32"))}
REMARKS = List({"kind": Value("string"), "example": Value("string")})
FEATURES = Features(PLACES | {"tags": List(Value("string")), "remarks": REMARKS, "left_out": Value("bool")})
NO_WORDS = {"text": "", "starts": [], "ends": [], "tags": [], "remarks": [], "left_out": False}
LIST_OF_WORDS = re.compile(r"""\s*\[\s*(?:['"].*['"]\s*)?\]\s*""", re.DOTALL)


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the tag of each code: O, B-PER, I-PER, ..."""
    return ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def types_of(tags: Sequence[str]) -> list[str]:
    """Return the types of entities, in the order in which `tag_names` gives their tags."""
    return [name[2:] for name in tags[1::2]]


# --- one row -------------------------------------------------------------------------------------------------------------


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Convert tags of IOB1, IOB2, IOBES or BILOU to IOB2. An inside tag without an entity before it begins an entity.

    Raise `ValueError` with the first tag that belongs to none of these schemes.
    """
    iob2, open_type = [], None
    for tag in tags:
        match = TAG.fullmatch(tag)
        if not match:
            raise ValueError(tag)
        prefix, name = match.groups("O")
        continues = prefix in "IMEL" and name == open_type
        iob2.append("O" if prefix == "O" else f"{'I' if continues else 'B'}-{name}")
        open_type = name if prefix in "BIM" else None
    return iob2


def text_of(value: str | list[str] | dict | None) -> str | list[str] | None:
    """Return the text or the list of words of a row; None, "" or [] if it has no word.

    `value` may be a task of Label Studio, {"text": ...}, or a list of words that is written as text. Raise `UserError` for a task
    with several texts.
    """
    if isinstance(value, dict) and "text" not in value:
        texts = {name: text for name, text in value.items() if isinstance(text, str)}
        if len(texts) != 1:
            raise UserError(f"its data has no `text`, only {', '.join(value)}: name the text that was annotated `text`")
        value = texts.popitem()[1]
    text = value["text"] if isinstance(value, dict) else value
    if isinstance(text, str) and LIST_OF_WORDS.fullmatch(text):
        try:
            return parse_list(text)
        except ValueError:
            return text
    return "" if isinstance(text, str) and not WORDS.search(text) else text


def place(value: str | list[str] | dict) -> dict:
    """Return the text of a row, and the offsets where its words start and end. A list of words is joined with spaces.

    Raise `UserError` for a value without words.
    """
    text = text_of(value)
    if text and isinstance(text, str):
        starts, ends = find_words(text)
        return {"text": text, "starts": starts, "ends": ends}
    if not text or not isinstance(text, list):
        raise UserError("it has no words: remove the row, or set text_column to the column with the words")
    for number, word in enumerate(text, 1):
        if not isinstance(word, str):  # pandas reads the words NA and null as missing values
            raise UserError(f"its word {number} is {word!r}, which is no text: write it as a text, or remove the row")
    ends = np.cumsum([len(word) + 1 for word in text]) - 1
    starts = ends - [len(word) for word in text]
    return {"text": " ".join(text), "starts": starts.tolist(), "ends": ends.tolist()}


def read_row(text: str | list[str], annotation: Annotation, names: list[str] | None, unit: str | None) -> dict:
    """Return the columns `FEATURES` of a row. `names`: those of the tags, if they are numbers. `unit` is as in `settle_offsets`."""
    if annotation.missing:
        return {"left_out": True, "remarks": annotation.remarks}
    marks, placed, is_text = annotation.marks, place(text), isinstance(text, str)
    if marks and isinstance(marks[0], Span) != is_text:
        kinds = "a text but label_column a tag for each word" if is_text else "a list of words but label_column spans in a text"
        raise UserError(f"text_column holds {kinds}: give a list of words with a tag for each, or a text with spans")
    if not is_text:
        return placed | {"tags": read_tags(text, marks, names)}
    spans = [settle_offsets(text, span, unit) for span in marks]
    moved = [span for span, original in zip(spans, marks, strict=True) if span[:2] != original[:2]]
    columns = divide_words(text, spans, placed["starts"], placed["ends"])
    kind = f"spans hold the text that the tool wrote with them only if offsets count {OFFSET_UNITS['utf-16']}; they were read in this way"
    converted = [dict(kind=kind, example=f"{span.label} {span.text!r}") for span in moved if unit != "utf-16"]
    return columns | {"remarks": [*annotation.remarks, *converted, *columns["remarks"]]}


def read_tags(words: list[str], tags: list, names: list[str] | None) -> list[str]:
    """Return the IOB2 tags of a list of words."""
    if len(words) != len(tags):
        raise UserError(f"it has {len(words)} words but {len(tags)} tags: give a tag for each word")
    if not names and any(isinstance(tag, int) for tag in tags):
        raise UserError("its tags are numbers, but the data set has no names for them: write tags as texts (O, B-PER, I-PER)")
    if names:
        tags = [names[tag] if tag in range(len(names)) else None for tag in tags]  # -1: no tag
    if "" in tags or None in tags:
        number = next(i for i, tag in enumerate(tags) if not tag)
        raise UserError(f"its word {number + 1}, {words[number]!r}, has no tag: write O if it belongs to no entity")
    try:
        return to_iob2(tags)
    except ValueError as error:
        schemes = "IOB1, IOB2, IOBES or BILOU, as in B-PER"
        raise UserError(f"the tag {error.args[0]!r} belongs to no known scheme: write tags as {schemes}") from error


# --- a data set ----------------------------------------------------------------------------------------------------------


def read(raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
    """Return texts with the offsets and tags of their words. The label of a row, (rows,), is its rarest type, -1 without entities.

    Raise `UserError`, with the row, for a value that is no text or no tag, or for words and tags that do not match.
    """
    for split, split_rows in raw.items():
        _refuse_single_words(split_rows, columns, split)
    accepted, remarks = accepted_rows(raw, columns)
    rows = {
        split: _read_rows(split, split_rows, columns, accepted.get(split), config.span_offsets) for split, split_rows in raw.items()
    }
    left_out = {split: read_column(split_rows, "left_out").to_numpy() for split, split_rows in rows.items()}
    if empty := [split for split, mask in left_out.items() if mask.all()]:
        raise UserError(f"label_column={columns['label']}: no row of split {empty[0]} is annotated: annotate some rows")
    counts = {  # of each tag
        split: Counter(pyarrow.compute.list_flatten(read_column(split_rows, "tags")).to_pandas().value_counts().to_dict())
        for split, split_rows in rows.items()
    }
    types = sorted({tag[2:] for tag in counts["train"]} - {""})
    if not types:
        raise UserError(f"label_column={columns['label']}: train has no entity in it: set it to the column with the tags or spans")
    _check_types(rows, counts, types, columns["label"])
    if not config.span_offsets:
        for split, split_rows in rows.items():
            _refuse_shifted(split, split_rows, counts[split], columns["label"])
    names = tag_names(types)
    coded = {
        split: split_rows.select_columns([*PLACES, "tags"]).cast_column("tags", List(ClassLabel(names=names)))
        for split, split_rows in rows.items()
    }
    frequency = np.array([counts["train"][f"B-{name}"] for name in types])
    return Rows(
        columns=coded,
        labels={split: _rarest_type(split_rows, frequency) for split, split_rows in coded.items()},
        label_names=names,
        left_out=left_out,
        remarks=[*remarks, *_summarize(rows), *alike(types, columns["label"])],
    )


def _refuse_single_words(rows: Dataset, columns: dict[str, str], split: str) -> None:
    """Raise `UserError` if most of the first rows are a single word with its tag."""
    column, first = columns["label"], rows.select(range(min(len(rows), ROWS_CHECKED)))
    if not holds_texts(rows.features[column]):
        return
    tags = pyarrow.compute.match_substring_regex(read_column(first, column), r"^(O|[BIESLUM][-_]\S+)$").drop_null()
    if len(tags) and pyarrow.compute.mean(tags).as_py() > 0.5:
        raise UserError(
            f"text_column={columns['text']}, label_column={column}: the rows of split {split} are single words with their tags, so "
            "the ends of sentences are unknown: save them as a .conll file, with a word and its tag per line and an empty line "
            "after each sentence"
        )


def _read_rows(split: str, rows: Dataset, columns: dict[str, str], accepted: np.ndarray | None, unit: str | None) -> Dataset:
    """Return the columns `FEATURES` of each row; empty values for rows without text or that are not `accepted`, (rows,) bool.

    `unit`: the unit of offsets, a key of `OFFSET_UNITS`, or None.
    """
    names = class_names(rows.features[columns["label"]])

    def read_batch(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        new_rows = []
        for number, value, label in zip(positions, batch[columns["text"]], batch[columns["label"]], strict=True):
            row = NO_WORDS | {"left_out": accepted is not None and not accepted[number]}
            try:
                if not row["left_out"] and (text := text_of(value)):
                    row |= read_row(text, read_annotation(label, isinstance(value, dict)), names, unit)
            except (UserError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                remedy = "write them as [start, end, type], or write a list of words and a list of tags"
                form = f"its entities have an unknown form: {str(error)[:MAX_CHARACTERS_SHOWN]}: {remedy}"
                problem = error if isinstance(error, UserError) else form
                raise UserError(
                    f"text_column={columns['text']}, label_column={columns['label']}: row {number} of split {split}: {problem}"
                ) from error
            new_rows.append(row)
        return {name: [row[name] for row in new_rows] for name in FEATURES}

    return map_once(rows, read_batch, FEATURES, [columns, split, accepted, unit])


def _refuse_shifted(split: str, rows: Dataset, tags: Counter, column: str) -> None:
    """Raise `UserError` if most spans of a split begin or end inside a word: their offsets probably count in another way."""
    n_spans = sum(count for tag, count in tags.items() if tag.startswith("B-"))
    remarks = pyarrow.compute.list_flatten(read_column(rows, "remarks"))
    n_divided = pyarrow.compute.struct_field(remarks, "kind").to_pylist().count(DIVIDED)
    if 2 * n_divided > n_spans:
        raise UserError(
            f"label_column={column}: {n_divided:,} of {n_spans:,} spans of {split} begin or end inside a word: offsets must count "
            "characters from 0, and the end is after the last one; if yours are right, set span_offsets to characters"
        )


def _summarize(rows: dict[str, Dataset]) -> list[str]:
    """Return a note for each kind of remark: how many there are, their first rows, and the first example."""
    remarks = pd.DataFrame(
        [
            remark | {"split": split, "row": number}
            for split, split_rows in rows.items()
            for number, row_remarks in enumerate(read_column(split_rows, "remarks").to_pylist())
            for remark in row_remarks
        ],
        columns=["kind", "example", "split", "row"],
    )
    lines = []
    for kind, group in remarks.groupby("kind", sort=False):
        places = (f"row {listed(part.row.unique())} of {split}" for split, part in group.groupby("split", sort=False))
        example = group.example.iloc[0]
        lines.append(f"{len(group):,} {kind} ({', '.join(places)}{'; first: ' + example if example else ''})")
    return lines


def _check_types(rows: dict[str, Dataset], counts: dict[str, Counter], types: list[str], column: str) -> None:
    """Raise `UserError` if a split has an entity of a type that train lacks."""
    for split, tags in counts.items():
        unknown = sorted({tag[2:] for tag in tags} - {"", *types})
        if unknown:
            row_tags = read_column(rows[split], "tags").to_pylist()
            first = next(i for i, tags in enumerate(row_tags) if any(tag[2:] in unknown for tag in tags))
            raise UserError(
                f"label_column={column}: split {split} has entities of a type that train lacks: {listed(unknown)} (first in row "
                f"{first}); train has {', '.join(types)}"
            )


def _rarest_type(rows: Dataset, frequency: np.ndarray) -> np.ndarray:
    """Return the rarest entity type of each row, (rows,), -1 without entities.

    `frequency`: the count of each type in train, (types,).
    """
    tags = read_column(rows, "tags").combine_chunks()
    codes, row_of_word = tags.flatten().to_numpy(), pyarrow.compute.list_parent_indices(tags).to_numpy()
    rarest_first = np.argsort(frequency, kind="stable")
    rank = np.full(len(rows), len(frequency))
    begins = codes % 2 == 1
    np.minimum.at(rank, row_of_word[begins], np.argsort(rarest_first)[codes[begins] // 2])
    return np.append(rarest_first, -1)[rank]
