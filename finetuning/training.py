"""Train with, and predict through, the Hugging Face Trainer."""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader, Subset
from transformers import DataCollator, EarlyStoppingCallback, EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState

from config import Config
from finetuning import graphs, progress, trackers
from finetuning.batches import SHORT, Batches, TrainingRows, count_steps, short_steps, steps_of_epoch
from finetuning.checkpoints import Keeper, last_whole
from finetuning.data import Data
from finetuning.fast import give_back_freed_memory, loading_processes, on_cpu, pick_precision, rows_to_predict, uses_autocast
from finetuning.tasks import task_of
from finetuning.tokenizing import Tokens

GIVEN_BACK = 50  # steps between two times that kept memory goes back to the system
BATCHES = 32  # predicted at a time; of each the Trainer keeps a small tensor, which is in the way of larger ones


def _machine(config: Config) -> dict:
    """The TrainingArguments that depend on the machine, and what training and prediction have in common."""
    return dict(
        bf16=uses_autocast(config) and pick_precision(config.precision)[0] == "bf16",
        use_cpu=on_cpu(),
        per_device_eval_batch_size=rows_to_predict(config),
        dataloader_pin_memory=not on_cpu(),
        dataloader_num_workers=loading_processes(),
        logging_nan_inf_filter=False,  # it asks each step's loss of the GPU, and hides one that is not a number
        log_on_each_node=False,
        remove_unused_columns=False,
    )


def greater_is_better(metric: str) -> bool:
    return metric not in ("loss", "perplexity")


class _GiveBack(TrainerCallback):
    """Freed memory that is kept from step to step fills with holes where steps differ in size, and grows (fast.py)."""

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step % GIVEN_BACK == 0:
            give_back_freed_memory()


class _Trainer(Trainer):
    """The Trainer on the steps of batches.py. Its own sampler draws from a generator that a resumed run finds in another state.

    What the steps are goes by `args`, which a search sets anew for each trial.
    """

    keeper: Keeper
    by_length: bool
    mixed: bool
    max_length: int
    length_warmup: float

    @property
    def rows_of_step(self) -> int:
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps

    def short_steps(self) -> range:
        steps = count_steps(len(self.train_dataset), self.rows_of_step)
        return short_steps(math.ceil(self.args.num_train_epochs) * steps, self.length_warmup)

    def _prepare_input(self, data):
        """On to the GPU, without waiting until it has done what it was given before."""
        if isinstance(data, torch.Tensor) and self.args.device.type == "cuda":
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Left on the CPU, where it is counted, by one process: on its way to the GPU it would wait likewise."""
        return super()._get_num_items_in_batch(batch_samples, device if self.args.world_size > 1 else torch.device("cpu"))

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        batches = Batches(
            np.minimum(self.train_dataset.tokens.lengths, self.max_length),
            size=self.rows_of_step,
            seed=args.seed,
            by_length=self.by_length,
            mixed=self.mixed,
            passes=args.gradient_accumulation_steps,
            processes=args.world_size,
            process=args.process_index,
            epoch=lambda: self.state.global_step // (len(batches) // args.gradient_accumulation_steps),
        )
        return DataLoader(
            replace(self.train_dataset, short=self.short_steps()),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory,
            num_workers=args.dataloader_num_workers,
        )

    def work_of_steps(self) -> np.ndarray:
        """(steps of the run,) what the time of each goes by."""
        lengths = np.minimum(self.train_dataset.tokens.lengths, self.max_length)
        steps = steps_of_epoch(lengths, self.rows_of_step, self.args.seed, 0, self.by_length, self.mixed)
        longest = [lengths[rows].max() if self.by_length else self.max_length for rows in steps]
        whole, short = (
            np.array([len(rows) for rows in steps]) * progress.work(np.minimum(longest, most)) for most in (self.max_length, SHORT)
        )
        number = np.arange(math.ceil(self.args.num_train_epochs) * len(steps))
        return np.where(np.isin(number, self.short_steps()), short[number % len(steps)], whole[number % len(steps)])


def build_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Tokens,
    validation: Tokens,
    data: Data,
    config: Config,
    checkpoints: Path,
) -> Trainer:
    """A Trainer that keeps the best checkpoint by validation and stops early; `checkpoints` is its folder.

    `train` and `validation` are the tokens of those splits of `data`.
    """
    task = task_of(config)
    chosen_by = config.metric_for_best_model or task.METRICS[0]
    trackers.prepare(checkpoints.parent, config)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.batch_size,  # of all processes together, by `_Trainer`
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=config.eval_strategy,
        save_steps=config.save_steps or config.eval_steps,
        save_total_limit=2,  # and the best: the one before is whole while the next is written
        load_best_model_at_end=True,
        metric_for_best_model=chosen_by,
        greater_is_better=greater_is_better(chosen_by),
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        logging_steps=0.05,
        disable_tqdm=True,  # progress.py has its own
        seed=config.seed,
        report_to=config.report_to.split(","),
        run_name=checkpoints.parent.name,
        ddp_find_unused_parameters=False,
        **_machine(config),
    )

    loss = task.loss(data.train.labels, len(data.label_names), config)

    def loss_of_step(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """This forward pass's share of the mean over the step's rows: passes and processes may hold unequal numbers of them."""
        return loss(outputs.logits, labels) / num_items_in_batch

    order = _by_length(validation)
    back = np.argsort(order)

    def metrics_of(found: EvalPrediction) -> dict[str, float]:
        found = EvalPrediction(found.predictions[back], found.label_ids[back])
        more = task.validate(model, tokenizer, validation, data.validation, config) if hasattr(task, "validate") else {}
        return task.validation_metrics(found, validation, data.label_names) | more

    optimizer = None  # the Trainer's AdamW
    if config.loraplus_lr_ratio != 1:
        ratio, decay = config.loraplus_lr_ratio, config.weight_decay
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=config.learning_rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay
        )
    shorten = task.shorten(tokenizer, config, SHORT) if hasattr(task, "shorten") else None
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=TrainingRows(train, task.change(tokenizer, config), shorten),
        eval_dataset=Subset(validation, order),
        data_collator=task.collator(tokenizer, config),
        processing_class=tokenizer,
        compute_loss_func=loss_of_step,
        compute_metrics=metrics_of,
        optimizers=(optimizer, None),
    )
    trainer.keeper, trainer.by_length, trainer.max_length = Keeper(), config.padding == "longest", config.max_length
    trainer.mixed, trainer.length_warmup = task.MIXED, config.length_warmup if shorten else 0.0
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_GiveBack())
    trainer.add_callback(
        progress.Training(trainer.work_of_steps, progress.work(np.minimum(validation.lengths, config.max_length)).sum(), chosen_by)
    )
    trainer.add_callback(trackers.Settings(checkpoints.parent, config, lambda: trainer.callback_handler.callbacks))
    trainer.add_callback(trainer.keeper)
    if graphs.apply_to(config):
        trainer.add_callback(graphs.Graphs(trainer))
    if config.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
    return trainer


def train(trainer: Trainer) -> float:
    """Train, on from the last checkpoint where there is one, until the model holds the best checkpoint's weights.

    Returns the seconds of training, those before an interruption included.
    """
    if checkpoint := last_whole(Path(trainer.args.output_dir)):
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:  # only the end was missing
            trainer.state = state
            trainer.keeper.on_train_begin(trainer.args, state, trainer.control)
            trainer._load_best_model()
            return trainer.keeper.seconds_before
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.keeper.seconds()


def _by_length(tokens: Tokens) -> np.ndarray:
    """Row numbers, longest first: batches of like length, so that little is padding, and the same in any number of processes."""
    return np.argsort(-tokens.lengths.astype(np.int64), kind="stable")


def best_validation(trainer: Trainer, config: Config) -> dict:
    """The validation metrics of the checkpoint that was kept, and its step."""
    best_step = trainer.state.best_global_step
    (metrics,) = [log for log in trainer.state.log_history if log["step"] == best_step and "eval_loss" in log][-1:]
    return {"step": best_step} | {name: metrics[f"eval_{name}"] for name in task_of(config).METRICS}


def predict(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    collator: DataCollator,
    tokens: Tokens,
    config: Config,
    show_progress: bool = True,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Some rows, those of like length together, and what the model gives for them, a batch an array, until all were there.

    Each process of a run computes a share and gets all.
    """
    arguments = TrainingArguments(
        tempfile.gettempdir(),  # the Trainer makes its folder, though nothing is written
        eval_do_concat_batches=False,  # after each batch anew: quadratic in the rows
        disable_tqdm=True,
        label_names=[],
        report_to="none",
        **_machine(config),
    )
    trainer = Trainer(model=model, args=arguments, data_collator=collator, processing_class=tokenizer)
    trainer.add_callback(progress.Prediction(len(tokens), show_progress))
    order, unlabelled = _by_length(tokens), tokens.unlabelled()
    piece = BATCHES * arguments.per_device_eval_batch_size * arguments.world_size
    for start in range(0, len(order), piece):
        rows = order[start : start + piece]
        yield rows, trainer.predict(Subset(unlabelled, rows)).predictions
        give_back_freed_memory()
