"""Evaluate a fine-tuned adapter on its test split.

    python evaluate.py                        the run that finished last
    python evaluate.py outputs/RUN            another one
    python evaluate.py outputs/A outputs/B    two that were evaluated, row by row
    python evaluate.py --push_to_hub ME/NAME  upload the adapter and its model card as well

Writes report.html, its pictures and figures, predictions.parquet and errors.csv into the run folder, and a model card
beside the adapter. All settings come from the run folder, so that they can't disagree with the training.
"""

import time
from pathlib import Path

from finetuning.cli import Parser, exit_cleanly


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run folder, or two to compare; none: the newest")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload adapter and model card there, as ME/NAME")
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: where nobody else sees them")
    arguments = parser.parse_args()

    from finetuning import cards, console, data, evaluation, processes, run_folder, tokenizing, trackers
    from finetuning.errors import UserError

    console.quiet_libraries()
    processes.start()
    runs = [run_folder.open_run(folder) for folder in arguments.runs or [run_folder.newest_run(arguments.output_dir)]]
    if len(runs) > 2:
        raise UserError(f"{len(runs)} run folders: give one to evaluate it, or two to compare them")
    run = runs[0]
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    run_folder.check_same_data(run.folder, rows)
    if len(runs) == 2:
        return console.show_comparison(*runs, *evaluation.compare(*runs, rows.test))
    lora, tokenizer, model_source = run_folder.load_model(run)
    console.show_sources(model_source, rows)

    # Predict the test split; what comes back is in the order of the rows.
    tokens = tokenizing.encode(rows.test, tokenizer, run.config)
    started = time.perf_counter()
    predictions = run.task.predict(lora, tokenizer, tokens, run.config)
    seconds = time.perf_counter() - started

    metrics = run.task.measure(predictions, rows.test, tokens.lengths, rows.label_names, run.training)
    metrics |= evaluation.about(run, model_source, rows, seconds)
    if hasattr(run.task, "samples"):
        metrics["samples"] = run.task.samples(lora, tokenizer, rows.test, run)
    evaluation.write(run, metrics, rows.test, predictions, tokens.lengths)
    console.show_metrics(run, metrics)
    trackers.send_test(run.folder, run.config, metrics)
    if arguments.push_to_hub:
        files, message = {file.name: file for file in (run.folder / "adapter").iterdir()}, "Add adapter and model card"
        print(f"pushed to {cards.push_to_hub(files, arguments.push_to_hub, arguments.private, message)}")


if __name__ == "__main__":
    main()
