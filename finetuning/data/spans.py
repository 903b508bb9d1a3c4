"""Sentences with entities: from the rows of a data set to texts with the places of their words and a tag for each.

Two kinds of rows are read: lists of words with their tags, and texts with spans, as annotation tools write them. A row that was
read is a text, where its words start and end, and their tags (IOB2). Tags are held as codes: 0 outside of entities, 1 + 2 t for
the first word of an entity of type number t, 2 + 2 t for each further word.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow.compute
import regex
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from config import Config
from finetuning.data.cache import map_once, read_columns
from finetuning.data.text import TEXT_COLUMNS, find_column
from finetuning.errors import UserError
from finetuning.task import Rows

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags")
SPAN_COLUMNS = ("spans", "entities", "annotations", "label", "labels")
MAX_TYPES_NAMED = 5  # in an error message

PLACES = {"text": Value("string"), "starts": List(Value("int32")), "ends": List(Value("int32"))}
FEATURES = Features(PLACES | {"tags": List(Value("string")), "remarks": List(Value("string"))})
NO_WORDS = {"text": "", "starts": [], "ends": [], "tags": [], "remarks": []}

TAG = regex.compile(r"([BIESLUM])[-_](.+)")
_CHARACTER = r"[\p{L}\p{M}\p{N}_--\p{Han}\p{Hiragana}\p{Katakana}]"
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_ABBREVIATION = rf"(?:{_CHARACTER}\.){{2,}}"
_WORD = rf"{_CHARACTER}+(?:(?:[.&-]|['’](?!s\b)|(?<=\d),(?=\d)){_CHARACTER}+)*"  # with an apostrophe, full stop, & or hyphen inside
WORDS = regex.compile(rf"(?V1){_ABBREVIATION}|{_WORD}|['’]s\b|{_WITHOUT_SPACES}|\S")


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the name of each code."""
    return ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def types_of(tags: Sequence[str]) -> list[str]:
    """Return the types from which `tag_names` made `tags`."""
    return [name[2:] for name in tags[1::2]]


def input_columns(available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    """Return the column with the texts, or with lists of their words."""
    usual = (*WORD_COLUMNS, *TEXT_COLUMNS, "data")
    if "text" in available and {*SPAN_COLUMNS} & {*available} and not {*TAG_COLUMNS} & {*available}:
        usual = ("text",)  # annotation tools write a column of words beside it, which differ from ours
    configured = [config.text_column] if config.text_column else []
    return {"text": find_column("text_column", text_column, (*configured, *usual), available)}


# --- one row -------------------------------------------------------------------------------------------------------------


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return tags of IOB1, IOB2, IOBES or BILOU as IOB2. A further word of an entity that never began begins it.

    Raise `ValueError` with the first tag that belongs to none of these schemes.
    """
    iob2, open_type = [], None
    for tag in tags:
        match = TAG.fullmatch(tag)
        if not match and tag != "O":
            raise ValueError(tag)
        prefix, name = match.groups() if match else ("O", None)
        continues = prefix in "IMEL" and name == open_type
        iob2.append("O" if prefix == "O" else f"{'I' if continues else 'B'}-{name}")
        open_type = name if prefix in "BIM" else None
    return iob2


def find_words(text: str) -> tuple[list[int], list[int]]:
    """Return where the words of a text start and end. Each punctuation mark and each character of scripts without spaces is a word."""
    places = [match.span() for match in WORDS.finditer(text)]
    return [start for start, _ in places], [end for _, end in places]


def read_spans(value: list | None) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of what annotation tools write: [start, end, type] or an object (Doccano, Prodigy, Label Studio).

    Raise `ValueError` for anything else.
    """
    spans = []
    for span in value or []:
        if isinstance(span, dict) and "result" in span:  # Label Studio: the work of one annotator; the first one counts
            return read_spans(span["result"])
        if isinstance(span, dict):
            span = span.get("value", span)
            label = next((span[name] for name in ("label", "labels", "type", "entity", "tag") if span.get(name)), None)
            start = next((span[name] for name in ("start", "start_offset") if name in span), None)
            end = next((span[name] for name in ("end", "end_offset") if name in span), None)
            span = (start, end, label[0] if isinstance(label, list) else label)
        if len(span) != 3 or not (isinstance(span[0], int) and isinstance(span[1], int) and isinstance(span[2], str)):
            raise ValueError(span)
        spans.append(tuple(span))
    return spans


def tags_of_spans(
    text: str, spans: Iterable[tuple[int, int, str]], starts: list[int], ends: list[int]
) -> tuple[list[str], list[str]]:
    """Return the IOB2 tags of a text's words, and remarks on the spans that were changed.

    A span that ends inside a word is widened to the whole word; a span that overlaps a longer one is left out. Raise `UserError`
    for a span outside of the text.
    """
    tags, remarks = ["O"] * len(starts), []
    for start, end, name in sorted(spans, key=lambda span: (span[0] - span[1], span)):  # the longest first
        if not 0 <= start < end <= len(text):
            raise UserError(f"a span goes from {start} to {end}, and the text has {len(text)} characters")
        inside = [i for i in range(len(starts)) if starts[i] < end and ends[i] > start]
        if not inside or any(tags[i] != "O" for i in inside):
            remarks.append(f"{name} {text[start:end]!r} left out: it {'overlaps another' if inside else 'holds no word'}")
            continue
        words = text[starts[inside[0]] : ends[inside[-1]]]
        if words != text[start:end].strip():
            remarks.append(f"{name} {text[start:end]!r} widened to {words!r}")
        tags[inside[0] : inside[-1] + 1] = [f"B-{name}", *[f"I-{name}"] * (len(inside) - 1)]
    return tags, remarks


def text_of(value: str | list[str] | dict | None) -> str | list[str] | None:
    """Return the text or the list of words that a row holds (Label Studio: {"text": ...}); None, "" or [] if there is no word."""
    text = value.get("text") if isinstance(value, dict) else value
    return "" if isinstance(text, str) and not text.strip() else text


def place(value: str | list[str] | dict) -> dict:
    """Return a row's text, and where its words start and end; a list of words is joined with spaces.

    Raise `UserError` for what holds no words.
    """
    text = text_of(value)
    if text and isinstance(text, str):
        starts, ends = find_words(text)
        return {"text": text, "starts": starts, "ends": ends}
    if not text or not all(isinstance(word, str) for word in text):
        raise UserError("it holds no words: remove it, or set text_column to the column that has them")
    ends = np.cumsum([len(word) + 1 for word in text]) - 1
    starts = ends - [len(word) for word in text]
    return {"text": " ".join(text), "starts": starts.tolist(), "ends": ends.tolist()}


def read_row(text: str | list[str] | dict, label: list, names: list[str] | None) -> dict:
    """Return a row with `FEATURES`; `names` are those of its tags where these are numbers.

    Raise `UserError`, `ValueError`, `TypeError`, `KeyError` or `IndexError` for what can't be read.
    """
    placed, words = place(text), text_of(text)
    if isinstance(words, str):
        tags, remarks = tags_of_spans(placed["text"], read_spans(label), placed["starts"], placed["ends"])
        return placed | {"tags": tags, "remarks": remarks}
    if len(words) != len(label or []):
        raise UserError(f"{len(words)} words and {len(label or [])} tags")
    if not names and any(isinstance(tag, int) for tag in label):
        raise UserError("its tags are numbers, and the data set has no names for them: give tags as words (O, B-PER, I-PER)")
    tags = [names[tag] for tag in label] if names else label
    if "" in tags or None in tags:
        number = next(i for i, tag in enumerate(tags) if not tag)
        raise UserError(f"its word {number + 1}, {words[number]!r}, has no tag")
    try:
        return placed | {"tags": to_iob2(tags), "remarks": []}
    except ValueError as error:
        schemes = "IOB1, IOB2, IOBES or BILOU, as in B-PER"
        raise UserError(f"the tag {error.args[0]!r} belongs to no known scheme: write tags as {schemes}") from error


# --- a data set ----------------------------------------------------------------------------------------------------------


def read(raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
    """Return texts with the places and tags of their words; the label of a row, (rows,), is its rarest type, -1 without entities.

    Raise `UserError`, with the row, for what is no text or no tag, or does not fit together.
    """
    rows = {
        split: map_once(split_rows, _reader(split_rows, columns, split), FEATURES, [columns, split, WORDS.pattern, TAG.pattern])
        for split, split_rows in raw.items()
    }
    counts = {split: _count_tags(split_rows) for split, split_rows in rows.items()}
    types = sorted({tag[2:] for tag in counts["train"]} - {""})
    if not types:
        raise UserError(f"label_column={columns['label']}: train has no entity in it: is it the right column?")
    _check_types(rows, counts, types, columns["label"])
    names = tag_names(types)
    coded = {
        split: split_rows.remove_columns("remarks").cast_column("tags", List(ClassLabel(names=names)))
        for split, split_rows in rows.items()
    }
    frequency = np.array([counts["train"][f"B-{name}"] for name in types])
    return Rows(
        columns=coded,
        labels={split: _rarest_type(split_rows, frequency) for split, split_rows in coded.items()},
        label_names=names,
        remarks=[
            f"row {number} of {split}: {remark}"
            for split, split_rows in rows.items()
            for number, remarks in enumerate(read_columns(split_rows, "remarks")["remarks"].to_pylist())
            for remark in remarks
        ],
    )


def _reader(rows: Dataset, columns: dict[str, str], split: str) -> Callable[[dict, list[int]], dict]:
    """Return a function that makes columns with `FEATURES` of a split's own. A row without text has no words."""
    feature = rows.features[columns["label"]]
    names = feature.feature.names if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel) else None

    def read_batch(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        read = []
        for number, text, label in zip(positions, batch[columns["text"]], batch[columns["label"]], strict=True):
            try:
                read.append(read_row(text, label, names) if text_of(text) else NO_WORDS)
            except (UserError, ValueError, TypeError, KeyError, IndexError) as error:
                problem = error if isinstance(error, UserError) else f"its entities have an unknown form: {error}"
                raise UserError(
                    f"text_column={columns['text']}, label_column={columns['label']}: row {number} of split {split}: {problem}"
                ) from error
        return {name: [row[name] for row in read] for name in FEATURES}

    return read_batch


def _count_tags(rows: Dataset) -> Counter:
    tags = pyarrow.compute.value_counts(pyarrow.compute.list_flatten(read_columns(rows, "tags")["tags"]))
    return Counter({tag["values"]: tag["counts"] for tag in tags.to_pylist()})


def _check_types(rows: dict[str, Dataset], counts: dict[str, Counter], types: list[str], column: str) -> None:
    """Raise `UserError` if a split has an entity of a type that train lacks."""
    for split, tags in counts.items():
        unknown = sorted({tag[2:] for tag in tags} - {"", *types})
        if unknown:
            row_tags = read_columns(rows[split], "tags")["tags"].to_pylist()
            first = next(i for i, tags in enumerate(row_tags) if any(tag[2:] in unknown for tag in tags))
            raise UserError(
                f"label_column={column}: split {split} has entities of a type that train lacks: "
                f"{', '.join(unknown[:MAX_TYPES_NAMED])} (first in row {first}); train has {', '.join(types)}"
            )


def _rarest_type(rows: Dataset, frequency: np.ndarray) -> np.ndarray:
    """Return for each row its type with the lowest `frequency`, (types,), in train; -1 without entities."""
    tags = read_columns(rows, "tags")["tags"].combine_chunks()
    codes, row_of_word = tags.flatten().to_numpy(), pyarrow.compute.list_parent_indices(tags).to_numpy()
    rarest_first = np.argsort(frequency, kind="stable")
    rank = np.full(len(rows), len(frequency))
    begins = codes % 2 == 1
    np.minimum.at(rank, row_of_word[begins], np.argsort(rarest_first)[codes[begins] // 2])
    return np.append(rarest_first, -1)[rank]
