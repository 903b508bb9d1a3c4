"""Fill in the numbers and draw the pictures of the pages from the records in results/.

    python benchmarks/tables.py

Pages hold the prose and the heads of the tables. Two kinds of marks say where the records' values go:

    <!-- v:RECORD FORMAT -->value<!-- /v -->     within a line, never at its start
    <!-- rows: [FUNCTION] RECORDS | FORMAT | FORMAT -->
    the two lines of a table's head, its rows
    <!-- /rows -->

RECORD is a file in results/ without .json, or an experiment in results/quality/ without its seed. RECORDS may also name studies, whose
experiments become rows. FORMAT is a Python format string over the fields of a record and those of `records.DERIVED`. FUNCTION is a key
of `ROWS`.
"""

import itertools
import re
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT
from records import Record, experiment, experiments, named
from studies import STUDIES

from finetuning.results import plots

PAGES = ["README.md", *sorted(f"{folder}/{page.name}" for folder in ("docs", "results") for page in (ROOT / folder).glob("*.md"))]
VALUE = re.compile(r"(<!-- v:(\S+) (.*?) -->).*?(<!-- /v -->)")
SETTING = re.compile(r"(\[`(\w+)`\]\(\S*config\.py#L)\d+")
ROWS_OF_TABLE = re.compile(r"(<!-- rows: ([^|]*) (\|.*\|) -->\n\|.*\n\|.*\n)(?:\|.*\n)*(<!-- /rows -->)")


def filled(page: str) -> str:
    """Return the text of a page with its tables, its values and its links to lines of config.py filled in."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = ROWS_OF_TABLE.sub(lambda m: m[1] + "".join(f"{m[3]}\n".format_map(row) for row in rows_of(m[2])) + m[4], text)
    text = VALUE.sub(lambda m: m[1] + m[3].format_map(named(m[2])) + m[4], text)
    lines = enumerate((ROOT / "config.py").read_text(encoding="utf-8").splitlines(), 1)
    line_numbers = {line.split(":")[0].strip(): number for number, line in lines if line.startswith("    ")}
    return SETTING.sub(lambda m: f"{m[1]}{line_numbers[m[2]]}", text)


def rows_of(names: str) -> list[dict]:
    """Return the rows of a table; `names` is the part of its mark before the formats."""
    function, *records = names.split() if names.split()[0] in ROWS else ("list", *names.split())
    rows = experiments(*records) if set(records) <= set(STUDIES) else named(*records)
    return list(ROWS[function](rows))


def growth(records: list[Record]) -> list[Record]:
    """Return the experiments with LoRA by number of training reviews; their references are those with TF-IDF of whole texts."""
    patterns = (r"no further|LoRA, [\d,]+ reviews|LoRA on all", "TF-IDF(?!.* tokens)")
    lora, tfidf = ([record for record in records if re.match(pattern, record["experiment"])] for pattern in patterns)
    return [record.beside(baseline) for record, baseline in zip(lora, tfidf, strict=True)]


def pretrained(records: list[Record]) -> list[Record]:
    """Return the experiments, and before the last one the experiment on all reviews without further pre-training."""
    base = experiment("confirm", "base")
    return [*records[:-1], base.beside(None, behind_first="no further pre-training"), records[-1].beside(base)]


def first_and_last(record: Record) -> list[dict]:
    """Return for each model and length the fields of "ours", those of the baseline, and the speed-ups."""
    variants = {}
    for row in record["rows"]:
        variants.setdefault((row["model"], row["max_length"]), {})[row["variant"]] = row
    return [rows["ours"] | rows | _gains(rows["baseline"], rows["ours"]) for rows in variants.values()]


def steps(record: Record) -> list[dict]:
    """Return the steps from the baseline to "ours", each with its speed-up over the step before."""
    rows = [row for row in record["rows"] if row["model"].startswith("DistilBERT") and row["max_length"] == 256]
    gains = [_gains(before, row) for before, row in itertools.pairwise(rows)]
    gains = [{"train": "", "predict": ""}, *({work: f"{factor:.2f}x" for work, factor in gain.items()} for gain in gains)]
    return [row | gain | {"step": record["steps"][row["variant"]]} for row, gain in zip(rows, gains, strict=True)]


def _gains(slow: dict, fast: dict) -> dict[str, float]:
    return {work: fast[f"{work}_reviews_per_s"] / slow[f"{work}_reviews_per_s"] for work in ("train", "predict")}


def sizes(record: Record) -> list[dict]:
    """Return for each number of rows the memory and the seconds of training and of evaluation."""
    return [
        evaluation | training | {"most_uss_gib": max(training[cache]["uss_gib"] for cache in ("cold", "warm"))}
        for evaluation, training in zip(record["evaluation"]["sizes"], record["training"]["sizes"], strict=True)
    ]


def parts(record: Record) -> list[dict]:
    """Return the parts of the first command, with the seconds of each script and their fraction of all."""
    seconds = {}
    for row in record["rows"]:
        seconds.setdefault(row["part"], dict.fromkeys(("fine_tune.py", "evaluate.py"), 0.0))[row["script"]] += row["seconds"]
    order = sorted(seconds, key=lambda part: -sum(seconds[part].values()))
    return [
        {
            "part": part,
            "seconds": {script: f"{value:.1f} s" if value else "" for script, value in seconds[part].items()},
            "fraction": sum(seconds[part].values()) / record["seconds"],
        }
        for part in order
    ]


ROWS = {function.__name__: function for function in (list, growth, pretrained, first_and_last, steps, sizes, parts)} | {
    "seeds": lambda records: map(Record, records[0]["runs"]),
    "variants": lambda record: record["rows"],
    "ways": lambda record: [
        way | {"gain": way.get("rows_per_s", 1) / record["ways"][0].get("rows_per_s", 1)} for way in record["ways"]
    ],
    "by_way": lambda record: record["by_way"].values(),
}


# --- pictures ------------------------------------------------------------------------------------------------------------


def growth_picture(path: Path) -> None:
    """Draw accuracy and minutes of training by the number of training reviews."""
    lora = growth(experiments("pretrained-test", "growth", "comparison", "baselines"))
    reviews, tfidf = [record["dataset"]["train"] for record in lora], [record["reference"] for record in lora]
    figure, (accuracy, minutes) = plots.subplots(1, 2, figsize=(9, 4))
    for records, label in ((lora, f"LoRA, {lora[0]['model_name']}"), (tfidf, "TF-IDF and logistic regression")):
        draw_accuracies(accuracy, reviews, records, fmt="o-", label=label)
        first_seeds = [record["runs"][0] for record in records]  # further seeds ran on other machines
        minutes.plot(reviews, [run["training_minutes"] for run in first_seeds], "o-")
    accuracy.set(ylabel=f"accuracy on {lora[0]['n']:,} test reviews")
    minutes.set(ylabel="minutes of training (logarithmic)", yscale="log")
    minutes.yaxis.set_major_formatter("{x:g}")
    for axes in (accuracy, minutes):
        axes.set(xlabel="training reviews", xscale="log", xticks=reviews, xticklabels=[f"{n:,}" for n in reviews])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle("IMDb's official test; three seeds of LoRA; bars: 95 % intervals", fontsize=10)
    plots.save(figure, path)


def knobs_picture(path: Path) -> None:
    """Draw validation accuracy by learning rate, by the layers with LoRA, and by rank."""
    groups = {
        "learning rate": {"2e-4": "learning rate 2e-4", "5e-4": "learning rate 5e-4", "1e-3": "base", "2e-3": "learning rate 2e-3"},
        "layers with LoRA": {"query,\nvalue": "query and value", "attention": "attention", "MLP": "MLP", "all\nlinear": "base"},
        "rank, with alpha 32": {rank: f"rank {rank}, alpha 32, 1e-3" for rank in ("4", "16", "64")},
    }
    figure, panels = plots.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for axes, (title, changes) in zip(panels, groups.items(), strict=True):
        study = "rank-labels" if title.startswith("rank") else "recipe"
        draw_accuracies(axes, [*changes], [experiment(study, name) for name in changes.values()], scale=100, fmt="o")
        axes.set(xlabel=title)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    base = experiment("recipe", "base")
    panels[0].set(ylabel=f"accuracy on {base['n']:,}\nvalidation reviews, %")
    title = (
        f"{base['model_name']}, {base['dataset']['train']:,} training reviews, one seed, two for each rank; bars: 95 % intervals"
    )
    figure.suptitle(title, fontsize=10)
    plots.save(figure, path)


def draw_accuracies(axes, x: list, records: list[Record], scale: int = 1, **style) -> None:
    """Draw the records' accuracies with their 95 % intervals, which include the seeds if there are several."""
    accuracies, (low, high) = (scale * np.array([record[key] for record in records]).T for key in ("accuracy", "interval"))
    axes.errorbar(x, accuracies, yerr=[accuracies - low, high - accuracies], capsize=3, **style)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
    growth_picture(RESULTS / "growth.png")
    knobs_picture(RESULTS / "knobs.png")
