"""Record which labels label_errors.py lists: the numbers of all rows with the quality of their labels, the lowest first.

    python label_errors.py --dataset_name IMDB
    python benchmarks/label_errors.py outputs/label-errors-IMDB/fold-* --name imdb-train

Writes results/label-errors-NAME.json.
"""

import argparse
from pathlib import Path

import numpy as np
from common import MACHINE_SETTINGS, RESULTS

from finetuning import console, tasks
from finetuning.disk import write_json
from finetuning.results import label_errors
from finetuning.results.run_folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="evaluated run folders with different test rows of the same data")
    parser.add_argument("--name", required=True, help="name of the data, part of the name of the record's file")
    arguments = parser.parse_args()
    console.quiet_libraries()
    runs = [open_run(folder, tasks.pick) for folder in arguments.runs]
    judged = label_errors.judge(runs)
    ranked = judged.rows.iloc[np.argsort(judged.rows.quality.to_numpy(), kind="stable")]
    record = {
        "n": len(ranked),
        "may_be_wrong": int(ranked.may_be_wrong.sum()),
        "metric": judged.headline,
        "source": judged.source,
        "split": [run.record["dataset"]["test_split"] for run in runs],
        "config": {name: value for name, value in runs[0].record["config"].items() if name not in MACHINE_SETTINGS},
        "model": runs[0].record["model"],
        "dataset": runs[0].record["dataset"],
        "environment": runs[0].record["environment"],
        "training_minutes": sum(run.training["seconds"]["training"] for run in runs) / 60,
        # Of all rows, the lowest quality first: the number in the file, the quality, and 1 if the label may be wrong.
        "rows": " ".join(map(str, ranked.row)),
        "quality": " ".join(f"{value:.5f}" for value in ranked.quality),
        "listed": " ".join(map(str, ranked.may_be_wrong.astype(int))),
    }
    write_json(RESULTS / f"label-errors-{arguments.name}.json", record)


if __name__ == "__main__":
    main()
