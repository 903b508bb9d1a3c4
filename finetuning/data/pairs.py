"""Check pairs of texts for translation: equal texts, very different lengths, swapped sides."""

from collections import Counter

import numpy as np
from datasets import Dataset, Features, Value

from config import Config
from finetuning.data.cache import map_once, read_column
from finetuning.data.text import filled
from finetuning.errors import UserError, listed

EQUAL, UNEQUAL_LENGTHS, SWAPPED = PROBLEMS = (
    "have equal texts on both sides",  # this may be right
    "have sides of very different lengths",
    "seem to have swapped sides",
)
MAX_LENGTH_RATIO = 9  # characters of the longer side per character of the shorter side
ALWAYS_FINE_CHARACTERS = 50  # if the longer side has at most this many characters, any ratio is accepted
VOCABULARY_PAIRS = 20_000  # pairs of train that give the typical words of each side
MIN_COUNT = 3  # of a typical word on its side
MIN_COUNT_RATIO = 10  # a typical word is more than this many times as frequent as on the other side


def check_pairs(rows: dict[str, Dataset], columns: dict[str, str], config: Config) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return True for the pairs that are left out, (rows,) bool for each split, and notes on pairs that look wrong.

    `rows` have the columns `source` and `target`; `columns` are their names in the data set. Raise `UserError` if most pairs of a
    split have swapped sides compared with train, or if no pair is left.
    """
    words, left_out, remarks = words_of_sides(rows["train"]), {}, []
    for split, pairs in rows.items():
        kinds = kinds_of_pairs(pairs, words)
        if split != "train" and (kinds == SWAPPED).mean() > 0.5:
            raise UserError(
                f"split {split}: {columns['source']} and {columns['target']} are swapped compared with train: swap them in its file"
            )
        left_out[split] = np.isin(kinds, (UNEQUAL_LENGTHS, SWAPPED)) & (config.on_bad_rows == "skip")
        if left_out[split].all():
            problems = " or ".join(np.unique(kinds))
            raise UserError(f"split {split}: all pairs {problems}: check {columns['source']} and {columns['target']}")
        for problem in PROBLEMS:
            if len(numbers := np.flatnonzero(kinds == problem)):
                ending = ": left out" if left_out[split][numbers].any() else ""
                remarks.append(
                    f"{len(numbers):,} of {len(pairs):,} pairs of split {split} {problem} (row {listed(numbers)}){ending}"
                )
    return left_out, remarks


def words_of_sides(train: Dataset) -> tuple[list[str], list[str]]:
    """Return the typical words of the sources, which are frequent there and rare in the targets, and of the targets."""
    pairs = train[: min(len(train), VOCABULARY_PAIRS)]
    source, target = (Counter(word for text in filled(pairs[side]) for word in text.split()) for side in ("source", "target"))

    def typical(side: Counter, other: Counter) -> list[str]:
        return sorted(word for word, count in side.items() if count >= MIN_COUNT and count > MIN_COUNT_RATIO * other[word])

    return typical(source, target), typical(target, source)


def kinds_of_pairs(pairs: Dataset, words: tuple[list[str], list[str]]) -> np.ndarray:
    """Return the problem of each pair, one of `PROBLEMS` or "", (rows,); `words` is the result of `words_of_sides`."""
    source_words, target_words = map(set, words)

    def kinds_of_batch(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        sides = zip(filled(batch["source"]), filled(batch["target"]), strict=True)
        return {"kind": [kind_of_pair(source, target, source_words, target_words) for source, target in sides]}

    kinds = map_once(pairs, kinds_of_batch, Features({"kind": Value("string")}), [words])
    return read_column(kinds, "kind").to_numpy()


def kind_of_pair(source: str, target: str, source_words: set[str], target_words: set[str]) -> str:
    """Return the problem of a pair, "" if it has none. An empty side is none here: data/splits.py counts empty texts."""

    def balance(text: str) -> int:
        """Return the number of source words minus the number of target words."""
        return sum((word in source_words) - (word in target_words) for word in text.split())

    if not source.strip() or not target.strip():
        return ""
    if source.strip() == target.strip():
        return EQUAL
    shorter, longer = sorted((len(source), len(target)))
    if longer > max(ALWAYS_FINE_CHARACTERS, MAX_LENGTH_RATIO * shorter):
        return UNEQUAL_LENGTHS
    return SWAPPED if balance(source) < 0 < balance(target) else ""
