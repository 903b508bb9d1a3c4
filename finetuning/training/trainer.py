"""Training with the Hugging Face Trainer."""

import math
import pickle
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState

from config import Config
from finetuning.data.splits import Data
from finetuning.data.tokens import Tokens
from finetuning.errors import NotFinite, UserError
from finetuning.speed import cuda_graphs
from finetuning.speed.memory import give_back_freed_memory
from finetuning.speed.precision import machine_arguments
from finetuning.task import Metric, Task
from finetuning.training import progress, trackers
from finetuning.training.batches import SHORT_LENGTH, Batches, TrainingRows, count_steps, steps_of_epoch
from finetuning.training.checkpoints import Keeper, check_best, last_usable
from finetuning.training.prediction import Predictor

STEPS_BETWEEN_TRIMS = 50  # steps after which freed memory is given back to the operating system


def chosen_metric(task: Task, config: Config) -> Metric:
    """Return the metric that picks the checkpoint and stops training early."""
    name = config.metric_for_best_model or task.metrics[0].name
    return next(metric for metric in task.metrics if metric.name == name)


def build_trainer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: dict[str, Tokens], data: Data, checkpoints: Path
) -> "FineTuner":
    """Return a Trainer that keeps the checkpoint with the best validation metric and stops early.

    `tokens` holds the token ids of `data`'s splits "train" and "validation". `checkpoints` is the folder for the checkpoints.
    """
    task, config, train = data.task, data.config, tokens["train"]
    trackers.prepare(checkpoints.parent, config)
    steps = math.ceil(config.num_train_epochs * count_steps(len(train), config.batch_size * config.gradient_accumulation_steps))
    shorten = task.shorten(tokenizer, config, SHORT_LENGTH) if config.length_warmup else None
    short = range(1, round(config.length_warmup * steps)) if shorten else range(0)  # the first step shows whether memory suffices
    optimizer = None  # the Trainer's AdamW
    if config.loraplus_lr_ratio != 1:  # arXiv 2402.12354: a larger learning rate for B, and for the head's bias and norms
        rates = dict(lr=config.learning_rate, loraplus_lr_ratio=config.loraplus_lr_ratio, loraplus_weight_decay=config.weight_decay)
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, **rates)
    trainer = FineTuner(
        data,
        model=model,
        args=training_arguments(task, config, checkpoints),
        train_dataset=TrainingRows(train, task.augment(tokenizer, config), shorten, short),
        eval_dataset=tokens["validation"],
        data_collator=partial(task.collate, tokenizer=tokenizer, config=config),
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    for callback in (progress.Training(trainer, chosen_metric(task, config)), trainer.keeper):
        trainer.add_callback(callback)
    if cuda_graphs.apply_to(task, config):
        trainer.add_callback(cuda_graphs.Graphs(trainer))
    if config.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
    return trainer


def training_arguments(task: Task, config: Config, checkpoints: Path) -> trackers.Arguments:
    """Return the Trainer's settings for `config`."""
    metric = chosen_metric(task, config)
    return trackers.Arguments(
        config,
        output_dir=str(checkpoints),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.batch_size,  # for all processes together: `get_train_dataloader` divides it
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=config.eval_strategy,
        save_steps=config.save_steps or config.eval_steps,
        save_total_limit=2,  # the newest and the best (or the one before it), so one is complete while the newest is written
        load_best_model_at_end=True,
        metric_for_best_model=metric.name,
        greater_is_better=metric.better == "higher",
        restore_callback_states_from_checkpoint=True,  # a resumed run needs the counter of early stopping
        logging_steps=0.05,
        disable_tqdm=True,  # progress.py draws the bar
        label_names=[],  # validation computes the task's statistics, not the Trainer's loss
        eval_do_concat_batches=False,  # concatenating after each batch takes time quadratic in the number of rows
        seed=config.seed,
        report_to=config.report_to.split(","),
        run_name=trackers.run_name(checkpoints.parent),
        ddp_find_unused_parameters=False,
        **machine_arguments(config),
    )


class FineTuner(Trainer):
    """The Trainer with the steps of batches.py and the task's loss and metrics.

    It does not use the Trainer's own sampler: when a run is resumed, that sampler's random generator is in another state.
    """

    def __init__(self, data: Data, **arguments) -> None:
        """`arguments` are the Trainer's."""
        super().__init__(**arguments)
        self.data, self.task, self.config, self.keeper = data, data.task, data.config, Keeper()
        self.loss_of = self.task.loss_function(data.train.labels, len(data.label_names), self.config)
        self.label_scale = self.task.label_scale(data.train.labels)
        tokens = self.train_dataset.tokens
        column = next((name for name in ("targets", "labels") if name in tokens.inputs.column_names), None)
        self.target_count = tokens.count_targets(column) if column else None  # None: the loss counts the labels of rows
        # The summed loss of a forward pass, divided by `_get_num_items_in_batch`: so the parts of a step add up, even if passes or
        # processes have different numbers of rows.
        self.compute_loss_func = lambda outputs, labels, num_items_in_batch: (
            self.loss_of(outputs.logits, labels) / num_items_in_batch
        )
        self.rows_per_step = self.config.batch_size * self.config.gradient_accumulation_steps
        self.lengths = np.minimum(self.train_dataset.tokens.lengths, self.config.max_length)  # (examples,) tokens that are read
        self.by_length = self.config.padding == "longest"  # whether the rows of a step have similar lengths
        self.validated = {}  # step -> predictions on the validation rows: of the best checkpoint and of the last validation

    # --- the end of a step: numbers that are not finite, memory --------------------------------------------------------------

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | None, *arguments, **named) -> None:
        """Do what follows each step. Raise `NotFinite` instead of saving weights that have become NaN.

        On a GPU, check only in steps that wait for the GPU anyway.
        """
        waits = self.control.should_log or self.control.should_evaluate or self.control.should_save
        if waits or self.args.device.type == "cpu":
            self._require_finite(tr_loss, *(() if grad_norm is None else (grad_norm,)))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *arguments, **named)
        if self.config.speedups and self.state.global_step % STEPS_BETWEEN_TRIMS == 0:
            give_back_freed_memory()  # otherwise the process grows: steps of different sizes fragment its memory

    def _require_finite(self, *tensors: torch.Tensor) -> None:
        if all(tensor.isfinite().all() for tensor in tensors):
            return
        step = self.state.global_step
        remedy = f"lower learning_rate ({self.args.learning_rate:g}) or lora_alpha, or set precision to float32"
        if step <= 1:  # the learning rate has had no effect yet
            remedy = "set precision to float32, lower lora_alpha, or take another base model"
        raise NotFinite(
            f"the loss or a weight is NaN or infinite at step {step:,}: {remedy}. Checkpoints before it stay in {self.args.output_dir}"
        )

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Raise `UserError` if it is gone, damaged or not finite."""
        check_best(self.args, self.state.best_global_step)
        super()._load_best_model()
        self._require_finite(*(parameter for parameter in self.model.parameters() if parameter.requires_grad))

    # --- steps -----------------------------------------------------------------------------------------------------------

    def _prepare_input(self, data):
        """Copy a batch to the GPU. Do not wait until the GPU has finished earlier work."""
        if isinstance(data, torch.Tensor) and self.args.device.type == "cuda":
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Return the number by which the loss of a step is divided: the number of its labels, or the mean over all steps.

        The mean is for tasks with a label for each token. A step has rows of similar length, so a step with short rows has few
        tokens. If it were divided by their number, its tokens would weigh more than those of other steps.

        With one process the result stays on the CPU, because a copy to the GPU waits until its earlier work is done.
        """
        device = device if self.args.world_size > 1 else torch.device("cpu")
        if self.target_count is not None:
            return torch.tensor(self.target_count / count_steps(len(self.train_dataset), self.rows_per_step), device=device)
        n_labels = torch.tensor(sum(batch["labels"].numel() for batch in batch_samples), device=device)
        return self.accelerator.reduce(n_labels)  # the sum over all processes

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        batches = Batches(
            self.lengths,
            size=self.rows_per_step,
            seed=args.seed,
            by_length=self.by_length,
            shuffle_steps=self.task.predicts_tokens,
            passes=args.gradient_accumulation_steps,
            processes=args.world_size,
            process=args.process_index,
            epoch=lambda: self.state.global_step // (len(batches) // args.gradient_accumulation_steps),
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory,
            num_workers=args.dataloader_num_workers,
        )

    def work_of_steps(self) -> np.ndarray:
        """Return the work of each step of the run, (steps,). The time of a step is roughly proportional to its work.

        The steps of the first epoch stand for those of all epochs.
        """
        lengths, max_length = self.lengths, self.config.max_length
        steps = steps_of_epoch(lengths, self.rows_per_step, self.args.seed, 0, self.by_length, self.task.predicts_tokens)
        padded_lengths = [lengths[rows].max() if self.by_length else max_length for rows in steps]
        row_counts = np.array([len(rows) for rows in steps])
        full, short = (row_counts * progress.work(np.minimum(padded_lengths, limit)) for limit in (max_length, SHORT_LENGTH))
        all_steps = np.arange(math.ceil(self.args.num_train_epochs) * len(steps))
        return np.where(np.isin(all_steps, self.train_dataset.short), short[all_steps % len(steps)], full[all_steps % len(steps)])

    # --- validation ------------------------------------------------------------------------------------------------------

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Return the task's metrics on the validation rows. Their names have the Trainer's prefix `eval_`."""
        started = time.perf_counter()
        predictor = Predictor(self.task, self.model, self.processing_class, self.config, trainer=self)
        predictions = self.task.validate(predictor, self.eval_dataset)
        best = self.state.best_global_step
        self.validated = {step: kept for step, kept in self.validated.items() if step == best} | {
            self.state.global_step: predictions
        }
        statistics = self.task.statistics(predictions, self.data.validation, self.label_scale)
        metrics = {f"eval_{metric.name}": metric.of(statistics) for metric in self.task.metrics if metric.in_validation}
        self._require_finite(torch.tensor(metrics["eval_loss"]))
        metrics["eval_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train(trainer: FineTuner) -> float:
    """Train, and load the best checkpoint's weights into the model. An interrupted run continues from its last checkpoint.

    After a signal, save a checkpoint and raise `Stopped`. Return the seconds of training, including those before an interruption.
    """
    if checkpoint := last_usable(Path(trainer.args.output_dir)):
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:  # training had ended before the interruption
            trainer.state = state
            trainer.keeper.on_train_begin(trainer.args, state, trainer.control)
            trainer._load_best_model()
            return trainer.keeper.seconds_before
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except pickle.UnpicklingError as error:
        raise UserError(f"{checkpoint} has a file with code, which is never run: delete this checkpoint, or train again") from error
    return trainer.keeper.seconds()


def best_validation(trainer: FineTuner) -> dict[str, float]:
    """Return the validation metrics of the best checkpoint, and its `step`."""
    step = trainer.state.best_global_step
    log = [entry for entry in trainer.state.log_history if entry["step"] == step and "eval_loss" in entry][-1]
    return {"step": step} | {metric.name: log[f"eval_{metric.name}"] for metric in trainer.task.metrics if metric.in_validation}
