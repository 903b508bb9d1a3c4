"""Sentences with entities that are made on the spot, and the forms in which people keep such."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, List, Value

from finetuning import entities

LOOKS = ["fine", "dull", "warm", "clever"]


def make_sentences(n: int = 120) -> tuple[list[list[str]], list[list[str]]]:
    """Words and IOB2 tags: numbers are of the type NUM, several in a row one entity; some adjectives are LOOK."""
    generator, words, tags = np.random.default_rng(0), [], []
    for i in range(n):
        sentence, its = [], []
        for part in generator.permutation(["a", "number", "look", "film", "the"])[: 3 + i % 3]:
            new = {"number": generator.integers(60, size=1 + i % 3), "look": [generator.choice(LOOKS)]}.get(part, [part])
            of = {"number": "NUM", "look": "LOOK"}.get(part)
            sentence += map(str, new)
            its += ["O"] if of is None else [f"B-{of}", *[f"I-{of}"] * (len(new) - 1)]
        words.append([*sentence, "we", str(i)])
        tags.append([*its, "O", "B-NUM"])
    return words, tags


def as_iob1(tags: list[str]) -> list[str]:
    """B only where the entity before is of the same type."""
    before = ["O", *tags]
    return [f"I{t[1:]}" if t[:2] == "B-" and before[i][2:] != t[2:] else t for i, t in enumerate(tags)]


def as_ends(tags: list[str], last: str, single: str) -> list[str]:
    """IOBES or BILOU."""
    found = []
    for tag, after in zip(tags, [*tags[1:], "O"], strict=True):
        ends = tag != "O" and after != f"I{tag[1:]}"
        found.append(f"{single if tag[0] == 'B' else last}{tag[1:]}" if ends else tag)
    return found


def as_columns(words: list[list[str]], tags: list[list[str]]) -> str:
    sentences = ["".join(f"{w} X {t}\n" for w, t in zip(*both, strict=True)) for both in zip(words, tags, strict=True)]
    return "-DOCSTART- -X- O\n\n" + "\n".join(sentences)


def spans_of(words: list[str], tags: list[str]) -> list[tuple[int, int, str]]:
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    codes = np.array([task_codes[tag] for tag in tags])
    return [(int(starts[first]), int(starts[end] - 1), ["LOOK", "NUM"][t]) for first, end, t in entities.entities(codes)]


task_codes = {name: code for code, name in enumerate(entities.tag_names(["LOOK", "NUM"]))}


def write_forms(folder: Path) -> Path:
    """The same sentences in every form that is read, a file each, and CoNLL-2003's own in the folder eng."""
    words, tags = make_sentences()
    for name, its in (
        ("iob2.conll", tags),
        ("iob1.txt", [as_iob1(one) for one in tags]),
        ("iobes.bio", [as_ends(one, "E", "S") for one in tags]),
        ("bilou.iob", [as_ends(one, "L", "U") for one in tags]),
    ):
        (folder / name).write_text(as_columns(words, its))
    (folder / "windows.conll").write_bytes(("\ufeff" + as_columns(words, tags)).replace(" ", "\t").replace("\n", "\r\n").encode())
    names = ["O", "I-NUM", "B-NUM", "B-LOOK", "I-LOOK"]
    numbers = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=numbers).to_parquet(folder / "numbers.parquet")
    pd.DataFrame({"words": words, "tags": tags}).to_json(folder / "words.jsonl", orient="records", lines=True)
    texts, spans = [" ".join(one) for one in words], [spans_of(*both) for both in zip(words, tags, strict=True)]

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))

    both = list(zip(texts, spans, strict=True))
    write("doccano.jsonl", [{"id": 1, "text": text, "label": its} for text, its in both])
    as_fields = [[dict(start=s, end=e, label=name) for s, e, name in its] for its in spans]
    write(
        "prodigy.jsonl",
        [{"text": t, "tokens": [{"text": "x", "id": 0}], "spans": its} for t, its in zip(texts, as_fields, strict=True)],
    )
    offsets = [[dict(id=1, start_offset=s, end_offset=e, label=name) for s, e, name in its] for its in spans]
    write("relations.jsonl", [{"text": t, "entities": its} for t, its in zip(texts, offsets, strict=True)])
    results = [
        [{"type": "labels", "value": dict(start=s, end=e, text=t[s:e], labels=[name])} for s, e, name in its] for t, its in both
    ]
    studio = [{"data": {"text": t}, "annotations": [{"result": its}]} for t, its in zip(texts, results, strict=True)]
    (folder / "studio.json").write_text(json.dumps(studio))
    (folder / "eng").mkdir()
    for ending, part in (("train", slice(0, 80)), ("testa", slice(80, 100)), ("testb", slice(100, 120))):
        (folder / "eng" / f"eng.{ending}").write_text(as_columns(words[part], tags[part]))
    return folder
