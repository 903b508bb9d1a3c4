"""BLEU, chrF and TER of sacreBLEU as functions of summed statistics."""

from functools import partial

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from finetuning.task import Metric, Sums

# The reference given here is only for the signature, which says how many there are per text.
SCORERS = {"bleu": BLEU(references=[[""]]), "chrf": CHRF(references=[[""]]), "ter": TER(references=[[""]])}


def statistics(scorer: str, texts: list[str], references: list[str]) -> np.ndarray:
    """Return sacreBLEU's own statistics of each text, (rows, k)."""
    return np.array(SCORERS[scorer]._extract_corpus_statistics(texts, [references]))


def score(scorer: str, column: str, sums: Sums) -> float:
    """Return a corpus's score, on a scale of 100, from the sums of the statistics in `column`."""
    return SCORERS[scorer]._compute_score_from_stats(sums[column].tolist()).score


def metric(scorer: str, column: str, **options) -> Metric:
    return Metric(scorer, partial(score, scorer, column), format=".2f", **options)


METRICS = (
    metric("bleu", "bleu", label="BLEU"),
    metric("chrf", "chrf", label="chrF"),
    metric("ter", "ter", better="lower", label="TER"),
)
GREEDY_BLEU = metric("bleu", "greedy_bleu", label="BLEU, greedy")  # of translations by greedy search


def signatures() -> dict[str, str]:
    """Return sacreBLEU's description of each metric: version, tokenizer, and other settings."""
    return {f"{name}_signature": scorer.get_signature().format() for name, scorer in SCORERS.items()}


def sentence_chrf(texts: list[str], references: list[str]) -> list[float]:
    """Return the chrF of each text by itself, smoothed."""
    scorer = CHRF(eps_smoothing=True)
    return [scorer.sentence_score(text, [reference]).score for text, reference in zip(texts, references, strict=True)]
