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
            f"[`{m['run']['command'].removeprefix('python ')}`](results/{file.name})",
            Path(m["model"]).name + stand_in,
            f"{rows['train']:,} reviews",
            f"{m['n']:,} reviews, {m['split']}",
            f"**{m['accuracy']:.2%}** ({low:.2%} to {high:.2%})",
            f"{m['trainable_parameters']:,} ({share:.1%})",
            f"{m['seconds']['training'] / 60:.1f} min",
            m["run"]["environment"]["hardware"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"results": results_table}


def fill(text: str) -> str:
    """`text` with each table between its two marks replaced by the one the records give."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda marks: marks[1] + table() + marks[2], text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"README.md must hold <!-- {name} --> and <!-- /{name} --> once, not {count} times")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
