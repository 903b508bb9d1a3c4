"""Fine-tune a text model with LoRA: to label texts, find named entities, answer prompts, predict words, or translate.

python fine_tune.py                                  a part of IMDb, for a laptop
python fine_tune.py --preset full                    all of IMDb, two epochs: more accurate, slower
python fine_tune.py --preset smoke                   a few seconds: a check that everything works
python fine_tune.py --dataset_name reviews.csv       your own texts and labels
python fine_tune.py --dataset_name ratings.csv --problem_type regression    a number per text
python fine_tune.py --preset ner                     named entities
python fine_tune.py --preset instruct                answers to prompts, and chats
python fine_tune.py --preset pretrain                further pre-training on texts without labels
python fine_tune.py --task causal-lm --model_name gpt2 --dataset_name texts.txt    a model that writes texts like these
python fine_tune.py --preset translation             English to German
python fine_tune.py --learning_rate 5e-4 --lora_r 8  every field of config.py is a flag
python fine_tune.py --resume                         continue the interrupted run that was started last
python fine_tune.py --search 20                      search for better settings, on validation
"""

import time
from collections.abc import Sequence

from finetuning.cli import importing, parse_config
from finetuning.ending import exit_cleanly, resumable


def main(flags: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    config, arguments = parse_config(flags, about=__doc__)

    # Importing the libraries takes seconds. It comes after the check of the flags, so that a wrong flag is reported at once.
    with importing():
        from finetuning import console, processes, tasks
        from finetuning.data import sources, splits, tokens
        from finetuning.model import base, lora
        from finetuning.results import run_folder, validation
        from finetuning.speed.precision import pick_precision
        from finetuning.training import batches, search, trainer
        from finetuning.training.prediction import Predictor

    console.quiet_libraries()
    processes.start()

    # Find the task, the base model and the run folder. Most wrong settings are reported here, before anything slow starts.
    # A resumed run takes its model and data set from the same origins as before: local path, Hub or stand-in.
    earlier = run_folder.find_earlier(config, arguments.resume, arguments.resume_if_exists, tasks.pick)  # None: start a new run
    if arguments.resume is not None:
        config = earlier.config
    elif earlier:
        run_folder.check_same_settings(earlier, config, ("model_name", "dataset_name"))  # before these are loaded
    task = tasks.pick(config, arguments.given)
    model_source = run_folder.find_base_model(earlier) if earlier else sources.find_model(config.model_name)
    base.read_model_config(task, model_source, config)  # refuses a model that the task cannot use
    folder = earlier.folder if earlier else run_folder.choose_folder(config, model_source)
    precision, precision_reason = pick_precision(config.precision)

    # Load the rows, then tokenize them. The rows may decide the task: lists of several labels mean multi-label classification.
    # The test split is tokenized too, so that a refused text is reported before training. evaluate.py then finds its tokens in the
    # cache.
    data = splits.load_data(task, config, earlier and earlier.origins["dataset"], arguments.given)
    task, config = data.task, data.config
    if earlier:
        run_folder.check_same_settings(earlier, config)
        run_folder.check_same_data(earlier, data)
        if earlier.training:
            return print(f"run folder  {folder}: this run is finished")
    console.show_sources(model_source, data)
    tokenizer = base.load_tokenizer(task, model_source, config)
    encoded = {name: tokens.encode(task, getattr(data, name), tokenizer, config) for name in ("train", "validation", "test")}
    console.show_tokens(data, encoded["train"], tokenizer)
    batches.check_step_size(len(encoded["train"]), config)

    if arguments.search:
        return search.search(arguments.search, model_source, tokenizer, encoded, data, tasks.pick, arguments.given)

    # Build the base model, and add the adapter.
    model = base.build_base(task, model_source, data.label_names, config, data.train.labels)
    base.check_vocabulary(model, encoded.values())
    model = lora.add_lora(task, model, config)
    trainable, total = lora.count_parameters(model)
    print(f"train  {trainable:,} of {total:,} parameters ({trainable / total:.2%}), {precision}: {precision_reason}")

    # Train, and keep the checkpoint that is best on validation.
    if not earlier:
        run_folder.start_run(folder, model_source, data)
    fine_tuner = trainer.build_trainer(model, tokenizer, encoded, data, folder / "checkpoints")
    seconds_before_training = time.perf_counter() - started
    with resumable(folder, fine_tuner.keeper.signals):
        training_seconds = trainer.train(fine_tuner)

    # Calibrate on validation, and save the adapter with the facts about its training.
    predictor = Predictor(task, model, tokenizer, config, show_progress=True)
    validated, statistics = validation.validate(fine_tuner, predictor)
    training = validated | {
        "seconds": {"before_training": seconds_before_training, "training": training_seconds},
        "precision": precision,
        "peak_memory_gib": run_folder.peak_memory_gib(),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "log_history": fine_tuner.state.log_history,
    }
    run_folder.finish_run(folder, predictor, model_source.name, training)
    console.show_trained(folder, trainer.chosen_metric(task, config), training["validation"], training_seconds)
    console.show_learned_nothing(task, statistics, data, "validation")


if __name__ == "__main__":
    exit_cleanly(main)()  # no decorator, because label_errors.py calls main for each fold
