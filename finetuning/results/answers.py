"""Metrics of written answers, as sums over prompts: BLEU, chrF, ROUGE-L, token F1 and exact match.

A prompt may have several references. BLEU and chrF count all of them, the others take the best one.
"""

import re
import string
from collections import Counter
from itertools import zip_longest

import numpy as np

from finetuning.results import bleu
from finetuning.task import Metric, Statistics

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def _fraction(name: str, label: str) -> Metric:
    return Metric(name, lambda sums: sums[name] / sums["prompts"], label=label, limits=(0, 1), in_validation=False)


METRICS = (
    bleu.metric("bleu", "bleu", label="BLEU", in_validation=False),
    bleu.metric("chrf", "chrf", label="chrF", in_validation=False),
    _fraction("rouge_l", "ROUGE-L"),
    _fraction("token_f1", "token F1"),
    _fraction("exact_match", "exact match"),
)


def statistics(answers: list[str], references: list[list[str]]) -> Statistics:
    """Return the statistics of METRICS for each prompt, (prompts,) or (prompts, k); `references` has a list for each answer."""
    streams = [list(stream) for stream in zip_longest(*references)]  # sacreBLEU's form; None where a prompt has fewer references
    scores = {name: bleu.statistics(name, answers, *streams) for name in ("bleu", "chrf")}
    pairs = list(zip(answers, references, strict=True))
    for name, score in (("rouge_l", rouge_l), ("token_f1", token_f1), ("exact_match", exact_match)):
        scores[name] = np.array([max(score(answer, reference) for reference in others) for answer, others in pairs])
    return scores | {"prompts": np.ones(len(answers))}


def rouge_l(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (ROUGE-L, Lin 2004), as the package rouge-score without stemming."""
    a, b = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, reference))
    lengths = [0] * (len(b) + 1)  # of the longest common subsequence of the words of `a` so far and the first words of `b`
    for word in a:
        row = [0]
        for i, other in enumerate(b):
            row.append(lengths[i] + 1 if word == other else max(lengths[i + 1], row[-1]))
        lengths = row
    return _f1(lengths[-1], len(a), len(b))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that both texts have (SQuAD, arXiv 1606.05250)."""
    a, b = (Counter(normalized(text).split()) for text in (answer, reference))
    return _f1((a & b).total(), a.total(), b.total())


def exact_match(answer: str, reference: str) -> float:
    return float(normalized(answer) == normalized(reference))


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation and articles, as SQuAD compares answers. If nothing is left, keep these."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()) or " ".join(text.lower().split())


def _f1(common: int, n_answer: int, n_reference: int) -> float:
    if n_answer == n_reference == 0:
        return 1.0
    return 2 * common / (n_answer + n_reference)
