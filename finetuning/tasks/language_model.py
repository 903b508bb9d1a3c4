"""Base classes of the tasks whose model predicts tokens, and of language models of texts without labels.

The model returns the log-likelihood of the tokens that it has to predict. Perplexity is the exponential of their mean loss.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from config import Config
from finetuning.data.formats import read_documents
from finetuning.data.labels import encode_labels
from finetuning.data.splits import Split
from finetuning.data.text import LABEL_COLUMNS, check_texts, clean, find_column, renamed, text_columns
from finetuning.data.tokens import Tokens, whole_ids
from finetuning.errors import UserError
from finetuning.model.scoring import scoring
from finetuning.results.report import MAX_EXAMPLES, MAX_LINE_CHARACTERS, Example, Section, lines_of_rows
from finetuning.task import Evaluation, Lengths, Metric, Rows, Statistics, Task
from finetuning.training.prediction import Predictor

SAMPLE_DOCUMENTS = 6  # documents on the report page that the model continues, or whose masks it fills
LOSS = Metric("loss", lambda sums: sums["loss"] / sums["tokens"], "lower", limits=(0, math.inf))  # nats per token
PERPLEXITY = (
    Metric("perplexity", lambda sums: np.exp(sums["loss"] / sums["tokens"]), "lower", ".3f", "Perplexity", log_scale=True),
    LOSS,
)


class TokenTask(Task):
    """Base class of tasks whose model predicts tokens: those in the column `targets` of an example that are not -100."""

    predicts_tokens = True
    collator = DataCollatorForSeq2Seq

    def check(self, config: Config, given: Collection[str] = ()) -> None:
        if config.method == "head":
            raise UserError(f"method=head is not for {self.name}, which has no new head to train alone: set it to lora or full")

    def adapt(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, changed so that it returns (examples, 2) in place of logits for a batch with `targets`.

        The two numbers are the sum of the targets' log-likelihoods and the number of targets.
        """
        return scoring(model, getattr(model, model.base_model_prefix))

    def collate(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, torch.Tensor]:
        """Return a batch, (examples, tokens). Targets are -100 where the loss does not count. The Trainer counts them as `labels`."""
        pairs = [{"input_ids": example["input_ids"], "labels": example["targets"]} for example in examples]
        batch = super().collate(pairs, tokenizer, config)
        batch["targets"] = batch["labels"]
        return batch

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        return lambda scores, labels: -scores[:, 0].sum()

    def scores(self, predictor: Predictor, tokens: Tokens) -> np.ndarray:
        """Return the mean log-likelihood of the targets of each row, and their number, (rows, 2)."""
        sums = predictor.array(tokens).astype(np.float64)
        return np.stack([sums[:, 0] / sums[:, -1], sums[:, -1]], axis=1)


class LanguageModel(TokenTask):
    """Base class of language models of documents (causal_lm.py, masked_lm.py). Predictions are (documents, 3), see `predict`.

    A document is read in blocks of at most `max_length` tokens, and no block has tokens of two documents.
    """

    metrics = PERPLEXITY
    settings = ("text_column", "label_column")
    token_settings = ("max_length",)
    readers = {".txt": read_documents}
    label_columns = LABEL_COLUMNS
    complete_rows_only = False
    prediction_column = "loss"
    samples_title: tuple[str, str]  # title of the section of samples on the report page, and the text below it

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        return text_columns(available, config, text_column)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the column of the text, and that of the label if there is one.

        With the labels, this task and a classifier of the same data hold out the same rows.
        """
        columns = self.input_columns(available, config, config.text_column)
        others = [column for column in available if column not in columns.values()]
        if config.label_column or any(column.strip().lower() in self.label_columns for column in others):
            columns["label"] = find_column("label_column", config.label_column, self.label_columns, others)
        return columns

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        """Return the texts. A missing label is -1. If the labels can't be used for classification, all are 0."""
        remarks = check_texts(raw, columns)
        rows = renamed(raw, columns)
        texts = {split: part.select_columns("text") for split, part in rows.items()}
        labels = {split: np.zeros(len(part), dtype=np.int64) for split, part in rows.items()}
        if "label" in columns:
            try:
                labels = encode_labels(raw, columns["label"], named=config.label_column is not None).labels
            except UserError as error:
                remarks.append(
                    f"the labels do not decide which rows are held out, so a task that reads them may hold out others: {error}"
                )
        return Rows(texts, labels, remarks=remarks)

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        return labels >= 0

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return clean(batch["text"]), labels

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        """Return the columns of a block: its token ids, their targets, its document (`rows`) and its length."""
        ids = {name: List(Value("int32")) for name in ("input_ids", "targets")}
        return Features(ids | {"rows": List(Value("int64")), "length": Value("int32")})

    def blocks(self, ids: list[int], tokenizer: PreTrainedTokenizerBase, config: Config) -> Iterator[tuple[Sequence, Sequence]]:
        """Yield token ids and targets of each block of a document, whose token ids are `ids`; a target is -100 if none is predicted.

        Raise `UserError` if the tokenizer lacks a token that the task needs.
        """
        raise NotImplementedError

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        columns = {name: [] for name in ("input_ids", "targets", "rows", "length")}
        for row, ids in enumerate(token_ids(batch["text"], tokenizer)):
            for block, targets in self.blocks(ids, tokenizer, config):
                for name, value in zip(columns, (block, targets, [row], len(block)), strict=True):
                    columns[name].append(value)
        return columns

    # --- predictions and results -----------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> np.ndarray:
        """Return (documents, 3): mean log-likelihood of the predicted tokens, number of predicted tokens, tokens in all blocks."""
        scores = predictor.array(tokens).astype(np.float64)
        sums, counts, lengths = (np.bincount(tokens.rows, column) for column in (*scores.T, tokens.lengths))
        return np.stack([sums / counts, counts, lengths], axis=1)

    def statistics(self, predictions: np.ndarray, split: Split, calibration: dict) -> Statistics:
        """Return `loss`, the negative log-likelihood of each document, and `tokens`, the number of its predicted tokens."""
        means, counts, _ = predictions.T
        return {"rows": np.ones(len(means)), "loss": -means * counts, "tokens": counts}

    def lengths(self, evaluation: Evaluation) -> Lengths:
        return Lengths(evaluation.predictions[:, 2], "tokens of the text")

    def details(self, evaluation: Evaluation) -> dict:
        return {"tokens": int(evaluation.statistics["tokens"].sum())}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return `tokens`, the number of predicted tokens of each document, and `loss`, their mean loss."""
        return {"tokens": evaluation.predictions[:, 1].astype(int), "loss": -evaluation.predictions[:, 0]}

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return all documents, those with the highest loss first."""
        return np.argsort(-evaluation.columns["loss"], kind="stable"), lines_of_rows(self, evaluation)

    def report(self, evaluation: Evaluation) -> list[Section]:
        metrics = evaluation.metrics
        tokens = ("tokens", f"{metrics['tokens']:,}", f"predicted in {metrics['n']:,} documents; the loss is in nats per token")
        samples = [self.as_example(sample) for sample in metrics["samples"]]
        return [
            Section(text=self.remark(metrics), numbers=(tokens,)),
            Section(*self.samples_title, examples=(("", samples),)),
            self._hardest(evaluation),
        ]

    def samples(self, predictor: Predictor, rows: list[int], texts: list[str]) -> list[dict]:
        """Return the answers of the model for some documents; `rows` are their row numbers."""
        raise NotImplementedError

    def more_details(self, predictor: Predictor, split: Split) -> dict:
        first = split.select(range(min(SAMPLE_DOCUMENTS, len(split))))
        return {"samples": self.samples(predictor, first.rows.tolist(), first.columns()["text"])}

    def as_example(self, sample: dict) -> Example:
        """Return one of `samples` for the report page."""
        raise NotImplementedError

    def _hardest(self, evaluation: Evaluation) -> Section:
        """Return the section with the documents of the highest and of the lowest perplexity."""
        order, lines_of = self.errors(evaluation)
        examples = []
        for kind, positions in (("The hardest", order[:MAX_EXAMPLES]), ("The easiest", order[::-1][:MAX_EXAMPLES])):
            lines = lines_of(positions[: len(order) // 2 + 1])
            titles = [f"perplexity {np.exp(line.loss):,.1f}, row {line.row}: " for line in lines.itertuples()]
            documents = [Example(title + text[:MAX_LINE_CHARACTERS], text) for title, text in zip(titles, lines.text, strict=True)]
            examples.append((kind, documents))
        return Section("The hardest and the easiest documents", f"All {len(order):,} are in errors.csv.", examples=tuple(examples))


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the token ids of each text, without truncation and without special tokens."""
    return whole_ids(clean(texts), tokenizer, special=False)
