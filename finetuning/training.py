"""Train with, and predict through, the Hugging Face Trainer."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainingArguments

from config import Config
from finetuning.fast import on_cpu, pick_precision, uses_autocast
from finetuning.metrics import classification_metrics


def _machine(config: Config) -> dict:
    """The TrainingArguments that depend on the machine."""
    return dict(
        bf16=uses_autocast(config) and pick_precision(config.precision)[0] == "bf16",
        use_cpu=on_cpu(),
        dataloader_pin_memory=not on_cpu(),
    )


def _collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> DataCollatorWithPadding:
    multiple = None if config.padding == "max_length" else 8
    return DataCollatorWithPadding(tokenizer, padding=config.padding, max_length=config.max_length, pad_to_multiple_of=multiple)


def build_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
    label_names: list[str],
    config: Config,
    checkpoints: Path,
) -> Trainer:
    """A Trainer that keeps the best checkpoint by validation and stops early; `checkpoints` is its folder."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(checkpoints.parent / "logs"))  # the checkpoints go in the end
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        label_smoothing_factor=config.label_smoothing_factor,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        train_sampling_strategy="random" if config.padding == "max_length" else "group_by_length",
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=config.eval_strategy,
        save_steps=config.save_steps or config.eval_steps,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=config.metric_for_best_model,
        logging_steps=0.05,
        disable_tqdm=False,
        seed=config.seed,
        report_to=config.report_to.split(","),
        **_machine(config),
    )

    def validation_metrics(prediction) -> dict[str, float]:
        metrics = classification_metrics(prediction.predictions, prediction.label_ids, label_names)
        return {"accuracy": metrics["accuracy"], "f1": metrics["f1"]}

    optimizer = None  # the Trainer's AdamW
    if config.loraplus_lr_ratio != 1:
        ratio, decay = config.loraplus_lr_ratio, config.weight_decay
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=config.learning_rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay
        )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=_collator(tokenizer, config),
        processing_class=tokenizer,
        compute_metrics=validation_metrics,
        optimizers=(optimizer, None),
        callbacks=[EarlyStoppingCallback(config.early_stopping_patience)] if config.early_stopping_patience else [],
    )


def best_validation(trainer: Trainer) -> dict:
    """The validation metrics of the checkpoint that was kept, and its step."""
    best_step = trainer.state.best_global_step
    (metrics,) = [log for log in trainer.state.log_history if log["step"] == best_step and "eval_loss" in log][-1:]
    return {"step": best_step} | {name: metrics[f"eval_{name}"] for name in ("accuracy", "f1", "loss")}


def predict(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, input_ids: list[list[int]], config: Config, show_progress: bool = True
) -> np.ndarray:
    """Logits (n, labels), float32, row for row. Batches hold texts of like length, so that little is padding."""
    order = np.argsort([-len(ids) for ids in input_ids], kind="stable")
    size = config.eval_batch_size
    arguments = TrainingArguments(
        tempfile.gettempdir(),  # the Trainer makes its folder, though nothing is written
        per_device_eval_batch_size=size,
        disable_tqdm=not show_progress,
        report_to="none",
        **_machine(config),
    )
    trainer = Trainer(model=model, args=arguments, data_collator=_collator(tokenizer, config), processing_class=tokenizer)
    by_length = trainer.predict(Dataset.from_dict({"input_ids": [input_ids[i] for i in order]})).predictions
    logits = np.empty_like(by_length, dtype=np.float32)
    logits[order] = by_length
    return logits
