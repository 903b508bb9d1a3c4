"""BLEU, chrF and TER of sacreBLEU as functions of summed statistics."""

import contextlib
import re
from functools import cache, partial

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from finetuning.task import Metric, Sums

WORDS = "13a"  # sacreBLEU's tokenizer for languages with spaces between words
MECAB = {"ja": "ja-mecab", "ko": "ko-mecab"}  # need packages that requirements.txt lacks
SCORERS = ("bleu", "chrf", "ter")


def tokenizer(language: str | None) -> str:
    """Return the name of sacreBLEU's tokenizer for a language as `languages.special_script` gives it."""
    if language in MECAB:
        with contextlib.suppress(RuntimeError):  # not installed
            BLEU(tokenize=MECAB[language])
            return MECAB[language]
    return {None: WORDS, "zh": "zh"}.get(language, "char")


@cache
def _scorer(name: str, tokenize: str = WORDS) -> BLEU | CHRF | TER:
    """Return a scorer. The reference given is only for the signature, which says how many there are per text."""
    return BLEU(references=[[""]], tokenize=tokenize) if name == "bleu" else {"chrf": CHRF, "ter": TER}[name](references=[[""]])


def statistics(scorer: str, texts: list[str], references: list[str], tokenize: str = WORDS) -> np.ndarray:
    """Return sacreBLEU's own statistics of each text, (rows, k). TER, which divides at spaces, gets BLEU's tokens if they are not words."""
    if scorer == "ter" and tokenize != WORDS:
        texts, references = ([_scorer("bleu", tokenize).tokenizer(text) for text in side] for side in (texts, references))
    return np.array(_scorer(scorer, tokenize)._extract_corpus_statistics(texts, [references]))


def score(scorer: str, column: str, sums: Sums) -> float:
    """Return a corpus's score, on a scale of 100, from the sums of the statistics in `column`."""
    return _scorer(scorer)._compute_score_from_stats(sums[column].tolist()).score


def metric(scorer: str, column: str, **options) -> Metric:
    return Metric(scorer, partial(score, scorer, column), format=".2f", **options)


METRICS = (
    metric("bleu", "bleu", label="BLEU"),
    metric("chrf", "chrf", label="chrF"),
    metric("ter", "ter", better="lower", label="TER"),
)
GREEDY_BLEU = metric("bleu", "greedy_bleu", label="BLEU, greedy")  # of translations by greedy search


def signatures(tokenize: str = WORDS) -> dict[str, str]:
    """Return sacreBLEU's description of each metric: version, tokenizer, and other settings."""
    texts = {name: _scorer(name, tokenize).get_signature().format() for name in SCORERS}
    if tokenize != WORDS:
        texts["ter"] = texts["ter"].replace("tok:tercom", f"tok:{tokenize}+tercom")
    return {f"{name}_signature": text for name, text in texts.items()}


def note(signature: str) -> str:
    """Return what a reader must know about the tokens that BLEU and TER count; "" if they are words."""
    tokenize = re.search(r"tok:([\w-]+)", signature)
    if not tokenize or tokenize[1] == WORDS:
        return ""
    return f"BLEU and TER compare tokens of sacreBLEU's tokenizer {tokenize[1]}, not words between spaces."


def sentence_chrf(texts: list[str], references: list[str]) -> list[float]:
    """Return the chrF of each text by itself, smoothed. It compares characters, so no language needs a tokenizer."""
    scorer = CHRF(eps_smoothing=True)
    return [scorer.sentence_score(text, [reference]).score for text, reference in zip(texts, references, strict=True)]
