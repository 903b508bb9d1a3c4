"""Translation: an encoder reads a text in one language, a decoder writes it in another.

The model learns from pairs of texts to predict the next token of the translation. Validation during training translates with greedy
search, which takes the most probable token at each step. evaluate.py and predict.py use beam search.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value
from peft import TaskType
from torch.nn.functional import log_softmax, pad
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from config import Config
from finetuning.data.formats import LANGUAGE_ENDINGS, read_parallel
from finetuning.data.languages import SAMPLED_TEXTS, language, set_direction, special_script
from finetuning.data.pairs import check_pairs
from finetuning.data.splits import Split
from finetuning.data.text import TEXT_COLUMNS, check_texts, filled, find_column, listed_columns, renamed
from finetuning.data.tokens import Tokens, encode_batch, refuse_long, special_tokens, truncate, whole_ids
from finetuning.errors import UserError
from finetuning.model.scoring import scoring
from finetuning.results import bleu, metrics
from finetuning.results.report import MAX_EXAMPLES, Example, Section, lines_of_rows
from finetuning.task import Evaluation, Lengths, Rows, Statistics, Task
from finetuning.tasks.language_model import LOSS, TokenTask
from finetuning.training.prediction import Predictor
from finetuning.training.writing import translate
from finetuning.use.ctranslate2 import CTranslate2

SOURCE_COLUMNS = ("source", "src", "source_text", "source_sentence", "input")
TARGET_COLUMNS = ("target", "tgt", "target_text", "target_sentence", "translation", "output")
MAX_UNKNOWN_FRACTION = 0.5  # of the tokens of a batch; more is an error


@dataclass(frozen=True)
class Translations:
    """Predictions in the order of the rows. Iteration yields the rows of `scores`, which compare an export with the run's model."""

    scores: np.ndarray  # (rows, 2): mean log-likelihood of the tokens of the reference, and their number
    texts: list[str]  # translations by beam search
    greedy: list[str]  # translations by greedy search
    target_lang: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.scores)


class Translation(TokenTask):
    """Translation of the column `source` into the column `target`. Predictions are `Translations`."""

    name = pipeline_tag = "translation"
    auto_class = AutoModelForSeq2SeqLM
    peft_type = TaskType.SEQ_2_SEQ_LM
    metrics = (*bleu.METRICS, LOSS)
    token_settings = ("max_length", "truncation", "source_lang", "target_lang")
    settings = ("source_column", "target_column", "source_lang", "target_lang", "num_beams", "truncation", "label_smoothing_factor")
    readers = dict.fromkeys(LANGUAGE_ENDINGS, read_parallel)
    prediction_column = "translation"
    exporters = {"ctranslate2": CTranslate2, "ctranslate2-int8": partial(CTranslate2, quantization="int8")}
    int8_tolerance = 0.0125  # half a point at 40 BLEU
    options = {"num_beams": None}  # None: as in the run's config
    answer_features = Features({"translation": Value("string"), "score": Value("float64")})
    examples = ("A man is riding a horse.", "Two children are playing in the snow.")
    code_template = "translation.py.jinja"
    widgets = (("text", "Translation"),)
    empty_answer = {"translation": "", "score": 0.0}

    def check(self, config: Config, given: Collection[str] = ()) -> None:
        super().check(config, given)
        if config.truncation == "head+tail" and "truncation" in given:
            raise UserError("truncation=head+tail would leave out the middle of a sentence: set it to head, or leave it out")

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        column = config.source_column or ""
        from_training = filter(None, dict.fromkeys((column, column.rpartition(".")[2])))
        return {"source": find_column("text_column", text_column, (*from_training, *SOURCE_COLUMNS, *TEXT_COLUMNS), available)}

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the columns of both sides: those given, or else columns with the name of the language or a usual name."""
        columns = {}
        for side, usual in (("source", SOURCE_COLUMNS), ("target", TARGET_COLUMNS)):
            given = getattr(config, f"{side}_column")
            name = given or getattr(config, f"{side}_lang")
            # "en" matches "translation.en".
            matches = [column for column in available if name in (column, column.rpartition(".")[2])]
            columns[side] = find_column(f"{side}_column", matches[0] if len(matches) == 1 else given, usual, available)
        if columns["source"] == columns["target"]:
            raise UserError(
                f"source_column and target_column are both {columns['source']!r}: set target_column to the column with the "
                f"translations; the columns are {listed_columns(available)}"
            )
        return columns

    def settle(self, train: Dataset, config: Config, given: Collection[str] = ()) -> tuple[Task, Config]:
        """Return `config` with the columns, their languages if their names tell them, and the kind of truncation."""
        settled = {f"{side}_column": column for side, column in self.columns(train.column_names, config).items()}
        names = {side: settled[f"{side}_column"].rpartition(".")[2] for side in ("source", "target")}
        # src and tgt are codes of languages too.
        named = {side: name if name.lower() not in SOURCE_COLUMNS + TARGET_COLUMNS else None for side, name in names.items()}
        for side, other in (("source", "target"), ("target", "source")):
            chosen = getattr(config, f"{side}_lang")
            if chosen and language(chosen) and language(chosen) == language(named[other]) != language(named[side]):
                raise UserError(
                    f"{side}_lang={chosen} is the language of {other}_column={names[other]}: swap source_lang and target_lang, or the columns"
                )
            settled[f"{side}_lang"] = chosen or (named[side] if language(named[side]) else None)
        truncation = "head" if config.truncation == "head+tail" else config.truncation
        return self, replace(config, **settled, truncation=truncation)

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        remarks, rows = check_texts(raw, columns), renamed(raw, columns)
        left_out, notes = check_pairs(rows, columns, config)
        remarks += notes
        labels = {split: np.zeros(len(pairs), dtype=np.int64) for split, pairs in rows.items()}
        targets = filled(rows["train"][:SAMPLED_TEXTS]["target"])
        if note := bleu.note(bleu.signatures(bleu.tokenizer(special_script(config.target_lang, targets)))["bleu_signature"]):
            remarks.append(note)
        return Rows(rows, labels, left_out=left_out, remarks=remarks)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        """Return the sources, "" if a side is empty, and the targets. Equal sources thus stay in one split."""
        targets = filled(batch["target"])
        return [source if target.strip() else "" for source, target in zip(filled(batch["source"]), targets, strict=True)], targets

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        return {"source": filled(batch["source"])}

    def show_labels(self, split: Split, label_names: list[str], decisions: Sequence | None = None) -> list[str]:
        return references(split)

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        ids = {name: List(Value("int32")) for name in ("input_ids", "targets")}
        return Features({**ids, "length": Value("int32")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        """Return the token ids of both sides. `length` is that of the longer side.

        Raise `UserError` if the tokenizer does not know most of the tokens.
        """
        prefix = set_direction(tokenizer, config)["prefix"] or ""
        if prefix and config.truncation == "tail":
            raise UserError(
                f"truncation=tail would cut {prefix.strip()!r}, which tells {config.model_name} the language: set truncation to head"
            )
        ids = {"input_ids": [*whole_ids([prefix + text for text in filled(batch["source"])], tokenizer)]}
        if "target" in batch:
            ids["targets"] = [*whole_ids(filled(batch["target"]), tokenizer, argument="text_target")]
        for column, rows in zip((config.source_column, config.target_column), ids.values(), strict=False):
            tokens = np.concatenate([*rows, []])
            unknown = np.mean(tokens == tokenizer.unk_token_id) if len(tokens) else 0
            if unknown > MAX_UNKNOWN_FRACTION:
                raise UserError(
                    f"column {column}: the tokenizer of {config.model_name} does not know {unknown:.0%} of its tokens, so it can't "
                    "read this script: set model_name to a model of these languages"
                )
        lengths = [max(map(len, sides)) for sides in zip(*ids.values(), strict=True)]
        refuse_long(lengths, config)
        limits = config.max_length, config.truncation, *map(len, special_tokens(tokenizer))
        return {name: [truncate(row, *limits) for row in rows] for name, rows in ids.items()} | {"length": lengths}

    def truncation_note(self, config: Config) -> str:
        return f"each side, truncation={config.truncation}"

    def adapt(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, changed so that it returns (rows, 3) in place of logits for a batch with `targets`.

        The three numbers are the sum of the targets' log-likelihoods, the sum over the targets of the mean log-likelihood of all
        tokens of the vocabulary, and the number of targets.
        """
        start, padding = model.config.decoder_start_token_id, model.config.pad_token_id

        def scores_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            log_probabilities = log_softmax(logits, dim=-1)
            return torch.stack([log_probabilities.gather(1, targets[:, None])[:, 0], log_probabilities.mean(dim=-1)], dim=1)

        def inputs_of(targets: torch.Tensor) -> dict[str, torch.Tensor]:
            """Return the tokens that the decoder reads: the targets, one position later."""
            return {"decoder_input_ids": pad(targets.where(targets >= 0, padding)[:, :-1], (1, 0), value=start)}

        return scoring(model, model.get_decoder(), scores_of, inputs_of)

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return a function of (scores, labels): the loss summed over tokens, with label smoothing (arXiv 1512.00567)."""
        smoothing = config.label_smoothing_factor
        return lambda scores, labels: -((1 - smoothing) * scores[:, 0] + smoothing * scores[:, 1]).sum()

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> Translations:
        """Return the scores of the references, and translations by greedy search and by beam search."""
        predictions, num_beams = self.validate(predictor, tokens), predictor.config.num_beams
        if num_beams == 1:
            return predictions
        return replace(predictions, texts=self.translate(predictor, tokens, num_beams))

    def validate(self, predictor: Predictor, tokens: Tokens) -> Translations:
        """Return predictions with translations only by greedy search."""
        greedy = self.translate(predictor, tokens, 1)
        return Translations(self.scores(predictor, tokens), greedy, greedy, predictor.config.target_lang)

    def translate(self, predictor: Predictor, tokens: Tokens, num_beams: int) -> list[str]:
        """Return translations in the order of the rows; `num_beams` 1 is greedy search."""
        first = set_direction(predictor.tokenizer, predictor.config)["forced_bos_token_id"]
        return translate(predictor, tokens, num_beams, first)

    def calibrate(self, predictor: Predictor, predictions: Translations, validation: Split) -> dict:
        """Return the settings by which the model gets the languages, for model cards."""
        return {"direction": set_direction(predictor.tokenizer, predictor.config)}

    def decide(self, predictions: Translations, calibration: dict) -> list[str]:
        return predictions.texts

    def statistics(self, predictions: Translations, split: Split, calibration: dict) -> Statistics:
        """Return sacreBLEU's statistics of each translation, and the loss and number of the tokens of its reference."""
        targets, (means, counts) = references(split), predictions.scores.T
        tokenize = bleu.tokenizer(special_script(predictions.target_lang, targets))
        scores = {name: bleu.statistics(name, predictions.texts, targets, tokenize=tokenize) for name in bleu.SCORERS}
        same = predictions.greedy is predictions.texts
        scores["greedy_bleu"] = scores["bleu"] if same else bleu.statistics("bleu", predictions.greedy, targets, tokenize=tokenize)
        return {"rows": np.ones(len(targets), dtype=np.int32), "loss": -means * counts, "tokens": counts} | scores

    def lengths(self, evaluation: Evaluation) -> Lengths:
        """Return the number of words of each source, or of characters if its language has no spaces between words."""
        sources = filled(evaluation.split.columns()["source"])
        in_words = special_script(evaluation.config.source_lang, sources) in (None, "ko")
        counts = np.array([len(text.split() if in_words else "".join(text.split())) for text in sources])
        return Lengths(counts, f"{'words' if in_words else 'characters'} of the source", (0, 10, 20, 30, 50))

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        """Return the BLEU of greedy search, the number of tokens of the references, and sacreBLEU's signatures."""
        statistics = evaluation.statistics
        greedy = {
            "bleu": bleu.GREEDY_BLEU.of(statistics),
            "bleu_ci95": metrics.interval(bleu.GREEDY_BLEU, statistics),
        }
        tokenize = bleu.tokenizer(special_script(evaluation.config.target_lang, references(evaluation.split)))
        return {"greedy": greedy, "tokens": int(statistics["tokens"].sum())} | bleu.signatures(tokenize)

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the reference and the translation of each row, `chrf` of the translation, and `loss` of the reference."""
        texts, targets = evaluation.predictions.texts, references(evaluation.split)
        columns = {"reference": targets, "translation": texts, "chrf": bleu.sentence_chrf(texts, [[target] for target in targets])}
        return columns | {"loss": -evaluation.predictions.scores[:, 0]}

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return all rows, those with the lowest chrF first."""
        return np.argsort(evaluation.columns["chrf"], kind="stable"), lines_of_rows(self, evaluation)

    def files(self, evaluation: Evaluation) -> dict[str, str]:
        """Return sources, references and translations with a text per line, for other tools."""
        texts = {"sources": filled(evaluation.split.columns()["source"]), "references": references(evaluation.split)}
        texts["translations"] = evaluation.predictions.texts
        return {f"{name}.txt": "".join(f"{' '.join(text.split())}\n" for text in rows) for name, rows in texts.items()}

    def report(self, evaluation: Evaluation) -> list[Section]:
        order, lines_of = self.errors(evaluation)
        sample = np.sort(np.random.default_rng(0).permutation(len(order))[:MAX_EXAMPLES])

        def examples_of(positions: np.ndarray) -> tuple:
            return (("", [_as_example(line) for line in lines_of(positions).itertuples()]),)

        worst = f"Sorted by chrF of the sentence. All {len(order):,} rows are in errors.csv."
        measured, greedy, max_length = evaluation.metrics, bleu.GREEDY_BLEU, evaluation.config.max_length
        longer = f" In {(evaluation.lengths > max_length).sum():,} pairs a side has more than {max_length} tokens."
        numbers = (
            ("tokens", f"{measured['tokens']:,}", "of the references; the loss is in nats per token"),
            (greedy.label, greedy.show(measured["greedy"]["bleu"]), "takes the most probable token at each step"),
        )
        return [
            Section(text=_describe_search(measured) + longer, numbers=numbers),
            Section("A random sample", "Open a line to see the translation beside the reference.", examples=examples_of(sample)),
            Section("The worst translations", worst, examples=examples_of(order[:MAX_EXAMPLES])),
        ]

    def remark(self, metrics: dict) -> str:
        greedy = f" BLEU of greedy search: {metrics['greedy']['bleu']:.2f}." if metrics["run"]["config"]["num_beams"] > 1 else ""
        note, signature = bleu.note(metrics["bleu_signature"]), f"sacreBLEU's signature of BLEU: {metrics['bleu_signature']}."
        return " ".join(filter(None, (_describe_search(metrics) + greedy, note, signature)))

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return the `translation` of each text, and its `score`, the mean log-likelihood of its tokens."""
        config, num_beams = predictor.config, (self.options | predictor.options)["num_beams"]
        if num_beams is not None and num_beams < 1:
            raise UserError(f"--num_beams {num_beams} is out of range: it must be at least 1")
        tokens = encode_batch(self, batch, predictor.tokenizer, config)
        texts = self.translate(predictor, tokens, num_beams or config.num_beams)
        truncation = "head" if config.truncation == "error" else config.truncation  # a long translation is no error
        scored = encode_batch(self, batch | {"target": texts}, predictor.tokenizer, replace(config, truncation=truncation))
        return {"translation": texts, "score": self.scores(predictor, scored)[:, 0].tolist()}

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        return inputs | {"translation": answer["translation"], "score": round(answer["score"], 6)}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return " ".join(answer["translation"].split())

    def widget_values(self, predictor: Predictor, text: str) -> list:
        return self.answers(predictor, {"source": [text]})["translation"]


def references(split: Split) -> list[str]:
    """Return the target of each row, without spaces around it."""
    return [text.strip() for text in filled(split.columns()["target"])]


def _as_example(line) -> Example:
    """Return a line of errors.csv for the report page."""
    sides = (("the model", line.translation), ("the reference", line.reference))
    return Example(f"chrF {line.chrf:.0f}, row {line.row}: {line.source}", sides=sides)


def _describe_search(measured: dict) -> str:
    """Return how the translations were made and compared, as text."""
    config = Config(**measured["run"]["config"])
    search = f"beam search with {config.num_beams} beams" if config.num_beams > 1 else "greedy search"
    cut = f"; longer sources are cut to {config.max_length} tokens (truncation={config.truncation})"
    return (
        f"Translated by {search}, into at most {config.max_length} tokens{cut if config.truncation != 'error' else ''}. Compared "
        "with one complete reference per text, with upper and lower case."
    )
