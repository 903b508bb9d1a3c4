"""Read the records in results/ for tables.py: an experiment is the mean of its seeds, with the further fields of `DERIVED`."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np
from common import RESULTS
from quality import metric_of, record_file, statistics_of
from studies import BASELINES, STUDIES, file_name

from finetuning.disk import read_json
from finetuning.results import metrics
from finetuning.task import Metric

# Names of experiments that the pages show in place of those in the records.
SHOWN_NAMES = {
    "ours": "default settings",
    "plain": "dropout 0.1, random batches padded to `max_length`, float32",
    "LoRA, without first bias": "LoRA, 1e-3, head's bias starts at zero",
}


class Record(dict):
    """A record whose fields in `DERIVED` are computed on first use: "{score}".format_map(record)."""

    def __missing__(self, field: str):
        self[field] = DERIVED[field](self)
        return self[field]

    def beside(self, reference: "Record | None", **fields) -> "Record":
        """Return a copy with another reference, without the fields that were computed with the old one."""
        old = ("compared", "difference", "difference_p", "margin", "p")
        return Record({name: value for name, value in self.items() if name not in old}, reference=reference, **fields)


def read(file: Path) -> Record:
    return Record(read_json(file))


@cache
def experiment(study: str, name: str) -> Record | None:
    """Return the mean of an experiment's records, with the records as `runs`; None if it was not run."""
    files = [record_file(study, name, seed) for seed in STUDIES[study].seeds]
    runs = [read(file) for file in files if file.exists()]
    return Record(_mean(runs), runs=runs) if runs else None


def experiments(*studies: str) -> list[Record]:
    """Return the experiments of the studies, in their order, without those that were not run."""
    records = (experiment(study, name) for study in studies for name in STUDIES[study].experiments)
    return [record for record in records if record]


def named(name: str) -> Record:
    """Return results/NAME.json, or the experiment whose records are results/quality/NAME-SEED.json."""
    if (file := RESULTS / f"{name}.json").exists():
        return read(file)
    study, _, stem = name.partition("/")
    (experiment_name,) = (known for known in STUDIES[study].experiments if file_name(known) == stem)
    return experiment(study, experiment_name)


def _mean(values: list):
    """Return the mean of numbers, also within lists and dictionaries; for other values return the first."""
    first = values[0]
    if all(value == first for value in values) or None in values:  # a setting may be None in some records
        return first
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if isinstance(first, list) and all(len(value) == len(first) for value in values):
        return [_mean(items) for items in zip(*values, strict=True)]
    return float(np.mean(values)) if isinstance(first, int | float) else first


def scale_of(metric: Metric) -> tuple[int, str]:
    """Return the factor and the format of a metric's differences: percentage points if the metric is a fraction."""
    return (100, ".2f") if metric.format.endswith("%") else (1, metric.format)


def reference(record: Record) -> Record | None:
    """Return the experiment that `record` is compared with, by `Study.reference`; None for that experiment itself."""
    study, _, start = STUDIES[record["study"]].reference.rpartition("/")
    start = start.format(*record["parts"])
    others = [other for other in experiments(study or record["study"]) if start and other["experiment"].startswith(start)]
    return others[0] if others and others[0]["experiment"] != record["experiment"] else None


def compared(record: Record) -> dict:
    """Return `metrics.difference` to the reference; {} without a reference."""
    if record["reference"] is None:
        return {}
    sides = [record["runs"], record["reference"]["runs"]]
    if any(len(runs) > 1 for runs in sides):  # a baseline has no seed: another run would be equal
        sides = [runs * 2 if runs[0].get("settings", {}).get("method") in BASELINES else runs for runs in sides]
    statistics = statistics_of([*sides[0], *sides[1]])
    return metrics.difference(metric_of(record), statistics[: len(sides[0])], statistics[len(sides[0]) :])


def difference(record: Record) -> str:
    """Return the difference to the reference with its 95 % interval."""
    if not (result := record["compared"]):
        return ""
    factor, form = scale_of(metric_of(record))
    return "{} ({} to {})".format(*(f"{factor * n:+{form}}" for n in (result["difference"], *result["difference_ci95"])))


def margin(record: Record) -> str:
    """Return the smallest margin within which an experiment equals its reference, by two one-sided tests at 5 %."""
    factor, form = scale_of(metric_of(record))
    return f"{factor * max(map(abs, record['compared']['difference_ci90'])):{form}}"


def deviation(record: Record) -> float:
    """Return the metric's standard deviation over seeds."""
    metric = metric_of(record)
    return scale_of(metric)[0] * float(np.std([run[metric.name] for run in record["runs"]], ddof=1))


def interval(record: Record) -> list[float]:
    """Return the 95 % interval of the metric, over several seeds that of their mean."""
    metric, runs = metric_of(record), record.get("runs", [record])
    if len(runs) == 1 and not {"statistics", "counts", "documents", "bleu_counts"} & {*runs[0]}:
        return record[f"{metric.name}_ci95"]
    return metrics.interval(metric, *statistics_of(runs))


def score(record: Record) -> str:
    """Return the metric, its 95 % interval, and its standard deviation over seeds."""
    metric, runs, (low, high) = metric_of(record), record.get("runs", [record]), record["interval"]
    spread = f", sd of {len(runs)} seeds {record['deviation']:{scale_of(metric)[1]}}" if len(runs) > 1 else ""
    return f"**{metric.show(record[metric.name])}** ({metric.show(low)} to {metric.show(high)}){spread}"


def model_name(name: str, origin: str) -> str:
    """Return the name of a model or data set without its folder; "" for a model of scikit-learn."""
    return "" if origin == "scikit-learn" else Path(name).name + " (stand-in)" * (origin == "stand-in")


def method(record: Record) -> str:
    """Return an experiment's name and its base model. An experiment with the name of its model has the default LoRA."""
    name = record["name"] if record["experiment"] != Path(record["model"]).name else "LoRA on all linear layers"
    return f"{name}<br>{record['model_name']}".removesuffix("<br>")


def by_way(record: Record) -> dict[str, dict[str, str]]:
    """Return for each way to train the minutes to each target, and accuracy and minutes at the end, a value per seed."""
    ways = {}
    for run in record["runs"]:
        ways.setdefault(run["way"], []).append(run["marks"])
    for way, runs in ways.items():
        last = [marks[-1] for marks in runs]
        ways[way] = {f"{target:.0%}": minutes_to(target, runs) for target in record["targets"]} | {
            "way": way,
            "ends": ", ".join(f"{mark['accuracy']:.2%}" for mark in last),
            "minutes": ", ".join(f"{mark['seconds'] / 60:.1f}" for mark in last),
        }
    return ways


def minutes_to(target: float, runs: list[list[dict]]) -> str:
    """Return for each run the minutes until it reaches the target and never falls below it again."""
    missed = "not reached"
    reached = [[*itertools.takewhile(lambda mark: mark["accuracy"] >= target, reversed(marks))] for marks in runs]
    return ", ".join(f"{marks[-1]['seconds'] / 60:.1f}" if marks else missed for marks in reached) if any(reached) else missed


DERIVED = {
    function.__name__: function
    for function in (reference, compared, difference, margin, deviation, interval, score, method, by_way)
}
DERIVED |= {
    "name": lambda r: SHOWN_NAMES.get(r["experiment"], r["experiment"]),
    "parts": lambda r: r["experiment"].split(", "),
    "behind_first": lambda r: ", ".join(r["parts"][1:]),
    "behind_second": lambda r: ", ".join(r["parts"][2:]),
    "minutes_in_all": lambda r: r["seconds"] / 60,
    "seeds": lambda r: ", ".join(metric_of(r).show(run[metric_of(r).name]) for run in r["runs"]),
    "p": lambda r: ("< 0.001" if r["compared"]["p"] < 0.001 else f"{r['compared']['p']:.3f}") if r["compared"] else "",
    "difference_p": lambda r: r["difference"] and f"{r['difference']}<br>p {r['p']}",
    "model_name": lambda r: model_name(r["model"], r["model_origin"]),
    "data": lambda r: model_name(r["dataset"]["name"], r["dataset"]["origin"]),
    "fraction": lambda r: r["trainable_parameters"] / r["total_parameters"],
    "trained": lambda r: f"{r['trainable_parameters']:,}" + (f" ({r['fraction']:.1%})" if r["fraction"] < 1 else ""),
    "million_parameters": lambda r: r["total_parameters"] / 1e6,
    "training_seconds": lambda r: r["seconds"]["training"],
    "training_minutes": lambda r: r["training_seconds"] / 60,
    "training": lambda r: (
        "{:.1f} min".format(r["training_minutes"]) if r["training_minutes"] >= 1 else f"{r['training_seconds']:.1f} s"
    ),
    "trained_model": lambda r: model_name(*r["runs"][0]["model"].values()),
    "gain": lambda r: r["processes"]["two"]["train_reviews_per_s"] / r["processes"]["one"]["train_reviews_per_s"],
    "tflops": lambda r: np.median([row["matrix_product_tflops"] for row in r["rows"]]),
    "one_text": lambda r: "; ".join(
        f"{n} tokens {time['p50_ms']:.0f} ms (p95 {time['p95_ms']:.0f})" for n, time in r["alone"].items()
    ),
}
