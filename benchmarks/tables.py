"""Write the tables of README.md and results/README.md anew from the records in results/.

python benchmarks/tables.py
"""

import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import STUDIES, record_file  # noqa: E402

from finetuning.metrics import paired_difference  # noqa: E402


def results_table() -> str:
    """A row for each evaluated run: results/run-*.json are copies of runs' metrics.json."""
    lines = [
        "| command | base model | trained on | tested on | accuracy (95 % interval) | trained parameters | training | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted((ROOT / "results").glob("run-*.json")):
        m = json.loads(file.read_text())
        low, high = m["accuracy_ci95"]
        rows = m["run"]["dataset"]["rows"]
        stand_in = " (stand-in)" if m["run"]["model"]["origin"] == "stand-in" else ""
        share = m["trainable_parameters"] / m["total_parameters"]
        cells = [
            f"[`{_without(m['run']['command'], 'dataset_name', 'run_name')}`](results/{file.name})",
            Path(m["model"]).name + stand_in,
            f"{rows['train']:,} reviews",
            f"{m['n']:,} of {m['dataset']} ({m['split']})",
            f"**{m['accuracy']:.2%}** ({low:.2%} to {high:.2%})",
            f"{m['trainable_parameters']:,} ({share:.1%})",
            f"{m['seconds']['training'] / 60:.1f} min",
            m["run"]["environment"]["hardware"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _without(command: str, *flags: str) -> str:
    """The command less the flags that name things of one machine; the data set has a cell of its own."""
    return re.sub(rf" --({'|'.join(flags)}) \S+", "", command)


def _points(found: dict) -> str:
    low, high = found["difference_ci95"]
    return f"{100 * found['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def speed_table() -> str:
    """Baseline and ours side by side, for each machine, model and length in results/speed-*.json."""
    lines = [
        "| machine | model | tokens | training: tutorial | ours | | prediction: tutorial | ours | | memory: tutorial | ours | share of the limit |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for record in _speed_records():
        pairs = {}
        for row in record["rows"]:
            pairs.setdefault((row["model"], row["max_length"]), {})[row["variant"]] = row
        for (model, length), variants in pairs.items():
            base, ours = variants["baseline"], variants["ours"]
            cells = [record["environment"]["hardware"], model, str(length)]
            for work in ("train", "predict"):
                slow, fast = (variant[f"{work}_reviews_per_s"] for variant in (base, ours))
                cells += [f"{slow:.1f}/s", f"{fast:.1f}/s", f"**{fast / slow:.1f}x**"]
            cells += [f"{base['peak_memory_gib']:.1f} GiB", f"{ours['peak_memory_gib']:.1f} GiB", f"{ours['share_of_limit']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_table() -> str:
    """What each step from the baseline to ours is worth, where it was measured."""
    lines = ["| step, on top of those above | training | gain | prediction | gain | memory |", "|---|--:|--:|--:|--:|--:|"]
    for record in _speed_records():
        measured = [row for row in record["rows"] if row["model"].startswith("DistilBERT") and row["max_length"] == 256]
        for before, row in zip([None, *measured], measured, strict=False):
            cells = [f"{row['variant']}: {record['steps'][row['variant']]}"]
            for work in ("train_reviews_per_s", "predict_reviews_per_s"):
                cells += [f"{row[work]:.1f}/s", f"{row[work] / before[work]:.2f}x" if before else ""]
            lines.append(f"| {' | '.join(cells)} | {row['peak_memory_gib']:.1f} GiB |")
    return "\n".join(lines)


def _speed_records() -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted((ROOT / "results").glob("speed-*.json"))]


def fast_table() -> str:
    """Whether what changes the arithmetic for speed costs accuracy: the study "fast" of quality.py."""
    records = _quality_records("fast")
    lines = ["| 4,000 reviews, 128 tokens, one epoch | validation accuracy, seed by seed | mean |", "|---|---|--:|"]
    for name, runs in records.items():
        accuracies = [run["accuracy"] for run in runs]
        lines.append(f"| {name} | {', '.join(f'{a:.2%}' for a in accuracies)} | {np.mean(accuracies):.2%} |")
    if len(records) == 2:
        found = compare(*records.values())
        low, high = found["difference_ci95"]
        lines.append(
            f"| difference on the same {runs[0]['n']:,} rows (95 % interval) | | "
            f"**{100 * found['difference']:+.1f} points** ({100 * low:+.1f} to {100 * high:+.1f}) |"
        )
    return "\n".join(lines)


def changes_table(study: str) -> str:
    """A study of quality.py that makes one change at a time from "base", and what each is worth on validation."""
    records = _quality_records(study)
    lines = [
        "| change | validation accuracy | difference, paired (95 %) | loss | trained | training |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, runs in records.items():
        difference = "" if name == "base" else _points(compare(runs, records["base"]))
        cells = [name, f"{runs[0]['accuracy']:.2%}", difference, f"{runs[0]['loss']:.3f}"]
        cells += [f"{runs[0]['trainable_parameters']:,}", f"{runs[0]['training_seconds'] / 60:.1f} min"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(a: list[dict], b: list[dict]) -> dict:
    """`paired_difference` of two experiments' records, seed by seed."""
    n = a[0]["n"]
    column = {row: i for i, row in enumerate(sorted({row for run in (*a, *b) for row in run["wrong"].split()}))}

    def right(runs: list[dict]) -> np.ndarray:
        right = np.ones((len(runs), n), dtype=bool)
        for i, run in enumerate(runs):
            right[i, [column[row] for row in run["wrong"].split()]] = False
        return right

    return paired_difference(right(a), right(b))


def _quality_records(study: str) -> dict[str, list[dict]]:
    """By experiment, in the study's own order, the records of its seeds."""
    records = {}
    for name in STUDIES[study].experiments:
        files = [file for seed in STUDIES[study].seeds if (file := record_file(study, name, seed)).exists()]
        if files:
            records[name] = [json.loads(file.read_text()) for file in files]
    return records


PAGES = {
    "README.md": {"results": results_table, "speed": speed_table},
    "results/README.md": {
        "recipe": partial(changes_table, "recipe"),
        "confirm": partial(changes_table, "confirm"),
        "steps": steps_table,
        "fast": fast_table,
    },
}


def fill(page: str) -> str:
    """The page's text with what stands between each table's two marks replaced by what the records give."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"{page} must hold <!-- {name} --> and <!-- /{name} --> once, not {count} times")
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(fill(page))
