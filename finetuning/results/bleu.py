"""sacreBLEU's BLEU, chrF and TER as functions of summed statistics."""

import contextlib
import math
import re
from functools import cache, partial

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from finetuning.task import Metric, Sums

WORDS = "13a"  # sacreBLEU's tokenizer for languages with spaces between words
MECAB = {"ja": "ja-mecab", "ko": "ko-mecab"}  # sacreBLEU's tokenizers that need packages which requirements.txt lacks
SCORERS = ("bleu", "chrf", "ter")


def tokenizer(language: str | None) -> str:
    """Return the name of sacreBLEU's tokenizer for a language. `language` is a result of `languages.special_script`."""
    if language in MECAB:
        with contextlib.suppress(RuntimeError):  # not installed
            BLEU(tokenize=MECAB[language])
            return MECAB[language]
    return {None: WORDS, "zh": "zh"}.get(language, "char")


def _new_scorer(name: str, tokenize: str = WORDS) -> BLEU | CHRF | TER:
    """Return a scorer. It gets an empty reference, because its signature shows the number of references per text."""
    return BLEU(references=[[""]], tokenize=tokenize) if name == "bleu" else {"chrf": CHRF, "ter": TER}[name](references=[[""]])


_scorer = cache(_new_scorer)


def statistics(scorer: str, texts: list[str], *references: list[str | None], tokenize: str = WORDS) -> np.ndarray:
    """Return sacreBLEU's statistics of each text, (rows, k). Each of `references` has a reference for each text, or None.

    TER splits texts at spaces only. If BLEU's tokenizer is for a language without spaces, TER compares its tokens.
    """
    if scorer == "ter" and tokenize != WORDS:
        texts, *references = ([_scorer("bleu", tokenize).tokenizer(text) for text in side] for side in (texts, *references))
    return np.array(_scorer(scorer, tokenize)._extract_corpus_statistics(texts, [*references]))


def score(scorer: str, column: str, sums: Sums) -> float:
    """Return the score of a corpus from the sums of the statistics in `column`. BLEU and chrF are numbers from 0 to 100."""
    return _scorer(scorer)._compute_score_from_stats(sums[column].tolist()).score


def metric(scorer: str, column: str, **options) -> Metric:
    """Return sacreBLEU's `scorer` as a metric of the statistics `column`. `options` are further fields of `Metric`."""
    return Metric(scorer, partial(score, scorer, column), format=".2f", limits=(0, 100 if scorer != "ter" else math.inf), **options)


METRICS = (
    metric("bleu", "bleu", label="BLEU"),
    metric("chrf", "chrf", label="chrF"),
    metric("ter", "ter", better="lower", label="TER"),
)
GREEDY_BLEU = metric("bleu", "greedy_bleu", label="BLEU, greedy search")


def signatures(tokenize: str = WORDS) -> dict[str, str]:
    """Return sacreBLEU's signature of each metric with one reference per text: version, tokenizer, and other settings."""
    # new scorers: one that has scored shows the number of references that it scored with
    texts = {name: _new_scorer(name, tokenize).get_signature().format() for name in SCORERS}
    if tokenize != WORDS:
        texts["ter"] = texts["ter"].replace("tok:tercom", f"tok:{tokenize}+tercom")
    return {f"{name}_signature": text for name, text in texts.items()}


def note(signature: str) -> str:
    """Return a sentence about the tokens that BLEU and TER compare; "" if they are words."""
    tokenize = re.search(r"tok:([\w-]+)", signature)
    if not tokenize or tokenize[1] == WORDS:
        return ""
    return f"BLEU and TER compare the tokens of sacreBLEU's tokenizer {tokenize[1]}, not words between spaces."


def sentence_chrf(texts: list[str], references: list[list[str]]) -> list[float]:
    """Return the chrF of each single text and its references. It compares characters, so it needs no tokenizer."""
    scorer = CHRF()  # without eps_smoothing, by which a right answer of one word gets less than 100
    return [scorer.sentence_score(text, others).score for text, others in zip(texts, references, strict=True)]
