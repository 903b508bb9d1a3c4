"""The task interface: what a kind of task says, so that the shared code can read, train, measure, report and predict.

A task is a class in finetuning/tasks/. The scripts pick one (`tasks.pick(config)`) and pass it on; shared code receives it
as an argument and never imports a concrete task. The data goes through a task in this order:

    columns -> read -> tokenize -> collate -> (model) -> loss                  training
                                              (model) -> predict -> statistics -> metrics, report
                                                         predict -> answers    new texts

Methods that raise `NotImplementedError` are those that each task needs; all others have a default.
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

Statistics = dict[str, np.ndarray]  # name -> one number per row, (rows,), or several, (rows, k)
Sums = dict[str, Any]  # the same, summed over rows: name -> a number, or (k,)


@dataclass(frozen=True)
class Metric:
    """A metric is a function of per-row statistics that were summed over the rows.

    So its value on any subset of rows, its confidence interval, the difference of two runs and the mean over seeds are computed
    in one place, results/metrics.py.
    """

    name: str  # as in metrics.json and `metric_for_best_model`
    value: Callable[[Sums], float]
    better: Literal["higher", "lower"] = "higher"
    format: str = ".4f"  # ".2%" for a fraction that is shown in percent
    label: str = ""  # for headlines; not given: the name
    proportion: bool = False  # a fraction of rows: its interval is Wilson's, and two runs are compared by McNemar's test too
    interval: bool = True  # whether evaluate.py reports a 95 % interval

    def of(self, statistics: Statistics) -> float:
        """Return the metric over all rows."""
        return float(self.value({name: values.sum(axis=0) for name, values in statistics.items()}))

    def show(self, value: float) -> str:
        return f"{value:{self.format}}"

    def show_interval(self, interval: list[float] | None) -> str:
        return f"95 % interval {self.show(interval[0])} to {self.show(interval[1])}" if interval else "no interval: one row"


@dataclass(frozen=True)
class Rows:
    """What `Task.read` makes of a data set. Each dictionary has the splits' names as keys; arrays are in the order of the file."""

    columns: dict[str, "Dataset"]  # the columns that the task reads, by the task's names for them
    labels: dict[str, np.ndarray]  # (rows,) or (rows, labels); what else the task holds of each row in memory
    label_names: list[str] = field(default_factory=list)  # [] where the task has none
    left_out: dict[str, np.ndarray] = field(default_factory=dict)  # (rows,) bool: rows that are not used
    remarks: list[str] = field(default_factory=list)  # notes on the data, for the user


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a split, with all that is needed to measure and report them."""

    predictions: Any  # as `Task.predict` gives them, in the order of the rows
    split: "Split"
    lengths: np.ndarray  # (rows,) tokens of each row before truncation; (windows,) where a row is read in several
    label_names: list[str]
    calibration: dict  # what `Task.calibrate` fitted on validation
    config: Config
    metrics: dict = field(default_factory=dict)  # metrics.json, once it is computed


class Task:
    """Base class of the tasks. All methods take and give plain data; none prints, writes files or makes HTML."""

    name: str  # `task` in config.py
    problem_type: str | None = None  # `problem_type` in config.py, where a task is told apart by it
    auto_class: type  # transformers' AutoModelFor...
    peft_type: "TaskType | None" = None
    pipeline_tag: str  # the Hub's name for the task, and transformers' pipeline
    metrics: tuple[Metric, ...]  # the first, which has an interval, picks the checkpoint; one is called `loss`
    settings: tuple[str, ...] = ()  # settings of config.py that mean something to this task and not to all of them
    token_settings: tuple[str, ...] = ("max_length", "truncation")  # those that decide the tokens
    tokenizer_options: dict = {}
    readers: dict = {}  # file ending -> its reader, where the task reads in its own way, as READERS in data/formats.py
    input_types: tuple[type, ...] = (str,)  # of the values in an input column
    mixed_lengths = False  # whether steps of short and of long rows come in random order
    cuda_graphs = False  # whether training steps can be recorded as CUDA graphs
    labels_required = True  # whether rows without a label are refused or left out; if not, they are used, for training only
    labels_are_classes = False  # whether labels are (rows,) numbers of `label_names`
    truncates = True  # whether a longer text is cut to `max_length`; else it is read in several windows
    length_edges: tuple[int, ...] = (0, 64, 128, 256, 512)  # of the groups in "metrics by length"
    prediction_column = "prediction"  # of predictions.parquet: two runs differ in a row where it differs
    export_formats: tuple[str, ...] = ("merged",)
    int8_tolerance = 0.005  # the fraction of the first metric that 8-bit weights may cost
    options: dict = {}  # flags of predict.py that the task knows, with their defaults
    answer_features: "Features"  # the columns of `answers`, as they are stored on disk
    examples: tuple[str, ...] = ()  # texts to try in app.py
    widgets: tuple[tuple[str, str], ...]  # what app.py shows: (kind, caption); kinds are label, highlight, text and json
    code_template = "numbers.py.jinja"  # in results/templates/: code for the model card

    def check(self, config: Config) -> None:
        """Raise `UserError` for settings that do not fit the task, beside those that only other tasks read."""

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        """Return the columns that the model reads: the task's name for each -> the data set's. Raise `UserError` if there is none."""
        raise NotImplementedError

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the columns that are read for training: those of `input_columns` and the labels'."""
        raise NotImplementedError

    def settle(self, train: "Dataset", config: Config) -> tuple["Task", Config]:
        """Return the task and `config` with the settings that were left open and that the data decide.

        `train` has the data set's columns.
        """
        return self, config

    def read(self, raw: dict[str, "Dataset"], columns: dict[str, str], config: Config) -> Rows:
        """Return normalised rows, labels and notes. No row is dropped, so that row numbers stay those of the file.

        Raise `UserError`, with the split and the row, for what can't be read.
        """
        raise NotImplementedError

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Return a number per row, (rows,); sampling and held-out rows keep the fraction of each."""
        return labels

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        """Return whether each row has a label, (rows,) bool."""
        return np.ones(len(labels), dtype=bool)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        """Return the text by which equal rows are recognized, "" if a row has none, and its label, each a value per row.

        Their hashes keep equal rows on one side of a split, find texts with two labels, and tell whether the data has changed.
        """
        raise NotImplementedError

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        """Return columns that show a row to a person, for the csv files."""
        return {"text": self.contents(batch, np.zeros(len(next(iter(batch.values())))))[0]}

    def label_counts(self, split: "Split", label_names: list[str]) -> dict[str, int]:
        """Return how often each label occurs; {} if the task has no names of labels."""
        return {}

    def show_labels(self, split: "Split", label_names: list[str]) -> list[str]:
        """Return each row's label as text; [] if the task has none."""
        return []

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def features(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> "Features":
        """Return the columns of `tokenize` as they are stored on disk.

        `input_ids`; `length` in tokens, before truncation; `rows` if a row may give several examples; others as `collate` needs.
        """
        raise NotImplementedError

    def tokenize(self, batch: dict[str, list], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, list]:
        """Return examples with the columns of `features`. A batch without label columns gives examples without labels.

        `rows`: for each example the positions in the batch that its predictions belong to.
        """
        raise NotImplementedError

    # --- model -----------------------------------------------------------------------------------------------------------

    def model_settings(self, label_names: list[str]) -> dict:
        """Return fields of the model's config: label names, problem type."""
        return {}

    def adapt(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """Return the loaded model, changed where it should answer something else than its logits."""
        return model

    def collate(self, examples: list[dict], tokenizer: "PreTrainedTokenizerBase", config: Config) -> dict[str, "torch.Tensor"]:
        """Return a padded batch, (examples, tokens); with `labels` if the examples have them."""
        raise NotImplementedError

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        """Return (logits, labels) -> the loss summed over labels."""
        raise NotImplementedError

    def augment(self, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Callable[[dict, int, int], dict] | None:
        """Return (example, epoch, row) -> the example as it is trained on that time; None if it never changes."""
        return None

    def shorten(self, tokenizer: "PreTrainedTokenizerBase", config: Config, max_length: int) -> Callable[[dict], dict] | None:
        """Return a function that cuts an example to `max_length` tokens for `length_warmup`; None if the task has none."""
        return None

    def extra_export_weights(self, source_path: str, merged: "torch.nn.Module") -> dict[str, "torch.Tensor"]:
        """Return weights of the base model's file that an export keeps beside its own."""
        return {}

    def exporters(self) -> dict[str, Callable]:
        """Return format -> (folder of the merged model, folder to write, tokenizer) -> a module that predicts in its place."""
        return {}

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: "Predictor", tokens: "Tokens"):
        """Return one prediction per row, in row order. `predictor.outputs(tokens)` gives the model's outputs, batch by batch."""
        raise NotImplementedError

    def validate(self, predictor: "Predictor", tokens: "Tokens"):
        """Return predictions as for `predict`, for the validation while training; may leave out what is slow."""
        return self.predict(predictor, tokens)

    def calibrate(self, predictions, validation: "Split") -> dict:
        """Return what is fitted on validation, such as {"temperature": 1.3}; it goes into training.json."""
        return {}

    def decide(self, predictions, calibration: dict) -> Sequence:
        """Return what is compared with the label, per row; [] if the task decides nothing."""
        return []

    def statistics(self, predictions, split: "Split", calibration: dict) -> Statistics:
        """Return the per-row statistics that all of `metrics` are functions of; always with `rows`, ones.

        `calibration` is {} while training.
        """
        raise NotImplementedError

    def lengths(self, evaluation: Evaluation) -> np.ndarray:
        """Return each row's length, (rows,), for the groups of `length_edges`; in tokens, if not overridden."""
        return evaluation.lengths

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation, statistics: Statistics) -> dict:
        """Return further entries of metrics.json: the confusion matrix, calibration, results per label."""
        return {}

    def more_details(self, predictor: "Predictor", split: "Split") -> dict:
        """Return entries of metrics.json that need the model once more, such as samples of what it writes."""
        return {}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the columns of predictions.parquet, a value per row; `row`, the number in the file, is added in front."""
        raise NotImplementedError

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], "pd.DataFrame"]]:
        """Return the numbers of the errors, the worst first, and a function that gives the lines of errors.csv for some of them."""
        raise NotImplementedError

    def files(self, evaluation: Evaluation) -> dict[str, str]:
        """Return further files for the run folder: name -> text, such as curves.json."""
        return {}

    def report(self, evaluation: Evaluation) -> list["Section"]:
        """Return the sections of the report page: numbers, tables, pictures and examples as data."""
        raise NotImplementedError

    def remark(self, metrics: dict) -> str:
        """Return what a reader must know to understand the metrics, in a sentence or two."""
        return ""

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: "Predictor", batch: dict[str, list], label_names: list[str], calibration: dict) -> dict[str, list]:
        """Return columns of answers to new texts, a value per row. `predictor.options` has the flags of predict.py."""
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
        """Return how longer texts are cut, for readers."""
        return f"truncation={config.truncation}"

    def pipeline(self, config: Config) -> tuple[str, str] | None:
        """Return arguments of transformers' `pipeline` for an export, and how it differs from predict.py; None if there is none."""
        return None

    def code_variables(self, config: Config, calibration: dict) -> dict:
        """Return variables of `code_template` beside `config` and `calibration`."""
        return {}

    def explain(self, predictor: "Predictor", text: str) -> list[tuple[str, float]]:
        """Return (word, contribution) in the order of the text. Raise `UserError` if the task can't explain."""
        raise UserError(f"--explain is for labels of single texts, not for {self.name}: leave it out")
