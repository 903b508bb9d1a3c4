"""Fine-tune a model of texts with LoRA: their labels, the entities in them, their words, or their translation.

python fine_tune.py                                  a laptop's share of IMDb
python fine_tune.py --preset full                    all of it, for the best figure
python fine_tune.py --preset smoke                   seconds: does it run?
python fine_tune.py --dataset_name reviews.csv       your own texts and labels
python fine_tune.py --preset ner                     named entities
python fine_tune.py --preset pretrain                further pre-training on texts without their labels
python fine_tune.py --task causal-lm --model_name gpt2 --dataset_name texts.txt   a GPT goes on in the style of texts
python fine_tune.py --preset translation
python fine_tune.py --learning_rate 5e-4 --lora_r 8  any field of config.py is a flag
python fine_tune.py --resume outputs/RUN             go on with an interrupted run
python fine_tune.py --search 20                      look for better settings, on validation
"""

import time
from pathlib import Path

from finetuning.cli import exit_cleanly, parse_config, resumable


@exit_cleanly
def main() -> None:
    started = time.perf_counter()
    config, arguments = parse_config(about=__doc__)

    # The libraries take seconds to import: a mistyped flag should not have to wait for them.
    from finetuning import batches, console, data, fast, model, processes, run_folder, search, sources, tokenizing, training
    from finetuning.tasks import task_of

    console.quiet_libraries()
    processes.start()

    # Settings and sources: all that can be wrong is found out before anything slow starts.
    origin = {"model": None, "dataset": None}
    if arguments.resume:
        folder, config, origin = run_folder.reopen(Path(arguments.resume))
    model_source = sources.find_model(config.model_name, origin["model"])
    model.read_model_config(model_source, config)
    if not arguments.resume:
        folder = run_folder.choose_folder(config, model_source)
    precision, why = fast.pick_precision(config.precision)

    # Rows, then tokens.
    rows = data.load_data(config, origin["dataset"])
    config = rows.config  # the labels say whether a text has one or several
    console.show_sources(model_source, rows)
    tokenizer = model.load_tokenizer(model_source, config)
    train, validation = (tokenizing.encode(split, tokenizer, config) for split in (rows.train, rows.validation))
    console.show_cut(train, config)
    batches.check_shares(len(train), config)

    if arguments.search:
        return search.search(arguments.search, config, model_source, tokenizer, train, validation, rows)

    # The base model with its adapter.
    base = model.build_base(model_source, rows.label_names, config)
    lora = model.add_lora(base, config)
    trainable, total = model.count_parameters(lora)
    print(f"trains {trainable:,} of {total:,} parameters ({trainable / total:.2%}), {precision}: {why}")

    # Train; the best checkpoint by validation is the one that stays.
    if arguments.resume:
        run_folder.check_same_data(folder, rows)
    else:
        run_folder.start_run(folder, config, model_source, rows)
    trainer = training.build_trainer(lora, tokenizer, train, validation, rows, config, folder / "checkpoints")
    seconds_before = time.perf_counter() - started
    with resumable(folder):
        seconds = training.train(trainer)

    task, best = task_of(config), training.best_validation(trainer, config)
    predictions = task.predict(lora, tokenizer, validation, config)
    calibrated = task.calibrate(predictions, rows.validation)
    best |= {
        "ci95": task.interval(predictions, rows.validation),
        "n": len(rows.validation),
        "split": rows.validation_split,
    }
    run_folder.finish_run(
        folder,
        lora,
        tokenizer,
        model_source.name,
        calibrated
        | {
            "validation": best,
            "seconds": {"before_training": seconds_before, "training": seconds},
            "precision": precision,
            "peak_memory_gib": run_folder.peak_memory_gib(),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "log_history": trainer.state.log_history,
        },
    )
    console.show_trained(folder, task.METRICS[0], best, seconds)


if __name__ == "__main__":
    main()
