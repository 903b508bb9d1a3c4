"""Evaluate a fine-tuned adapter on its test split.

    python evaluate.py               the run that finished last
    python evaluate.py outputs/RUN   another one

Writes metrics.json, predictions.parquet and confusion_matrix.png into the run folder. All settings come from there, so
that they can't disagree with the training.
"""

import argparse
import time
from pathlib import Path

from finetuning.cli import exit_cleanly


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    arguments = parser.parse_args()

    from finetuning import console, data, fast, metrics, report, training

    console.quiet_libraries()
    run = report.open_run(arguments.run or report.newest_run(arguments.output_dir))
    rows = data.load_data(run.config, run.record["dataset"]["origin"])
    report.check_same_data(run.folder, rows)
    lora, tokenizer, model_source = report.load_model(run)
    console.show_sources(model_source, rows)

    # Predict the test split; logits come back in the order of the rows.
    ids, lengths = data.tokenize(rows.test.text, tokenizer, run.config)
    started = time.perf_counter()
    logits = training.predict(lora, tokenizer, ids, run.config)
    seconds = time.perf_counter() - started

    result = metrics.classification_metrics(logits, rows.test.label.to_numpy(), rows.label_names) | {
        "model": model_source.name,
        "model_origin": model_source.origin,
        "dataset": rows.source.name,
        "dataset_origin": rows.source.origin,
        "split": rows.test_split,
        "stand_in": run.stand_in,
        "trainable_parameters": run.training["trainable_parameters"],
        "total_parameters": run.training["total_parameters"],
        "seconds": run.training["seconds"] | {"prediction": seconds},
        "precision_used": fast.pick_precision(run.config.precision)[0],
        "environment": report.environment(),
        "run": run.record,
        "validation": run.training["validation"],
    }
    report.write_evaluation(run.folder, result, rows.test, logits, lengths, run.config.max_length)
    console.show_metrics(result, run.folder)


if __name__ == "__main__":
    main()
