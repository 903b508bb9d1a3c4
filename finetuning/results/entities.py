"""Named entities: decode the scores of words' tags to entities, and compare actual with predicted entities.

The tags of a sentence are codes, (words,), as in data/spans.py: 0 outside of entities, 1 + 2 t for the first word of an entity of
the type with number t, and 2 + 2 t for each further word (IOB2).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax

from finetuning.results.label_report import f1, micro
from finetuning.results.metrics import reliability
from finetuning.results.report import Spans
from finetuning.task import Metric

ERRORS = ("boundary", "type", "boundary and type", "missed", "spurious")


class Entity(NamedTuple):
    """The words `first` to `end` - 1 of a sentence, and the number of the entity's type."""

    first: int
    end: int
    type: int


@dataclass(frozen=True)
class Match:
    """An actual entity and the predicted entity that it is compared with. One of the two is None if there is no such entity."""

    position: int  # of the sentence in the split
    actual: Entity | None
    predicted: Entity | None
    probability: float  # the lowest probability of the tags that were predicted for the words of the entity

    @property
    def error_type(self) -> str:
        """The type of error, one of `ERRORS`; "" if the predicted entity is right."""
        if self.actual is None or self.predicted is None:
            return "spurious" if self.actual is None else "missed"
        if self.actual == self.predicted:
            return ""
        if (self.actual.first, self.actual.end) == (self.predicted.first, self.predicted.end):
            return "type"
        return "boundary" if self.actual.type == self.predicted.type else "boundary and type"


# --- from scores to entities ---------------------------------------------------------------------------------------------


def best_sequence(scores: np.ndarray) -> np.ndarray:
    """Return the valid codes, (words,), with the highest sum of `scores`, (words, tags), by Viterbi's algorithm (1967).

    Codes are valid if each further word of an entity follows a word of the same entity.
    """
    tags = np.arange(scores.shape[1])
    is_further = (tags > 0) & (tags % 2 == 0)  # tags of a further word of an entity
    forbidden = is_further & (tags[:, None] != tags) & (tags[:, None] != tags - 1)  # (previous tag, tag)
    codes = scores.argmax(axis=-1)
    if not forbidden[np.append(0, codes[:-1]), codes].any():  # before the first word is O
        return codes
    total, best_previous = np.where(forbidden[0], -np.inf, scores[0]), []
    for word_scores in scores[1:]:
        paths = np.where(forbidden, -np.inf, total[:, None])
        best_previous.append(paths.argmax(axis=0))
        total = paths.max(axis=0) + word_scores
    best = [int(total.argmax())]
    for previous in reversed(best_previous):
        best.append(int(previous[best[-1]]))
    return np.array(best[::-1])


def decode(logits: list[np.ndarray]) -> list[np.ndarray]:
    """Return the most probable valid codes of each sentence, (words,). `logits` has an array (words, tags) for each sentence."""
    scores = log_softmax(np.concatenate(logits), axis=-1)
    return [best_sequence(sentence) for sentence in np.split(scores, np.cumsum([len(sentence) for sentence in logits])[:-1])]


def entities(codes: np.ndarray) -> list[Entity]:
    """Return the entities of a sentence from its valid codes, (words,)."""
    result = []
    for first in np.flatnonzero(codes % 2).tolist():
        end = first + 1
        while end < len(codes) and codes[end] == codes[first] + 1:
            end += 1
        result.append(Entity(first, end, int(codes[first]) // 2))
    return result


def word_probabilities(logits: list[np.ndarray], codes: list[np.ndarray], temperature: float) -> list[np.ndarray]:
    """Return the probability of each word's predicted tag, an array (words,) for each sentence."""
    probabilities = (softmax(sentence / temperature, axis=-1) for sentence in logits)
    return [sentence[np.arange(len(tags)), tags] for sentence, tags in zip(probabilities, codes, strict=True)]


def entity_probability(words: np.ndarray, entity: Entity) -> float:
    """Return the probability of an entity: the lowest of its words. `words`, (words,), is a result of `word_probabilities`."""
    return float(words[entity.first : entity.end].min())


# --- actual and predicted entities ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Actual and predicted tags and entities. Each list has one item per sentence."""

    logits: list[np.ndarray]  # (words, tags)
    actual_codes: list[np.ndarray]  # (words,)
    predicted_codes: list[np.ndarray]
    actual: list[list[Entity]]
    predicted: list[list[Entity]]

    @classmethod
    def of(cls, logits: list[np.ndarray], actual_codes: list[np.ndarray]) -> "Comparison":
        predicted_codes = decode(logits)
        sides = ([entities(codes) for codes in sentences] for sentences in (actual_codes, predicted_codes))
        return cls(logits, actual_codes, predicted_codes, *sides)

    def counts(self, n_types: int) -> dict[str, np.ndarray]:
        """Return the numbers of right (`true_positives`), `predicted` and `actual` entities of each type, (sentences, types) each.

        An entity is right if its first word, its last word and its type are right (strict).
        """
        correct = [{*a} & {*p} for a, p in zip(self.actual, self.predicted, strict=True)]
        return {
            name: np.array([np.bincount([entity.type for entity in sentence], minlength=n_types) for sentence in sentences])
            for name, sentences in (("true_positives", correct), ("predicted", self.predicted), ("actual", self.actual))
        }

    def word_probabilities(self, temperature: float) -> list[np.ndarray]:
        return word_probabilities(self.logits, self.predicted_codes, temperature)

    def reliability(self, temperature: float) -> dict:
        """Return the result of `metrics.reliability` for the predicted entities."""
        probabilities, correct = [], []
        for words, actual, predicted in zip(self.word_probabilities(temperature), self.actual, self.predicted, strict=True):
            probabilities += [entity_probability(words, entity) for entity in predicted]
            correct += [entity in actual for entity in predicted]
        return reliability(np.array(probabilities), np.array(correct, dtype=bool))

    def matches(self, temperature: float) -> list[Match]:
        """Return all actual and predicted entities, in the pairs that `pair` returns."""
        sentences = zip(self.word_probabilities(temperature), self.actual, self.predicted, strict=True)
        return [
            Match(position, actual, predicted, entity_probability(words, predicted or actual))
            for position, (words, *sides) in enumerate(sentences)
            for actual, predicted in pair(*sides)
        ]

    def errors(self, temperature: float) -> list[Match]:
        """Return the errors, the most probable first."""
        return sorted((match for match in self.matches(temperature) if match.error_type), key=lambda match: -match.probability)


def pair(actual: list[Entity], predicted: list[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    """Return pairs of actual and predicted entities, (actual, predicted), of a sentence. Each entity occurs once.

    A predicted entity is paired with the equal actual one, else with the first unpaired one that it overlaps, else with None.
    """
    unpaired, pairs = list(actual), []
    for entity in sorted(predicted, key=lambda entity: entity not in actual):  # equal ones first
        overlapping = (other for other in unpaired if other.first < entity.end and other.end > entity.first)
        partner = entity if entity in unpaired else next(overlapping, None)
        if partner:
            unpaired.remove(partner)
        pairs.append((partner, entity))
    return pairs + [(other, None) for other in unpaired]


def count_errors(matches: list[Match]) -> dict[str, int]:
    """Return the number of errors of each type."""
    counts = Counter(match.error_type for match in matches)
    return {name: counts[name] for name in ERRORS}


def confusion_matrix(matches: list[Match], n_types: int) -> np.ndarray:
    """Return counts of entities, shape (types + 1, types + 1). Rows are actual types, columns predicted types.

    The last row counts spurious entities, the last column missed ones.
    """
    counts = np.zeros((n_types + 1, n_types + 1), dtype=int)
    for match in matches:
        counts[match.actual.type if match.actual else -1, match.predicted.type if match.predicted else -1] += 1
    return counts


F1 = Metric("f1", micro(f1), format=".2%", label="Entity F1", limits=(0, 1))


# --- places of entities in the text --------------------------------------------------------------------------------------


def place_entities(row: dict, sentence: list[Entity], types: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of each entity, in characters of the text. `row` has the `starts` and `ends` of the words."""
    return [(row["starts"][entity.first], row["ends"][entity.end - 1], types[entity.type]) for entity in sentence]


def mark(text: str, spans: Sequence[tuple[int, int, str]]) -> Spans:
    """Return the pieces of a text. The piece from `start` to `end` of a span, (start, end, label), has the span's label."""
    pieces, last = [], 0
    for start, end, label in spans:
        pieces += [(text[last:start], None), (text[start:end], label)]
        last = end
    return [piece for piece in (*pieces, (text[last:], None)) if piece[0]]
