"""Named entities: words of a text that name a person, a place, a product and so on.

Data sets are read in many formats (data/spans.py). The model predicts the tag of a word at its first sub-word. A sentence that is
too long for the model is read in overlapping windows (data/windows.py), so no word is left out of the metrics. The tags of a
sentence are decoded together, so that they are valid IOB2 (results/entities.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value
from peft import TaskType
from scipy.special import log_softmax, softmax
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedTokenizerBase

from config import Config
from finetuning.data import spans, windows
from finetuning.data.cache import read_column
from finetuning.data.formats import read_conll
from finetuning.data.spans import types_of
from finetuning.data.splits import Split
from finetuning.data.text import TEXT_COLUMNS, find_column
from finetuning.data.tokens import Tokens, encode, encode_batch
from finetuning.errors import UserError
from finetuning.results.entities import (
    F1,
    Comparison,
    confusion_matrix,
    count_errors,
    decode,
    entities,
    entity_probability,
    mark,
    place_entities,
    word_probabilities,
)
from finetuning.results.entity_report import COLUMNS, MARKED, describe, describe_context, sections
from finetuning.results.label_report import by_label, micro, precision, recall
from finetuning.results.metrics import fit_temperature
from finetuning.results.report import Section, show_spans
from finetuning.task import Evaluation, JudgesLabels, Lengths, Metric, Rows, Statistics, Task
from finetuning.training.prediction import Predictor

# Rows in a group of neighbours. With 60, intervals were a quarter wider.
NEIGHBOURS = 30
# An entity in an answer; `start` and `end` are characters of the text.
ENTITY = dict(start=Value("int64"), end=Value("int64"), text=Value("string"), label=Value("string"), probability=Value("float64"))


class Entities(Task, JudgesLabels):
    """Named entities. A row is a sentence, or any other text."""

    name = pipeline_tag = "token-classification"
    auto_class = AutoModelForTokenClassification
    collator = DataCollatorForTokenClassification
    peft_type = TaskType.TOKEN_CLS
    metrics = (
        F1,
        Metric("precision", micro(precision), format=".2%", interval=False, limits=(0, 1)),
        Metric("recall", micro(recall), format=".2%", interval=False, limits=(0, 1)),
        Metric("accuracy", lambda sums: sums["words_correct"] / sums["words"], format=".2%", label="Word accuracy", interval=False),
        Metric("loss", lambda sums: sums["loss"] / sums["words"], better="lower", interval=False),
    )
    settings = ("text_column", "label_column", "span_offsets", "context", "padding", "label_smoothing_factor")
    token_settings = ("max_length", "context")
    tokenizer_options = {"add_prefix_space": True}  # in RoBERTa and GPT-2 the space before a word is part of its token
    readers = dict.fromkeys((".txt", ".train", ".testa", ".testb"), read_conll)  # usual endings of CoNLL files
    input_types = (str, list, dict)
    label_columns = (*spans.TAG_COLUMNS, *spans.SPAN_COLUMNS)
    answer_features = Features({"entities": List(ENTITY)})
    options = {"context": None}  # "sentence" or "neighbours", as in config.py; None: as in training
    examples = (
        "Angela Merkel flew to Paris to meet the president of the European Commission.",
        "Nokia moved its headquarters to Espoo in 1996, said the Helsingin Sanomat.",
        "Inter Milan beat Blackburn Rovers 3-1 after two late goals by the Brazilian Ronaldo.",
    )
    code_template = "entities.py.jinja"
    widgets = (("highlight", "Entities"), ("json", "Their offsets and probabilities"))

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        """Return the column with the texts, or with the lists of words."""
        usual = (*spans.WORD_COLUMNS, *TEXT_COLUMNS, "data")
        if "text" in available and {*spans.SPAN_COLUMNS} & {*available} and not {*spans.TAG_COLUMNS} & {*available}:
            usual = ("text",)  # annotation tools add a column with words of their own
        configured = [config.text_column] if config.text_column else []
        return {"text": find_column("text_column", text_column, (*configured, *usual), available)}

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        label = find_column("label_column", config.label_column, self.label_columns, available)
        return self.input_columns(available, config, config.text_column) | {"label": label}

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        return spans.read(raw, columns, config)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return batch["text"], [" ".join(map(str, tags)) for tags in batch["tags"]]

    def groups(self, hashes: np.ndarray) -> np.ndarray | None:
        """Return groups of neighbours: rows that follow one another may be sentences of one document."""
        size = min(NEIGHBOURS, len(hashes) // (2 * NEIGHBOURS))  # few rows: small groups
        return np.arange(len(hashes)) // size if size > 1 else None

    def label_counts(self, split: Split, label_names: list[str]) -> dict[str, int]:
        codes = np.concatenate(actual_codes(split))  # 0 is O; the types follow with two codes each, B- and I-
        return {name: int(np.sum(codes == 1 + 2 * i)) for i, name in enumerate(types_of(label_names))}

    def show_labels(self, split: Split, label_names: list[str], decisions: list[np.ndarray] | None = None) -> list[str]:
        codes_of_rows = actual_codes(split) if decisions is None else decisions
        rows, types, lines = split.columns(), types_of(label_names), []
        for text, starts, ends, codes in zip(rows["text"], rows["starts"], rows["ends"], codes_of_rows, strict=True):
            places = place_entities({"starts": starts, "ends": ends}, entities(codes), types)
            lines.append(", ".join(f"{text[start:end]} ({name})" for start, end, name in places) or "no entity")
        return lines

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        """Return the columns of a window. `labels`: -100 for tokens without a label. `rows`: the row of each label."""
        columns = {"input_ids": List(Value("int32")), "labels": List(Value("int16")), "rows": List(Value("int64"))}
        return Features(columns | {"length": Value("int32")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        """Return windows. With the context "neighbours", a window may have several rows. Without tags, each word's label is 0."""
        return windows.tokenize(batch, tokenizer, config.max_length, together=config.context == "neighbours")

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            """Return the summed loss of all words; logits (windows, tokens, tags), labels (windows, tokens)."""
            logits, labels = logits.flatten(0, 1).float(), labels.flatten()
            return cross_entropy(logits, labels, reduction="sum", label_smoothing=config.label_smoothing_factor)

        return loss

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> list[np.ndarray]:
        """Return the logits of the words of each row, (words, tags), float32."""
        window_logits: list = [None] * len(tokens)
        window_labels = tokens.inputs.select_columns("labels")
        for positions, batches in predictor.outputs(tokens):
            outputs = (logits for batch in batches for logits in batch)
            for position, labels, logits in zip(positions, window_labels[positions.tolist()]["labels"], outputs, strict=True):
                window_logits[position] = logits[np.flatnonzero(np.array(labels) >= 0)]
        # One row ends and the next begins where the row number of two neighbouring words differs.
        return np.split(np.concatenate(window_logits), np.flatnonzero(np.diff(tokens.rows)) + 1)

    def calibrate(self, predictor: Predictor, predictions: list[np.ndarray], validation: Split) -> dict:
        logits, codes = np.concatenate(predictions), np.concatenate(actual_codes(validation))
        return {"temperature": fit_temperature(logits, codes)}

    def decide(self, predictions: list[np.ndarray], calibration: dict) -> list[np.ndarray]:
        """Return the most probable valid sequence of tags for each row, (words,)."""
        return decode(predictions)

    def stored_predictions(self, table: pd.DataFrame, label_names: list[str]) -> list[np.ndarray]:
        return [values.reshape(-1, len(label_names)) for values in table["logits"]]

    def probabilities(self, predictions: list[np.ndarray], calibration: dict) -> list[np.ndarray]:
        return [softmax(logits / calibration["temperature"], axis=-1) for logits in predictions]

    def label_quality(self, probabilities: list[np.ndarray], split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Judge each tag alone. A row's quality is the lowest probability of its tags; it may be wrong if one of its tags is."""
        from cleanlab.token_classification.filter import find_label_issues  # delayed: it is slow to import

        codes = actual_codes(split)
        wrong = np.zeros(len(codes), dtype=bool)
        wrong[[row for row, _ in find_label_issues(codes, probabilities, n_jobs=1)]] = True
        return np.array([words[np.arange(len(tags)), tags].min() for words, tags in zip(probabilities, codes, strict=True)]), wrong

    def compare(self, predictions: list[np.ndarray], split: Split) -> Comparison:
        """Return the comparison of predicted and actual entities."""
        return Comparison.of(predictions, actual_codes(split))

    def statistics(self, predictions: list[np.ndarray], split: Split, calibration: dict) -> Statistics:
        """Return numbers of words, (rows,), and of entities by type, (rows, types). `loss` is the sum over the words of a row."""
        comparison = self.compare(predictions, split)
        words = np.array([len(codes) for codes in comparison.actual_codes])
        row_of_word = np.repeat(np.arange(len(words)), words)
        actual, predicted = (np.concatenate(codes) for codes in (comparison.actual_codes, comparison.predicted_codes))
        log_probabilities = log_softmax(np.concatenate(predictions).astype(np.float64), axis=-1)
        losses = -log_probabilities[np.arange(len(actual)), actual]
        return {
            "rows": np.ones(len(words), dtype=int),
            "words": words,
            "words_correct": np.bincount(row_of_word, actual == predicted, minlength=len(words)).astype(int),
            "loss": np.bincount(row_of_word, losses, minlength=len(words)),
        } | comparison.counts(len(types_of(split.dataset.features["tags"].feature.names)))

    def learned_nothing(self, statistics: Statistics, label_names: list[str]) -> str:
        return "gets no entity" if statistics["actual"].any() and not statistics["predicted"].any() else ""

    def lengths(self, evaluation: Evaluation) -> Lengths:
        return Lengths(np.array([len(logits) for logits in evaluation.predictions]), "words of the sentence", (0, 8, 16, 32, 64))

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        statistics, types = evaluation.statistics, types_of(evaluation.label_names)
        comparison = self.compare(evaluation.predictions, evaluation.split)
        matches = comparison.matches(evaluation.calibration["temperature"])
        occurs = (statistics["actual"] + statistics["predicted"]).any(axis=0)
        return {
            "mode": "strict IOB2: span and type of a whole entity are exact",
            "context": evaluation.config.context,
            "words": int(statistics["words"].sum()),
            "entities": int(statistics["actual"].sum()),
            "types": types,
            "by_type": [*compress(by_label(statistics, types), occurs)],
            "errors": count_errors(matches),
            "confusion_matrix": confusion_matrix(matches, len(types)).tolist(),
            "calibration": {
                "as_trained": comparison.reliability(1.0),
                "scaled": comparison.reliability(evaluation.calibration["temperature"]),
            },
        }

    def more_details(self, predictor: Predictor, split: Split) -> dict:
        """Return the F1 when each row is read alone. A run with the context "sentence" has it already."""
        if predictor.config.context == "sentence":
            return {}
        tokens = encode(self, split, predictor.tokenizer, replace(predictor.config, context="sentence"))
        statistics = self.statistics(self.predict(predictor, tokens), split, {})
        return {"f1_sentences_alone": F1.of(statistics)}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the IOB2 tags of the words, and the probabilities of the predicted tags after temperature scaling."""
        comparison, names = self.compare(evaluation.predictions, evaluation.split), evaluation.label_names
        return {
            "label": [[names[code] for code in codes] for codes in comparison.actual_codes],
            "prediction": [[names[code] for code in codes] for codes in comparison.predicted_codes],
            "probability": [words.tolist() for words in comparison.word_probabilities(evaluation.calibration["temperature"])],
            "logits": [words.ravel() for words in evaluation.predictions],
        }

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return an error for each wrong or missed entity, the most probable first."""
        comparison = self.compare(evaluation.predictions, evaluation.split)
        errors = comparison.errors(evaluation.calibration["temperature"])

        def lines_of(numbers: np.ndarray) -> pd.DataFrame:
            lines = describe(evaluation, comparison, [errors[number] for number in numbers])
            return pd.DataFrame([line | {side: show_spans(line[side]) for side in MARKED} for line in lines], columns=COLUMNS)

        return np.arange(len(errors)), lines_of

    def report(self, evaluation: Evaluation) -> list[Section]:
        return sections(evaluation, self.compare(evaluation.predictions, evaluation.split))

    def remark(self, metrics: dict) -> str:
        return (
            f"Precision {metrics['precision']:.2%}, recall {metrics['recall']:.2%}, {metrics['entities']:,} entities; "
            f"{metrics['mode']}. {describe_context(metrics)} The tag of a word is predicted at its first sub-word. The tags of a "
            "sentence are decoded together, so that they are valid IOB2."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return the `entities` of each text: their `start` and `end` in it, `text`, `label` and `probability`.

        If a text is a list of words, the words are joined with spaces. `predictor.options["context"]` is "sentence" (each row is
        read alone), "neighbours" (the rows of the batch are read together) or None (as in training).
        """
        rows = [spans.place(value) for value in batch["text"]]
        config = replace(predictor.config, context=predictor.options.get("context") or predictor.config.context)
        tokens = encode_batch(self, {name: [row[name] for row in rows] for name in spans.PLACES}, predictor.tokenizer, config)
        logits = self.predict(predictor, tokens)
        codes, types = self.decide(logits, predictor.calibration), types_of(predictor.label_names)
        words = word_probabilities(logits, codes, predictor.calibration["temperature"])
        answers = []
        for row, tags, probabilities in zip(rows, codes, words, strict=True):
            sentence = entities(tags)
            places = zip(sentence, place_entities(row, sentence, types), strict=True)
            answers.append(
                [
                    dict(start=start, end=end, text=row["text"][start:end], label=label)
                    | {"probability": round(entity_probability(probabilities, entity), 6)}
                    for entity, (start, end, label) in places
                ]
            )
        return {"entities": answers}

    def refusal(self, inputs: dict) -> str:
        """Also refuse a value without words, such as an empty list in a cell of a table."""
        try:
            spans.place(inputs["text"])
        except UserError as error:
            return super().refusal(inputs) or f"can't be read: {error}"
        return super().refusal(inputs)

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        return {"text": spans.place(inputs["text"])["text"], "entities": answer["entities"]}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        labels = [
            (entity["start"], entity["end"], f"{entity['label']} {entity['probability']:.3f}") for entity in answer["entities"]
        ]
        return show_spans(mark(spans.place(inputs["text"])["text"], labels))

    def widget_values(self, predictor: Predictor, text: str) -> list:
        (answer,) = self.answers(predictor, {"text": [text]})["entities"]
        pieces = mark(spans.place(text)["text"], [(entity["start"], entity["end"], entity["label"]) for entity in answer])
        return [pieces, answer]

    def pipeline(self, config: Config) -> tuple[str, str]:
        difference = (
            "It decides on each word separately, while `predict.py` decodes the tags of a sentence together, so that they are "
            "valid. A text that is longer than the model can read raises an error."
        )
        return ', aggregation_strategy="first"', difference


def actual_codes(split: Split) -> list[np.ndarray]:
    """Return for each row the codes of its tags, (words,). A code is a position in the label names."""
    tags = read_column(split.dataset.select(split.rows), "tags").combine_chunks()
    return np.split(tags.flatten().to_numpy(), tags.value_lengths().to_numpy().cumsum()[:-1])
