"""Labels for texts or pairs of texts: exactly one label each (`SingleLabel`), or any number of labels (`MultiLabel`)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import torch
from datasets import Dataset, Features, List, Value
from scipy.special import expit, log_softmax, softmax
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from config import Config
from finetuning.data.labels import Encoded, encode_label_columns, encode_label_lists, encode_labels, holds_several
from finetuning.data.splits import Split
from finetuning.data.text import listed_columns, shortened
from finetuning.errors import UserError, shorten
from finetuning.results import label_report, plots
from finetuning.results.metrics import accuracy, fit_temperature, reliability
from finetuning.results.report import MAX_LINE_CHARACTERS, Picture, Section, lines_of_rows
from finetuning.task import Evaluation, JudgesLabels, Metric, Statistics, Task
from finetuning.tasks.text_task import TextClassification, show_examples
from finetuning.training.prediction import Predictor
from finetuning.use import explaining

MAX_CONFUSED_PAIRS = 20  # pairs of labels that the report page shows errors of


class Labels(TextClassification, JudgesLabels):
    """Base class for one label and for several labels per text."""

    def one_hot(self, labels: np.ndarray, n: int) -> np.ndarray:
        """Return True where a row has a label, (rows, n) bool; `n` is the number of labels."""
        raise NotImplementedError

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return each row's loss, (rows,)."""
        raise NotImplementedError

    def label_counts(self, split: Split, label_names: list[str]) -> dict[str, int]:
        return dict(zip(label_names, self.one_hot(split.labels, len(label_names)).sum(axis=0).tolist(), strict=True))

    def show_labels(self, split: Split, label_names: list[str], decisions: np.ndarray | None = None) -> list[str]:
        labels, names = split.labels if decisions is None else decisions, np.array(label_names, dtype=object)
        return [", ".join(names[row]) or "none" for row in self.one_hot(labels, len(names))]

    def statistics(self, predictions: np.ndarray, split: Split, calibration: dict) -> Statistics:
        """Return the statistics that the metrics sum.

        `correct`, (rows,): all labels of the row are right. `loss`, (rows,). `actual`, (rows, labels): the row has the label.
        `predicted`, (rows, labels): the model predicts it. `true_positives`, (rows, labels): both.
        """
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

    def learned_nothing(self, statistics: Statistics, label_names: list[str]) -> str:
        predicted, actual = statistics["predicted"], statistics["actual"]
        if (predicted != predicted[0]).any() or (actual == actual[0]).all():
            return ""
        names = ", ".join(repr(name) for name, has_label in zip(label_names, predicted[0], strict=True) if has_label)
        return f"gets {names or 'no label'}"

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return the rows with a wrong label, the most confident first."""
        wrong = np.flatnonzero(~evaluation.statistics["correct"])
        order = np.argsort(-evaluation.columns["probability"][wrong], kind="stable")
        return wrong[order], lines_of_rows(self, evaluation)

    def probabilities_of(self, predictor: Predictor, batch: dict[str, list]) -> np.ndarray:
        """Return the probabilities of all labels for new texts, (rows, labels)."""
        return self.probabilities(self.logits_of(predictor, batch), predictor.calibration)

    def widget_values(self, predictor: Predictor, text: str) -> list:
        """Return the probability of each label."""
        (probabilities,) = self.probabilities_of(predictor, {"text": [text]}).tolist()
        return [dict(zip(predictor.label_names, probabilities, strict=True))]

    def common_sections(self, evaluation: Evaluation) -> list[Section]:
        """Return the sections on curves and on calibration. If a text has one of two labels, only the second label gets a curve."""
        names, probabilities = evaluation.label_names, self.probabilities(evaluation.predictions, evaluation.calibration)
        actual = self.one_hot(evaluation.split.labels, len(names))
        shown = [1] if self.labels_are_classes and len(names) == 2 else range(len(names))
        curves = {names[i]: (actual[:, i], probabilities[:, i]) for i in shown}
        return [label_report.ranking_section(curves), label_report.calibration_section(evaluation.metrics)]

    def remark(self, metrics: dict) -> str:
        error = metrics["calibration"]["scaled"]["expected_calibration_error"]
        return (
            f"Expected calibration error {100 * error:.2f} % after dividing the logits by the temperature "
            f"{metrics['temperature']:.3f}.\n{super().remark(metrics)}"
        )


class SingleLabel(Labels):
    """Exactly one label for each text, such as the sentiment of a review or the topic of a message."""

    problem_type = "single_label_classification"
    metrics = (
        label_report.ACCURACY,
        Metric("f1", label_report.single(label_report.f1), limits=(0, 1), rarer_decides=True),
        label_report.F1_MACRO,
        Metric("precision", label_report.single(label_report.precision), interval=False, limits=(0, 1)),
        Metric("recall", label_report.single(label_report.recall), interval=False, limits=(0, 1)),
        label_report.LOSS,
    )
    labels_are_classes = True
    answer_features = Features({"prediction": Value("string"), "probability": Value("float64")})
    code_template = "classification.py.jinja"
    widgets = (("label", "Label and probability"), ("highlight", "Words for the label (red) and against it (violet)"))

    def settle(self, train: Dataset, config: Config, given: Collection[str] = ()) -> tuple[Task, Config]:
        """Return the task and the problem type that fit the label column, if no problem type was given."""
        if config.problem_type:
            return self, config
        is_multi_label = "," in (config.label_column or "") and config.label_column not in train.column_names
        is_multi_label = is_multi_label or holds_several(train, self.columns(train.column_names, config)["label"])
        task = MultiLabel() if is_multi_label else self
        return task, replace(config, problem_type=task.problem_type)

    def encode_labels(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Encoded:
        return encode_labels(raw, columns["label"], named=config.label_column is not None)

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        return labels >= 0

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return the cross entropy.

        Balanced: each text is weighted by its label. The weights have a mean of 1 over the training rows.
        """
        weight = None
        if config.class_weights == "balanced":
            counts = np.bincount(train_labels, minlength=n_labels)
            weight = torch.tensor(len(train_labels) / (np.count_nonzero(counts) * counts.clip(min=1)), dtype=torch.float32)

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            losses = cross_entropy(logits.float(), labels, reduction="none", label_smoothing=config.label_smoothing_factor)
            return (losses if weight is None else losses * weight.to(logits.device)[labels]).sum()

        return loss

    # --- predictions -----------------------------------------------------------------------------------------------------

    def one_hot(self, labels: np.ndarray, n: int) -> np.ndarray:
        return labels[:, None] == np.arange(n)

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return -log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]

    def probabilities(self, logits: np.ndarray, calibration: dict) -> np.ndarray:
        return softmax(logits / calibration["temperature"], axis=-1)

    def calibrate(self, predictor: Predictor, predictions: np.ndarray, validation: Split) -> dict:
        return {"temperature": fit_temperature(predictions, validation.labels)}

    def decide(self, predictions: np.ndarray, calibration: dict) -> np.ndarray:
        """Return the label with the highest logit, (rows,)."""
        return predictions.argmax(axis=-1)

    def label_quality(self, probabilities: list[np.ndarray], split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each row's label as its quality."""
        from cleanlab.filter import find_label_issues  # delayed: it is slow to import
        from cleanlab.rank import get_label_quality_scores

        labels, stacked = split.labels, np.stack(probabilities)
        return get_label_quality_scores(labels, stacked), find_label_issues(labels, stacked, n_jobs=1)

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        """Return ROC AUC, the confusion matrix (rows actual, columns predicted), calibration, and `evaluate`'s accuracy."""
        logits, labels, names = evaluation.predictions, evaluation.split.labels, evaluation.label_names
        predicted, n = self.decide(logits, {}), len(names)
        as_trained = softmax(logits.astype(np.float64), axis=-1)
        probabilities = {"as_trained": as_trained, "scaled": self.probabilities(logits, evaluation.calibration)}
        return {
            "accuracy": accuracy(predicted, labels),
            "averaged": f"of {names[1]!r}" if n == 2 else "macro",
            "roc_auc": label_report.roc_auc(labels, as_trained),
            "confusion_matrix": np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n).tolist(),
            "calibration": {name: reliability(array.max(axis=-1), predicted == labels) for name, array in probabilities.items()},
        }

    def answer_columns(self, evaluation: Evaluation) -> dict[str, np.ndarray]:
        names, predicted = np.array(evaluation.label_names, dtype=object), self.decide(evaluation.predictions, {})
        probability = self.probabilities(evaluation.predictions, evaluation.calibration).max(axis=-1)
        return {"label": names[evaluation.split.labels], "prediction": names[predicted], "probability": probability}

    def report(self, evaluation: Evaluation) -> list[Section]:
        metrics, names = evaluation.metrics, evaluation.label_names
        labels, predicted = evaluation.split.labels, self.decide(evaluation.predictions, {})
        title, counts = plots.title(label_report.ACCURACY, metrics), metrics["confusion_matrix"]
        draw = partial(plots.plot_confusion_matrix, counts, (names, names), title)
        note, roc_auc = f"{metrics['averaged']}, as f1, precision and recall", metrics["roc_auc"]
        value, missing = ("undefined", "; a label is missing from the test") if roc_auc is None else (f"{roc_auc:.4f}", "")
        number = ("ROC AUC", value, note + missing)
        wrong, lines = self.errors(evaluation)
        examples = tuple(
            (
                f"{names[i]}, predicted as {names[j]}",
                show_examples(lines, wrong[(labels[wrong] == i) & (predicted[wrong] == j)], show_line),
            )
            for i, j in label_report.most_confused(counts)[:MAX_CONFUSED_PAIRS]
        )
        return [
            Section(
                numbers=(number,),
                tables=(label_report.confusion_table(counts, names),),
                pictures=(Picture("confusion_matrix", "confusion matrix", draw),),
            ),
            *self.common_sections(evaluation),
            Section("The most confident errors", f"All {len(wrong):,} are in errors.csv.", examples=examples),
        ]

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return `prediction`, a label, and its `probability`."""
        probabilities = self.probabilities_of(predictor, batch)
        prediction = [predictor.label_names[i] for i in probabilities.argmax(axis=-1)]
        return {"prediction": prediction, "probability": probabilities.max(axis=-1).tolist()}

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        return inputs | {"label": answer["prediction"], "probability": round(answer["probability"], 6)}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return f"{answer['prediction']:<{max(map(len, label_names))}}  {answer['probability']:.3f}  {shortened(inputs)}"

    def widget_values(self, predictor: Predictor, text: str) -> list:
        """Return the probability of each label, and the words with their contributions, scaled so that the largest is 1."""
        try:
            words = self.explain(predictor, text)
        except UserError:  # --explain is not for this model
            words = []
        largest = max((abs(contribution) for _, contribution in words), default=1)
        return [*super().widget_values(predictor, text), [(f"{word} ", value / largest) for word, value in words]]

    def explain(self, predictor: Predictor, text: str) -> list[tuple[str, float]]:
        if predictor.config.text_pair_column:
            return super().explain(predictor, text)
        if predictor.model.config.is_encoder_decoder:
            raise UserError(
                f"--explain is not for {predictor.model.config.model_type}, which reads no vectors of words: leave it out"
            )
        (text,) = self.readable({"text": [text]})["text"]
        return explaining.explain(predictor.model, predictor.tokenizer, text, predictor.config)


def show_line(row) -> str:
    """Return the line above the text of an error on the report page."""
    start = shorten(row.text, MAX_LINE_CHARACTERS)
    return f"row {row.row}, {row.tokens} tokens{', truncated' if row.truncated else ''}: {start}"


class MultiLabel(Labels):
    """Any number of labels for each text. The threshold of the probabilities is fitted for the first metric, micro F1."""

    problem_type = "multi_label_classification"
    metrics = (
        Metric("f1", label_report.micro(label_report.f1), label="F1, micro", limits=(0, 1)),
        replace(label_report.ACCURACY, label="All labels correct:"),
        label_report.F1_MACRO,
        Metric("precision", label_report.micro(label_report.precision), interval=False, limits=(0, 1)),
        Metric("recall", label_report.micro(label_report.recall), interval=False, limits=(0, 1)),
        label_report.LOSS,
    )
    code_template = "classification_several.py.jinja"
    answer_features = Features({"prediction": List(Value("string")), "probabilities": List(Value("float64"))})
    widgets = (("label", "Labels and their probabilities"),)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return one column with lists of labels, or several columns of 0 and 1 whose names are the labels."""
        names = [name.strip() for name in (config.label_column or "").split(",")]
        if len(names) == 1 or config.label_column in available:
            return super().columns(available, config)
        by_name = {name.strip(): name for name in available}
        if missing := [name for name in names if name not in by_name]:
            raise UserError(
                f"label_column={config.label_column}: no column {', '.join(missing)}; the columns are {listed_columns(available)}"
            )
        labels = {f"label {name}": by_name[name] for name in names}
        return self.input_columns(available, config, config.text_column) | labels

    def encode_labels(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Encoded:
        """Return the labels of each split as 0 or 1, (rows, labels), float32, and their names."""
        if "label" in columns:
            return encode_label_lists(raw, columns["label"])
        return encode_label_columns(raw, [column for name, column in columns.items() if name.startswith("label ")])

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        """Return False for rows where one of several label columns is empty, (rows,)."""
        return ~np.isnan(labels).any(axis=1)

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Return a number per row, (rows,), that is the same for rows with the same labels."""
        return np.unique(labels, axis=0, return_inverse=True)[1]

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return super().contents(batch, labels)[0], ["".join(map(str, row)) for row in np.nan_to_num(labels, nan=-1).astype(int)]

    def model_settings(self, label_names: list[str]) -> dict:
        return super().model_settings(label_names) | {"problem_type": self.problem_type}

    def initial_bias(self, train_labels: np.ndarray, config: Config) -> np.ndarray | None:
        """Return each label's log-odds in train, (labels,); None if the loss is balanced, which makes the log-odds 0.

        From zero, the first steps would only lower all probabilities to these. With 28 labels, of which a text has one or two, they
        spoiled the rest of the training (results/kinds-of-labels.md).
        """
        if config.class_weights == "balanced":
            return None
        frequency = (train_labels.sum(axis=0) + 1) / (len(train_labels) + 2)  # plus one text with the label, and one without
        return np.log(frequency / (1 - frequency))

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return the binary cross entropy, summed over texts and labels.

        Balanced: for each label, the texts with it weigh as much as the texts without it.
        """
        weight = None
        if config.class_weights == "balanced":
            counts = train_labels.sum(axis=0)
            weight = torch.tensor((len(train_labels) - counts) / counts.clip(min=1))

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            weights = None if weight is None else torch.where(labels > 0, weight.to(logits.device), 1.0)
            labels = labels * (1 - config.label_smoothing_factor) + config.label_smoothing_factor / 2
            return binary_cross_entropy_with_logits(logits.float(), labels, weight=weights, reduction="sum")

        return loss

    # --- predictions -----------------------------------------------------------------------------------------------------

    def one_hot(self, labels: np.ndarray, n: int) -> np.ndarray:
        return labels.astype(bool)

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the loss of each row, the mean over its labels, (rows,)."""
        logits = logits.astype(np.float64)
        return (np.logaddexp(0, logits) - labels * logits).mean(axis=1)

    def probabilities(self, logits: np.ndarray, calibration: dict) -> np.ndarray:
        return expit(logits / calibration["temperature"])

    def calibrate(self, predictor: Predictor, predictions: np.ndarray, validation: Split) -> dict:
        return self.fit(predictions, validation.labels)

    def fit(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """Return the temperature, and the threshold with the best micro F1; among equal ones the threshold closest to 0.5."""
        yes_or_no = np.stack([np.zeros(predictions.size, dtype=predictions.dtype), predictions.ravel()], axis=-1)
        temperature = fit_temperature(yes_or_no, labels.ravel().astype(int))
        probabilities = expit(predictions / temperature)
        thresholds = sorted(np.linspace(0.05, 0.95, 91), key=lambda threshold: abs(threshold - 0.5))
        predicted = (probabilities >= threshold for threshold in thresholds)
        f1 = [2 * (labels * mask).sum() / max(1, labels.sum() + mask.sum()) for mask in predicted]
        return {"temperature": temperature, "threshold": float(thresholds[np.argmax(f1)])}

    def decide(self, predictions: np.ndarray, calibration: dict) -> np.ndarray:
        """Return True for each predicted label, (rows, labels) bool."""
        return self.probabilities(predictions, calibration) >= calibration["threshold"]

    def label_quality(self, probabilities: list[np.ndarray], split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Judge each label of a row alone. A row's quality is a mean in which its least plausible label counts most."""
        from cleanlab.multilabel_classification import get_label_quality_scores  # delayed: it is slow to import
        from cleanlab.multilabel_classification.filter import find_label_issues

        labels, stacked = [np.flatnonzero(row).tolist() for row in split.labels], np.stack(probabilities)
        return get_label_quality_scores(labels, stacked), find_label_issues(labels, stacked, n_jobs=1)

    def statistics(self, predictions: np.ndarray, split: Split, calibration: dict) -> Statistics:
        """Return the statistics. During training, the threshold is fitted at each validation, as it is for the finished run."""
        return super().statistics(predictions, split, calibration or self.fit(predictions, split.labels))

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        """Return the scores of each label, and the calibration of the predicted labels, whose probabilities predict.py prints."""
        logits, predicted = evaluation.predictions, self.decide(evaluation.predictions, evaluation.calibration)
        correct = evaluation.split.labels[predicted].astype(bool)
        probabilities = {"as_trained": expit(logits), "scaled": self.probabilities(logits, evaluation.calibration)}
        return {
            "averaged": "micro",
            "calibration": {name: reliability(array[predicted], correct) for name, array in probabilities.items()},
            "by_label": label_report.by_label(evaluation.statistics, evaluation.label_names),
        }

    def answer_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return lists of labels, and the probability of the predicted list if labels were independent."""
        names = np.array(evaluation.label_names, dtype=object)
        predicted = self.decide(evaluation.predictions, evaluation.calibration)
        actual_lists, predicted_lists = (
            pyarrow.array([names[row].tolist() for row in rows], pyarrow.list_(pyarrow.string()))
            for rows in (evaluation.split.labels.astype(bool), predicted)
        )
        probabilities = self.probabilities(evaluation.predictions, evaluation.calibration)
        probability = np.where(predicted, probabilities, 1 - probabilities).prod(axis=1)
        return {"label": actual_lists, "prediction": predicted_lists, "probability": probability}

    def report(self, evaluation: Evaluation) -> list[Section]:
        metrics, (wrong, lines) = evaluation.metrics, self.errors(evaluation)
        labels = metrics["by_label"]
        text = (
            "A text is correct if all its labels are correct. f1, precision and recall are those of all labels together. The model "
            f"gives a label if its probability is at least {metrics['threshold']:.2f}: this threshold had the best micro F1 on validation."
        )
        picture = Picture("by_label", "F1 by label", partial(plots.plot_by_label, labels))

        def show_labels(row) -> str:
            return f"{row.actual or 'none'}, predicted as {row.predicted or 'none'} (row {row.row})"

        examples = (("", show_examples(lines, wrong, show_labels)),)
        return [
            Section(text=text, tables=(label_report.table_by_label(labels),), pictures=(picture,)),
            *self.common_sections(evaluation),
            Section("The most confident errors", f"All {len(wrong):,} are in errors.csv.", examples=examples),
        ]

    def remark(self, metrics: dict) -> str:
        scores = f"F1 {metrics['f1']:.4f} (micro) and {metrics['f1_macro']:.4f} (macro). "
        return f"{scores}A label is given if its probability is at least {metrics['threshold']:.2f}. {super().remark(metrics)}"

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return `prediction`, the list of labels that reach the threshold, and their `probabilities`."""
        probabilities = self.probabilities_of(predictor, batch)
        positions = [np.flatnonzero(row >= predictor.calibration["threshold"]) for row in probabilities]
        return {
            "prediction": [[predictor.label_names[i] for i in labels] for labels in positions],
            "probabilities": [row[labels].tolist() for row, labels in zip(probabilities, positions, strict=True)],
        }

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        probabilities = [round(probability, 6) for probability in answer["probabilities"]]
        return inputs | {"labels": dict(zip(answer["prediction"], probabilities, strict=True))}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        labels = [f"{name} {value:.3f}" for name, value in zip(answer["prediction"], answer["probabilities"], strict=True)]
        return f"{', '.join(labels) or 'none'}: {shortened(inputs)}"

    def pipeline(self, config: Config) -> tuple[str, str]:
        arguments, difference = super().pipeline(config)
        return f"{arguments}, top_k=None", f"{difference} It returns the probability of every label, without a threshold."
