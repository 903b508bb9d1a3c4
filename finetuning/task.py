"""The interface of a task: the class `Task`. Everything that differs between tasks is one of its attributes or methods.

A task is a class in finetuning/tasks/. The scripts pick one (`tasks.pick(config)`) and pass it to the shared code, which never
imports a concrete task. The data goes through the methods of a task in this order:

    columns -> read -> tokenize -> collate -> (model) -> loss                  training
                                              (model) -> predict -> statistics -> metrics, report
                                                         predict -> answers    new texts

A task must define the methods that raise `NotImplementedError` in `Task`. All others have a default. What only some tasks can do is
in two classes at the end, `JudgesLabels` and `Converses`.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from config import Config
from finetuning.errors import UserError, shorten

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from datasets import Dataset, Features
    from peft import TaskType
    from transformers import PreTrainedTokenizerBase

    from finetuning.data.splits import Split
    from finetuning.data.tokens import Tokens
    from finetuning.results.report import Section
    from finetuning.training.prediction import Predictor

# Name -> a number per row, (rows,), or several, (rows, k). `group`: equal numbers for rows that belong together; no metric reads its sum.
Statistics = dict[str, np.ndarray]
MAX_EXAMPLE_CHARACTERS = 110  # of the example that is printed before training

# The statistics summed over rows: name -> a number, or (k,). Those of a resample have the sums over all rows as `whole`.
Sums = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric that is computed from sums. Each row has statistics. They are summed over the rows, and `value` takes the sums.

    For example, accuracy is `sums["correct"] / sums["rows"]`. Because all metrics have this form, results/metrics.py computes
    values on any subset of rows, confidence intervals, differences between two runs and means over seeds for all tasks.
    """

    name: str  # as in metrics.json and `metric_for_best_model`
    value: Callable[[Sums], float]
    better: Literal["higher", "lower"] = "higher"
    format: str = ".4f"  # ".2%" shows a fraction in percent
    label: str = ""  # the name in headlines; "": `name`
    proportion: bool = False  # True for a fraction of rows: it gets Wilson's interval and McNemar's test
    limits: tuple[float, float] = (-math.inf, math.inf)  # the smallest and the largest value that is possible
    log_scale: bool = False  # whether its interval is symmetric on a logarithmic scale, as that of perplexity
    in_validation: bool = True  # whether it can be computed from the predictions of `Task.validate`
    rarer_decides: bool = False  # whether the rarer one of two labels decides its value, as that of macro F1
    interval: bool = True  # whether it has a 95 % interval, and a difference when two runs are compared

    @property
    def title(self) -> str:
        return self.label or self.name

    def of(self, statistics: Statistics) -> float:
        """Return the value of the metric on all rows of `statistics`."""
        return float(self.value({name: values.sum(axis=0) for name, values in statistics.items()}))

    def show(self, value: float) -> str:
        """Return a value of the metric as text."""
        text = f"{value:{self.format}}"
        is_lost = value and self.limits[1] == math.inf and not text.strip("-0.")  # such as an RMSE of 0.00002
        return f"{value:.2g}" if is_lost else text

    def show_interval(self, interval: list[float] | None) -> str:
        """Return an interval, [low, high], as text. `interval` is None if the rows are too few for one."""
        if interval is None:
            return "no interval: too few rows, or too similar ones"
        return f"95 % interval {self.show(interval[0])} to {self.show(interval[1])}"


@dataclass(frozen=True)
class Rows:
    """A data set as `Task.read` returns it. Keys of the dictionaries are names of splits. Arrays are in the order of the file."""

    columns: dict[str, "Dataset"]  # the columns that the task reads, under the task's names for them
    labels: dict[str, np.ndarray]  # (rows,) or (rows, labels): labels, or other values per row that the task keeps in memory
    label_names: list[str] = field(default_factory=list)  # [] if the task has none
    left_out: dict[str, np.ndarray] = field(default_factory=dict)  # (rows,) bool: True for rows that are not used
    remarks: list[str] = field(default_factory=list)  # notes on the data, for the user


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a split, and everything that is needed to measure and report them."""

    predictions: Any  # from `Task.predict`, in the order of the rows
    split: "Split"
    lengths: np.ndarray  # (rows,) tokens of each row before truncation; (windows,) if rows are read in windows
    label_names: list[str]
    calibration: dict  # the values that `Task.calibrate` fitted on validation
    config: Config
    # The next three are empty until `results.evaluation.measure` has computed them.
    statistics: Statistics = field(default_factory=dict)  # from `Task.statistics`
    columns: dict[str, Any] = field(default_factory=dict)  # from `Task.prediction_columns`
    metrics: dict = field(default_factory=dict)  # the content of metrics.json


@dataclass(frozen=True)
class Lengths:
    """The lengths of rows, in groups."""

    values: np.ndarray  # (rows,)
    unit: str  # what they count, as text
    edges: tuple[int, ...] = (0, 64, 128, 256, 512)  # borders of the groups


class Task:
    """Base class of the tasks. All methods take and return plain data; none prints, writes files or makes HTML."""

    name: str  # `task` in config.py
    problem_type: str | None = None  # `problem_type` in config.py, for tasks that have the same `name`
    auto_class: type  # transformers' AutoModelFor...
    peft_type: "TaskType | None" = None
    collator: type  # transformers' data collator, for `collate`
    pipeline_tag: str  # name of the task on the Hub and of its pipeline in transformers
    metrics: tuple[Metric, ...]  # the first is the headline and picks the checkpoint by default; one is called `loss`
    settings: tuple[str, ...] = ()  # the settings of config.py that this task reads, except those that all tasks read
    token_settings: tuple[str, ...] = ("max_length", "truncation")  # settings that change the tokens
    tokenizer_options: dict = {}  # arguments for loading the tokenizer
    readers: dict = {}  # file ending -> reader; they take precedence over READERS of data/formats.py
    input_types: tuple[type, ...] = (str,)  # types of the values in an input column
    label_columns: tuple[str, ...] = ()  # usual names of the column with the labels
    empty_text = "an empty text"  # what a row without contents has, for messages
    complete_rows_only = True  # if False, rows without contents never stop a run, and rows without a label are used for training
    labels_are_classes = False  # whether `labels` is (rows,) and holds positions in `label_names`
    prediction_column = "prediction"  # two runs differ in a row if they differ in this column of predictions.parquet
    # Export formats that only this task has: name -> a function of (the folder of the merged model, the folder to write, the tokenizer)
    # that writes the format and returns a module that predicts.
    exporters: dict[str, Callable] = {}
    # Whether the model predicts tokens. If so, batches come in random order: after many steps with only short texts, a model writes
    # long texts badly. If not, it only maps token ids to logits, so OpenVINO can compute it, and CUDA graphs a step.
    predicts_tokens = False
    int8_tolerance = 0.005  # an export with 8-bit weights may lose at most this fraction of the first metric
    options: dict = {}  # flags of predict.py that the task accepts, with their defaults
    answer_features: "Features"  # the columns of `answers`, with their types
    examples: tuple[str, ...] = ()  # texts to try in app.py
    placeholder = "YOUR TEXT"  # in the command that evaluate.py prints last
    # Outputs of app.py, unless the task `Converses`: (kind, caption). A kind is label, highlight, text or json.
    widgets: tuple[tuple[str, str], ...]
    code_template = "numbers.py.jinja"  # the template of the model card's code, in results/templates/

    def fits(self, config: Config) -> bool:
        """Return whether `config` selects this task among those with the same `name`."""
        return config.problem_type in (None, self.problem_type)

    def check(self, config: Config, given: Collection[str] = ()) -> None:
        """Raise `UserError` for values that do not fit the task. `tasks.pick` refuses settings that only other tasks read.

        `given`: the settings that are given as flags. Only these are refused if they merely have no effect.
        """

    def check_positions(self, positions: int, config: Config) -> None:
        """Raise `UserError` if the model has too few `positions` for the settings other than `max_length`."""

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        """Return the columns that the model reads: the task's name of a column -> its name in the data set.

        `text_column` is the setting in training, and the flag of predict.py later. Raise `UserError` if a column is missing.
        """
        raise NotImplementedError

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the columns that training reads, in the same form: those of `input_columns`, and the columns with labels."""
        raise NotImplementedError

    def settle(self, train: "Dataset", config: Config, given: Collection[str] = ()) -> tuple["Task", Config]:
        """Return the task and `config`. Settings that the user left open, such as `problem_type`, may be decided by the data.

        `train` has all columns of the data set, under the data set's names. `given` is as in `check`.
        """
        return self, config

    def read(self, raw: dict[str, "Dataset"], columns: dict[str, str], config: Config) -> Rows:
        """Return normalised rows, labels and notes. All rows are returned, so that row numbers are those of the file.

        Raise `UserError`, with the split and the row, for a value that can't be read.
        """
        raise NotImplementedError

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Return each row's stratum, (rows,), such as its label. Samples and held-out rows keep the fractions of the strata."""
        return labels

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        """Return whether each row has a label, (rows,) bool."""
        return np.ones(len(labels), dtype=bool)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        """Return the text of each row, "" if it has none, and its label.

        The hash of the text keeps copies of a text in one split. The hash of text and label finds texts with two labels, and
        shows whether the data has changed.
        """
        raise NotImplementedError

    def groups(self, hashes: np.ndarray) -> np.ndarray | None:
        """Return the number of each row's group, (rows,) int64; None if each row is alone. `hashes`, (rows,) uint64, are of the texts.

        The rows of a group stay in one split, and together in the resamples of intervals. `group_column` takes the place of this.
        """
        return None

    def problems(self, batch: dict[str, list], texts: list[str]) -> list[str]:
        """Return why each row can't be used, as the end of a sentence, "" if it can. `texts` are those of `contents`."""
        return ["" if text.strip() else f"with {self.empty_text}" for text in texts]

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        """Return the columns of the csv files that show each row to people."""
        return {"text": self.contents(batch, np.zeros(len(next(iter(batch.values())))))[0]}

    def label_counts(self, split: "Split", label_names: list[str]) -> dict[str, int]:
        """Return how often each label occurs; {} if labels have no names."""
        return {}

    def show_labels(self, split: "Split", label_names: list[str], decisions: Sequence | None = None) -> list[str]:
        """Return each row's label as text, or that of `decisions`, a result of `decide`; [] if the task has no labels."""
        return []

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def features(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> "Features":
        """Return the columns of `tokenize` with their types, as they are stored on disk.

        These are `input_ids`, `length` (in tokens, before truncation), `rows` if a row may become several examples, and the
        other columns that `collate` needs. If the loss counts tokens, `targets` or `labels` has those that it counts, and -100 for
        the others: each step is divided by their mean number.
        """
        raise NotImplementedError

    def tokenize(self, batch: dict[str, list], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, list]:
        """Return examples with the columns of `features`. Examples have labels only if the batch has.

        `rows` has a number for each prediction that an example gives: the position in the batch of the row that it belongs to.
        """
        raise NotImplementedError

    def first_example(self, tokens: "Tokens", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """Return lines that show the first training example as the model reads it."""
        text = tokenizer.decode(tokens.inputs[0]["input_ids"])
        return [f"reads  {shorten(text, MAX_EXAMPLE_CHARACTERS)}"]

    # --- model -----------------------------------------------------------------------------------------------------------

    def model_settings(self, label_names: list[str]) -> dict:
        """Return fields for the model's config: the names of the labels, if there are labels, and the problem type."""
        if not label_names:
            return {}
        return {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}

    def adapt(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """Return the loaded model. Change it if its output must be something other than logits."""
        return model

    def initial_bias(self, train_labels: np.ndarray, config: Config) -> np.ndarray | None:
        """Return the bias that a new head starts with, (outputs,), such as one that predicts how often labels are; None: zero."""
        return None

    def collate(self, examples: list[dict], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, "torch.Tensor"]:
        """Return a padded batch, (examples, tokens), with `labels` if the examples have them."""
        multiple = None if config.padding == "max_length" else 8
        pad = self.collator(tokenizer, padding=config.padding, max_length=config.max_length, pad_to_multiple_of=multiple)
        return pad(examples)

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return a function of (logits, labels) that gives the loss, summed over the labels."""
        raise NotImplementedError

    def augment(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Callable[[dict, int, int], dict] | None:
        """Return a function of (example, epoch, row) that gives the example for that epoch; None if examples never change."""
        return None

    def shorten(self, tokenizer: "PreTrainedTokenizerBase", config: Config, max_length: int) -> Callable[[dict], dict] | None:
        """Return a function that cuts an example to `max_length` tokens for `length_warmup`; None if examples can't be cut."""
        return None

    def output_scale(self, calibration: dict) -> tuple[float, float]:
        """Return a factor and an offset for the outputs of exports. They are merged into the last layer's weights and bias."""
        return 1 / calibration.get("temperature", 1.0), 0.0

    def prepare_export(self, merged: "torch.nn.Module", source_path: str, calibration: dict) -> None:
        """Change a merged model before it is saved, such as its settings for `generate`. `source_path` has the base model's files."""

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: "Predictor", tokens: "Tokens"):
        """Return a prediction per row, in the order of the rows.

        `predictor.outputs(tokens)` yields the model's outputs batch by batch.
        """
        raise NotImplementedError

    def validate(self, predictor: "Predictor", tokens: "Tokens"):
        """Return predictions for validation during training: those of `predict`, perhaps without a slow part."""
        return self.predict(predictor, tokens)

    def label_scale(self, train_labels: np.ndarray) -> dict:
        """Return the scale in which the model learns the labels, such as their mean and standard deviation; {}: the labels' own.

        It is part of the `calibration`, already during training.
        """
        return {}

    def calibrate(self, predictor: "Predictor", predictions, validation: "Split") -> dict:
        """Return what answers need besides the model, for training.json, such as {"temperature": 1.3}, fitted on validation.

        `predictions` are those of `validate`, and `predictor` made them.
        """
        return {}

    def decide(self, predictions, calibration: dict) -> Sequence:
        """Return an answer per row that can equal the row's label, such as a predicted label; [] if the task has none."""
        return []

    def statistics(self, predictions, split: "Split", calibration: dict) -> Statistics:
        """Return the per-row statistics from which all of `metrics` are computed. One of them is `rows`, a 1 for each row.

        During training, `calibration` is only the `label_scale`.
        """
        raise NotImplementedError

    def learned_nothing(self, statistics: Statistics, label_names: list[str]) -> str:
        """Return what the predictions have in common if the model has learned nothing, as the end of a sentence; else ""."""
        return ""

    def lengths(self, evaluation: Evaluation) -> Lengths:
        """Return the lengths of the rows, for "metrics by length"."""
        return Lengths(evaluation.lengths, "tokens of the text")

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        """Return further entries of metrics.json: the confusion matrix, calibration, results per label."""
        return {}

    def more_details(self, predictor: "Predictor", split: "Split") -> dict:
        """Return further entries of metrics.json that need the model, such as texts that it writes."""
        return {}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the columns of predictions.parquet, a value per row. The caller adds `row`, the row's number in the file."""
        raise NotImplementedError

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], "pd.DataFrame"]]:
        """Return the numbers of the errors, the worst first, and a function that gives the lines of errors.csv for such numbers.

        If errors are rows, their numbers are positions in the split, and `results.report.lines_of_rows` returns the function.
        """
        raise NotImplementedError

    def files(self, evaluation: Evaluation) -> dict[str, str]:
        """Return further files for the run folder: name -> text, such as translations.txt."""
        return {}

    def report(self, evaluation: Evaluation) -> list["Section"]:
        """Return the sections of the report page: numbers, tables, pictures and examples as data."""
        raise NotImplementedError

    def remark(self, metrics: dict) -> str:
        """Return one or two sentences that a reader needs to understand the metrics."""
        return ""

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: "Predictor", batch: dict[str, list]) -> dict[str, list]:
        """Return the columns of the answers to new texts, a value per row."""
        raise NotImplementedError

    def refusal(self, inputs: dict) -> str:
        """Return why a new text can't be answered, as the end of a sentence, "" if it can.

        `inputs` has the text's values in the input columns.
        """
        for value in inputs.values():
            if value is not None and not isinstance(value, self.input_types):
                return f"is {value!r}, which is no text: set --text_column to the column with the texts"
            if self.empty_answer is None and (not value or (isinstance(value, str) and not value.strip())):
                return "is empty: every text gets an answer, so remove the empty ones"
        return ""

    empty_answer: dict | None = None  # the answer to an empty text; None: an empty text is an error

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        """Return the object that `predict.py --json` prints for one row."""
        return inputs | answer

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        """Return the line that predict.py prints for one row."""
        raise NotImplementedError

    def widget_values(self, predictor: "Predictor", text: str) -> list:
        """Return the value of each of `widgets` for a text."""
        raise NotImplementedError

    def truncation_note(self, config: Config) -> str:
        """Return how longer texts are cut, as text."""
        return f"truncation={config.truncation}"

    def pipeline(self, config: Config) -> tuple[str, str] | None:
        """Return arguments of transformers' `pipeline` for an export, as code, and how its answers differ from predict.py's.

        Return None if transformers has no pipeline for the task.
        """
        return None

    def explain(self, predictor: "Predictor", text: str) -> list[tuple[str, float]]:
        """Return each word with its contribution to the prediction, in order. Raise `UserError` if the task can't explain."""
        raise UserError("--explain works only if the model gives one label to a single text: leave it out")


class JudgesLabels:
    """The methods that label_errors.py needs in addition to those of `Task`, to find labels that may be wrong."""

    def stored_predictions(self, table: "pd.DataFrame", label_names: list[str]):
        """Return predictions as `predict` returned them, from the columns of predictions.parquet."""
        return np.stack(table["logits"])

    def probabilities(self, predictions, calibration: dict) -> Sequence[np.ndarray]:
        """Return the probabilities of all labels for each row, (labels,), or of all tags for each word of the row, (words, tags)."""
        raise NotImplementedError

    def label_quality(self, probabilities: list[np.ndarray], split: "Split") -> tuple[np.ndarray, np.ndarray]:
        """Return how plausible each row's label is, (rows,), from 0 to 1, and whether it may be wrong, (rows,) bool.

        The method is confident learning (arXiv 1911.00068), as cleanlab implements it. `probabilities` are from models that did not
        learn from the rows.
        """
        raise NotImplementedError


class Converses:
    """The method that predict.py --chat and the chat of app.py need in addition to those of `Task`."""

    def stream(self, predictor: "Predictor", messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the answer to a conversation in pieces. Each message has a `role`, user or assistant, and a `content`."""
        raise NotImplementedError
