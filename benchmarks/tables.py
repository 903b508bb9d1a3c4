"""Fill the numbers and pictures of the pages (`PAGES`) in from the records in results/.

    python benchmarks/tables.py

The pages hold the prose and the heads of the tables. They mark what comes from here:

    <!-- v:RECORD FORMAT -->value<!-- /v -->     inside a line, never at its start
    <!-- rows: [FUNCTION] RECORDS | FORMAT | FORMAT -->
    the head of a table, its rows
    <!-- /rows -->

RECORD is a file in results/ without .json, or an experiment in results/quality/ without its seed; RECORDS also names studies, whose
experiments are rows. FORMAT is Python's, with the fields of the record and those of `records.DERIVED`. FUNCTION is one of `ROWS`.
"""

import itertools
import re
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT
from records import Record, experiment, experiments, metric_of, named
from studies import STUDIES

from finetuning.results import plots

PAGES = ("README.md", "docs/learn.md", "docs/tasks.md", "docs/scale.md", "docs/speed.md", "results/README.md")
VALUE = re.compile(r"(<!-- v:(\S+) (.*?) -->).*?(<!-- /v -->)")
SETTING = re.compile(r"(\[`(\w+)`\]\(\S*config\.py#L)\d+")
ROWS_OF_TABLE = re.compile(r"(<!-- rows: ([^|]*) (\|.*\|) -->\n\|.*\n\|.*\n)(?:\|.*\n)*(<!-- /rows -->)")


def filled(page: str) -> str:
    """Return a page's text with its tables, values and lines of config.py as they are now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = ROWS_OF_TABLE.sub(lambda m: m[1] + "".join(f"{m[3]}\n".format_map(row) for row in rows_of(m[2])) + m[4], text)
    text = VALUE.sub(lambda m: m[1] + m[3].format_map(named(m[2])) + m[4], text)
    lines = enumerate((ROOT / "config.py").read_text(encoding="utf-8").splitlines(), 1)
    line_of = {line.split(":")[0].strip(): number for number, line in lines if line.startswith("    ")}
    return SETTING.sub(lambda m: f"{m[1]}{line_of[m[2]]}", text)


def rows_of(names: str) -> list[dict]:
    """Return the rows that the mark of a table asks for."""
    function, *records = names.split() if names.split()[0] in ROWS else ("list", *names.split())
    rows = experiments(*records) if set(records) <= set(STUDIES) else named(*records)
    return list(ROWS[function](rows))


def growth(records: list[Record]) -> list[Record]:
    """Return LoRA's experiments by the number of training reviews, with those of TF-IDF as their references; one seed each."""
    first = [Record(record["runs"][0], runs=record["runs"][:1]) for record in records]
    lora, tfidf = ([r for r in first if re.match(names, r["experiment"])] for names in ("LoRA(,| on all)", "TF-IDF"))
    return [Record(a, reference=b) for a, b in zip(lora, tfidf, strict=True)]


def pretrained(records: list[Record]) -> list[Record]:
    """Return the experiments with what all the reviews reach without further pre-training."""
    base = experiment("confirm", "base")
    without = Record(base, behind_first="no further pre-training", reference=None)
    return [*records[:-1], without, Record(records[-1], reference=base)]


def first_and_last(record: Record) -> list[dict]:
    """Return for each model and length ours, the baseline, and how many times faster ours is."""
    pairs = {}
    for row in record["rows"]:
        pairs.setdefault((row["model"], row["max_length"]), {})[row["variant"]] = row
    return [pair["ours"] | pair | _gains(pair["baseline"], pair["ours"]) for pair in pairs.values()]


def steps(record: Record) -> list[dict]:
    """Return the steps from the baseline to ours, each with how many times faster it is than the one before."""
    rows = [row for row in record["rows"] if row["model"].startswith("DistilBERT") and row["max_length"] == 256]
    gains = [_gains(before, row) for before, row in itertools.pairwise(rows)]
    gains = [{"train": "", "predict": ""}, *({work: f"{gain:.2f}x" for work, gain in each.items()} for each in gains)]
    return [row | gain | {"step": record["steps"][row["variant"]]} for row, gain in zip(rows, gains, strict=True)]


def _gains(slow: dict, fast: dict) -> dict[str, float]:
    return {work: fast[f"{work}_reviews_per_s"] / slow[f"{work}_reviews_per_s"] for work in ("train", "predict")}


def sizes(record: Record) -> list[dict]:
    """Return the numbers of rows with what training, empty cache or not, and evaluation need."""
    pairs = zip(record["evaluation"]["sizes"], record["training"]["sizes"], strict=True)
    return [a | b | {"most_uss_gib": max(b["cold"]["uss_gib"], b["warm"]["uss_gib"])} for a, b in pairs]


ROWS = {function.__name__: function for function in (list, growth, pretrained, first_and_last, steps, sizes)} | {
    "seeds": lambda records: map(Record, records[0]["runs"]),
    "variants": lambda record: record["rows"],
    "ways": lambda record: [
        way | {"gain": way.get("rows_per_s", 1) / record["ways"][0].get("rows_per_s", 1)} for way in record["ways"]
    ],
    "by_way": lambda record: record["by_way"].values(),
}


# --- pictures ------------------------------------------------------------------------------------------------------------


def growth_picture(path: Path) -> None:
    """Draw accuracy and minutes of training against the number of training reviews."""
    lora = growth(experiments("growth", "comparison", "baselines"))
    reviews, tfidf = [record["dataset"]["train"] for record in lora], [record["reference"] for record in lora]
    figure, (accuracy, minutes) = plots.subplots(1, 2, figsize=(9, 3.8))
    for records, label in ((lora, f"LoRA, {lora[0]['model_name']}"), (tfidf, "TF-IDF and logistic regression")):
        draw_accuracies(accuracy, reviews, records, fmt="o-", label=label)
        minutes.plot(reviews, [record["training_minutes"] for record in records], "o-")
    accuracy.set(ylabel=f"accuracy on {lora[0]['n']:,} test reviews")
    minutes.set(ylabel="minutes of training", yscale="log")
    minutes.yaxis.set_major_formatter("{x:g}")
    for axes in (accuracy, minutes):
        axes.set(xlabel="training reviews", xscale="log", xticks=reviews, xticklabels=[f"{n:,}" for n in reviews])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    plots.save(figure, path)


def knobs_picture(path: Path) -> None:
    """Draw accuracy on validation against the learning rate, the targets and the rank."""
    groups = {
        "learning rate": {"2e-4": "learning rate 2e-4", "5e-4": "learning rate 5e-4", "1e-3": "base", "2e-3": "learning rate 2e-3"},
        "layers with LoRA": {"query,\nvalue": "query and value", "attention": "attention", "MLP": "MLP", "all\nlinear": "base"},
        "rank": {"4": "rank 4, alpha 8", "16": "base", "64": "rank 64, alpha 128"},
    }
    figure, panels = plots.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for axes, (title, changes) in zip(panels, groups.items(), strict=True):
        draw_accuracies(axes, [*changes], [experiment("recipe", name) for name in changes.values()], scale=100, fmt="o")
        axes.set(xlabel=title)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    base = experiment("recipe", "base")
    panels[0].set(ylabel=f"accuracy on {base['n']:,}\nvalidation reviews, %")
    title = f"{base['model_name']}, {base['dataset']['train']:,} reviews; bars: 95 % of the rows' own chance"
    figure.suptitle(title, fontsize=10)
    plots.save(figure, path)


def draw_accuracies(axes, x: list, records: list[Record], scale: int = 1, **style) -> None:
    """Draw the records' accuracies with their 95 % intervals."""
    accuracies, (low, high) = (scale * np.array([record[key] for record in records]).T for key in ("accuracy", "accuracy_ci95"))
    axes.errorbar(x, accuracies, yerr=[accuracies - low, high - accuracies], capsize=3, **style)


def draw() -> None:
    """Draw the pictures that come from records alone."""
    growth_picture(RESULTS / "growth.png")
    knobs_picture(RESULTS / "knobs.png")
    (run, *_), picture = experiments("comparison")[0]["runs"], RESULTS / "confusion_matrix.png"
    title = plots.title(metric_of(run), run | {"dataset": run["data"], "dataset_origin": run["dataset"]["origin"]})
    plots.plot_confusion_matrix(run["confusion_matrix"], (run["label_names"], run["label_names"]), title, picture)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
    draw()
