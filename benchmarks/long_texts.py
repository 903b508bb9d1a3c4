"""Measure other ways to read texts that are longer than `max_length`, with models that were trained with head+tail.

    python label_errors.py && python benchmarks/long_texts.py outputs/label-errors-imdb/fold-1 outputs/label-errors-imdb/fold-2

Each run predicts the long texts of its test rows in each way. Short texts are read in the same way by all. Writes
results/long-texts.json: accuracy and seconds of each way, and its difference to head+tail.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import write_record
from datasets import Dataset
from scipy.special import softmax

from finetuning import console, tasks
from finetuning.data.splits import Split, load_data
from finetuning.data.tokens import Tokens, encode, special_tokens
from finetuning.results import metrics
from finetuning.results.evaluation import read_tables
from finetuning.results.label_report import ACCURACY
from finetuning.results.run_folder import find_base_model, load_predictor, open_run
from finetuning.training.prediction import Predictor

READS_ALL = 1_000_000  # tokens: no text is longer
WINDOWS, WITH_HEAD_AND_TAIL = "windows, mean probability", "windows and head+tail, mean probability"


def windows(ids: list[int], size: int, first: int, last: int) -> list[list[int]]:
    """Return windows of `size` tokens that together cover a longer text, at equal distances, with its special tokens."""
    start, inner, end = ids[:first], ids[first : len(ids) - last], ids[len(ids) - last :]
    room = size - first - last
    positions = np.linspace(0, len(inner) - room, -(-len(inner) // room)).round().astype(int)
    return [[*start, *inner[position : position + room], *end] for position in positions]


def predict_windows(predictor: Predictor, long: Split) -> np.ndarray:
    """Return the mean probabilities of each text's windows, (texts, labels)."""
    task, tokenizer, config = predictor.task, predictor.tokenizer, predictor.config
    whole = encode(task, long, tokenizer, replace(config, max_length=READS_ALL, truncation="head"))
    pieces = [windows(ids, config.max_length, *map(len, special_tokens(tokenizer))) for ids in whole.inputs["input_ids"]]
    inputs = Dataset.from_dict({"input_ids": [piece for text in pieces for piece in text]})
    probabilities = softmax(task.predict(predictor, Tokens(inputs, np.full(len(inputs), config.max_length))), axis=-1)
    starts = np.cumsum([0, *(len(text) for text in pieces[:-1])])
    return np.add.reduceat(probabilities, starts) / np.array([len(text) for text in pieces])[:, None]


def predict_cut(predictor: Predictor, long: Split, **settings) -> np.ndarray:
    """Return the probabilities of texts that are cut by other settings, (texts, labels)."""
    other = replace(predictor, config=replace(predictor.config, **settings))
    return softmax(other.task.predict(other, encode(other.task, long, other.tokenizer, other.config)), axis=-1)


WAYS: dict[str, Callable] = {
    "head+tail": predict_cut,
    "head+tail, twice the tokens": lambda predictor, long: predict_cut(predictor, long, max_length=2 * predictor.config.max_length),
    WINDOWS: predict_windows,
}


def measure(folder: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """Predict the long test rows of a run in each way.

    Return for each test row whether it is long and whether its label is right, a column per way, and each way's seconds.
    """
    run = open_run(folder, tasks.pick)
    data = load_data(run.task, run.config, run.origins["dataset"])
    table, _ = read_tables(run)
    is_long = table.tokens.to_numpy() > run.config.max_length
    long = data.test.select(np.flatnonzero(is_long))
    predictor = load_predictor(run, find_base_model(run))
    seconds, probabilities = {}, {}
    for way, predict in WAYS.items():
        started = time.perf_counter()
        probabilities[way] = predict(predictor, long)
        seconds[way] = time.perf_counter() - started
        print(
            f"{folder.name}  {way:<32} {seconds[way]:6.0f} s  {(probabilities[way].argmax(-1) == long.labels).mean():.4f}",
            flush=True,
        )
    probabilities[WITH_HEAD_AND_TAIL] = probabilities[WINDOWS] + probabilities["head+tail"]
    seconds[WITH_HEAD_AND_TAIL] = seconds[WINDOWS] + seconds["head+tail"]
    correct, right_as_evaluated = pd.DataFrame({"long": is_long}), np.stack(table.logits).argmax(axis=-1) == data.test.labels
    for way, values in probabilities.items():
        correct[way] = right_as_evaluated
        correct.loc[is_long, way] = values.argmax(axis=-1) == long.labels
    return correct, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="evaluated run folders of text classification, with different test rows")
    arguments = parser.parse_args()
    console.quiet_libraries()
    runs = [measure(folder) for folder in arguments.runs]
    rows, ways = pd.concat([correct for correct, _ in runs]), []
    for way in runs[0][1]:
        statistics = [{"rows": np.ones(len(rows)), "correct": rows[name].to_numpy()} for name in (way, "head+tail")]
        difference = metrics.difference(ACCURACY, statistics[:1], statistics[1:])
        by_run = [float(correct[way].mean() - correct["head+tail"].mean()) for correct, _ in runs]
        seconds = sum(seconds_of_run[way] for _, seconds_of_run in runs)
        points = [100 * value for value in (difference["difference"], *difference["difference_ci95"])]
        ways.append({"way": way, "accuracy": ACCURACY.of(statistics[0]), "seconds": seconds, "points": points, "by_run": by_run})
    first = open_run(arguments.runs[0], tasks.pick)
    record = {
        "n": len(rows),
        "long": int(rows.long.sum()),
        "runs": len(runs),
        "split": "folds of train",
        "max_length": first.config.max_length,
        "model": first.record["model"],
        "dataset": first.record["dataset"]["name"],
        "ways": ways,
    }
    write_record("long-texts", record)


if __name__ == "__main__":
    main()
