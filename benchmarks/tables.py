"""Write the tables of README.md anew from the records in results/.

python benchmarks/tables.py
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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


TABLES = {"results": results_table, "speed": speed_table, "steps": steps_table}


def fill(text: str) -> str:
    """`text` with each table between its two marks replaced by the one the records give."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"README.md must hold <!-- {name} --> and <!-- /{name} --> once, not {count} times")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
