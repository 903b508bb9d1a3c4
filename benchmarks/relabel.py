"""Measure whether it helps to leave out, or to change, the labels that label_errors.py lists.

    python label_errors.py --dataset_name IMDB
    python benchmarks/relabel.py outputs/label-errors-IMDB IMDB/train.parquet

Trains on 8,000 rows: as they are, without the listed ones, and with the likely label in place of the given one. All are tested on
the same 5,000 rows of train, whose labels are as given. Writes results/relabel.json. Given again, the command continues.
"""

import argparse
from pathlib import Path

import pandas as pd
from common import ROOT, flags, python, write_record

from finetuning import tasks
from finetuning.results import metrics
from finetuning.results.evaluation import read_tables
from finetuning.results.label_report import ACCURACY
from finetuning.results.run_folder import open_run

TRAIN, VALIDATION, TEST = 8_000, 2_000, 5_000
SETTINGS = dict(train_samples=0, val_samples=0, test_samples=0, max_length=128, length_warmup=0.0, early_stopping_patience=0)


def ways(rows: pd.DataFrame, listed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the training rows of each way. Both frames have row numbers as their index, `listed` has a column `likely`."""
    likely = listed.likely.reindex(rows.index).fillna(rows.label)
    return {
        "as given": rows,
        "without the listed rows": rows[~rows.index.isin(listed.index)],
        "with the likely labels": rows.assign(label=likely),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder that label_errors.py wrote")
    parser.add_argument("train", type=Path, help="the parquet file of train, with the columns text and label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "relabel", help="folder for the rows and the runs")
    arguments = parser.parse_args()
    judged = pd.read_parquet(arguments.folder / "label_quality.parquet").set_index("row")
    rows = pd.read_parquet(arguments.train)[["text"]].assign(label=judged.given).dropna().drop_duplicates("text")
    shuffled = rows.sample(frac=1, random_state=arguments.seed)
    train, validation, test = (
        shuffled.iloc[start : start + n] for start, n in ((0, TRAIN), (TRAIN, VALIDATION), (TRAIN + VALIDATION, TEST))
    )
    listed, measured = judged[judged.may_be_wrong], {}
    for number, (way, part) in enumerate(ways(train, listed).items()):
        data, folder = arguments.output_dir / f"data-{number}", arguments.output_dir / f"run-{number}"
        data.mkdir(parents=True, exist_ok=True)
        for name, split in (("train", part), ("validation", validation), ("test", test)):
            split.to_parquet(data / f"{name}.parquet", index=False)
        own = dict(dataset_name=data, output_dir=arguments.output_dir, run_name=folder.name, seed=arguments.seed)
        python(str(ROOT / "fine_tune.py"), *flags(**SETTINGS, **own), "--resume_if_exists")
        if not (folder / "metrics.json").is_file():
            python(str(ROOT / "evaluate.py"), str(folder))
        run = open_run(folder, tasks.pick)
        measured[way] = len(part), read_tables(run)[1]
        print(f"{way:<28} {len(part):,} rows  {ACCURACY.of(measured[way][1]):.2%}", flush=True)
    results = []
    for way, (n_train, statistics) in measured.items():
        difference = metrics.difference(ACCURACY, [statistics], [measured["as given"][1]])
        points = [100 * value for value in (difference["difference"], *difference["difference_ci95"])]
        results.append({"way": way, "train": n_train, "accuracy": ACCURACY.of(statistics), "points": points, "p": difference["p"]})
    record = {
        "ways": results,
        "listed": int(train.index.isin(listed.index).sum()),
        "listed_in_test": int(test.index.isin(listed.index).sum()),
        "n": len(test),
        "seed": arguments.seed,
        "settings": SETTINGS,
        "model": run.record["model"],
    }
    write_record("relabel", record)


if __name__ == "__main__":
    main()
