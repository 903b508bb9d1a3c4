"""Base classes of the tasks that read a text, or a pair of texts, and answer with the logits of a classification head.

Labels (classification.py) and values (regression.py) differ in what they make of the logits, (rows, outputs).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow
import torch
from datasets import Dataset, Features, List, Value
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from config import Config
from finetuning.data.annotations import read_accepted
from finetuning.data.augmentation import augmentation
from finetuning.data.labels import Encoded
from finetuning.data.splits import Split
from finetuning.data.text import (
    LABEL_COLUMNS,
    LINE_BREAK,
    PAIR_SEPARATOR,
    check_texts,
    clean,
    find_column,
    listed_columns,
    text_columns,
)
from finetuning.data.tokens import Tokens, encode_batch, special_tokens, tokenize_texts, truncate
from finetuning.errors import UserError
from finetuning.results import plots
from finetuning.results.label_report import calibration_section, ranking_section
from finetuning.results.report import MAX_EXAMPLES, Example, Picture, Section
from finetuning.task import Evaluation, Rows, Statistics, Task
from finetuning.training.prediction import Predictor


class TextClassification(Task):
    """Reads texts or pairs of texts. A subclass gives labels, loss, statistics and answers."""

    name = pipeline_tag = "text-classification"
    auto_class = AutoModelForSequenceClassification
    peft_type = TaskType.SEQ_CLS
    settings = (
        *("text_column", "text_pair_column", "label_column", "problem_type", "truncation", "padding", "augmentation"),
        *("class_weights", "label_smoothing_factor", "length_warmup"),
    )
    label_columns = LABEL_COLUMNS  # usual names
    cuda_graphs = True
    export_formats = ("merged", "onnx", "int8")
    answer_features = Features({"prediction": Value("float64")})
    examples = (
        "I went in expecting little and left with a lump in my throat. The two leads are superb.",
        "Two hours of my life I will never get back. The plot makes no sense and the jokes fall flat.",
        "Beautifully shot and well acted, but the story never comes to life and the ending is a let-down.",
    )

    def check(self, config: Config) -> None:
        if config.text_pair_column and config.length_warmup not in (0, Config.length_warmup):
            raise UserError(f"length_warmup={config.length_warmup} is for labels of single texts: leave it out")
        if config.text_pair_column and config.augmentation != "none":
            raise UserError(
                f"augmentation={config.augmentation} is for single texts: set it to none, or leave text_pair_column out"
            )

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        return text_columns(available, config, text_column)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        columns = self.input_columns(available, config, config.text_column)
        columns["label"] = find_column("label_column", config.label_column, self.label_columns, available)
        if len(set(columns.values())) < len(columns):
            given = ", ".join(f"{name}_column is {column!r}" for name, column in columns.items())
            raise UserError(f"{given}: name different columns, out of {listed_columns(available)}")
        return columns

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        remarks = check_texts(raw, columns)
        rows = read_accepted(raw, columns, lambda splits: self.encode_labels(splits, columns, config))
        return replace(rows, remarks=[*remarks, *rows.remarks])

    def encode_labels(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Encoded:
        """Return each split's labels, (rows, ...), and their names. Raise `UserError` for what is no label."""
        raise NotImplementedError

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return join_pairs(batch, "\x1f"), labels

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        return {"text": join_pairs(batch, PAIR_SEPARATOR)}

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        """Return the token ids, and for each token of a pair its text, 0 or 1, if the model asks for it."""
        asks = config.text_pair_column and "token_type_ids" in tokenizer.model_input_names
        types = {"token_type_ids": List(Value("int8"))} if asks else {}
        return Features({"input_ids": List(Value("int32")), **types, "length": Value("int32")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        """Return token ids and lengths. A pair is cut by the tokenizer, the longer text first."""
        if "text_pair" not in batch:
            ids, lengths = tokenize_texts(clean(batch["text"]), tokenizer, config)
            return {"input_ids": ids, "length": lengths}
        pairs = clean(batch["text"]), clean(batch["text_pair"])
        full = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=False)
        if config.truncation == "error":
            truncate(max(full["input_ids"], key=len), config.max_length, config.truncation)
        cut = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=True, max_length=config.max_length)
        lengths = np.array([len(ids) for ids in full["input_ids"]])
        return {name: cut[name] for name in self.features(tokenizer, config) if name != "length"} | {"length": lengths}

    def truncation_note(self, config: Config) -> str:
        if not config.text_pair_column or config.truncation == "error":
            return super().truncation_note(config)
        return f"of a pair the longer text is cut first, at its {'start' if config.truncation == 'tail' else 'end'}"

    def collate(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, torch.Tensor]:
        multiple = None if config.padding == "max_length" else 8
        options = dict(padding=config.padding, max_length=config.max_length, pad_to_multiple_of=multiple)
        return DataCollatorWithPadding(tokenizer, **options)(examples)

    def augment(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict] | None:
        change = augmentation(tokenizer, config)
        return change and (lambda example, epoch, row: example | {"input_ids": change(example["input_ids"], epoch, row)})

    def shorten(self, tokenizer: PreTrainedTokenizerBase, config: Config, max_length: int) -> Callable[[dict], dict] | None:
        """Return None if all is padded, so that it would save nothing, and for pairs, which only the tokenizer can cut."""
        if config.text_pair_column or config.padding == "max_length":
            return None
        first, last = special_tokens(tokenizer)
        side = "head+tail" if config.truncation == "error" else config.truncation
        return lambda example: example | {"input_ids": truncate(example["input_ids"], max_length, side, first, last)}

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> np.ndarray:
        """Return the logits, (rows, outputs), float32."""
        logits = None
        for rows, batches in predictor.outputs(tokens):
            outputs = np.concatenate(batches)
            logits = np.empty((len(tokens), outputs.shape[1]), dtype=np.float32) if logits is None else logits
            logits[rows] = outputs
        return logits

    def logits_of(self, predictor: Predictor, batch: dict[str, list]) -> np.ndarray:
        """Return the logits, (rows, outputs), of new texts with the columns of `input_columns`."""
        return self.predict(predictor, encode_batch(self, batch, predictor.tokenizer, predictor.config))

    # --- results ---------------------------------------------------------------------------------------------------------

    def answer_columns(self, evaluation: Evaluation) -> dict:
        """Return `label`, `prediction` and what else is known of the prediction, a value per row."""
        raise NotImplementedError

    def worst(self, evaluation: Evaluation) -> np.ndarray:
        """Return the numbers of the rows that are errors, the worst first."""
        raise NotImplementedError

    def prediction_columns(self, evaluation: Evaluation) -> dict:
        """Return what `answer_columns` gives, `logits`, `tokens` (before truncation) and `truncated`."""
        truncated = evaluation.lengths > evaluation.config.max_length
        scores = {"logits": evaluation.predictions, "tokens": evaluation.lengths, "truncated": truncated}
        return self.answer_columns(evaluation) | scores

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return the rows of `worst`; of each its text, what `prediction_columns` gives except the logits, lists as text."""
        columns = self.prediction_columns(evaluation)
        del columns["logits"]
        columns = {"actual": columns.pop("label"), "predicted": columns.pop("prediction")} | columns
        table = pyarrow.table({"row": evaluation.split.rows} | columns)
        lists = [field.name for field in table.schema if pyarrow.types.is_list(field.type)]

        def lines(positions: np.ndarray) -> pd.DataFrame:
            frame = table.take(positions).to_pandas()
            texts = self.readable(evaluation.split.select(positions).columns())
            return pd.DataFrame(
                {"row": frame.pop("row")} | texts | dict(frame.items()) | {name: frame[name].str.join(", ") for name in lists}
            )

        return self.worst(evaluation), lines

    def length_section(self, evaluation: Evaluation) -> Section:
        metric, xlabel = self.metrics[0], f"tokens of the text (the model reads {evaluation.config.max_length})"
        draw = partial(plots.plot_by_length, evaluation.metrics["by_length"], metric, xlabel)
        return Section("By length", pictures=(Picture("by_length", f"{metric.name} by length of the text", draw),))

    def remark(self, metrics: dict) -> str:
        config = Config(**metrics["run"]["config"])
        return f"The model reads at most {config.max_length} tokens of a text ({self.truncation_note(config)})."

    # --- use -------------------------------------------------------------------------------------------------------------

    def pipeline(self, config: Config) -> tuple[str, str]:
        side, note = "last" if config.truncation == "tail" else "first", ""
        if config.truncation == "head+tail" and not config.text_pair_column:
            note = ", where `predict.py` reads its first quarter and its end"
        return ", truncation=True", (
            f"It reads the {side} {config.max_length} tokens of a longer text{note}; without `truncation=True` a text that is longer "
            "than the model's positions is an error."
        )

    def explain(self, predictor: Predictor, text: str) -> list[tuple[str, float]]:
        raise UserError("--explain is for one label of a single text, not for pairs, several labels or numbers: leave it out")

    def code_variables(self, config: Config, calibration: dict) -> dict:
        return {"inputs": ["text", *(["text_pair"] if config.text_pair_column else [])], "line_break": LINE_BREAK.pattern}


class Labels(TextClassification):
    """What one label and several labels of a text have in common."""

    def one_hot(self, labels: np.ndarray, n: int) -> np.ndarray:
        """Return whether each row has each of `n` labels, (rows, n) bool."""
        raise NotImplementedError

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return each row's loss, (rows,)."""
        raise NotImplementedError

    def probabilities(self, logits: np.ndarray, calibration: dict) -> np.ndarray:
        """Return each label's probability, (rows, labels)."""
        raise NotImplementedError

    def label_counts(self, split: Split, label_names: list[str]) -> dict[str, int]:
        return dict(zip(label_names, self.one_hot(split.labels, len(label_names)).sum(axis=0).astype(int).tolist(), strict=True))

    def show_labels(self, split: Split, label_names: list[str]) -> list[str]:
        names = np.array(label_names, dtype=object)
        return [", ".join(names[row]) or "none" for row in self.one_hot(split.labels, len(names)).astype(bool)]

    def model_settings(self, label_names: list[str]) -> dict:
        return {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}

    def statistics(self, predictions: np.ndarray, split: Split, calibration: dict) -> Statistics:
        """Return `correct` (all labels of the row are right), `loss`, and for each label whether it is given, predicted and both."""
        n = predictions.shape[1]
        actual, predicted = self.one_hot(split.labels, n), self.one_hot(self.decide(predictions, calibration), n)
        return {
            "rows": np.ones(len(actual), dtype=np.int32),
            "correct": (actual == predicted).all(axis=1),
            "loss": self.losses(predictions, split.labels),
            "true_positives": actual & predicted,
            "predicted": predicted,
            "actual": actual,
        }

    def worst(self, evaluation: Evaluation) -> np.ndarray:
        """Return the rows with a wrong label, the most confident first."""
        statistics = self.statistics(evaluation.predictions, evaluation.split, evaluation.calibration)
        wrong = np.flatnonzero(~statistics["correct"])
        return wrong[np.argsort(-self.answer_columns(evaluation)["probability"][wrong], kind="stable")]

    def curves(self, evaluation: Evaluation) -> dict:
        """Return ROC and precision-recall curves; of two labels that exclude each other only those of the second."""
        names, probabilities = evaluation.label_names, self.probabilities(evaluation.predictions, evaluation.calibration)
        actual = self.one_hot(evaluation.split.labels, len(names))
        shown = [1] if self.labels_are_classes and len(names) == 2 else range(len(names))
        return plots.curves({names[i]: (actual[:, i], probabilities[:, i]) for i in shown})

    def files(self, evaluation: Evaluation) -> dict[str, str]:
        return {"curves.json": json.dumps(self.curves(evaluation), indent=1, ensure_ascii=False) + "\n"}

    def common_sections(self, evaluation: Evaluation) -> list[Section]:
        sections = ranking_section(self.curves(evaluation)), calibration_section(evaluation.metrics)
        return [*sections, self.length_section(evaluation)]

    def remark(self, metrics: dict) -> str:
        error = metrics["calibration"]["scaled"]["expected_calibration_error"]
        return (
            f"Expected calibration error {100 * error:.2f} % after dividing the logits by the temperature "
            f"{metrics['temperature']:.3f}.\n{super().remark(metrics)}"
        )


def show_examples(lines: Callable[[np.ndarray], pd.DataFrame], positions: np.ndarray, title: Callable) -> list[Example]:
    """Return the first of some rows as examples for the page; `lines` is from `errors`, `title` gives the line above a text."""
    rows = lines(positions[:MAX_EXAMPLES]).itertuples()
    return [Example(title(row), row.text, probability=getattr(row, "probability", None)) for row in rows]


def join_pairs(batch: dict[str, list], separator: str) -> list[str]:
    """Return the texts, or the two texts of each pair as one; "" if one of a pair is empty."""
    if "text_pair" not in batch:
        return clean(batch["text"])
    pairs = zip(clean(batch["text"]), clean(batch["text_pair"]), strict=True)
    return [separator.join(pair) if all(text.strip() for text in pair) else "" for pair in pairs]
