"""Find the labels of a data set that may be wrong.

    python label_errors.py --dataset_name reviews.csv              the labels of train
    python label_errors.py --dataset_name reviews.csv --folds 10   any flag of fine_tune.py
    python label_errors.py --runs outputs/RUN                      the labels of the test rows of an evaluated run

A model can judge only labels that it did not learn. So train is cut into folds, 5 if not given, and each fold is judged by a model that
learned from the others. These models are ordinary runs, in outputs/label-errors-DATASET or outputs/RUN_NAME. The same command, given
again, continues where it was interrupted.

Writes label_errors.csv and label_errors.html, the labels that may be wrong, and label_quality.parquet, all rows.
"""

from pathlib import Path
from runpy import run_path

import fine_tune
from finetuning.cli import Parser, parse_config
from finetuning.ending import exit_cleanly
from finetuning.errors import UserError

OWN_FLAGS = ("fold", "test_samples", "resume", "resume_if_exists", "search")  # set here, or without a meaning


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="RUN", help="evaluated runs, instead of training a run for each fold"
    )
    arguments, flags = parser.parse_known_args()
    if arguments.runs and flags:
        raise UserError(f"--runs reads finished runs, which have their settings: leave {flags[0]} out")
    folders = arguments.runs or train_folds(flags)

    from finetuning import console, tasks
    from finetuning.results import label_errors, run_folder

    console.quiet_libraries()
    judged = label_errors.judge([run_folder.open_run(folder, tasks.pick) for folder in folders])
    folder = folders[0] if arguments.runs else folders[0].parent
    label_errors.write(judged, folder)
    console.show_label_errors(judged, folder)


def train_folds(flags: list[str]) -> list[Path]:
    """Train and evaluate a run for each fold, unless it is finished. Return the run folders."""
    flags = ["--folds", "5", "--train_samples", "0", *flags]
    config, arguments = parse_config(flags)
    if refused := sorted({*OWN_FLAGS} & arguments.given):
        raise UserError(f"--{refused[0]} is not for label_errors.py: leave it out")
    if config.folds < 2:
        raise UserError(f"folds={config.folds}: label_errors.py needs at least 2")

    from finetuning import tasks  # delayed: a wrong flag is reported at once
    from finetuning.results import label_errors

    evaluate = run_path(str(Path(__file__).with_name("evaluate.py")))["main"]  # `import evaluate` would take the library's name
    label_errors.check(tasks.pick(config))
    folder = Path(config.output_dir) / (config.run_name or f"label-errors-{Path(config.dataset_name).name.split('.')[0]}")
    for fold in range(1, config.folds + 1):
        own = dict(fold=fold, test_samples=0, output_dir=folder, run_name=f"fold-{fold}")
        print(f"\nfold {fold} of {config.folds}")
        fine_tune.main([*flags, *(f"--{name}={value}" for name, value in own.items()), "--resume_if_exists"])
        if not (folder / f"fold-{fold}" / "metrics.json").is_file():
            evaluate([str(folder / f"fold-{fold}")])
    return [folder / f"fold-{fold}" for fold in range(1, config.folds + 1)]


if __name__ == "__main__":
    exit_cleanly(main)()
