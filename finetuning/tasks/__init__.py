"""The tasks. To add one, write a file with its class, and add an instance of it to `TASKS`."""

from collections.abc import Collection

from config import Config
from finetuning.errors import UserError
from finetuning.task import Task
from finetuning.tasks.causal_lm import CausalLM
from finetuning.tasks.chat import Chat
from finetuning.tasks.classification import MultiLabel, SingleLabel
from finetuning.tasks.entities import Entities
from finetuning.tasks.masked_lm import MaskedLM
from finetuning.tasks.regression import Regression
from finetuning.tasks.translation import Translation

TASKS: tuple[Task, ...] = (SingleLabel(), MultiLabel(), Regression(), Entities(), CausalLM(), Chat(), MaskedLM(), Translation())


def pick(config: Config, given: Collection[str] = ()) -> Task:
    """Return the task that `config` names. Its settings `given` by the user are checked too.

    Raise `UserError` for an unknown task, for a setting in `given` that only other tasks read, and for a metric of another task.
    """
    candidates = [task for task in TASKS if task.name == config.task]
    if not candidates:
        names = ", ".join(dict.fromkeys(task.name for task in TASKS))
        raise UserError(f"task={config.task} is not known: set it to one of {names}")
    matches = [task for task in candidates if task.fits(config)]
    if not matches:
        kinds = [task.problem_type for task in candidates if task.problem_type]
        remedy = f"set it to {' or '.join(kinds)}" if kinds else "leave it out"
        raise UserError(f"problem_type={config.problem_type} is not for task={config.task}: {remedy}")
    task = matches[0]
    unread = {setting for other in TASKS for setting in other.settings} - {*task.settings, "problem_type"}
    for setting in sorted(unread & {*given}):
        if getattr(config, setting) != getattr(Config, setting):
            raise UserError(f"{setting}={getattr(config, setting)} is not for {task.problem_type or task.name}: leave it out")
    names = [metric.name for metric in task.metrics if metric.in_validation]
    if config.metric_for_best_model not in (None, *names):
        metric = f"metric_for_best_model={config.metric_for_best_model}"
        raise UserError(f"{metric} is not known for {config.task}: set it to one of {', '.join(names)}")
    task.check(config, given)
    return task
