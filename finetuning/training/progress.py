"""Progress in the terminal: a bar with the remaining time, and a line for each validation.

Output to a file or a pipe has the same lines, without the bar.
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

STEPS_BEFORE_ESTIMATE = SECONDS_BEFORE_ESTIMATE = 5  # both must have passed before the first estimate of the remaining time
LONG_TRAINING = 5 * 60  # seconds; above it, a message names the settings that would shorten training
FORWARD_FRACTION = 0.4  # time to predict, as a fraction of the time to train on as many tokens
ATTENTION_TOKENS = 1_000  # tokens of a text at which attention takes as long as all other layers (small encoders on a CPU)


def work(tokens: np.ndarray) -> np.ndarray:
    """Return numbers that the computing time is proportional to; `tokens` are the lengths of texts, including padding."""
    return tokens * (1 + tokens / ATTENTION_TOKENS)


def is_best(args, state, metrics: dict[str, float]) -> bool:
    """Return whether a validation's metric is better than those of all earlier ones of the run."""
    value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
    return best is None or (value > best if args.greater_is_better else value < best)


class Training(TrainerCallback):
    """The bar and the table of validations, in place of the Trainer's own callbacks, which print dictionaries."""

    def __init__(self, trainer: Trainer, metric: Metric) -> None:
        """`trainer` is the one that this callback is added to; `metric` is shown beside the losses."""
        self.trainer, self.metric = trainer, metric

    def on_train_begin(self, args, state, control, **_) -> None:
        self.show = state.is_world_process_zero
        self.spent, self.done = 0.0, 0.0  # seconds of the steps so far, and their work
        self.validation: float | None = None  # seconds of the last validation
        self.steps, self.losses = 0, []
        self.estimated = self.header = False  # whether they are printed
        self.work = self.trainer.work_of_steps()
        limit = self.trainer.config.max_length
        self.work_of_validation = work(np.minimum(self.trainer.eval_dataset.lengths, limit)).sum()
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            disable=None if self.show else True,  # None: no bar unless the output is a terminal
            bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps{postfix}",
            leave=False,
        )
        self.since = time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        now = time.perf_counter()
        if self.steps:  # the first step is slower and does not count
            self.spent += now - self.since
            self.done += self.work[state.global_step - 1]
        self.steps, self.since = self.steps + 1, now
        self.bar.update(1)
        if self.done:
            left = self.left(args, state)
            self.bar.set_postfix_str(f"{duration(left)} left", refresh=False)
            if not self.estimated and self.show and self.steps > STEPS_BEFORE_ESTIMATE and self.spent > SECONDS_BEFORE_ESTIMATE:
                self.estimated = True
                rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
                steps = f"{state.max_steps - state.global_step:,} steps of {rows:,} rows"
                self.write(f"about {duration(left)} left on this machine: {steps}")
                if left > LONG_TRAINING:
                    self.write("(to shorten it, lower train_samples, max_length or num_train_epochs)")

    def left(self, args, state) -> float:
        """Return the remaining seconds of training, including validations."""
        seconds_per_work = self.spent / self.done
        interval = state.eval_steps if args.eval_strategy == "steps" else state.max_steps // math.ceil(args.num_train_epochs)
        validations = state.max_steps // interval - state.global_step // interval
        validation = self.validation or self.work_of_validation * FORWARD_FRACTION * seconds_per_work
        return seconds_per_work * self.work[state.global_step : state.max_steps].sum() + validations * validation

    def on_log(self, args, state, control, logs, **_) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        now = time.perf_counter()
        self.validation, self.since = now - self.since, now
        if not self.show:
            return
        if not self.header:
            self.header = True
            name = self.metric.name if self.metric.name != "loss" else ""
            self.write(f"{'step':>14}{'epoch':>8}{'training loss':>16}{'validation loss':>18}{name:>12}")
        loss, self.losses = (f"{np.mean(self.losses):.4f}" if self.losses else ""), []
        score = self.metric.show(metrics[f"eval_{self.metric.name}"]) if self.metric.name != "loss" else ""
        step = f"{state.global_step:,}/{state.max_steps:,}"
        line = f"{step:>14}{state.epoch:>8.2f}{loss:>16}{metrics['eval_loss']:>18.4f}{score:>12}"
        self.write(line + ("  best so far" if is_best(args, state, metrics) else ""))

    def on_save(self, args, state, control, **_) -> None:
        self.since = time.perf_counter()

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()

    def write(self, line: str) -> None:
        self.bar.write(line.rstrip(), file=sys.stdout)
        sys.stdout.flush()


class RowBar(TrainerCallback):
    """A bar over the rows to predict. A file or a pipe gets one line with the remaining time instead, if prediction takes long.

    The Trainer updates it after each batch. Other code calls `update`.
    """

    def __init__(self, lengths: np.ndarray, show: bool, action: str = "predicting") -> None:
        """`lengths` (rows,) in tokens, in the order of prediction. `show`: False keeps the terminal as it is."""
        show = show and PartialState().is_main_process
        self.work, self.action = np.cumsum(work(lengths)), action
        self.bar = tqdm(total=len(lengths), unit=" rows", disable=None if show else True)
        self.prints = show and self.bar.disable  # not a terminal
        self.warm: tuple[float, float] | None = None  # time and work at the end of the first batch, which is slower than the others

    def update(self, rows: int) -> None:
        self.bar.n = min(self.bar.n + rows, self.bar.total)
        self.bar.refresh()
        if self.bar.n == self.bar.total:
            return self.bar.close()
        now, done = time.perf_counter(), self.work[self.bar.n - 1]
        self.warm = self.warm or (now, done)
        spent = now - self.warm[0]
        if self.prints and spent > SECONDS_BEFORE_ESTIMATE:
            self.prints = False
            left = spent * (self.work[-1] - done) / (done - self.warm[1])
            print(f"{self.action} {self.bar.total:,} rows: about {duration(left)} left on this machine", flush=True)

    def on_prediction_step(self, args, *_, **__) -> None:
        self.update(args.per_device_eval_batch_size * args.world_size)
