"""The task interface: what differs between tasks when the shared code reads, trains, measures, reports and predicts.

A task is a class in finetuning/tasks/. The scripts pick one (`tasks.pick(config)`) and pass it to the shared code, which never
imports a concrete task. The data goes through the methods of a task in this order:

    columns -> read -> tokenize -> collate -> (model) -> loss                  training
                                              (model) -> predict -> statistics -> metrics, report
                                                         predict -> answers    new texts

A task must define the methods that raise `NotImplementedError` here. All others have a default.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from config import Config
from finetuning.errors import UserError

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

Statistics = dict[str, np.ndarray]  # name -> a number per row, (rows,), or several, (rows, k)
Sums = dict[str, Any]  # the statistics summed over rows: name -> a number, or (k,)


@dataclass(frozen=True)
class Metric:
    """A metric as a function of per-row statistics that were summed over the rows.

    This is why results/metrics.py can compute the value on any subset of rows, confidence intervals, differences between two runs
    and means over seeds for all tasks.
    """

    name: str  # as in metrics.json and `metric_for_best_model`
    value: Callable[[Sums], float]
    better: Literal["higher", "lower"] = "higher"
    format: str = ".4f"  # ".2%" shows a fraction in percent
    label: str = ""  # for headlines; "": the name
    proportion: bool = False  # a fraction of rows: the interval is Wilson's, and McNemar's test also compares two runs
    interval: bool = True  # whether evaluate.py reports a 95 % interval

    def of(self, statistics: Statistics) -> float:
        """Return the metric over all rows of `statistics`."""
        return float(self.value({name: values.sum(axis=0) for name, values in statistics.items()}))

    def show(self, value: float) -> str:
        """Return a value of the metric as text."""
        return f"{value:{self.format}}"

    def show_interval(self, interval: list[float] | None) -> str:
        """Return an interval, [low, high], as text; None if a single row gave no interval."""
        return f"95 % interval {self.show(interval[0])} to {self.show(interval[1])}" if interval else "no interval: one row"


@dataclass(frozen=True)
class Rows:
    """A data set as `Task.read` returns it. Keys of the dictionaries are names of splits. Arrays are in the order of the file."""

    columns: dict[str, "Dataset"]  # the columns that the task reads, under the task's names for them
    labels: dict[str, np.ndarray]  # (rows,) or (rows, labels); the part of each row that the task keeps in memory
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
    calibration: dict  # what `Task.calibrate` fitted on validation
    config: Config
    metrics: dict = field(default_factory=dict)  # the content of metrics.json; empty until it is computed


class Task:
    """Base class of the tasks. All methods take and return plain data; none prints, writes files or makes HTML."""

    name: str  # `task` in config.py
    problem_type: str | None = None  # `problem_type` in config.py, for tasks that have the same `name`
    auto_class: type  # transformers' AutoModelFor...
    peft_type: "TaskType | None" = None
    pipeline_tag: str  # name of the task on the Hub and of its pipeline in transformers
    metrics: tuple[Metric, ...]  # the first one picks the checkpoint and has an interval; one is called `loss`
    settings: tuple[str, ...] = ()  # settings of config.py that this task reads and not every task does
    token_settings: tuple[str, ...] = ("max_length", "truncation")  # settings that change the tokens
    tokenizer_options: dict = {}  # arguments for loading the tokenizer
    readers: dict = {}  # file ending -> reader, in place of those in READERS of data/formats.py
    input_types: tuple[type, ...] = (str,)  # types of the values in an input column
    mixed_lengths = False  # whether batches of short and of long rows come in random order
    cuda_graphs = False  # whether training steps can be recorded as CUDA graphs
    labels_required = True  # if not, rows without a label are used, but only for training
    labels_are_classes = False  # whether labels are (rows,) positions in `label_names`
    truncates = True  # whether a longer text is cut to `max_length`; if not, it is read in several windows or blocks
    length_edges: tuple[int, ...] = (0, 64, 128, 256, 512)  # borders of the groups in "metrics by length"
    prediction_column = "prediction"  # the column of predictions.parquet that shows in which rows two runs differ
    export_formats: tuple[str, ...] = ("merged",)
    int8_tolerance = 0.005  # the fraction of the first metric that 8-bit weights may lose
    options: dict = {}  # flags of predict.py that the task accepts, with their defaults
    answer_features: "Features"  # the columns of `answers` on disk
    examples: tuple[str, ...] = ()  # texts to try in app.py
    widgets: tuple[tuple[str, str], ...]  # outputs of app.py: (kind, caption); a kind is label, highlight, text or json
    code_template = "numbers.py.jinja"  # the code of the model card, in results/templates/

    def check(self, config: Config) -> None:
        """Raise `UserError` for settings that do not fit the task. `tasks.pick` checks those that only other tasks read."""

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        """Return the columns that the model reads: the task's name -> the data set's name. Raise `UserError` if one is missing."""
        raise NotImplementedError

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the columns that training reads: those of `input_columns`, and the columns with labels."""
        raise NotImplementedError

    def settle(self, train: "Dataset", config: Config) -> tuple["Task", Config]:
        """Return the task, and `config` with the settings that were not given and that the data decide.

        `train` has all columns of the data set, under the data set's names.
        """
        return self, config

    def read(self, raw: dict[str, "Dataset"], columns: dict[str, str], config: Config) -> Rows:
        """Return normalised rows, labels and notes. All rows are returned, so that row numbers are those of the file.

        Raise `UserError`, with the split and the row, for a value that can't be read.
        """
        raise NotImplementedError

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Return the stratum of each row, a number, (rows,). Samples and held-out rows keep the fraction of each stratum."""
        return labels

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        """Return whether each row has a label, (rows,) bool."""
        return np.ones(len(labels), dtype=bool)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        """Return the text of each row, "" if it has none, and its label. Rows with the same text are taken for equal.

        Hashes of the two keep equal rows in one split, find texts with two labels, and show whether the data has changed.
        """
        raise NotImplementedError

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        """Return each row's columns for people, for the csv files."""
        return {"text": self.contents(batch, np.zeros(len(next(iter(batch.values())))))[0]}

    def label_counts(self, split: "Split", label_names: list[str]) -> dict[str, int]:
        """Return how often each label occurs; {} if labels have no names."""
        return {}

    def show_labels(self, split: "Split", label_names: list[str]) -> list[str]:
        """Return each row's label as text; [] if the task has no labels."""
        return []

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def features(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> "Features":
        """Return the columns of `tokenize` on disk.

        These are `input_ids`, `length` (in tokens, before truncation), `rows` if a row may become several examples, and further
        columns that `collate` needs.
        """
        raise NotImplementedError

    def tokenize(self, batch: dict[str, list], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, list]:
        """Return examples with the columns of `features`. Examples have labels only if the batch has.

        `rows` has the position in the batch of each row that the example gives a prediction for.
        """
        raise NotImplementedError

    # --- model -----------------------------------------------------------------------------------------------------------

    def model_settings(self, label_names: list[str]) -> dict:
        """Return fields for the model's config, such as label names and the problem type."""
        return {}

    def adapt(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """Return the loaded model, changed if its output must be something else than logits."""
        return model

    def collate(self, examples: list[dict], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, "torch.Tensor"]:
        """Return a padded batch, (examples, tokens), with `labels` if the examples have them."""
        raise NotImplementedError

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return a function of (logits, labels) that gives the loss, summed over the labels."""
        raise NotImplementedError

    def augment(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Callable[[dict, int, int], dict] | None:
        """Return a function of (example, epoch, row) that gives the example for that epoch; None if examples never change."""
        return None

    def shorten(self, tokenizer: "PreTrainedTokenizerBase", config: Config, max_length: int) -> Callable[[dict], dict] | None:
        """Return a function that cuts an example to `max_length` tokens for `length_warmup`; None if the task has none."""
        return None

    def extra_export_weights(self, source_path: str, merged: "torch.nn.Module") -> dict[str, "torch.Tensor"]:
        """Return weights of the base model's file that an export keeps in addition to its own."""
        return {}

    def exporters(self) -> dict[str, Callable]:
        """Return a function for each further format of an export.

        It takes the folder of the merged model, the folder to write and the tokenizer, and returns a module that predicts.
        """
        return {}

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: "Predictor", tokens: "Tokens"):
        """Return a prediction per row, in their order. `predictor.outputs(tokens)` yields the model's outputs batch by batch."""
        raise NotImplementedError

    def validate(self, predictor: "Predictor", tokens: "Tokens"):
        """Return predictions like `predict`, for validation during training. They may lack a slow part."""
        return self.predict(predictor, tokens)

    def calibrate(self, predictions, validation: "Split") -> dict:
        """Return values that are fitted on validation, such as {"temperature": 1.3}, for training.json."""
        return {}

    def decide(self, predictions, calibration: dict) -> Sequence:
        """Return the answer for each row that is compared with its label; [] if the task has no such answer."""
        return []

    def statistics(self, predictions, split: "Split", calibration: dict) -> Statistics:
        """Return the per-row statistics that all of `metrics` are functions of. One of them is `rows`, a 1 for each row.

        `calibration` is {} during training.
        """
        raise NotImplementedError

    def learned_nothing(self, statistics: Statistics, label_names: list[str]) -> str:
        """Return what the predictions have in common if the model has learned nothing, as the end of a sentence; else ""."""
        return ""

    def lengths(self, evaluation: Evaluation) -> np.ndarray:
        """Return the length of each row, (rows,), for the groups of `length_edges`; in tokens by default."""
        return evaluation.lengths

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation, statistics: Statistics) -> dict:
        """Return further entries of metrics.json: the confusion matrix, calibration, results per label."""
        return {}

    def more_details(self, predictor: "Predictor", split: "Split") -> dict:
        """Return further entries of metrics.json that need the model, such as texts that it writes."""
        return {}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the columns of predictions.parquet, a value per row. The caller adds `row`, the number in the file."""
        raise NotImplementedError

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], "pd.DataFrame"]]:
        """Return the numbers of the errors, the worst first, and a function from such numbers to lines of errors.csv."""
        raise NotImplementedError

    def files(self, evaluation: Evaluation) -> dict[str, str]:
        """Return further files for the run folder: name -> text, such as curves.json."""
        return {}

    def report(self, evaluation: Evaluation) -> list["Section"]:
        """Return the sections of the report page: numbers, tables, pictures and examples as data."""
        raise NotImplementedError

    def remark(self, metrics: dict) -> str:
        """Return one or two sentences that a reader needs to understand the metrics."""
        return ""

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: "Predictor", batch: dict[str, list], label_names: list[str], calibration: dict) -> dict[str, list]:
        """Return the columns of the answers to new texts, a value per row. `predictor.options` has the flags of predict.py."""
        raise NotImplementedError

    empty_answer: dict | None = None  # the answer to an empty text; None: an empty text is an error

    def as_json(self, inputs: dict[str, str], answer: dict) -> dict:
        """Return the object that `predict.py --json` prints for one row."""
        return inputs | answer

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        """Return the line that predict.py prints for one row."""
        raise NotImplementedError

    def widget_values(self, predictor: "Predictor", text: str, label_names: list[str], calibration: dict) -> list:
        """Return the value of each of `widgets` for a text."""
        raise NotImplementedError

    def truncation_note(self, config: Config) -> str:
        """Return how longer texts are cut, as text."""
        return f"truncation={config.truncation}"

    def pipeline(self, config: Config) -> tuple[str, str] | None:
        """Return arguments of transformers' `pipeline` for an export, and how its answers differ; None if there is no pipeline."""
        return None

    def code_variables(self, config: Config, calibration: dict) -> dict:
        """Return the variables of `code_template` in addition to `config` and `calibration`."""
        return {}

    def explain(self, predictor: "Predictor", text: str) -> list[tuple[str, float]]:
        """Return (word, contribution) pairs in the order of the text. Raise `UserError` if the task can't explain."""
        raise UserError(f"--explain works for labels of single texts, not for {self.name}: leave it out")
