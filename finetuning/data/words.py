"""Divide texts into words, and convert spans to tags of the words."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import regex

from finetuning.data.annotations import Span

# Scripts without spaces between words. Line_Break=SA has Thai, Lao, Khmer, Myanmar and related scripts.
_WITHOUT_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}"
_CHARACTER = rf"[\p{{L}}\p{{M}}\p{{N}}_--{_WITHOUT_SPACES}]"
_FURTHER = rf"[\p{{L}}\p{{M}}\p{{N}}\p{{Cf}}_--{_WITHOUT_SPACES}\u200b]"  # also joiners and soft hyphens, but no zero-width space
_ABBREVIATION = rf"(?:{_CHARACTER}\.){{2,}}"
_PART = f"{_CHARACTER}{_FURTHER}*"
_WORD = rf"{_PART}(?:(?:[.&-]|['’](?!s\b)|(?<=\d),(?=\d)){_PART})*"  # may have an apostrophe, full stop, & or hyphen inside
_ELIDED = "l d j m t s c n v qu jusqu lorsqu puisqu gl un all dall dell nell sull coll quest quell".replace(" ", "|")
_ELISION = rf"(?i:{_ELIDED})['’](?!s\b)(?=\p{{L}})"  # in French, Italian, Catalan: l'Arvénie, dell'Orvanie
_CLUSTER = rf"(?=[{_WITHOUT_SPACES}])\X\p{{M}}*"
WORDS = regex.compile(rf"(?V1){_ABBREVIATION}|{_ELISION}|{_WORD}|['’]s\b|{_CLUSTER}|(?=[^\s\u200b])\X")
DIVIDED = "spans begin or end inside a word; the words were divided there"


def find_words(text: str) -> tuple[list[int], list[int]]:
    """Return the offsets where the words of a text start and end.

    Each punctuation mark is a word. In scripts without spaces, each character with its marks is a word. Spans do not matter here,
    in training or prediction; `divide_words` later divides training words in which a span begins or ends.
    """
    offsets = [match.span() for match in WORDS.finditer(text)]
    return [start for start, _ in offsets], [end for _, end in offsets]


def divide_words(text: str, spans: Sequence[Span], starts: list[int], ends: list[int]) -> dict:
    """Return the words of a text, divided where one of `spans` begins or ends inside a word, their IOB2 tags, and remarks.

    If spans overlap, the longest is kept. `starts` and `ends` are from `find_words`.
    """
    kept, remarks = [], []
    for span in sorted({*spans}, key=lambda span: (span.start - span.end, span[:3])):  # longest first
        shown = f"{span.label} {text[span.start : span.end]!r}"
        first, after = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if first >= after:
            remarks.append(dict(kind="spans hold no word; they were left out", example=shown))
            continue
        span = span._replace(start=max(span.start, starts[first]), end=min(span.end, ends[after - 1]))  # without spaces around it
        if any(span.start < other.end and other.start < span.end for other in kept):
            remarks.append(dict(kind="spans overlap a longer one; they were left out", example=shown))
            continue
        kept.append(span)
        if span.start != starts[first] or span.end != ends[after - 1]:
            words = text[starts[first] : ends[after - 1]]
            kind = DIVIDED if span.text is None else f"{DIVIDED}, as their own texts say"
            remarks.append(dict(kind=kind, example=f"{shown} in {words!r}"))
    borders = sorted({place for span in kept for place in (span.start, span.end)})
    pieces = []
    for start, end in zip(starts, ends, strict=True):
        inside = borders[bisect_right(borders, start) : bisect_left(borders, end)]
        pieces += zip([start, *inside], [*inside, end], strict=True)
    starts, ends = [start for start, _ in pieces], [end for _, end in pieces]
    tags = ["O"] * len(pieces)
    for span in kept:
        first, after = bisect_left(starts, span.start), bisect_left(starts, span.end)
        tags[first:after] = [f"B-{span.label}", *[f"I-{span.label}"] * (after - first - 1)]
    return {"text": text, "starts": starts, "ends": ends, "tags": tags, "remarks": remarks}
