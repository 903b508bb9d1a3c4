"""Prediction through the Trainer: texts of like length together, each process a part."""

import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from config import Config
from finetuning.data.tokens import Tokens
from finetuning.speed.memory import give_back_freed_memory
from finetuning.speed.precision import machine_arguments
from finetuning.task import Task
from finetuning.training import progress

BATCHES = 32  # predicted at a time; of each the Trainer keeps a small tensor, which is in the way of larger ones


class Predictor:
    """A model with all that prediction needs; passed to `Task.predict` and `Task.answers`."""

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        show_progress: bool = True,
        trainer: Trainer | None = None,
    ) -> None:
        """`trainer`: the one that trains the model, when it validates; not given: a new one."""
        self.task, self.model, self.tokenizer, self.config = task, model, tokenizer, config
        self.show_progress, self.trainer = show_progress, trainer
        self.options: dict = {}  # flags of predict.py that the task knows

    def outputs(self, tokens: Tokens) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield positions of examples, and the model's outputs for them: an array for each batch, (examples, ...), in their order.

        Each process of a run computes a part and gets all.
        """
        order, unlabelled = by_length(tokens), tokens.unlabelled()
        trainer = self.trainer or self._new_trainer(np.minimum(tokens.lengths[order], self.config.max_length))
        piece = BATCHES * trainer.args.per_device_eval_batch_size * trainer.args.world_size
        for start in range(0, len(order), piece):
            positions = order[start : start + piece]
            loader = trainer.get_test_dataloader(Subset(unlabelled, positions))
            yield positions, trainer.evaluation_loop(loader, description="", prediction_loss_only=False).predictions
            if self.config.speedups:
                give_back_freed_memory()

    def _new_trainer(self, lengths: np.ndarray) -> Trainer:
        arguments = TrainingArguments(
            tempfile.gettempdir(),  # the Trainer makes its folder, though nothing is written
            eval_do_concat_batches=False,  # concatenating after each batch is quadratic in the rows
            disable_tqdm=True,
            label_names=[],
            report_to="none",
            **machine_arguments(self.config),
        )
        collate = partial(self.task.collate, tokenizer=self.tokenizer, config=self.config)
        trainer = Trainer(model=self.model, args=arguments, data_collator=collate, processing_class=self.tokenizer)
        trainer.add_callback(progress.Prediction(progress.RowBar(lengths, self.show_progress)))
        return trainer


def by_length(tokens: Tokens) -> np.ndarray:
    """Return positions, the longest example first: little padding, and the same batches for any number of processes."""
    return np.argsort(-tokens.lengths.astype(np.int64), kind="stable")
