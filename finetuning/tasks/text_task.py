"""Base class of the tasks that read a text, or a pair of texts, with a model that has a classification head.

The subclasses turn its logits, (rows, outputs), into labels (classification.py) or numbers (regression.py).
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from config import Config
from finetuning.data.annotations import accepted_rows
from finetuning.data.augmentation import augmentation
from finetuning.data.labels import Encoded
from finetuning.data.text import (
    LABEL_COLUMNS,
    PAIR_SEPARATOR,
    check_texts,
    clean,
    find_column,
    listed_columns,
    renamed,
    text_columns,
)
from finetuning.data.tokens import Tokens, by_characters, encode_batch, refuse_long, special_tokens, tokenize_texts, truncate
from finetuning.errors import UserError
from finetuning.results.report import MAX_EXAMPLES, Example
from finetuning.task import Evaluation, Lengths, Rows, Task
from finetuning.training.prediction import Predictor


class TextClassification(Task):
    """A task that reads texts or pairs of texts. Subclasses define labels, loss, statistics and answers."""

    name = pipeline_tag = "text-classification"
    auto_class = AutoModelForSequenceClassification
    collator = DataCollatorWithPadding
    peft_type = TaskType.SEQ_CLS
    settings = (
        *("text_column", "text_pair_column", "label_column", "problem_type", "truncation", "padding", "augmentation"),
        *("class_weights", "label_smoothing_factor", "length_warmup"),
    )
    tokenizer_options = {"split_special_tokens": True}  # "</s>" or "[SEP]" in a text is text
    label_columns = LABEL_COLUMNS
    answer_features = Features({"prediction": Value("float64")})
    examples = (
        "I went in expecting little and left with a lump in my throat. The two leads are superb.",
        "Two hours of my life I will never get back. The plot makes no sense and the jokes fall flat.",
        "Beautifully shot and well acted, but the story never comes to life and the ending is a let-down.",
    )

    def check(self, config: Config, given: Collection[str] = ()) -> None:
        for name, off in (("length_warmup", 0), ("augmentation", "none")):
            is_refused = name in given or name == "augmentation"  # the default of length_warmup has no effect on pairs
            if config.text_pair_column and is_refused and (value := getattr(config, name)) != off:
                raise UserError(f"{name}={value} is not for pairs of texts: leave it out, or leave text_pair_column out")

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        return text_columns(available, config, text_column)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        columns = self.input_columns(available, config, config.text_column)
        columns["label"] = find_column("label_column", config.label_column, self.label_columns, available)
        if len(set(columns.values())) < len(columns):
            settings = ", ".join(f"{name}_column is {column!r}" for name, column in columns.items())
            raise UserError(f"{settings}: set them to different columns; the columns are {listed_columns(available)}")
        return columns

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        """Return texts and labels. Rows that Prodigy's column `answer` does not accept are left out, and get a label of zero."""
        remarks, (accepted, notes) = check_texts(raw, columns), accepted_rows(raw, columns)
        used = {split: rows.select(np.flatnonzero(accepted[split])) if split in accepted else rows for split, rows in raw.items()}
        encoded = self.encode_labels(used, columns, config)
        labels = dict(encoded.labels)
        for split, mask in accepted.items():
            labels[split] = np.zeros((len(mask), *labels[split].shape[1:]), dtype=labels[split].dtype)
            labels[split][mask] = encoded.labels[split]
        left_out = {split: ~mask for split, mask in accepted.items()}
        return Rows(renamed(raw, columns), labels, encoded.names, left_out, [*remarks, *notes, *encoded.remarks])

    def encode_labels(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Encoded:
        """Return the labels of each split, (rows, ...), and their names. Raise `UserError` for a value that is no label."""
        raise NotImplementedError

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return join_pairs(batch, "\x1f"), labels  # ASCII's unit separator

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        return {"text": join_pairs(batch, PAIR_SEPARATOR)}

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        """Return the columns of `tokenize`: `input_ids`, `length`, and for pairs also `token_type_ids` if the model reads them."""
        has_types = config.text_pair_column and "token_type_ids" in tokenizer.model_input_names
        types = {"token_type_ids": List(Value("int8"))} if has_types else {}
        return Features({"input_ids": List(Value("int32")), **types, "length": Value("int32")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        """Return token ids, and lengths before truncation. Pairs are truncated by the tokenizer, the longer text first."""
        if "text_pair" not in batch:
            ids, lengths = tokenize_texts(clean(batch["text"]), tokenizer, config)
            return {"input_ids": ids, "length": lengths}
        texts, others = clean(batch["text"]), clean(batch["text_pair"])
        columns = {name: [] for name in self.features(tokenizer, config)}
        for part in by_characters(len(text) + len(other) for text, other in zip(texts, others, strict=True)):
            pairs = texts[part], others[part]
            full = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=False)
            cut = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=True, max_length=config.max_length)
            cut["length"] = [len(ids) for ids in full["input_ids"]]
            for name, values in columns.items():
                values += cut[name]
        refuse_long(columns["length"], config)
        return columns

    def truncation_note(self, config: Config) -> str:
        if not config.text_pair_column or config.truncation == "error":
            return super().truncation_note(config)
        return f"the longer text of a pair is cut first, at its {'start' if config.truncation == 'tail' else 'end'}"

    def augment(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict] | None:
        change = augmentation(tokenizer, config)
        return change and (lambda example, epoch, row: example | {"input_ids": change(example["input_ids"], epoch, row)})

    def shorten(self, tokenizer: PreTrainedTokenizerBase, config: Config, max_length: int) -> Callable[[dict], dict] | None:
        """Return a function that cuts an example. Return None for pairs, and if padding to `max_length` makes shorter texts useless.

        Pairs can be cut only by the tokenizer, before they are joined.
        """
        if config.text_pair_column or config.padding == "max_length":
            return None
        first, last = map(len, special_tokens(tokenizer))
        side = "head+tail" if config.truncation == "error" else config.truncation
        return lambda example: example | {"input_ids": truncate(example["input_ids"], max_length, side, first, last)}

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> np.ndarray:
        """Return the logits, (rows, outputs), float32."""
        return predictor.array(tokens)

    def logits_of(self, predictor: Predictor, batch: dict[str, list]) -> np.ndarray:
        """Return the logits of new texts, (rows, outputs); `batch` has the columns of `input_columns`."""
        return self.predict(predictor, encode_batch(self, batch, predictor.tokenizer, predictor.config))

    # --- results ---------------------------------------------------------------------------------------------------------

    def answer_columns(self, evaluation: Evaluation) -> dict:
        """Return the columns `label` and `prediction`, and further columns about the prediction, with a value for each row."""
        raise NotImplementedError

    def prediction_columns(self, evaluation: Evaluation) -> dict:
        """Return `answer_columns`, and the columns `logits`, `tokens` (their number before truncation) and `truncated`."""
        truncated = evaluation.lengths > evaluation.config.max_length
        scores = {"logits": evaluation.predictions, "tokens": evaluation.lengths, "truncated": truncated}
        return self.answer_columns(evaluation) | scores

    def lengths(self, evaluation: Evaluation) -> Lengths:
        return Lengths(evaluation.lengths, f"tokens of the text (the model reads at most {evaluation.config.max_length})")

    def remark(self, metrics: dict) -> str:
        config = Config(**metrics["run"]["config"])
        return f"The model reads at most {config.max_length} tokens of a text ({self.truncation_note(config)})."

    # --- use -------------------------------------------------------------------------------------------------------------

    def pipeline(self, config: Config) -> tuple[str, str]:
        side, note = "last" if config.truncation == "tail" else "first", ""
        if config.truncation == "head+tail" and not config.text_pair_column:
            quarter = config.max_length // 4
            note = f", where `predict.py` reads the first {quarter} and the last {config.max_length - quarter}"
        return ", truncation=True", (
            f"It reads the {side} {config.max_length} tokens of a longer text{note}. Without `truncation=True`, a text that is "
            "longer than the model can read raises an error."
        )


def show_examples(lines: Callable[[np.ndarray], pd.DataFrame], positions: np.ndarray, title: Callable) -> list[Example]:
    """Return the first `MAX_EXAMPLES` rows as examples for the report page.

    `lines` is the function that `Task.errors` returns. `title` takes a row of its result, and returns the line above the text.
    """
    rows = lines(positions[:MAX_EXAMPLES]).itertuples()
    return [Example(title(row), row.text, probability=getattr(row, "probability", None)) for row in rows]


def join_pairs(batch: dict[str, list], separator: str) -> list[str]:
    """Return the texts, or the two texts of each pair joined by `separator`; "" if one text of a pair is empty."""
    if "text_pair" not in batch:
        return clean(batch["text"])
    pairs = zip(clean(batch["text"]), clean(batch["text_pair"]), strict=True)
    return [separator.join(pair) if all(text.strip() for text in pair) else "" for pair in pairs]
