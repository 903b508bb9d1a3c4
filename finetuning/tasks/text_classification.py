"""One label for each text: is a review good or bad, what is a message about?"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from datasets import Dataset, Features, LargeList, List, Value
from peft import PeftModel, TaskType
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, roc_auc_score
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from config import Config
from finetuning import explanation, plots, training
from finetuning.augmentation import augmentation
from finetuning.data import TEXT_COLUMNS, Split, find_column, renamed
from finetuning.disk import write_json
from finetuning.errors import UserError
from finetuning.labels import encode_labels
from finetuning.metrics import accuracy, accuracy_by_length, calibration, fit_temperature, paired_difference, wilson_interval
from finetuning.page import MISTAKES, Mistake, Section, write_csv
from finetuning.tokenizing import Tokens, special_tokens, tokenize_texts, truncate

if TYPE_CHECKING:
    from finetuning.run_folder import Run

NAME = PIPELINE = "text-classification"

# --- rows ----------------------------------------------------------------------------------------------------------------

READERS: dict = {}  # the usual ones
INPUTS = (str,)
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target")
LINE_BREAK = re.compile(r"<br\s*/?>")


def find_inputs(columns: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    """The columns with the text, and with the second one where the label is of two."""
    usual = (*([config.text_column] if config.text_column else []), *TEXT_COLUMNS)
    found = {"text": find_column("text_column", text_column, usual, columns)}
    if config.text_pair_column:
        found["text_pair"] = find_column("text_pair_column", config.text_pair_column, (), columns)
    return found


def find_columns(columns: list[str], config: Config) -> dict[str, str]:
    found = find_inputs(columns, config, config.text_column)
    found["label"] = find_column("label_column", config.label_column, LABEL_COLUMNS, columns)
    if len(set(found.values())) < len(found):
        said = ", ".join(f"{name}_column is {column!r}" for name, column in found.items())
        raise UserError(f"{said}: name different columns, out of {', '.join(columns)}")
    return found


def settle(train: Dataset, config: Config) -> Config:
    """`config` with the problem_type that the label column tells, where none was given."""
    if config.problem_type:
        return config
    several = "," in (config.label_column or "") and config.label_column not in train.column_names
    if not several:
        several = isinstance(train.features[find_columns(train.column_names, config)["label"]], List | LargeList)
    return replace(config, problem_type="multi_label_classification" if several else "single_label_classification")


def read_rows(
    raw: dict[str, Dataset], columns: dict[str, str], config: Config
) -> tuple[dict[str, Dataset], dict[str, np.ndarray], list[str], list[str]]:
    """Rows as they are; of labels the positions (rows,) among the names."""
    labels, names = encode_labels(raw, columns["label"])
    check_texts(raw, columns)
    return renamed(raw, columns), labels, names, []


def check_texts(raw: dict[str, Dataset], columns: dict[str, str]) -> None:
    """Raises `UserError` where a column that should hold texts holds something else."""
    for split, rows in raw.items():
        for name, column in columns.items():
            if not name.startswith("label") and getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                raise UserError(
                    f"{name}_column={column}: split {split} holds no text in it; set {name}_column to the column that does"
                )


def strata(labels: np.ndarray) -> np.ndarray:
    return labels


def labelled(labels: np.ndarray) -> np.ndarray:
    return labels >= 0


def texts(batch: dict[str, list], between: str = " || ") -> list[str]:
    """As a reader sees them; "" where one of a pair is empty."""
    if "text_pair" not in batch:
        return clean(batch["text"])
    pairs = zip(clean(batch["text"]), clean(batch["text_pair"]), strict=True)
    return [between.join(pair) if all(text.strip() for text in pair) else "" for pair in pairs]


def clean(texts: Iterable[str]) -> list[str]:
    """HTML line breaks become spaces (5 % of IMDb's tokens)."""
    return [LINE_BREAK.sub(" ", text or "") for text in texts]


def contents(batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
    return texts(batch, between="\x1f"), labels


# --- tokens and model ----------------------------------------------------------------------------------------------------


def features(tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
    """Token ids; of a pair also which of the two each is of, where the model asks for it."""
    paired = config.text_pair_column and "token_type_ids" in tokenizer.model_input_names
    types = {"token_type_ids": List(Value("int8"))} if paired else {}
    return Features({"input_ids": List(Value("int32")), **types, "length": Value("int32")})


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    if "text_pair" not in batch:
        ids, lengths = tokenize_texts(clean(batch["text"]), tokenizer, config)
        return {"input_ids": ids, "length": lengths}
    pairs = clean(batch["text"]), clean(batch["text_pair"])
    whole = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=False)
    cut = tokenizer(*pairs, return_attention_mask=False, padding=False, truncation=True, max_length=config.max_length)
    lengths = np.array([len(ids) for ids in whole["input_ids"]])
    if config.truncation == "error":
        truncate(max(whole["input_ids"], key=len), config.max_length, config.truncation)
    return {name: cut[name] for name in features(tokenizer, config) if name != "length"} | {"length": lengths}


TOKENIZER: dict = {}
MODEL = AutoModelForSequenceClassification
PEFT_TYPE = TaskType.SEQ_CLS


def model_settings(label_names: list[str]) -> dict:
    return {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}


def collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> DataCollatorWithPadding:
    multiple = None if config.padding == "max_length" else 8
    return DataCollatorWithPadding(tokenizer, padding=config.padding, max_length=config.max_length, pad_to_multiple_of=multiple)


MIXED = False


def change(tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict] | None:
    changed = augmentation(tokenizer, config)
    return changed and (lambda row, epoch, number: row | {"input_ids": changed(row["input_ids"], epoch, number)})


def shorten(tokenizer: PreTrainedTokenizerBase, config: Config, max_length: int) -> Callable[[dict], dict] | None:
    """None where it would save nothing, as all is padded, and for pairs, whose shares are the tokenizer's to find."""
    if config.text_pair_column or config.padding == "max_length":
        return None
    first, last = special_tokens(tokenizer)
    side = "head+tail" if config.truncation == "error" else config.truncation
    return lambda row: row | {"input_ids": truncate(row["input_ids"], max_length, side, first, last)}


def loss(train_labels: np.ndarray, n_labels: int, config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(logits, labels) -> the sum of their losses; with balanced classes the weights' mean over the training rows is 1."""
    weight = None
    if config.class_weights == "balanced":
        counts = np.bincount(train_labels, minlength=n_labels)
        weight = torch.tensor(len(train_labels) / (np.count_nonzero(counts) * counts.clip(min=1)), dtype=torch.float32)

    def summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        here = None if weight is None else weight.to(logits.device)
        return cross_entropy(logits.float(), labels, here, reduction="sum", label_smoothing=config.label_smoothing_factor)

    return summed


FORMATS = ("merged", "onnx", "int8")

# --- predictions and what is measured ------------------------------------------------------------------------------------

METRICS = ("accuracy", "f1", "f1_macro", "loss")


def predict(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, config: Config, show_progress: bool = True
) -> np.ndarray:
    """Logits (rows, labels), float32."""
    logits = None
    for rows, batches in training.predict(model, tokenizer, collator(tokenizer, config), tokens, config, show_progress):
        found = np.concatenate(batches)
        logits = np.empty((len(tokens), found.shape[1]), dtype=np.float32) if logits is None else logits
        logits[rows] = found
    return logits


def validation_metrics(found: EvalPrediction, tokens: Tokens, label_names: list[str]) -> dict[str, float]:
    return {
        name: value
        for name, value in classification_metrics(found.predictions, found.label_ids, label_names).items()
        if name in METRICS
    }


def calibrate(logits: np.ndarray, validation: Split) -> dict:
    return {"temperature": fit_temperature(logits, validation.labels)}


def decide(logits: np.ndarray, calibrated: dict) -> np.ndarray:
    """(rows,) labels."""
    return logits.argmax(axis=-1)


def interval(logits: np.ndarray, split: Split) -> list[float]:
    right = logits.argmax(axis=-1) == split.labels
    return wilson_interval(int(right.sum()), len(right))


def measure(logits: np.ndarray, test: Split, lengths: np.ndarray, label_names: list[str], calibrated: dict) -> dict:
    temperature = calibrated["temperature"]
    return classification_metrics(logits, test.labels, label_names) | {
        "temperature": temperature,
        "calibration": {
            "as_trained": calibration(softmax(logits, axis=-1), test.labels),
            "scaled": calibration(softmax(logits / temperature, axis=-1), test.labels),
        },
        "by_length": accuracy_by_length(logits.argmax(axis=-1) == test.labels, lengths),
    }


def classification_metrics(logits: np.ndarray, labels: np.ndarray, label_names: list[str]) -> dict:
    """Metrics of `logits` (n, labels) against `labels` (n,).

    With two labels, f1, precision, recall and roc_auc are those of the second one; with more, macro averages.
    """
    predictions = logits.argmax(axis=-1)
    n, k = logits.shape
    average = {"average": "binary"} if k == 2 else {"average": "macro", "labels": list(range(k))}
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, zero_division=0, **average)
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    everyone_there = len(np.unique(labels)) == k
    roc_auc = roc_auc_score(labels, probabilities[:, 1] if k == 2 else probabilities, multi_class="ovr") if everyone_there else None
    return {
        "accuracy": accuracy(predictions, labels),
        "accuracy_ci95": wilson_interval(int((predictions == labels).sum()), n),
        "f1": float(f1),
        "f1_macro": float(f1_score(labels, predictions, average="macro", labels=list(range(k)), zero_division=0)),
        "precision": float(precision),
        "recall": float(recall),
        "averaged": f"of {label_names[1]!r}" if k == 2 else "macro",
        "roc_auc": None if roc_auc is None else float(roc_auc),
        "loss": float(-log_softmax(logits.astype(np.float64), axis=-1)[np.arange(n), labels].mean()),
        "n": n,
        "label_names": label_names,
        "confusion_matrix": confusion_matrix(labels, predictions, labels=list(range(k))).tolist(),  # rows actual, columns predicted
    }


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------


def write(folder: Path, config: Config, metrics: dict, test: Split, logits: np.ndarray, lengths: np.ndarray) -> list[Section]:
    """predictions.parquet, errors.csv, curves.json and pictures into `folder`; what stands on the page.

    predictions.parquet has one row for each of `test`, in its order: `row` (number in the split), `label`, `prediction`,
    `probability` (of the prediction, after temperature scaling), `logits`, `tokens` (before the cut) and `truncated`.
    errors.csv has those of its rows that are wrong, most confident first, with their text.
    """
    names, labels, predicted = metrics["label_names"], test.labels, logits.argmax(axis=-1)
    probabilities = softmax(logits / metrics["temperature"], axis=-1)
    label, prediction = (pyarrow.array(names).take(pyarrow.array(codes)) for codes in (labels, predicted))
    said = {"label": label, "prediction": prediction, "probability": probabilities.max(axis=-1)}
    wrong, rows_at = write_rows(folder, config, test, logits, lengths, said, predicted == labels)

    def mistakes(positions: np.ndarray) -> list[Mistake]:
        found = []
        for row in rows_at(positions[:MISTAKES]).itertuples():
            start = row.text[:120] + ("…" if len(row.text) > 120 else "")
            line = f"row {row.row}, {row.tokens} tokens{', cut' if row.truncated else ''}: {start}"
            found.append(Mistake(row.probability, line, row.text))
        return found

    kinds = tuple(
        (f"{names[i]}, taken for {names[j]}", mistakes(of_kind))
        for i, j in np.ndindex(len(names), len(names))
        if len(of_kind := wrong[(labels[wrong] == i) & (predicted[wrong] == j)])
    )
    shown = [1] if len(names) == 2 else range(len(names))
    curves = plots.curves({names[k]: (labels == k, probabilities[:, k]) for k in shown})
    write_json(folder / "curves.json", curves)
    title = plots.title("accuracy", metrics)
    plots.plot_confusion_matrix(metrics["confusion_matrix"], (names, names), title, folder / "confusion_matrix.png")
    plots.plot_curves(curves, folder / "roc.png", folder / "precision_recall.png")
    plots.plot_reliability(*metrics["calibration"].values(), folder / "reliability.png")
    plots.plot_by_length(metrics["by_length"], "accuracy", read_of(config), folder / "by_length.png")

    validation = metrics["validation"]
    figures = [(name, f"{metrics[name]:.4f}", metrics["averaged"]) for name in ("f1", "precision", "recall")]
    figures += [("ROC AUC", f"{metrics['roc_auc']:.4f}", "")] if metrics["roc_auc"] is not None else []
    figures += [
        ("loss", f"{metrics['loss']:.4f}", ""),
        ("validation accuracy", f"{validation['accuracy']:.4f}", f"{validation['n']:,} texts, {validation['split']}"),
    ]
    return [
        Section(pictures=(("confusion_matrix", "confusion matrix"),), figures=tuple(figures)),
        Section("How good the ranking is", pictures=(("roc", "ROC"), ("precision_recall", "precision and recall"))),
        Section(
            "How far its probabilities can be trusted",
            trust(metrics),
            pictures=(("reliability", "how often a probability keeps its word"),),
        ),
        Section("By length", pictures=(("by_length", "accuracy by length of the text"),)),
        Section("The most confident mistakes", f"All {len(wrong):,} are in errors.csv.", mistakes=kinds),
    ]


def write_rows(
    folder: Path, config: Config, test: Split, logits: np.ndarray, lengths: np.ndarray, said: dict, right: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """predictions.parquet and errors.csv; where `right` is not, most confident first, and what errors.csv says of such rows.

    `said` has `label`, `prediction` and `probability`, (rows,) each.
    """
    truncated = lengths > config.max_length
    scores = pyarrow.FixedSizeListArray.from_arrays(logits.ravel(), logits.shape[1])
    table = pyarrow.table({"row": test.rows, **said, "logits": scores, "tokens": lengths, "truncated": truncated})
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        rows = table.drop_columns("logits").take(positions).to_pandas()
        named = {column: rows[column].map(in_words) for column in ("label", "prediction")}
        rows = rows.assign(text=texts(test.select(positions).columns()), actual=named["label"], predicted=named["prediction"])
        return rows[["row", "text", "actual", "predicted", "probability", "tokens", "truncated"]]

    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-said["probability"][wrong], kind="stable")]
    write_csv(folder / "errors.csv", wrong, rows_at)
    return wrong, rows_at


def in_words(labels: str | Sequence[str]) -> str:
    return labels if isinstance(labels, str) else ", ".join(labels)


def read_of(config: Config) -> str:
    return f"tokens of the text (the model reads {config.max_length})"


def trust(metrics: dict) -> str:
    """What the calibration says, for the page."""
    errors = {name: f"{100 * found['expected_calibration_error']:.2f} %" for name, found in metrics["calibration"].items()}
    return (
        "What is said with a probability of 90 % should be right nine times in ten. The expected calibration error is "
        f"{errors['as_trained']} as trained and {errors['scaled']} after dividing the logits by the temperature "
        f"{metrics['temperature']:.3f}, which was fitted on validation. predict.py gives the scaled ones."
    )


def headline(metrics: dict) -> tuple[str, str]:
    low, high = metrics["accuracy_ci95"]
    return f"Accuracy {100 * metrics['accuracy']:.2f} %", f"95 % interval {100 * low:.2f} to {100 * high:.2f}"


def remark(metrics: dict) -> str:
    error = metrics["calibration"]["scaled"]["expected_calibration_error"]
    config = metrics["run"]["config"]
    return (
        f"Expected calibration error {100 * error:.2f} % after dividing the logits by the temperature {metrics['temperature']:.3f}.\n"
        f"Texts were cut to {config['max_length']} tokens ({config['truncation']})."
    )


def show_metrics(metrics: dict) -> None:
    """Print a short table of them."""
    low, high = metrics["accuracy_ci95"]
    print(f"accuracy   {metrics['accuracy']:.4f}   95 % interval {low:.4f} to {high:.4f}")
    for name in ("f1", "precision", "recall"):
        print(f"{name:<10} {metrics[name]:.4f}   {metrics['averaged']}")
    for name in ("roc_auc", "loss"):
        said = f"{metrics[name]:.4f}" if metrics[name] is not None else "not defined: a label is missing from the test"
        print(f"{name:<10} {said}")
    names = metrics["label_names"]
    if len(names) <= 5:
        width = max(8, *(len(name) + 2 for name in names))
        print("\n" + " " * 18 + "".join(f"{'-> ' + name:>{width + 3}}" for name in names) + "   predicted")
        for name, row in zip(names, metrics["confusion_matrix"], strict=True):
            print(f"{'actual ' + name:<18}" + "".join(f"{count:>{width + 3},}" for count in row))


COMPARED = ["row", "label", "prediction", "probability"]


def compare(a: pd.DataFrame, b: pd.DataFrame, test: Split) -> tuple[dict, np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """What two runs' predictions of the same rows say of the difference; where they differ, and what to write of those rows."""
    right = [(one.prediction == one.label).to_numpy() for one in (a, b)]
    both = a.merge(b.drop(columns="label"), on="row", suffixes=("_a", "_b"))

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        rows = both.iloc[positions].assign(text=texts(test.select(positions).columns()))
        return rows[["row", "text", "label", "prediction_a", "probability_a", "prediction_b", "probability_b"]]

    differ = np.flatnonzero(both.prediction_a != both.prediction_b)
    found = paired_difference(*right) | {
        "n": len(a),
        "accuracy": [float(r.mean()) for r in right],
        "only_a_right": int((right[0] & ~right[1]).sum()),
        "only_b_right": int((right[1] & ~right[0]).sum()),
        "rows_differ": len(differ),
    }
    return found, differ, rows_at


def show_comparison(found: dict, names: tuple[str, str]) -> None:
    """Print what `compare` found."""
    low, high = found["difference_ci95"]
    for name, share, only in zip(names, found["accuracy"], (found["only_a_right"], found["only_b_right"]), strict=True):
        print(f"{share:.4f}   {name}   alone right in {only:,} of {found['n']:,} rows")
    print(
        f"difference {100 * found['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}, "
        f"McNemar p = {found['mcnemar_p'][0]:.2g}"
    )


# --- use -----------------------------------------------------------------------------------------------------------------


OPTIONS: dict = {}
READ = "its first quarter and its end"  # of a longer text, with head+tail


def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run") -> dict[str, list]:
    """`prediction` and `probability` of rows with the columns of `find_inputs`."""
    found = softmax(logits_of_texts(model, tokenizer, batch, run) / run.training["temperature"], axis=-1)
    return {"prediction": [run.label_names[i] for i in found.argmax(axis=-1)], "probability": found.max(axis=-1).tolist()}


def logits_of_texts(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run") -> np.ndarray:
    tokenized = tokenize(batch, tokenizer, run.config)
    lengths = tokenized.pop("length")
    return predict(model, tokenizer, Tokens(Dataset.from_dict(tokenized), lengths), run.config, show_progress=False)


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    return inputs | {"label": answered["prediction"], "probability": round(answered["probability"], 6)}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    return f"{answered['prediction']:<{max(map(len, label_names))}}  {answered['probability']:.3f}  {shortened(inputs)}"


def shortened(inputs: dict[str, str]) -> str:
    text = " || ".join(inputs.values())
    return text if len(text) <= 100 else text[:97] + "..."


def code(config: Config, load: str, calibrated: dict) -> str:
    return f"""import re

import torch
{load}


{encoding_code(config)}

def label({", ".join(arguments_of(config))}):
    with torch.no_grad():
        logits = model(**encode({", ".join(arguments_of(config))})).logits[0]
    shares = {scaled(calibrated)}.softmax(-1)
    return model.config.id2label[int(shares.argmax())], float(shares.max())


print(label({", ".join(['"A film to remember."'] * len(arguments_of(config)))}))
"""


def arguments_of(config: Config) -> list[str]:
    return ["text", "text_pair"] if config.text_pair_column else ["text"]


def scaled(calibrated: dict) -> str:
    temperature = calibrated["temperature"]  # None: it is in the weights
    return "logits" if temperature is None else f"(logits / {temperature!r})"


def encoding_code(config: Config) -> str:
    """As `tokenize` does it; heads and tails are cut by the tokenizer itself, which was saved with the side."""
    texts, n = ", ".join(arguments_of(config)), config.max_length
    plain = "\n".join(f'    {text} = re.sub(r"{LINE_BREAK.pattern}", " ", {text})' for text in arguments_of(config))
    if config.truncation != "head+tail" or config.text_pair_column:
        return f"""def encode({texts}):
{plain}
    return tokenizer({texts}, truncation=True, max_length={n}, return_tensors="pt")
"""
    return f"""def encode({texts}):
{plain}
    ids = tokenizer({texts})["input_ids"]
    if len(ids) > {n}:  # {READ}
        ids = ids[:{n // 4}] + ids[-{n - n // 4}:]
    return {{"input_ids": torch.tensor([ids])}}
"""


def pipeline(config: Config) -> tuple[str, str]:
    side = "last" if config.truncation == "tail" else "first"
    otherwise = f"It reads the {side} {config.max_length} tokens of a longer text"
    if config.truncation == "head+tail" and not config.text_pair_column:
        otherwise += f", where `predict.py` reads {READ}"
    return ", truncation=True", f"{otherwise}; without `truncation=True` a text longer than the model's positions is an error."


def explain(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, config: Config) -> list[tuple[str, float]]:
    """As `explanation.explain`, of what the model reads of a text."""
    return explanation.explain(model, tokenizer, *clean([text]), config)


def show_words(words: list[tuple[str, float]]) -> None:
    """Print the words that moved a text's label most, signed."""
    most = sorted(words, key=lambda word: -abs(word[1]))[:10]
    print("    " + ", ".join(f"{word} {contribution:+.2f}" for word, contribution in most))


EXAMPLES = [
    "I went in expecting little and left with a lump in my throat. The two leads are superb.",
    "Two hours of my life I will never get back. The plot makes no sense and the jokes fall flat.",
    "Beautifully shot and well acted, but the story never comes to life and the ending is a let-down.",
]


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [
        gradio.Label(label="Label and probability"),
        gradio.HighlightedText(label="Words that spoke for it (red) and against (violet)"),
    ]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> tuple[dict, list]:
    """Each label's probability, and the words with their contributions, the largest of them 1."""
    (shares,) = softmax(logits_of_texts(model, tokenizer, {"text": [text]}, run) / run.training["temperature"], axis=-1)
    words = explain(model, tokenizer, text, run.config)
    most = max(abs(contribution) for _, contribution in words) if words else 1
    highlighted = [(f"{word} ", contribution / most) for word, contribution in words]
    return dict(zip(run.label_names, map(float, shares), strict=True)), highlighted
