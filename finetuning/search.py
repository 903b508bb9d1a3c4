"""Search for better settings with Optuna, through the Trainer's own `hyperparameter_search`, on validation alone."""

import hashlib
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase

from config import SEARCH_SPACE, Config
from finetuning.data import Data
from finetuning.errors import UserError
from finetuning.model import add_lora, build_base
from finetuning.sources import Source
from finetuning.tasks import task_of
from finetuning.tokenizing import Tokens
from finetuning.training import build_trainer, greater_is_better

TRAINER_NAMES = {"batch_size": "per_device_train_batch_size"}  # where TrainingArguments calls a knob otherwise


def draw(trial, config: Config) -> Config:
    """`config` with what an Optuna trial draws from `SEARCH_SPACE`; lora_alpha keeps its ratio to lora_r."""
    drawn = {}
    for name, values in SEARCH_SPACE.items():
        if isinstance(values, tuple):
            drawn[name] = trial.suggest_float(name, *values, log=True)
        else:
            drawn[name] = trial.suggest_categorical(name, values)
    if "lora_r" in drawn and "lora_alpha" not in drawn:
        drawn["lora_alpha"] = round(drawn["lora_r"] * config.lora_alpha / config.lora_r)
    return replace(config, **drawn)


def search(
    trials: int,
    config: Config,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    train: Tokens,
    validation: Tokens,
    data: Data,
) -> None:
    """Bring the search for this model, data and config to `trials` trials, and print the best as a preset.

    Trials are kept in `output_dir`/search.db, so that a search that was stopped, or is given more trials, goes on.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search needs Optuna: pip install optuna") from error
    if PartialState().num_processes > 1:
        raise UserError("--search runs its trials in one process: start it with python, not with torchrun")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {k: v for k, v in asdict(config).items() if k not in (*SEARCH_SPACE, "output_dir", "run_name")}
    name = hashlib.sha256(json.dumps([fixed, SEARCH_SPACE, source.sha256, data.sha256]).encode()).hexdigest()[:12]
    database = Path(config.output_dir) / "search.db"
    storage = f"sqlite:///{database}"
    metric = config.metric_for_best_model or task_of(config).METRICS[0]
    greater = greater_is_better(metric)
    direction = "maximize" if greater else "minimize"
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    done = [trial for trial in study.trials if trial.state.is_finished()]
    print(f"search {name} in {database}: {len(done)} trials there, {max(trials - len(done), 0)} to go")

    def build(config: Config) -> PeftModel:
        return add_lora(build_base(source, data.label_names, config), config)

    def space(trial) -> dict:
        drawn = draw(trial, config)
        print(f"trial {trial.number}: {_settings(drawn, config)}", flush=True)
        return {TRAINER_NAMES.get(knob, knob): getattr(drawn, knob) for knob in SEARCH_SPACE}

    def best_so_far(metrics: dict) -> float:
        values = [metrics[f"eval_{metric}"], trainer.state.best_metric]
        return (max if greater else min)(value for value in values if value is not None)

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(build(config), tokenizer, train, validation, data, config, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.pop_callback(EarlyStoppingCallback)
        trainer.model_init = lambda trial: build(draw(trial, config))
        if len(done) < trials:
            trainer.hyperparameter_search(
                space, best_so_far, trials - len(done), direction, "optuna", study_name=name, storage=storage, load_if_exists=True
            )
    best = draw(optuna.trial.FixedTrial(study.best_trial.params), config)
    print(
        f"\nbest of {len(study.trials)} trials: validation {metric} {study.best_value:.4f}. As a line of PRESETS in config.py:\n"
        f'    "searched": dict({_settings(best, config)}),\n'
        "then: python fine_tune.py --preset searched, with the other flags of this search"
    )


def _settings(drawn: Config, config: Config) -> str:
    before, after = asdict(config), asdict(drawn)
    values = {name: value for name, value in after.items() if name in SEARCH_SPACE or value != before[name]}
    return ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
