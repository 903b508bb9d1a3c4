"""Several labels for each text, or none: text classification with `problem_type` multi_label_classification.

What is not here is as in text_classification.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow
import torch
from datasets import Dataset
from peft import PeftModel
from scipy.special import expit
from sklearn.metrics import precision_recall_fscore_support
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import EvalPrediction, PreTrainedTokenizerBase

from config import Config
from finetuning import plots
from finetuning.data import Split, renamed
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.labels import encode_label_columns, encode_label_lists
from finetuning.metrics import accuracy_by_length, calibration, fit_temperature, wilson_interval
from finetuning.page import MISTAKES, Mistake, Section
from finetuning.tasks import text_classification as single
from finetuning.tasks.text_classification import (  # noqa: F401  (parts of this task too)
    COMPARED,
    EXAMPLES,
    FORMATS,
    INPUTS,
    METRICS,
    MIXED,
    MODEL,
    NAME,
    OPTIONS,
    PEFT_TYPE,
    PIPELINE,
    READERS,
    TOKENIZER,
    change,
    collator,
    features,
    find_inputs,
    logits_of_texts,
    predict,
    settle,
    shorten,
    show_comparison,
    texts,
    tokenize,
    write_rows,
)
from finetuning.tokenizing import Tokens

if TYPE_CHECKING:
    from finetuning.run_folder import Run

# --- rows ----------------------------------------------------------------------------------------------------------------


def find_columns(columns: list[str], config: Config) -> dict[str, str]:
    """One column with each text's labels, or several of 0 and 1, whose names are the labels."""
    wanted = [name.strip() for name in (config.label_column or "").split(",")]
    if len(wanted) == 1:
        return single.find_columns(columns, config)
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(f"label_column={config.label_column}: no column {', '.join(missing)}; the columns are {', '.join(columns)}")
    return find_inputs(columns, config, config.text_column) | {f"label {name}": name for name in wanted}


def read_rows(
    raw: dict[str, Dataset], columns: dict[str, str], config: Config
) -> tuple[dict[str, Dataset], dict[str, np.ndarray], list[str], list[str]]:
    """Rows as they are; of labels 0 or 1 (rows, labels), float32, as the loss takes them."""
    single.check_texts(raw, columns)
    if "label" in columns:
        found = encode_label_lists(raw, columns["label"])
    else:
        found = encode_label_columns(raw, [column for name, column in columns.items() if name.startswith("label ")])
    return renamed(raw, columns), *found, []


def strata(labels: np.ndarray) -> np.ndarray:
    """Each set of labels is one."""
    return np.unique(labels, axis=0, return_inverse=True)[1]


def contents(batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
    return single.contents(batch, labels)[0], ["".join(map(str, row)) for row in labels.astype(int)]


# --- model ---------------------------------------------------------------------------------------------------------------


def model_settings(label_names: list[str]) -> dict:
    return single.model_settings(label_names) | {"problem_type": "multi_label_classification"}


def loss(train_labels: np.ndarray, n_labels: int, config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(logits, labels) -> the sum of the losses of each label of each text."""
    weight = None
    if config.class_weights == "balanced":  # where a label is there it counts as much as where it is not
        there = train_labels.sum(axis=0)
        weight = torch.tensor((len(train_labels) - there) / there.clip(min=1))

    def summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        here = None if weight is None else weight.to(logits.device)
        labels = labels * (1 - config.label_smoothing_factor) + config.label_smoothing_factor / 2
        return binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=here, reduction="sum")

    return summed


# --- predictions and what is measured ------------------------------------------------------------------------------------


def validation_metrics(found: EvalPrediction, tokens: Tokens, label_names: list[str]) -> dict[str, float]:
    metrics = multi_label_metrics(found.predictions, found.predictions >= 0, found.label_ids, label_names)
    return {name: metrics[name] for name in METRICS}


def calibrate(logits: np.ndarray, validation: Split) -> dict:
    """Temperature, and the threshold with the best micro F1, on validation; of several the one nearest to a half."""
    labels = validation.labels
    temperature = fit_temperature(_against(np.zeros_like(logits), logits), labels.ravel().astype(int))
    shares = expit(logits / temperature)
    thresholds = sorted(np.linspace(0.05, 0.95, 91), key=lambda t: abs(t - 0.5))
    f1 = [2 * (labels * (shares >= t)).sum() / max(1, labels.sum() + (shares >= t).sum()) for t in thresholds]
    return {"temperature": temperature, "threshold": float(thresholds[np.argmax(f1)])}


def decide(logits: np.ndarray, calibrated: dict) -> np.ndarray:
    """(rows, labels), whether each is there."""
    return expit(logits / calibrated["temperature"]) >= calibrated["threshold"]


def interval(logits: np.ndarray, split: Split) -> list[float]:
    return _of_whole_sets(((logits >= 0) == split.labels).all(axis=1))


def _of_whole_sets(right: np.ndarray) -> list[float]:
    return wilson_interval(int(right.sum()), len(right))


def measure(logits: np.ndarray, test: Split, lengths: np.ndarray, label_names: list[str], calibrated: dict) -> dict:
    temperature, predicted = calibrated["temperature"], decide(logits, calibrated)

    def bins(logits: np.ndarray) -> dict:
        shares = expit(logits)
        return calibration(_against(1 - shares, shares), test.labels.ravel().astype(int))

    return multi_label_metrics(logits, predicted, test.labels, label_names) | {
        "temperature": temperature,
        "threshold": calibrated["threshold"],
        "calibration": {"as_trained": bins(logits), "scaled": bins(logits / temperature)},
        "by_length": accuracy_by_length((predicted == test.labels).all(axis=1), lengths),
    }


def _against(no: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """Two (rows, labels) as one (rows x labels, 2): each label of each text is a yes or a no."""
    return np.stack([no.ravel(), yes.ravel()], axis=-1)


def multi_label_metrics(logits: np.ndarray, predicted: np.ndarray, labels: np.ndarray, label_names: list[str]) -> dict:
    """Metrics of `logits` and of what is `predicted` from them against `labels`, 0 or 1, (n, labels) each.

    `accuracy` is the share of texts whose labels are all right (subset accuracy); f1, precision and recall are micro averages.
    """
    right = (predicted == labels).all(axis=1)
    scores = {
        average: precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[:3]
        for average in ("micro", "macro")
    }
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, average=None, zero_division=0)
    every = binary_cross_entropy_with_logits(torch.tensor(logits).double(), torch.tensor(labels).double())
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci95": _of_whole_sets(right),
        **{name: float(value) for name, value in zip(("precision", "recall", "f1"), scores["micro"], strict=True)},
        "f1_macro": float(scores["macro"][2]),
        "averaged": "micro",
        "loss": float(every),
        "n": len(labels),
        "label_names": label_names,
        "by_label": [
            {"label": name, "f1": float(f1[i]), "precision": float(precision[i]), "recall": float(recall[i]), "n": int(support[i])}
            for i, name in enumerate(label_names)
        ],
    }


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------


def write(folder: Path, config: Config, metrics: dict, test: Split, logits: np.ndarray, lengths: np.ndarray) -> list[Section]:
    """predictions.parquet, errors.csv, curves.json and pictures into `folder`; what stands on the page.

    predictions.parquet is as for one label, but `label` and `prediction` are lists, and `probability` is that of the
    whole set, the labels taken for independent.
    """
    names, labels = np.array(metrics["label_names"], dtype=object), test.labels.astype(bool)
    shares = expit(logits / metrics["temperature"])
    predicted = decide(logits, metrics)
    label, prediction = (
        pyarrow.array([names[row].tolist() for row in rows], pyarrow.list_(pyarrow.string())) for rows in (labels, predicted)
    )
    said = {"label": label, "prediction": prediction, "probability": np.where(predicted, shares, 1 - shares).prod(axis=1)}
    wrong, rows_at = write_rows(folder, config, test, logits, lengths, said, (predicted == labels).all(axis=1))
    mistakes = [
        Mistake(row.probability, f"{row.actual or 'none'}, taken for {row.predicted or 'none'} (row {row.row})", row.text)
        for row in rows_at(wrong[:MISTAKES]).itertuples()
    ]
    curves = plots.curves({name: (labels[:, i], shares[:, i]) for i, name in enumerate(names)})
    write_json(folder / "curves.json", curves)
    plots.plot_by_label(metrics["by_label"], folder / "by_label.png")
    plots.plot_curves(curves, folder / "roc.png", folder / "precision_recall.png")
    plots.plot_reliability(*metrics["calibration"].values(), folder / "reliability.png")
    plots.plot_by_length(metrics["by_length"], "accuracy", single.read_of(config), folder / "by_length.png")
    figures = [(f"{name}, micro", f"{metrics[name]:.4f}", "") for name in ("f1", "precision", "recall")]
    figures += [("f1, macro", f"{metrics['f1_macro']:.4f}", ""), ("loss", f"{metrics['loss']:.4f}", "")]
    return [
        Section(
            text=f"A text is right where all its labels are. A label is given from a probability of {metrics['threshold']:.2f} on, "
            "which had the best micro F1 on validation.",
            pictures=(("by_label", "F1 by label"),),
            figures=tuple(figures),
        ),
        Section("How good the ranking is", pictures=(("roc", "ROC"), ("precision_recall", "precision and recall"))),
        Section(
            "How far its probabilities can be trusted",
            single.trust(metrics),
            pictures=(("reliability", "how often a probability keeps its word"),),
        ),
        Section("By length", pictures=(("by_length", "texts with all labels right, by length"),)),
        Section("The most confident mistakes", f"All {len(wrong):,} are in errors.csv.", mistakes=(("", mistakes),)),
    ]


def headline(metrics: dict) -> tuple[str, str]:
    said, interval = single.headline(metrics)
    return f"All labels right: {said.lower()}", interval


def remark(metrics: dict) -> str:
    said = f"F1 {metrics['f1']:.4f} (micro) and {metrics['f1_macro']:.4f} (macro). "
    return f"{said}A label is given from a probability of {metrics['threshold']:.2f} on. {single.remark(metrics)}"


def show_metrics(metrics: dict) -> None:
    low, high = metrics["accuracy_ci95"]
    print(f"accuracy   {metrics['accuracy']:.4f}   of whole sets of labels, 95 % interval {low:.4f} to {high:.4f}")
    for name in ("f1", "precision", "recall"):
        print(f"{name:<10} {metrics[name]:.4f}   micro")
    print(f"{'f1':<10} {metrics['f1_macro']:.4f}   macro\n{'loss':<10} {metrics['loss']:.4f}\n")
    width = max(len(one["label"]) for one in metrics["by_label"])
    for one in metrics["by_label"][:20]:
        print(
            f"{one['label']:<{width}}  f1 {one['f1']:.4f}  precision {one['precision']:.4f}  recall {one['recall']:.4f}  n = {one['n']:,}"
        )


def compare(a: pd.DataFrame, b: pd.DataFrame, test: Split) -> tuple[dict, np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """As for one label: a text is right where all its labels are."""
    as_text = [one.assign(**{name: one[name].map(single.in_words) for name in ("label", "prediction")}) for one in (a, b)]
    return single.compare(*as_text, test)


# --- use -----------------------------------------------------------------------------------------------------------------


def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run") -> dict[str, list]:
    """`prediction`, a list of labels, and their `probabilities` one by one, of rows with the columns of `find_inputs`."""
    shares = expit(logits_of_texts(model, tokenizer, batch, run) / run.training["temperature"])
    chosen = [np.flatnonzero(row >= run.training["threshold"]) for row in shares]
    return {
        "prediction": [[run.label_names[i] for i in row] for row in chosen],
        "probabilities": [shares[row][few].tolist() for row, few in enumerate(chosen)],
    }


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    shares = [round(share, 6) for share in answered["probabilities"]]
    return inputs | {"labels": dict(zip(answered["prediction"], shares, strict=True))}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    said = [f"{label} {share:.3f}" for label, share in zip(answered["prediction"], answered["probabilities"], strict=True)]
    return f"{', '.join(said) or 'none'}: {single.shortened(inputs)}"


def code(config: Config, load: str, calibrated: dict) -> str:
    given = ", ".join(single.arguments_of(config))
    return f"""import re

import torch
{load}


{single.encoding_code(config)}

def labels({given}):
    with torch.no_grad():
        logits = model(**encode({given})).logits[0]
    shares = {single.scaled(calibrated)}.sigmoid()
    return {{model.config.id2label[i]: float(share) for i, share in enumerate(shares) if share >= {calibrated["threshold"]!r}}}


print(labels({", ".join(['"A film to remember."'] * len(single.arguments_of(config)))}))
"""


def pipeline(config: Config) -> tuple[str, str]:
    arguments, otherwise = single.pipeline(config)
    return f"{arguments}, top_k=None", f"{otherwise} It gives the probability of every label, and leaves the threshold to you."


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [gradio.Label(label="Labels and their probabilities")]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> dict:
    (shares,) = expit(logits_of_texts(model, tokenizer, {"text": [text]}, run) / run.training["temperature"])
    return dict(zip(run.label_names, map(float, shares), strict=True))
