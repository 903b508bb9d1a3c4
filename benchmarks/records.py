"""The records in results/ as tables.py wants them: an experiment is the mean of its seeds, with fields that no file has."""

import itertools
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import record_file, statistics_of
from studies import STUDIES

from config import Config
from finetuning import tasks
from finetuning.results import metrics
from finetuning.task import Metric

RESULTS = ROOT / "results"


class Record(dict):
    """A record with the fields of `DERIVED`, each computed when it is asked for: "{score}".format_map(record)."""

    def __missing__(self, field: str):
        self[field] = DERIVED[field](self)
        return self[field]


def read(file: Path) -> Record:
    return Record(json.loads(file.read_text()))


def machines(kind: str) -> list[Record]:
    """Return the records of a script, one per machine: results/KIND-*.json."""
    return [read(file) for file in sorted(RESULTS.glob(f"{kind}-*.json"), key=lambda file: file.stem)]


@cache
def experiment(study: str, name: str) -> Record | None:
    """Return the mean of the records of an experiment's seeds, which are its `runs`; None if it was not run."""
    files = [record_file(study, name, seed) for seed in STUDIES[study].seeds]
    runs = [read(file) for file in files if file.exists()]
    return Record(_mean(runs), runs=runs) if runs else None


def experiments(*studies: str) -> list[Record]:
    """Return the experiments that were run, in the order of the studies."""
    records = (experiment(study, name) for study in studies for name in STUDIES[study].experiments)
    return [record for record in records if record]


def _mean(values: list):
    """Return the mean of numbers, also of those in lists and dictionaries; of other values the first."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if isinstance(first, list) and all(len(value) == len(first) for value in values):
        return [_mean(items) for items in zip(*values, strict=True)]
    return float(np.mean(values)) if isinstance(first, int | float) else first


# --- fields of experiments -----------------------------------------------------------------------------------------------


def metric_of(record: dict) -> Metric:
    """Return the metric that the record's run was picked by."""
    settings = record.get("settings") or record["run"]["config"]
    task = tasks.pick(Config(task=settings.get("task", "text-classification"), problem_type=settings.get("problem_type")))
    name = settings.get("metric_for_best_model") or task.metrics[0].name
    metric = next(metric for metric in task.metrics if metric.name == name)
    return replace(metric, format=".2f") if name == "perplexity" else metric


def in_points(metric: Metric) -> tuple[int, str]:
    """Return the factor and the format of differences: those of fractions are in points."""
    return (100, ".2f") if metric.format.endswith("%") else (1, metric.format)


def reference_of(record: Record) -> Record | None:
    """Return the experiment that one is compared with, after `Study.reference`; None for that one itself."""
    study, _, start = STUDIES[record["study"]].reference.rpartition("/")
    start = start.format(*record["experiment"].split(", "))
    others = [other for other in experiments(study or record["study"]) if start and other["experiment"].startswith(start)]
    return others[0] if others and others[0]["experiment"] != record["experiment"] else None


def compared_with_reference(record: Record) -> dict:
    """Return `metrics.difference` to the reference, of the seeds that both have; for BLEU also `p`. {} without a reference."""
    metric, records = metric_of(record), (record, record["reference"])
    if records[1] is None:
        return {}
    seeds = {run["seed"] for run in records[0]["runs"]} & {run["seed"] for run in records[1]["runs"]}
    statistics = statistics_of([run for each in records for run in each["runs"] if run["seed"] in seeds])
    a, b = statistics[: len(seeds)], statistics[len(seeds) :]
    compared = metrics.difference(metric, a, b)
    if metric.name == "bleu":  # as sacreBLEU's paired bootstrap test has it
        sizes = np.abs(metrics._resampled(metric, *a) - metrics._resampled(metric, *b))
        compared["p"] = [(1 + np.sum(sizes - sizes.mean() > abs(compared["difference"]))) / (1 + len(sizes))]
    return compared


def difference(record: Record) -> str:
    """Return the difference to the reference with its 95 % interval."""
    if not (compared := record["compared"]):
        return ""
    factor, form = in_points(metric_of(record))
    return "{} ({} to {})".format(*(f"{factor * n:+{form}}" for n in (compared["difference"], *compared["difference_ci95"])))


def p_values(record: Record) -> str:
    values = record["compared"].get("mcnemar_p") or record["compared"].get("p", [])
    return ", ".join("< 0.001" if p < 0.001 else f"{p:.3f}" for p in values)


def score(record: Record) -> str:
    """Return the metric, its standard deviation over seeds, and its 95 % interval: the record's own, or that of the mean of seeds."""
    metric, runs = metric_of(record), record.get("runs", [record])
    low, high = record[f"{metric.name}_ci95"] if len(runs) == 1 else metrics.interval(metric, *statistics_of(runs))
    spread = f" ± {record['deviation']:{in_points(metric)[1]}} over {len(runs)} seeds" if len(runs) > 1 else ""
    return f"**{metric.show(record[metric.name])}**{spread} ({metric.show(low)} to {metric.show(high)})"


def deviation(record: Record) -> float:
    """Return the metric's standard deviation over seeds."""
    metric = metric_of(record)
    return in_points(metric)[0] * float(np.std([run[metric.name] for run in record["runs"]], ddof=1))


def method(record: Record) -> str:
    """Return an experiment's name and its base model; an experiment that has the name of its model is the recipe."""
    name = record["experiment"] if record["experiment"] != Path(record["model"]).name else "LoRA on all linear layers"
    return f"{name}<br>{record['model_name']}".removesuffix("<br>")


def trained(record: Record) -> str:
    return f"{record['trainable_parameters']:,}" + (f" ({record['fraction']:.1%})" if record["fraction"] < 1 else "")


def model_name(name: str, origin: str) -> str:
    """Return the name of a model or data set without its folder; "" for scikit-learn's."""
    return "" if origin == "scikit-learn" else Path(name).name + " (stand-in)" * (origin == "stand-in")


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


# --- fields of machines' records -----------------------------------------------------------------------------------------


def measured_on(record: Record) -> str:
    repeats = "each measured once" if record["repeats"] == 1 else f"medians of {record['repeats']} repeats"
    limit = np.median([row["matrix_product_tflops"] for row in record["rows"]])
    return f"{record['environment']['hardware']}, large bf16 matrix products {limit:.2f} TFLOP/s; {repeats}."


def profiled(record: Record) -> str:
    steps = (
        f"{way} {step['kernels_per_step']:,} launches, {step['gpu_ms_per_step']} ms of the GPU"
        for way, step in record["profile"].items()
    )
    return f"A step, mean of the first 20, whose texts are the longest: {'; '.join(steps)}."


def one_text(record: Record) -> str:
    return "; ".join(f"{n} tokens {time['p50_ms']:.0f} ms (p95 {time['p95_ms']:.0f})" for n, time in record["alone"].items())


def by_way(record: Record) -> dict[str, dict[str, str]]:
    """Return for each way to train the minutes to each target, and accuracy and minutes at the end: a value per seed."""
    ways = {}
    for run in record["runs"]:
        ways.setdefault(run["way"], []).append(run["marks"])
    return {
        way: {f"{target:.0%}": minutes_to(target, runs) for target in record["targets"]}
        | {
            "way": way,
            "ends": ", ".join(f"{marks[-1]['accuracy']:.2%}" for marks in runs),
            "minutes": ", ".join(f"{marks[-1]['seconds'] / 60:.1f}" for marks in runs),
        }
        for way, runs in ways.items()
    }


def minutes_to(target: float, runs: list[list[dict]]) -> str:
    """Return for each run the minutes to the mark from which on none misses the target."""
    missed = "not reached"
    reached = [[*itertools.takewhile(lambda mark: mark["accuracy"] >= target, reversed(marks))] for marks in runs]
    return ", ".join(f"{marks[-1]['seconds'] / 60:.1f}" if marks else missed for marks in reached) if any(reached) else missed


def gain_of_two_processes(record: Record) -> float:
    one, two = (record["processes"][name]["train_reviews_per_s"] for name in ("one", "two"))
    return two / one


DERIVED = {
    "score": score,
    "score_in_lines": lambda record: record["score"].replace(" (", "<br>("),
    "seeds": lambda record: ", ".join(metric_of(record).show(run[metric_of(record).name]) for run in record["runs"]),
    "deviation": deviation,
    "reference": reference_of,
    "compared": compared_with_reference,
    "difference": difference,
    "p": p_values,
    "difference_p": lambda record: record["difference"] and f"{record['difference']}<br>p {record['p']}",
    "method": method,
    "model_name": lambda record: model_name(record["model"], record["model_origin"]),
    "data": lambda record: model_name(record["dataset"]["name"], record["dataset"]["origin"]),
    "trained": trained,
    "fraction": lambda record: record["trainable_parameters"] / record["total_parameters"],
    "million_parameters": lambda record: record["total_parameters"] / 1e6,
    "training_seconds": lambda record: record["seconds"]["training"],
    "training_minutes": lambda record: record["training_seconds"] / 60,
    "training": lambda record: duration(record["training_seconds"]),
    "measured_on": measured_on,
    "ways_of_gpu": lambda record: "; ".join(f"{way}: {about}" for way, about in record["steps"].items()),
    "profile": lambda record: {},
    "profiled": profiled,
    "one_text": one_text,
    "libraries": lambda record: ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    "by_way": by_way,
    "trained_model": lambda record: model_name(*record["runs"][0]["model"].values()),
    "gain_of_two_processes": gain_of_two_processes,
}
