"""Named entities: from scores of words' tags to entities, and what a comparison of them says.

A sentence's tags are codes (words,): 0 outside; of the type number t, 1 + 2 t where an entity begins and 2 + 2 t where it
goes on (IOB2). An entity is (first word, word behind the last, type number).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from nervaluate.evaluator import Evaluator
from scipy.stats import bootstrap

Entity = tuple[int, int, int]


def tag_names(types: Sequence[str]) -> list[str]:
    """The tags behind the codes."""
    return ["O", *(f"{begins}-{name}" for name in types for begins in "BI")]


def types_of(tags: Sequence[str]) -> list[str]:
    """The types behind `tag_names`."""
    return [name[2:] for name in tags[1::2]]


# --- from scores to entities ---------------------------------------------------------------------------------------------


def best_sequence(scores: np.ndarray) -> np.ndarray:
    """The valid codes (words,) with the highest sum of `scores` (words, tags): an entity goes on only where it began (Viterbi)."""
    codes = scores.argmax(axis=-1)
    before = np.concatenate([[0], codes[:-1]])
    if not ((codes > 0) & (codes % 2 == 0) & (before != codes) & (before != codes - 1)).any():
        return codes
    tags = np.arange(scores.shape[1])
    goes_on = (tags > 0) & (tags % 2 == 0)
    barred = goes_on & (tags[:, None] != tags) & (tags[:, None] != tags - 1)  # (before, after)
    total, back = np.where(goes_on, -np.inf, scores[0]), []
    for here in scores[1:]:
        ways = np.where(barred, -np.inf, total[:, None])
        back.append(ways.argmax(axis=0))
        total = ways.max(axis=0) + here
    best = [int(total.argmax())]
    for came_from in reversed(back):
        best.append(int(came_from[best[-1]]))
    return np.array(best[::-1])


def entities(codes: np.ndarray) -> list[Entity]:
    """Those of a sentence with valid codes."""
    starts = np.flatnonzero(codes % 2)
    found = []
    for start in starts.tolist():
        end = start + 1
        while end < len(codes) and codes[end] == codes[start] + 1:
            end += 1
        found.append((start, end, int(codes[start]) // 2))
    return found


# --- comparing -----------------------------------------------------------------------------------------------------------


def score(gold: list[list[Entity]], predicted: list[list[Entity]], types: Sequence[str]) -> dict:
    """Precision, recall and F1 of whole entities by nervaluate (strict: span and type are exact), also of each type."""

    def as_spans(sentences: list[list[Entity]]) -> list[list[dict]]:
        return [[dict(label=types[t], start=start, end=end - 1) for start, end, t in sentence] for sentence in sentences]

    found = Evaluator(as_spans(gold), as_spans(predicted), tags=list(types), loader="dict").evaluate()

    def figures(result) -> dict:
        return {"f1": float(result.f1), "precision": float(result.precision), "recall": float(result.recall)}

    by_type = found["entities"]
    return figures(found["overall"]["strict"]) | {
        "by_type": [
            {"label": name} | figures(by_type[name]["strict"]) | {"n": by_type[name]["strict"].possible}
            for name in types
            if name in by_type
        ]
    }


def pair(gold: list[Entity], predicted: list[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    """Each entity once: beside the equal one, else beside the first that it overlaps and that is free, else beside None."""
    left, found = list(gold), []
    for one in sorted(predicted, key=lambda one: one not in gold):  # equal ones first
        other = one if one in left else next((g for g in left if g[0] < one[1] and g[1] > one[0]), None)
        if other:
            left.remove(other)
        found.append((other, one))
    return found + [(other, None) for other in left]


def kind(actual: Entity | None, predicted: Entity | None) -> str:
    """Of a pair: what is wrong with it, or "right"."""
    if actual is None or predicted is None:
        return "spurious" if actual is None else "missed"
    if actual == predicted:
        return "right"
    if actual[:2] == predicted[:2]:
        return "type"
    return "boundary" if actual[2] == predicted[2] else "boundary and type"


def errors(pairs: list[list[tuple[Entity | None, Entity | None]]], types: Sequence[str]) -> dict:
    """How often each kind of error was made; counts (types and spurious, types and missed), rows actual, columns predicted."""
    counts = np.zeros((len(types) + 1, len(types) + 1), dtype=int)
    for sentence in pairs:
        for actual, predicted in sentence:
            counts[actual[2] if actual else -1, predicted[2] if predicted else -1] += 1
    kinds = Counter(kind(*both) for sentence in pairs for both in sentence)
    names = ("boundary", "type", "boundary and type", "missed", "spurious")
    return {"errors": {name: kinds[name] for name in names}, "confusion_matrix": counts.tolist()}


def counts(gold: list[list[Entity]], predicted: list[list[Entity]]) -> np.ndarray:
    """(sentences, 3): entities that are right, predicted, and there."""
    return np.array([[len({*g} & {*p}), len(p), len(g)] for g, p in zip(gold, predicted, strict=True)]).reshape(-1, 3)


def f1(right, predicted, there, axis: int = -1):
    """From counts over sentences; 0 where there is nothing."""
    right, both = np.sum(right, axis=axis), np.sum(predicted, axis=axis) + np.sum(there, axis=axis)
    return 2 * right / np.maximum(both, 1)


def f1_interval(counts: np.ndarray) -> list[float]:
    """95 % interval of the F1 of `counts`, (sentences, 3) or, seed by seed, (seeds, sentences, 3), the seeds' F1s averaged."""
    return _weighed(counts.reshape(-1, *counts.shape[-2:]), [])["ci95"]


def paired_f1_difference(a: np.ndarray, b: np.ndarray) -> dict:
    """F1 of a less that of b on the same sentences, counts as for `f1_interval`, and its 95 % interval."""
    found = _weighed(*(counts.reshape(-1, *counts.shape[-2:]) for counts in (a, b)))
    return {"difference": found["value"], "difference_ci95": found["ci95"]}


def _weighed(a: np.ndarray, b: Sequence) -> dict:
    """The mean F1 of the runs a less that of the runs b, and its 95 % percentile bootstrap interval over the sentences."""
    weights = [1 / len(a)] * len(a) + [-1 / len(b) for _ in b]

    def statistic(*columns, axis: int = -1):
        return sum(weight * f1(*columns[3 * i : 3 * i + 3], axis=axis) for i, weight in enumerate(weights))

    columns = np.concatenate([*a, *b], axis=-1).T  # three of each run, a number for each sentence
    value = float(statistic(*columns))
    if columns.shape[1] < 2:
        return {"value": value, "ci95": [-1.0 if len(b) else 0.0, 1.0]}
    batch = max(1, 10**7 // columns.size)  # resamples in memory at a time
    about = dict(paired=True, vectorized=True, method="percentile", n_resamples=2000, batch=batch, rng=0)
    interval = bootstrap(tuple(columns), statistic, **about).confidence_interval
    return {"value": value, "ci95": [float(interval.low), float(interval.high)]}
