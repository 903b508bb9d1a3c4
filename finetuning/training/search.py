"""Search for better settings with Optuna and the Trainer's `hyperparameter_search`. Trials are compared on validation only."""

import hashlib
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase

from config import SEARCH_SPACE, Config
from finetuning.data.sources import Source
from finetuning.data.splits import Data
from finetuning.data.tokens import Tokens
from finetuning.errors import NotFinite, UserError
from finetuning.model.base import build_base
from finetuning.model.lora import add_lora
from finetuning.training.trainer import build_trainer, chosen_metric

NOT_FINITE = "not finite"  # attribute of a trial whose loss became NaN or infinite
TRAINER_NAMES = {"batch_size": "per_device_train_batch_size"}  # settings that have another name in TrainingArguments


def draw(trial, config: Config) -> Config:
    """Return `config` with the settings that an Optuna trial draws from `SEARCH_SPACE`. lora_alpha keeps its ratio to lora_r."""
    settings = {}
    for name, values in SEARCH_SPACE.items():
        if isinstance(values, tuple):
            settings[name] = trial.suggest_float(name, *values, log=True)
        else:
            settings[name] = trial.suggest_categorical(name, values)
    if "lora_r" in settings and "lora_alpha" not in settings:
        settings["lora_alpha"] = round(settings["lora_r"] * config.lora_alpha / config.lora_r)
    return replace(config, **settings)


def search(trials: int, source: Source, tokenizer: PreTrainedTokenizerBase, tokens: dict[str, Tokens], data: Data) -> None:
    """Search until there are `trials` finished trials of this model and data, and print the best settings as a preset.

    Trials are stored in `output_dir`/search.db. So a stopped search can be continued, and a finished one can get more trials.
    Raise `UserError` if Optuna is missing, or if there are several processes.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search needs Optuna: pip install optuna") from error
    if PartialState().num_processes > 1:
        raise UserError("--search runs its trials in one process: start it with python, not with torchrun")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config, metric = data.config, chosen_metric(data.task, data.config)
    database, name = Path(config.output_dir) / "search.db", _study_name(config, source, data)
    direction = "maximize" if metric.better == "higher" else "minimize"
    storage = dict(study_name=name, storage=f"sqlite:///{database}", load_if_exists=True)
    study = optuna.create_study(direction=direction, **storage)

    def finished() -> int:
        return sum(trial.state.name == "COMPLETE" or NOT_FINITE in trial.user_attrs for trial in study.trials)

    left = max(trials - finished(), 0)
    print(f"search {name} in {database}: {finished()} trials are finished, {left} are left")

    def build(config: Config) -> PeftModel:
        return add_lora(data.task, build_base(data.task, source, data.label_names, config, data.train.labels), config)

    def space(trial) -> dict:
        trial_config = draw(trial, config)
        print(f"trial {trial.number}: {_settings(trial_config, config)}", flush=True)
        return {TRAINER_NAMES.get(setting, setting): getattr(trial_config, setting) for setting in SEARCH_SPACE}

    def best_so_far(metrics: dict) -> float:
        values = [metrics[f"eval_{metric.name}"], trainer.state.best_metric]
        return (max if metric.better == "higher" else min)(value for value in values if value is not None)

    def train(trial, **arguments) -> None:
        try:
            train_trial(trial=trial, **arguments)
        except NotFinite:
            trial.set_user_attr(NOT_FINITE, True)  # Optuna calls a trial failed that a signal has stopped, too
            raise

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(build(config), tokenizer, tokens, data, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.pop_callback(EarlyStoppingCallback)
        trainer.model_init = lambda trial: build(draw(trial, config))
        train_trial, trainer.train = trainer.train, train
        if left:
            options = storage | {"catch": NotFinite}  # such a trial has failed; the search continues
            try:
                trainer.hyperparameter_search(space, best_so_far, left, direction, "optuna", **options)
            except ValueError as error:
                if any(trial.state.name == "COMPLETE" for trial in study.trials):
                    raise
                raise UserError("no trial had a finite loss: lower learning_rate in SEARCH_SPACE of config.py") from error
    if failed := sum(NOT_FINITE in trial.user_attrs for trial in study.trials):
        print(f"{failed} of {finished()} trials failed: their loss was not finite")
    best = draw(optuna.trial.FixedTrial(study.best_trial.params), config)
    print(
        f"\nbest of {finished()} trials: validation {metric.name} {metric.show(study.best_value)}. "
        f'To use its settings, add this line to PRESETS in config.py:\n    "searched": dict({_settings(best, config)}),\n'
        "and run python fine_tune.py --preset searched, with the other flags of this search"
    )


def _study_name(config: Config, source: Source, data: Data) -> str:
    """Return a name that is equal for searches with the same space, model, data and other settings. These have the same trials."""
    fixed = {name: value for name, value in asdict(config).items() if name not in (*SEARCH_SPACE, "output_dir", "run_name")}
    return hashlib.sha256(json.dumps([fixed, SEARCH_SPACE, source.sha256, data.sha256]).encode()).hexdigest()[:12]


def _settings(trial_config: Config, config: Config) -> str:
    """Return a trial's settings as a preset has them: those of the search space, and those that follow from them."""
    before, after = asdict(config), asdict(trial_config)
    values = {name: value for name, value in after.items() if name in SEARCH_SPACE or value != before[name]}
    return ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
