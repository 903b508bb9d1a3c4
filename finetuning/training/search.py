"""Search for better settings with Optuna. Trials are compared on validation only."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, fields, replace
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from config import SEARCH_SPACE, Config
from finetuning.cli import SETTINGS_OF_LORA, check
from finetuning.data.sources import Source
from finetuning.data.splits import Data
from finetuning.data.tokens import Tokens
from finetuning.errors import NotFinite, UserError
from finetuning.model.base import build_base, check_vocabulary
from finetuning.model.lora import add_lora
from finetuning.training.batches import check_step_size
from finetuning.training.trainer import build_trainer, chosen_metric

_NAMES = [field.name for field in fields(Config)]
# The settings that a trial may change: the others decide rows, tokens or the base model, which all trials share.
SEARCHABLE = {"dropout", "augmentation", *_NAMES[_NAMES.index("method") : _NAMES.index("seed")]} - {"eval_batch_size"}

WITHOUT_EARLY_STOPPING = {"early_stopping_patience": 0}  # of each trial, and of the flags that repeat the best one


def space(config: Config) -> dict[str, tuple | list]:
    """Return `SEARCH_SPACE` without the settings that `config` does not use: only LoRA has those of LoRA."""
    return {name: values for name, values in SEARCH_SPACE.items() if config.method == "lora" or name not in SETTINGS_OF_LORA}


def draw(trial, config: Config) -> dict:
    """Return the settings that an Optuna trial draws from `SEARCH_SPACE`. The others, such as lora_alpha, stay as they are."""
    settings = {}
    for name, values in space(config).items():
        if isinstance(values, tuple):
            drawn = trial.suggest_float(name, *values, log=values[0] > 0)
            settings[name] = float(f"{drawn:.3g}")  # as it is printed
        else:
            settings[name] = trial.suggest_categorical(name, values)
    uses_lora = settings.get("method", config.method) == "lora"
    return {name: value for name, value in settings.items() if uses_lora or name not in SETTINGS_OF_LORA}


def search(
    trials: int,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    tokens: dict[str, Tokens],
    data: Data,
    pick: Callable,
    given: Collection[str],
) -> None:
    """Search until there are `trials` finished trials of this model and data, and print the best settings as flags.

    `pick` is `tasks.pick`, which refuses settings that only other tasks read. `given`: the settings that are given as flags. A note
    names those that the trials draw.
    Trials are stored in `output_dir`/search.db. So a stopped search can be continued, and a finished one can get more trials.
    Raise `UserError` if there are several processes, or if `SEARCH_SPACE` has a setting that trials can't change.
    """
    import optuna  # delayed: only --search needs it

    if PartialState().num_processes > 1:
        raise UserError("--search runs its trials in one process: start it with python, not with torchrun")
    if fixed := sorted({*SEARCH_SPACE} - SEARCHABLE):
        raise UserError(
            f"SEARCH_SPACE in config.py has {', '.join(fixed)}: all trials share their rows, tokens and base model, so remove it"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config, metric = data.config, chosen_metric(data.task, data.config)
    database, name = Path(config.output_dir) / "search.db", _study_name(config, source, data)
    direction = "maximize" if metric.better == "higher" else "minimize"
    storage = dict(study_name=name, storage=f"sqlite:///{database}", load_if_exists=True)
    study = optuna.create_study(direction=direction, **storage)
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))  # a continued search draws further trials

    def count(*states: str) -> int:
        return sum(trial.state.name in states for trial in study.trials)

    def train_trial(trial) -> float:
        """Train with the settings that a trial draws, and return its best value of the metric."""
        settings = draw(trial, config)
        print(f"trial {trial.number}: {', '.join(f'{name}={value!r}' for name, value in settings.items())}", flush=True)
        trial_config = replace(config, **settings | WITHOUT_EARLY_STOPPING)
        check(trial_config)
        pick(trial_config, settings)
        check_step_size(len(tokens["train"]), trial_config)
        base = build_base(data.task, source, data.label_names, trial_config, data.train.labels)
        check_vocabulary(base, tokens.values())
        model, trial_data = add_lora(data.task, base, trial_config), replace(data, config=trial_config)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(model, tokenizer, tokens, trial_data, Path(folder) / "checkpoints")
            trainer.args.save_strategy, trainer.args.load_best_model_at_end = "no", False
            try:
                trainer.train()
            except NotFinite as error:
                raise optuna.TrialPruned from error  # such a trial has ended; the search continues
        return trainer.state.best_metric

    finished = count("COMPLETE", "PRUNED")
    print(f"search {name} in {database}: {finished} trials are finished, {max(trials - finished, 0)} are left")
    if drawn := sorted({*space(config)} & {*given}):
        print(f"note: the search draws {', '.join(drawn)}, so these flags have no effect (SEARCH_SPACE in config.py)")
    study.optimize(train_trial, n_trials=max(trials - finished, 0))
    if failed := count("PRUNED"):
        print(f"{failed} of {count('COMPLETE', 'PRUNED')} trials failed: their loss was not finite")
    if not count("COMPLETE"):
        raise UserError("no trial had a finite loss: lower learning_rate in SEARCH_SPACE of config.py")
    best = draw(optuna.trial.FixedTrial(study.best_trial.params), config) | WITHOUT_EARLY_STOPPING
    print(
        f"\nbest of {count('COMPLETE', 'PRUNED')} trials: validation {metric.name} {metric.show(study.best_value)}. "
        "To use its settings, repeat this command with these flags in place of --search:\n"
        f"    {' '.join(f'--{name} {value}' for name, value in best.items())}"
    )


def _study_name(config: Config, source: Source, data: Data) -> str:
    """Return a name that is equal for searches with the same space, model, data and other settings. These have the same trials."""
    searched = space(config)
    fixed = {name: value for name, value in asdict(config).items() if name not in (*searched, "output_dir", "run_name")}
    return hashlib.sha256(json.dumps([fixed, searched, source.sha256, data.sha256]).encode()).hexdigest()[:12]
