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
from finetuning.data.sources import Source
from finetuning.data.splits import Data
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError
from finetuning.model.base import build_base
from finetuning.model.lora import add_lora
from finetuning.training.trainer import build_trainer, chosen_metric

TRAINER_NAMES = {"batch_size": "per_device_train_batch_size"}  # settings that TrainingArguments calls otherwise


def draw(trial, config: Config) -> Config:
    """Return `config` with what an Optuna trial draws from `SEARCH_SPACE`; lora_alpha keeps its ratio to lora_r."""
    drawn = {}
    for name, values in SEARCH_SPACE.items():
        if isinstance(values, tuple):
            drawn[name] = trial.suggest_float(name, *values, log=True)
        else:
            drawn[name] = trial.suggest_categorical(name, values)
    if "lora_r" in drawn and "lora_alpha" not in drawn:
        drawn["lora_alpha"] = round(drawn["lora_r"] * config.lora_alpha / config.lora_r)
    return replace(config, **drawn)


def search(trials: int, source: Source, tokenizer: PreTrainedTokenizerBase, tokens: dict[str, Tokens], data: Data) -> None:
    """Bring the search for this model and data to `trials` trials, and print the best settings as a preset.

    Trials are kept in `output_dir`/search.db, so that a search that was stopped, or is given more trials, continues.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search needs Optuna: pip install optuna") from error
    if PartialState().num_processes > 1:
        raise UserError("--search runs its trials in one process: start it with python, not with torchrun")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config, metric = data.config, chosen_metric(data.task, data.config)
    database, name = Path(config.output_dir) / "search.db", _study_name(config, source, data)
    direction = "maximize" if metric.better == "higher" else "minimize"
    storage = dict(study_name=name, storage=f"sqlite:///{database}", load_if_exists=True)
    study = optuna.create_study(direction=direction, **storage)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    print(f"search {name} in {database}: {len(finished)} trials are finished, {max(trials - len(finished), 0)} are left")

    def build(config: Config) -> PeftModel:
        return add_lora(data.task, build_base(data.task, source, data.label_names, config), config)

    def space(trial) -> dict:
        drawn = draw(trial, config)
        print(f"trial {trial.number}: {_settings(drawn, config)}", flush=True)
        return {TRAINER_NAMES.get(setting, setting): getattr(drawn, setting) for setting in SEARCH_SPACE}

    def best_so_far(metrics: dict) -> float:
        values = [metrics[f"eval_{metric.name}"], trainer.state.best_metric]
        return (max if metric.better == "higher" else min)(value for value in values if value is not None)

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(build(config), tokenizer, tokens, data, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.pop_callback(EarlyStoppingCallback)
        trainer.model_init = lambda trial: build(draw(trial, config))
        if len(finished) < trials:
            trainer.hyperparameter_search(space, best_so_far, trials - len(finished), direction, "optuna", **storage)
    best = draw(optuna.trial.FixedTrial(study.best_trial.params), config)
    print(
        f"\nbest of {len(study.trials)} trials: validation {metric.name} {metric.show(study.best_value)}. "
        f'As a line of PRESETS in config.py:\n    "searched": dict({_settings(best, config)}),\n'
        "then: python fine_tune.py --preset searched, with the other flags of this search"
    )


def _study_name(config: Config, source: Source, data: Data) -> str:
    """Return a name that is the same for searches that can be continued by each other."""
    fixed = {name: value for name, value in asdict(config).items() if name not in (*SEARCH_SPACE, "output_dir", "run_name")}
    return hashlib.sha256(json.dumps([fixed, SEARCH_SPACE, source.sha256, data.sha256]).encode()).hexdigest()[:12]


def _settings(drawn: Config, config: Config) -> str:
    before, after = asdict(config), asdict(drawn)
    values = {name: value for name, value in after.items() if name in SEARCH_SPACE or value != before[name]}
    return ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
