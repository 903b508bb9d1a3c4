"""Named entities: which words of a text are a person, a place, a product?

A sentence is a text and where its words are. Tags are read from many formats and held as IOB2; a word's tag sits on its first
sub-word; sentences too long for the model are read in overlapping windows, so that no word is left out of any figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch
from datasets import Dataset, Features, List, Value
from markupsafe import Markup
from peft import PeftModel, TaskType
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from config import Config
from finetuning import entities, plots, sentences, training
from finetuning.data import TEXT_COLUMNS, Split, find_column, refuse
from finetuning.disk import read_columns
from finetuning.entities import Entity
from finetuning.files import conll
from finetuning.metrics import fit_temperature, reliability
from finetuning.page import MISTAKES, Mistake, Section, write_csv
from finetuning.tasks.text_classification import model_settings  # noqa: F401  (a part of this task too)
from finetuning.tokenizing import Tokens, special_tokens

if TYPE_CHECKING:
    from finetuning.run_folder import Run

NAME = PIPELINE = "token-classification"

# --- rows ----------------------------------------------------------------------------------------------------------------

READERS = dict.fromkeys((".txt", ".train", ".testa", ".testb"), ("conll", conll))
INPUTS = (str, list, dict)
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags")
SPAN_COLUMNS = ("spans", "entities", "annotations", "label", "labels")


def find_inputs(columns: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    """The column with the texts, or with lists of their words."""
    usual = (*WORD_COLUMNS, *TEXT_COLUMNS, "data")
    if "text" in columns and {*SPAN_COLUMNS} & {*columns} and not {*TAG_COLUMNS} & {*columns}:
        usual = ("text",)  # annotation tools keep words of their own beside it
    first = [config.text_column] if config.text_column else []
    return {"text": find_column("text_column", text_column, (*first, *usual), columns)}


def find_columns(columns: list[str], config: Config) -> dict[str, str]:
    label = find_column("label_column", config.label_column, (*TAG_COLUMNS, *SPAN_COLUMNS), columns)
    return find_inputs(columns, config, config.text_column) | {"label": label}


def settle(train: Dataset, config: Config) -> Config:
    refuse(config, NAME, "text_pair_column", "problem_type", "truncation", "augmentation", "class_weights")
    return config


read_rows = sentences.read_rows


def strata(held: np.ndarray) -> np.ndarray:
    return held


def contents(batch: dict[str, list], held: np.ndarray) -> tuple[list[str], Sequence]:
    return batch["text"], [" ".join(map(str, tags)) for tags in batch["tags"]]


# --- tokens and model ----------------------------------------------------------------------------------------------------


def features(tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
    """A window: its token ids; labels (-100 for further sub-words and for words that another window answers for); of the words
    that it answers for, which rows they are of."""
    words = {"labels": List(Value("int16")), "rows": List(Value("int64"))}
    return Features({"input_ids": List(Value("int32")), **words, "length": Value("int32")})


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    """Windows of at most `max_length` tokens; of two that overlap, each answers for the words up to the middle.

    A window is of one sentence, or with `context` "neighbours" of those that stand together in `batch`. Where there are no
    tags the labels say which words it answers for.
    """
    texts = zip(batch["text"], batch["starts"], batch["ends"], strict=True)
    words = [[text[start:end] for start, end in zip(starts, ends, strict=True)] for text, starts, ends in texts]
    encoded = _encode(words, tokenizer)
    missing = [{*range(len(sentence))} - {*encoded.word_ids(row)} for row, sentence in enumerate(words)]
    if any(missing):  # the tokenizer makes nothing of some signs
        unknown = tokenizer.unk_token or "?"
        words = [
            [unknown if i in gone else word for i, word in enumerate(sentence)]
            for sentence, gone in zip(words, missing, strict=True)
        ]
        encoded = _encode(words, tokenizer)
    sequences = []  # of each sub-word: its id, its label, its row
    for row, ids in enumerate(encoded["input_ids"]):
        word = np.array(encoded.word_ids(row))
        tags = np.array(batch["tags"][row]) if "tags" in batch else np.zeros(len(words[row]), dtype=int)
        labels = np.where(np.diff(word, prepend=-1) != 0, tags[word], -100)
        sequences.append(np.stack([ids, labels, np.full(len(ids), row)]))
    if config.context == "neighbours":
        sequences = [np.concatenate(sequences, axis=1)]

    whole, (first, last) = tokenizer("a")["input_ids"], special_tokens(tokenizer)
    before, behind = whole[:first], whole[len(whole) - last :]
    found = {"input_ids": [], "labels": [], "rows": [], "length": []}
    for ids, labels, rows in sequences:
        starts, width = _windows(len(ids), config.max_length - first - last)
        borders = (np.array(starts[1:]) + starts[:-1] + width) / 2  # the middles of what two windows share
        owner = np.searchsorted(borders, range(len(ids)), "right")
        for window, start in enumerate(starts):
            here = slice(start, start + width)
            own = np.where(owner[here] == window, labels[here], -100)
            found["input_ids"].append([*before, *ids[here].tolist(), *behind])
            found["labels"].append([-100] * first + own.tolist() + [-100] * last)
            found["rows"].append(rows[here][own >= 0].tolist())
            found["length"].append(len(found["input_ids"][-1]))
    return found


def _encode(words: list[list[str]], tokenizer: PreTrainedTokenizerBase):
    how = dict(is_split_into_words=True, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    return tokenizer(words, padding=False, truncation=False, **how)


def _windows(length: int, width: int) -> tuple[list[int], int]:
    """Where windows of `width` tokens start so that each shares a quarter with the next; the last ends with the text."""
    step = width - width // 4
    return [*range(0, length - width, step), length - width] if length > width else [0], width


TOKENIZER = dict(add_prefix_space=True)  # RoBERTa's and GPT-2's know words by the space before them
MODEL = AutoModelForTokenClassification
PEFT_TYPE = TaskType.TOKEN_CLS


def collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> DataCollatorForTokenClassification:
    multiple = None if config.padding == "max_length" else 8
    return DataCollatorForTokenClassification(
        tokenizer, padding=config.padding, max_length=config.max_length, pad_to_multiple_of=multiple
    )


MIXED = False


def change(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    return None


def loss(held: np.ndarray, n_labels: int, config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(logits, labels) -> the sum of the losses of all words."""

    def summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, labels = logits.flatten(0, 1).float(), labels.flatten()
        return cross_entropy(logits, labels, reduction="sum", label_smoothing=config.label_smoothing_factor)

    return summed


FORMATS = ("merged", "onnx", "int8")

# --- predictions and what is measured ------------------------------------------------------------------------------------

METRICS = ("f1", "precision", "recall", "accuracy", "loss")


def predict(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, config: Config, show_progress: bool = True
) -> list[np.ndarray]:
    """Of each text the logits (words, tags), float32."""
    found: list = [None] * len(tokens)
    labels = tokens.inputs.select_columns("labels")
    for windows, batches in training.predict(model, tokenizer, collator(tokenizer, config), tokens, config, show_progress):
        logits = (one for batch in batches for one in batch)
        for window, here, one in zip(windows, labels[windows.tolist()]["labels"], logits, strict=True):
            found[window] = one[np.flatnonzero(np.array(here) >= 0)]
    return _by_row(found, tokens.rows)


def _by_row(windows: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """What is said of words, window by window, as what is said of each row's words."""
    return np.split(np.concatenate(windows), np.flatnonzero(np.diff(rows)) + 1)


def validation_metrics(found: EvalPrediction, tokens: Tokens, label_names: list[str]) -> dict[str, float]:
    there = found.label_ids >= 0
    logits, gold = (
        _by_row([one[here] for one, here in zip(all_of, there, strict=True)], tokens.rows)
        for all_of in (found.predictions, found.label_ids)
    )
    metrics = entity_metrics(logits, decide(logits, {}), gold, label_names)
    return {name: metrics[name] for name in METRICS}


def calibrate(logits: list[np.ndarray], validation: Split) -> dict:
    return {"temperature": fit_temperature(np.concatenate(logits), np.concatenate(gold_of(validation)))}


def decide(logits: list[np.ndarray], calibrated: dict) -> list[np.ndarray]:
    """Of each text the valid tags (words,) that are most probable together."""
    return [entities.best_sequence(log_softmax(one, axis=-1)) for one in logits]


def interval(logits: list[np.ndarray], split: Split) -> list[float]:
    gold, predicted = ([entities.entities(codes) for codes in both] for both in (gold_of(split), decide(logits, {})))
    return entities.f1_interval(entities.counts(gold, predicted))


def gold_of(split: Split) -> list[np.ndarray]:
    """Of each text the tags (words,)."""
    tags = read_columns(split.raw.select(split.rows), "tags")["tags"].combine_chunks()
    return np.split(tags.flatten().to_numpy(), tags.value_lengths().to_numpy().cumsum()[:-1])


LENGTHS = (0, 8, 16, 32, 64)  # words


def measure(logits: list[np.ndarray], test: Split, lengths: np.ndarray, label_names: list[str], calibrated: dict) -> dict:
    codes, temperature = gold_of(test), calibrated["temperature"]
    predicted = decide(logits, calibrated)
    gold, said = ([entities.entities(one) for one in both] for both in (codes, predicted))
    types = entities.types_of(label_names)
    counts = entities.counts(gold, said)
    right = np.array([one in there for g, p in zip(gold, said, strict=True) for there in [{*g}] for one in p], dtype=bool)
    words = np.array([len(one) for one in codes])
    by_length = []
    for low, high in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        here = (words > low) & (words <= (high or np.inf))
        if counts[here, 2].any():
            about = {"above": low, "up_to": high, "n": int(here.sum()), "entities": int(counts[here, 2].sum())}
            by_length.append(about | {"f1": float(entities.f1(*counts[here].T)), "f1_ci95": entities.f1_interval(counts[here])})
    pairs = [entities.pair(g, p) for g, p in zip(gold, said, strict=True)]
    return (
        entity_metrics(logits, predicted, codes, label_names)
        | entities.errors(pairs, types)
        | {
            "mode": "strict IOB2: span and type of a whole entity are exact",
            "f1_ci95": entities.f1_interval(counts),
            "n": len(codes),
            "words": int(words.sum()),
            "entities": int(counts[:, 2].sum()),
            "label_names": label_names,
            "types": types,
            "temperature": temperature,
            "calibration": {
                name: reliability(np.concatenate([[], *least(word_probabilities(logits, predicted, by), said)]), right)
                for name, by in (("as_trained", 1), ("scaled", temperature))
            },
            "by_length": by_length,
        }
    )


def entity_metrics(logits: list[np.ndarray], predicted: list[np.ndarray], gold: list[np.ndarray], label_names: list[str]) -> dict:
    """Of `logits` (words, tags) and tags (words,), text by text: figures of whole entities, and of words."""
    spans = ([entities.entities(one) for one in both] for both in (gold, predicted))
    words, codes = log_softmax(np.concatenate(logits).astype(np.float64), axis=-1), np.concatenate(gold)
    right = np.concatenate(predicted) == codes
    return entities.score(*spans, entities.types_of(label_names)) | {
        "accuracy": float(right.mean()),
        "loss": float(-words[np.arange(len(codes)), codes].mean()),
    }


def word_probabilities(logits: list[np.ndarray], predicted: list[np.ndarray], temperature: float) -> list[np.ndarray]:
    """Of each text how probable each word's predicted tag is (words,)."""
    shares = (np.exp(log_softmax(one / temperature, axis=-1)) for one in logits)
    return [one[np.arange(len(codes)), codes] for one, codes in zip(shares, predicted, strict=True)]


def least(shares: list[np.ndarray], spans: list[list[Entity]]) -> list[list[float]]:
    """Of each text's `spans` the least of their words' probabilities, which is the entity's."""
    return [[float(words[start:end].min()) for start, end, _ in of] for words, of in zip(shares, spans, strict=True)]


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------


def write(folder: Path, config: Config, metrics: dict, test: Split, logits: list[np.ndarray], lengths: np.ndarray) -> list[Section]:
    """predictions.parquet, errors.csv and pictures into `folder`; what stands on the page.

    predictions.parquet has one row for each sentence of `test`, in its order: `row` (number in the split), `label` and `prediction`
    (its words' tags, IOB2), `probability` (of each word's predicted tag, after temperature scaling). errors.csv has an entity
    a line: what is wrong, its types and texts, the sentence with the actual and with the predicted ones marked.
    """
    names, types = metrics["label_names"], metrics["types"]
    codes, predicted = gold_of(test), decide(logits, metrics)
    gold, said = ([entities.entities(one) for one in both] for both in (codes, predicted))
    shares = word_probabilities(logits, predicted, metrics["temperature"])
    lists = {"label": [[names[c] for c in one] for one in codes], "prediction": [[names[c] for c in one] for one in predicted]}
    table = {"row": test.rows, **lists, "probability": [one.tolist() for one in shares]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "predictions.parquet")

    wrong = [[both for both in entities.pair(g, p) if both[0] != both[1]] for g, p in zip(gold, said, strict=True)]
    sure = least(shares, [[predicted or actual for actual, predicted in pairs] for pairs in wrong])
    found = [  # (position in test, actual, predicted, how sure the model was)
        (position, *both, share)
        for position, (pairs, its) in enumerate(zip(wrong, sure, strict=True))
        for both, share in zip(pairs, its, strict=True)
    ]
    found.sort(key=lambda one: -one[3])

    def rows_at(numbers: np.ndarray, html: bool = False) -> pd.DataFrame:
        here = [found[number] for number in numbers]
        rows, lines = test.select([position for position, *_ in here]).columns(), []
        for text, starts, ends, (position, actual, one, share) in zip(
            rows["text"], rows["starts"], rows["ends"], here, strict=True
        ):
            line = {"row": int(test.rows[position]), "error": entities.kind(actual, one)}
            for name, entity in (("actual", actual), ("predicted", one)):
                line[name] = types[entity[2]] if entity else ""
                line[f"{name}_text"] = text[starts[entity[0]] : ends[entity[1] - 1]] if entity else ""
            line["probability"] = share
            for name, all_of in (("actual", gold), ("predicted", said)):
                line[f"{name}_marked"] = mark(text, spans_of(starts, ends, all_of[position], types), html)
            lines.append(line)
        columns = ["row", "error", "actual", "actual_text", "predicted", "predicted_text", "probability"]
        return pd.DataFrame(lines, columns=[*columns, "actual_marked", "predicted_marked"])

    write_csv(folder / "errors.csv", np.arange(len(found)), rows_at)

    def mistakes(of_kind: str) -> list[Mistake]:
        numbers = [number for number, one in enumerate(found) if entities.kind(one[1], one[2]) == of_kind][:MISTAKES]
        both = Markup('<span class="sides"><span><b>actual</b> {}</span><span><b>predicted</b> {}</span></span>')
        shown = []
        for line in rows_at(np.array(numbers), html=True).itertuples():
            actual = f"{line.actual_text} ({line.actual})" if line.actual else "nothing"
            predicted = f"{line.predicted_text} ({line.predicted})" if line.predicted else "nothing"
            sides = both.format(line.actual_marked, line.predicted_marked)
            shown.append(Mistake(line.probability, f"{actual}, taken for {predicted} (row {line.row})", sides))
        return shown

    kinds = tuple((f"{name}: {n:,}", mistakes(name)) for name, n in metrics["errors"].items() if n)
    title = plots.title("f1", metrics)
    names_of = [*types, "spurious"], [*types, "missed"]
    plots.plot_confusion_matrix(metrics["confusion_matrix"], names_of, title, folder / "confusion_matrix.png")
    plots.plot_by_label(metrics["by_type"], folder / "by_label.png")
    plots.plot_by_length(metrics["by_length"], "f1", "words of the sentence", folder / "by_length.png")
    plots.plot_reliability(*metrics["calibration"].values(), folder / "reliability.png")
    figures = [("precision", f"{metrics['precision']:.4f}", ""), ("recall", f"{metrics['recall']:.4f}", "")]
    figures += [(f"{name} errors" if name != "spurious" else name, f"{n:,}", "") for name, n in metrics["errors"].items()]
    figures += [
        ("words right", f"{metrics['accuracy']:.4f}", f"of {metrics['words']:,}"),
        ("entities", f"{metrics['entities']:,}", ""),
    ]
    error = {name: f"{100 * one['expected_calibration_error']:.2f} %" for name, one in metrics["calibration"].items()}
    return [
        Section(
            text="An entity is right where its first word, its last word and its type are (strict).",
            pictures=(("confusion_matrix", "whole entities: types, missed and spurious ones"),),
            figures=tuple(figures),
        ),
        Section("By type, and by length", pictures=(("by_label", "F1 by type"), ("by_length", "F1 by length of the sentence"))),
        Section(
            "How far its probabilities can be trusted",
            "An entity's probability is the least of its words'. The expected calibration error is "
            f"{error['as_trained']} as trained and {error['scaled']} after dividing the logits by the temperature "
            f"{metrics['temperature']:.3f}, which was fitted on validation. predict.py gives the scaled ones.",
            pictures=(("reliability", "how often a predicted entity's probability keeps its word"),),
        ),
        Section("The most confident mistakes", f"All {len(found):,} are in errors.csv.", mistakes=kinds),
    ]


def spans_of(starts: list[int], ends: list[int], of: list[Entity], types: Sequence[str]) -> list[tuple[int, int, str]]:
    """Where a text's entities start and end in it, and their types."""
    return [(starts[first], ends[end - 1], types[t]) for first, end, t in of]


def mark(text: str, spans: list[tuple[int, int, str]], html: bool = False) -> str | Markup:
    """The text with its spans in brackets, with what is said of each behind it; or as HTML."""
    one = Markup("<mark>{} <small>{}</small></mark>") if html else "[{} {}]"
    parts, place = [], 0
    for start, end, said in spans:
        parts += [text[place:start], one.format(text[start:end], said)]
        place = end
    parts.append(text[place:])
    return Markup("").join(parts) if html else "".join(parts)


def headline(metrics: dict) -> tuple[str, str]:
    low, high = metrics["f1_ci95"]
    return f"Entity F1 {100 * metrics['f1']:.2f} %", f"95 % interval {100 * low:.2f} to {100 * high:.2f}"


def remark(metrics: dict) -> str:
    return (
        f"Precision {metrics['precision']:.4f}, recall {metrics['recall']:.4f}, {metrics['entities']:,} entities; {metrics['mode']}. "
        "A word's tag is that of its first sub-word; sequences are decoded so that they are valid IOB2."
    )


def show_metrics(metrics: dict) -> None:
    low, high = metrics["f1_ci95"]
    print(
        f"f1         {metrics['f1']:.4f}   95 % interval {low:.4f} to {high:.4f}, {metrics['entities']:,} entities; {metrics['mode']}"
    )
    for name, of in (("precision", ""), ("recall", ""), ("accuracy", f"of {metrics['words']:,} words"), ("loss", "")):
        print(f"{name:<10} {metrics[name]:.4f}   {of}".rstrip())
    print("errors     " + ", ".join(f"{n:,} {name}" for name, n in metrics["errors"].items()) + "\n")
    width = max(len(one["label"]) for one in metrics["by_type"])
    for one in metrics["by_type"]:
        print(
            f"{one['label']:<{width}}  f1 {one['f1']:.4f}  precision {one['precision']:.4f}  recall {one['recall']:.4f}  n = {one['n']:,}"
        )


COMPARED = ["row", "label", "prediction"]


def compare(a: pd.DataFrame, b: pd.DataFrame, test: Split) -> tuple[dict, np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """F1 of two runs on the same sentences, their paired difference; the sentences where they differ."""
    types = sorted(
        {tag[2:] for tags in (a.label, a.prediction, b.prediction) for tag in np.unique(np.concatenate(tags)) if tag != "O"}
    )
    code = {name: i for i, name in enumerate(entities.tag_names(types))}

    def read(column: pd.Series) -> list[list[Entity]]:
        return [entities.entities(np.array([code[tag] for tag in tags])) for tags in column]

    gold, said = read(a.label), (read(a.prediction), read(b.prediction))
    counts = [entities.counts(gold, one) for one in said]
    differ = np.array([i for i, both in enumerate(zip(*said, strict=True)) if both[0] != both[1]], dtype=int)

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        rows, lines = test.select(positions).columns(), []
        for text, starts, ends, position in zip(rows["text"], rows["starts"], rows["ends"], positions, strict=True):
            sides = (("actual", gold), ("a", said[0]), ("b", said[1]))
            marked = {name: mark(text, spans_of(starts, ends, one[position], types)) for name, one in sides}
            lines.append({"row": int(test.rows[position])} | marked)
        return pd.DataFrame(lines, columns=["row", "actual", "a", "b"])

    found = entities.paired_f1_difference(*counts) | {"n": len(a), "f1": [float(entities.f1(*one.T)) for one in counts]}
    return found | {"rows_differ": len(differ)}, differ, rows_at


def show_comparison(found: dict, names: tuple[str, str]) -> None:
    low, high = found["difference_ci95"]
    for name, value in zip(names, found["f1"], strict=True):
        print(f"{value:.4f}   {name}   F1 over {found['n']:,} sentences")
    print(
        f"difference {100 * found['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f} (paired bootstrap over sentences)"
    )


# --- use -----------------------------------------------------------------------------------------------------------------


OPTIONS: dict = {}


def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run") -> dict[str, list]:
    """`entities` of each text: their `start` and `end` in it (of words that came by themselves: joined with spaces), their
    `text`, `label` and `probability`."""
    placed = [sentences.place(text) for text in batch["text"]]
    alone = replace(run.config, context="sentence")
    tokens = tokenize({name: [one[name] for one in placed] for name in sentences.PLACES}, tokenizer, alone)
    lengths, rows = np.array(tokens.pop("length")), np.concatenate(tokens.pop("rows"))
    logits = predict(model, tokenizer, Tokens(Dataset.from_dict(tokens), lengths, rows=rows), alone, show_progress=False)
    predicted = decide(logits, run.training)
    found, types = [entities.entities(codes) for codes in predicted], entities.types_of(run.label_names)
    shares = least(word_probabilities(logits, predicted, run.training["temperature"]), found)
    answers = []
    for one, of, probable in zip(placed, found, shares, strict=True):
        spans = spans_of(one["starts"], one["ends"], of, types)
        answers.append(
            [
                {"start": start, "end": end, "text": one["text"][start:end], "label": label, "probability": round(share, 6)}
                for (start, end, label), share in zip(spans, probable, strict=True)
            ]
        )
    return {"entities": answers}


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    return {"text": sentences.place(inputs["text"])["text"], "entities": answered["entities"]}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    found = [(one["start"], one["end"], f"{one['label']} {one['probability']:.3f}") for one in answered["entities"]]
    return mark(sentences.place(inputs["text"])["text"], found)


def code(config: Config, load: str, calibrated: dict) -> str:
    return f"""import torch
{load}


def tags(words):
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length={config.max_length}, return_tensors="pt")
    places = encoded.word_ids()
    with torch.no_grad():
        likeliest = model(**encoded).logits[0].argmax(-1).tolist()
    first = [i for i, word in enumerate(places) if word is not None and word not in places[:i]]
    return [(words[places[i]], model.config.id2label[likeliest[i]]) for i in first]


print(tags("Angela Merkel flew to Paris .".split()))
"""


def pipeline(config: Config) -> tuple[str, str]:
    otherwise = "It decides each word by itself, where `predict.py` decodes a sentence's tags together, so that they are valid"
    return ', aggregation_strategy="first"', f"{otherwise}; a text longer than the model's positions is an error."


EXAMPLES = [
    "Angela Merkel flew to Paris to meet the president of the European Commission.",
    "Nokia moved its headquarters to Espoo in 1996, said the Helsingin Sanomat.",
    "Inter Milan beat Blackburn Rovers 3-1 after two late goals by the Brazilian Ronaldo.",
]


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [gradio.HighlightedText(label="Entities", elem_id="entities"), gradio.JSON(label="With their places and probabilities")]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> tuple[dict, list]:
    """The text with its entities, and the list of them."""
    (found,) = answer(model, tokenizer, {"text": [text]}, run)["entities"]
    spans = [{"start": one["start"], "end": one["end"], "entity": one["label"]} for one in found]
    return {"text": text, "entities": spans}, found
