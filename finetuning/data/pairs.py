"""Checks of pairs of texts for translation: pairs that are equal, do not fit in length, or have swapped sides."""

from collections import Counter

import numpy as np
from datasets import Dataset, Features, Value

from config import Config
from finetuning.data.cache import map_once, read_columns
from finetuning.data.splits import listed
from finetuning.data.text import clean
from finetuning.errors import UserError

FINE, EQUAL, UNLIKE, SWAPPED = range(4)  # kinds of pairs
PROBLEMS = {
    EQUAL: "have equal texts on both sides",
    UNLIKE: "have sides of absurdly different lengths",
    SWAPPED: "seem to have swapped sides",
}
LEFT_OUT = (UNLIKE, SWAPPED)  # if bad rows are skipped; equal texts may be right
MAX_RATIO = 9  # of the numbers of characters of the two sides
ALWAYS_FINE_CHARACTERS = 50  # if the longer side has no more, the ratio does not matter
VOCABULARY_PAIRS = 20_000  # pairs of train that the words of each side are taken from
MIN_COUNT = 3  # of a word on its side
MIN_COUNT_RATIO = 10  # a word of one side is more than so many times as frequent as on the other


def check_pairs(rows: dict[str, Dataset], columns: dict[str, str], config: Config) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return which pairs of each split are left out, (rows,) bool, and notes on pairs that look wrong.

    `rows` have the columns `source` and `target`, whose names in the data set are `columns`. Raise `UserError` if most pairs of
    a split have swapped sides, compared with train, and if none are left.
    """
    words, left_out, remarks = words_of_sides(rows["train"]), {}, []
    for split, pairs in rows.items():
        kinds = kinds_of_pairs(pairs, words)
        if split != "train" and (kinds == SWAPPED).mean() > 0.5:
            raise UserError(
                f"split {split}: {columns['source']} and {columns['target']} are swapped, compared with train: correct its file"
            )
        left_out[split] = np.isin(kinds, LEFT_OUT) & (config.on_bad_rows == "skip")
        if left_out[split].all():
            problems = " or ".join(PROBLEMS[kind] for kind in np.unique(kinds))
            raise UserError(f"split {split}: all pairs {problems}: check {columns['source']} and {columns['target']}")
        for kind, problem in PROBLEMS.items():
            if len(numbers := np.flatnonzero(kinds == kind)):
                ending = ": left out" if left_out[split][numbers].any() else ""
                remarks.append(
                    f"{len(numbers):,} of {len(pairs):,} pairs of split {split} {problem} (row {listed(numbers)}){ending}"
                )
    return left_out, remarks


def words_of_sides(train: Dataset) -> tuple[list[str], list[str]]:
    """Return the words that are frequent in the sources of train and rare in the targets, and the reverse."""
    pairs = train[: min(len(train), VOCABULARY_PAIRS)]
    source, target = (Counter(word for text in clean(pairs[side]) for word in text.split()) for side in ("source", "target"))

    def typical(side: Counter, other: Counter) -> list[str]:
        return sorted(word for word, count in side.items() if count >= MIN_COUNT and count > MIN_COUNT_RATIO * other[word])

    return typical(source, target), typical(target, source)


def kinds_of_pairs(pairs: Dataset, words: tuple[list[str], list[str]]) -> np.ndarray:
    """Return the kind of each pair, (rows,); `words` are those of `words_of_sides`."""
    source_words, target_words = map(set, words)

    def kinds_of_batch(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        sides = zip(clean(batch["source"]), clean(batch["target"]), strict=True)
        return {"kind": [kind_of_pair(source, target, source_words, target_words) for source, target in sides]}

    return read_columns(map_once(pairs, kinds_of_batch, Features({"kind": Value("int8")}), [words]), "kind")["kind"].to_numpy()


def kind_of_pair(source: str, target: str, source_words: set[str], target_words: set[str]) -> int:
    """Return the kind of a pair. One with an empty side is fine here: empty texts are counted elsewhere, for all tasks."""

    def lean(text: str) -> int:
        return sum((word in source_words) - (word in target_words) for word in text.split())

    if not source.strip() or not target.strip():
        return FINE
    if source.strip() == target.strip():
        return EQUAL
    shorter, longer = sorted((len(source), len(target)))
    if longer > max(ALWAYS_FINE_CHARACTERS, MAX_RATIO * shorter):
        return UNLIKE
    return SWAPPED if lean(source) < 0 < lean(target) else FINE
