"""Progress in the terminal: bars with the remaining time, and a line for each validation.

Output to a file or a pipe has the same lines, without the bars.
"""

import math
import sys
import time

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from finetuning.console import duration
from finetuning.task import Metric

SECONDS_BEFORE_ESTIMATE = 5  # that must have passed before the line with the remaining time
FORWARD_FRACTION = 0.4  # time to predict, as a fraction of the time to train on as many tokens
ATTENTION_TOKENS = 1_000  # tokens of a text at which attention takes as long as all other layers (small encoders on a CPU)


def work(tokens: np.ndarray) -> np.ndarray:
    """Return numbers that the computing time is proportional to; `tokens` are the lengths of texts, including padding."""
    return tokens * (1 + tokens / ATTENTION_TOKENS)


def is_best(args, state, metrics: dict[str, float]) -> bool:
    """Return whether a validation's metric is better than those of all earlier ones of the run."""
    value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
    return best is None or (value > best if args.greater_is_better else value < best)


class Bar:
    """A bar over steps or rows, with the remaining time. The first estimate is also printed on a line, for files and pipes."""

    def __init__(self, work: np.ndarray, action: str, show: bool, done: int = 0) -> None:
        """`work` (units,): numbers that the time of each step or row is proportional to. `done`: steps of an interrupted run."""
        self.work, self.action, self.prints, self.done = np.cumsum(work), action, show, done
        self.first: tuple[float, float] | None = None  # time and work at the end of the first update, which is slower than others
        form = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}"
        self.bar = tqdm(total=len(work), initial=done, disable=None if show else True, bar_format=form, leave=False)

    def update(self, units: int) -> None:
        units = min(units, self.bar.total - self.done)  # the last batch may be smaller
        self.done += units
        self.bar.update(units)
        now, work = time.perf_counter(), self.work[self.done - 1]
        self.first = self.first or (now, work)
        spent, rest = now - self.first[0], self.work[-1] - work
        if work > self.first[1] and rest:
            left = duration(spent * rest / (work - self.first[1]))
            self.bar.set_postfix_str(f"{left} left", refresh=False)
            if self.prints and spent > SECONDS_BEFORE_ESTIMATE:
                self.prints = False
                self.write(f"{self.action}: about {left} left on this machine")
        if self.done == self.bar.total:
            self.bar.close()

    def write(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


class RowBar(Bar, TrainerCallback):
    """A bar over the rows to predict. The Trainer updates it after each batch, other code calls `update`."""

    def __init__(self, lengths: np.ndarray, show: bool, action: str = "predicting") -> None:
        """`lengths` (rows,) in tokens, in the order of prediction. `show`: False keeps the terminal as it is."""
        super().__init__(work(lengths), f"{action} {len(lengths):,} rows", show and PartialState().is_main_process)

    def on_prediction_step(self, args, *_, **__) -> None:
        self.update(args.per_device_eval_batch_size * args.world_size)


class Training(TrainerCallback):
    """The bar and the table of validations, in place of the Trainer's own callbacks, which print dictionaries."""

    def __init__(self, trainer: Trainer, metric: Metric) -> None:
        """`trainer` is the one that this callback is added to; `metric` is shown beside the losses."""
        self.trainer, self.metric = trainer, metric

    def on_train_begin(self, args, state, control, **_) -> None:
        self.losses, self.header = [], state.is_world_process_zero
        interval = int(state.eval_steps) if args.eval_strategy == "steps" else state.max_steps // math.ceil(args.num_train_epochs)
        steps, lengths = self.trainer.work_of_steps()[: state.max_steps], self.trainer.eval_dataset.lengths
        validation = FORWARD_FRACTION * work(np.minimum(lengths, self.trainer.config.max_length)).sum()
        steps[interval::interval] += validation  # the time of a step includes that of the validation before it
        steps[-1] += validation
        action = f"{len(steps) - state.global_step:,} steps of {self.trainer.rows_per_step:,} rows"
        self.bar = Bar(steps, action, self.header, state.global_step)

    def on_step_end(self, args, state, control, **_) -> None:
        self.bar.update(1)

    def on_log(self, args, state, control, logs, **_) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        if not state.is_world_process_zero:
            return
        is_loss = self.metric.name == "loss"
        if self.header:
            self.header = False
            name = "" if is_loss else self.metric.name
            self.bar.write(f"{'step':>14}{'epoch':>8}{'training loss':>16}{'validation loss':>18}{name:>12}".rstrip())
        loss, self.losses = (f"{np.mean(self.losses):.4f}" if self.losses else ""), []
        score = "" if is_loss else self.metric.show(metrics[f"eval_{self.metric.name}"])
        step, best = f"{state.global_step:,}/{state.max_steps:,}", "  best so far" if is_best(args, state, metrics) else ""
        self.bar.write(f"{step:>14}{state.epoch:>8.2f}{loss:>16}{metrics['eval_loss']:>18.4f}{score:>12}{best}".rstrip())

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.bar.close()
