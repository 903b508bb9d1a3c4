"""Evaluate a fine-tuned model on its test split.

    python evaluate.py                        the run that finished last
    python evaluate.py outputs/RUN            another run
    python evaluate.py outputs/A outputs/B    compare two evaluated runs on the same test rows
    python evaluate.py --push_to_hub ME/NAME  also upload the adapter and its model card

Writes metrics.json, report.html with its pictures, predictions.parquet, statistics.parquet and errors.csv into the run folder, and
a model card into the adapter's folder. All settings come from the run folder, so they are the settings of the training.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli import Parser, importing
from finetuning.ending import exit_cleanly
from finetuning.errors import UserError


def read_arguments(flags: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line. Raise `UserError` if they do not fit together."""
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="a run folder, or two to compare; not given: the run that finished last"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the run that finished last")
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the adapter and its model card to this repository, ME/NAME")
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: make the repository private")
    arguments = parser.parse_args(flags)
    if arguments.private and not arguments.push_to_hub:
        raise UserError("--private needs --push_to_hub: add --push_to_hub, or leave --private out")
    if len(arguments.runs) > 2:
        raise UserError(f"{len(arguments.runs)} run folders are too many: give one to evaluate it, or two to compare them")
    if len(arguments.runs) == 2 and arguments.push_to_hub:
        raise UserError("--push_to_hub uploads one run: name only this one")
    return arguments


def main(flags: Sequence[str] | None = None) -> None:
    arguments = read_arguments(flags)
    with importing():
        from finetuning import console, processes, speed, tasks
        from finetuning.data import splits, tokens
        from finetuning.results import cards, evaluation, run_folder
        from finetuning.task import Evaluation
        from finetuning.training import trackers, trainer

    console.quiet_libraries()
    processes.start()
    folders = arguments.runs or [run_folder.newest_run(arguments.output_dir)]
    runs = [run_folder.open_run(folder, tasks.pick) for folder in folders]
    run, task = runs[0], runs[0].task
    data = splits.load_data(task, run.config, run.origins["dataset"])
    run_folder.check_same_data(run, data)
    if len(runs) == 2:
        results, differences_file = evaluation.compare(*runs, data.test)
        return console.show_comparison(task, (str(runs[0].folder), str(runs[1].folder)), results, differences_file)

    model_source = run_folder.find_base_model(run)
    predictor = run_folder.load_predictor(run, model_source, show_progress=True)
    speed.merge(predictor.model, run.config)
    console.show_sources(model_source, data)

    # Predict the rows of the test split, in their order.
    encoded = tokens.encode(task, data.test, predictor.tokenizer, run.config)
    started = time.perf_counter()
    predictions = task.predict(predictor, encoded)
    prediction_seconds = time.perf_counter() - started

    # Compute the metrics, and write the report.
    evaluated = Evaluation(predictions, data.test, encoded.lengths, data.label_names, run.calibration, run.config)
    evaluated = evaluation.measure(task, evaluated, data.unseen())
    evaluated.metrics.update(evaluation.describe(run, model_source, data, prediction_seconds))
    evaluated.metrics.update(task.more_details(predictor, data.test))
    sections = evaluation.sections_of(run, evaluated)
    evaluation.write(run, evaluated, sections)
    console.show_metrics(run, evaluated.metrics, sections)
    console.show_learned_nothing(task, evaluated.statistics, data, "test")
    if run.config.report_to != "none":
        training_arguments = trainer.training_arguments(task, run.config, run.folder / "checkpoints")
        trackers.send_test(run.folder, training_arguments, evaluated.metrics)
    if arguments.push_to_hub:
        files = {file.name: file for file in (run.folder / "adapter").iterdir()}
        address = cards.push_to_hub(files, arguments.push_to_hub, arguments.private, "Add adapter and model card")
        print(f"pushed to {address}")


if __name__ == "__main__":
    exit_cleanly(main)()
