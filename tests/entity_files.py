"""Generated sentences with named entities, written in all formats that can be read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, List, Value

from finetuning.data.spans import tag_names
from finetuning.results.entities import entities

LOOKS = ["fine", "dull", "warm", "clever"]
TYPES = ["LOOK", "NUM"]


def make_sentences(n: int = 120) -> tuple[list[list[str]], list[list[str]]]:
    """Return words and IOB2 tags: each run of numbers is an entity of type NUM, each adjective one of type LOOK."""
    generator, words, tags = np.random.default_rng(0), [], []
    for i in range(n):
        sentence, sentence_tags = [], []
        for part in generator.permutation(["a", "number", "look", "film", "the"])[: 3 + i % 3]:
            new = {"number": generator.integers(60, size=1 + i % 3), "look": [generator.choice(LOOKS)]}.get(part, [part])
            name = {"number": "NUM", "look": "LOOK"}.get(part)
            sentence += map(str, new)
            sentence_tags += ["O"] if name is None else [f"B-{name}", *[f"I-{name}"] * (len(new) - 1)]
        words.append([*sentence, "we", str(i)])
        tags.append([*sentence_tags, "O", "B-NUM"])
    return words, tags


def as_iob1(tags: list[str]) -> list[str]:
    """Return IOB1 tags, which have a B only if the word before belongs to another entity of the same type."""
    previous = ["O", *tags]
    return [f"I{tag[1:]}" if tag[:2] == "B-" and previous[i][2:] != tag[2:] else tag for i, tag in enumerate(tags)]


def as_ends(tags: list[str], last: str, single: str) -> list[str]:
    """Return IOBES or BILOU tags: `last` marks the last word of an entity, `single` an entity of one word."""
    changed = []
    for tag, following in zip(tags, [*tags[1:], "O"], strict=True):
        is_last = tag != "O" and following != f"I{tag[1:]}"
        changed.append(f"{single if tag[0] == 'B' else last}{tag[1:]}" if is_last else tag)
    return changed


def as_columns(words: list[list[str]], tags: list[list[str]]) -> str:
    """Return a CoNLL file's text."""
    lines = ["".join(f"{word} X {tag}\n" for word, tag in zip(*row, strict=True)) for row in zip(words, tags, strict=True)]
    return "-DOCSTART- -X- O\n\n" + "\n".join(lines)


def spans_of(words: list[str], tags: list[str]) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of each entity in the words, joined with spaces."""
    starts, names = np.cumsum([0, *(len(word) + 1 for word in words)]), tag_names(TYPES)
    sentence = entities(np.array([names.index(tag) for tag in tags]))
    return [(int(starts[entity.first]), int(starts[entity.end] - 1), TYPES[entity.type]) for entity in sentence]


def write_entity_files(folder: Path) -> Path:
    """Write the same sentences to a file in each format, and to a folder `eng` with the file names of CoNLL-2003."""
    words, tags = make_sentences()
    for name, scheme in (
        ("iob2.conll", tags),
        ("iob1.txt", [as_iob1(row) for row in tags]),
        ("iobes.bio", [as_ends(row, "E", "S") for row in tags]),
        ("bilou.iob", [as_ends(row, "L", "U") for row in tags]),
    ):
        (folder / name).write_text(as_columns(words, scheme))
    (folder / "windows.conll").write_bytes(("\ufeff" + as_columns(words, tags)).replace(" ", "\t").replace("\n", "\r\n").encode())
    names = ["O", "I-NUM", "B-NUM", "B-LOOK", "I-LOOK"]
    numbers = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=numbers).to_parquet(folder / "numbers.parquet")
    pd.DataFrame({"words": words, "tags": tags}).to_json(folder / "words.jsonl", orient="records", lines=True)
    write_tools(folder, [(" ".join(row), spans_of(row, row_tags)) for row, row_tags in zip(words, tags, strict=True)])
    (folder / "eng").mkdir()
    for ending, part in (("train", slice(0, 80)), ("testa", slice(80, 100)), ("testb", slice(100, 120))):
        (folder / "eng" / f"eng.{ending}").write_text(as_columns(words[part], tags[part]))
    return folder


def write_tools(folder: Path, rows: list[tuple[str, list[tuple[int, int, str]]]]) -> None:
    """Write texts and their spans in the formats of annotation tools: Doccano, two of its variants, Prodigy, Label Studio."""

    def write(name: str, lines: list[dict]) -> None:
        (folder / name).write_text("\n".join(map(json.dumps, lines)))

    write("doccano.jsonl", [{"id": 1, "text": text, "label": spans} for text, spans in rows])
    fields = [[dict(start=start, end=end, label=name) for start, end, name in spans] for _, spans in rows]
    tokens = [{"text": "x", "id": 0}]
    write("prodigy.jsonl", [{"text": text, "tokens": tokens, "spans": row} for (text, _), row in zip(rows, fields, strict=True)])
    offsets = [[dict(id=1, start_offset=start, end_offset=end, label=name) for start, end, name in spans] for _, spans in rows]
    write("relations.jsonl", [{"text": text, "entities": row} for (text, _), row in zip(rows, offsets, strict=True)])
    studio = [
        {
            "data": {"text": text},
            "annotations": [
                {
                    "result": [
                        {"type": "labels", "value": dict(start=start, end=end, text=text[start:end], labels=[name])}
                        for start, end, name in spans
                    ]
                }
            ],
        }
        for text, spans in rows
    ]
    (folder / "studio.json").write_text(json.dumps(studio))
