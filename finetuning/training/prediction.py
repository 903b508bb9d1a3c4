"""Prediction through the Trainer: texts of similar length share a batch, and each process predicts a part."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from finetuning.training.progress import RowBar

BATCHES_AT_A_TIME = 32  # The Trainer keeps a small tensor of each batch. Many of them fragment the memory that larger tensors need.
# What a model may return besides the logits, such as the states of the encoder in BART and T5. The Trainer would collect them too.
OTHER_OUTPUTS = ["loss", "past_key_values", "hidden_states", "attentions", "encoder_last_hidden_state", "encoder_hidden_states"]
OTHER_OUTPUTS += ["encoder_attentions", "decoder_hidden_states", "decoder_attentions", "cross_attentions"]


@dataclass(eq=False)
class Predictor:
    """A model with its task, tokenizer and settings, as `Task.predict` needs it."""

    task: Task
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: Config
    show_progress: bool = False
    trainer: Trainer | None = None  # the one that trains the model, for validation during training; None: a new one is made
    # Only `Task.answers` needs these.
    label_names: list[str] = field(default_factory=list)
    calibration: dict = field(default_factory=dict)  # of the run
    options: dict = field(default_factory=dict)  # the flags of predict.py that the task knows

    def outputs(self, tokens: Tokens) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield (positions of examples, the model's outputs for them). The outputs are an array for each batch, (examples, ...).

        Each process computes a part of the outputs and gets all of them.
        """
        order, unlabelled = longest_first(tokens.lengths), tokens.unlabelled()
        trainer = self.trainer or self._new_trainer(np.minimum(tokens.lengths[order], self.config.max_length))
        examples_at_a_time = BATCHES_AT_A_TIME * trainer.args.per_device_eval_batch_size * trainer.args.world_size
        for start in range(0, len(order), examples_at_a_time):
            positions = order[start : start + examples_at_a_time]
            loader = trainer.get_test_dataloader(Subset(unlabelled, positions))
            result = trainer.evaluation_loop(loader, description="", prediction_loss_only=False, ignore_keys=OTHER_OUTPUTS)
            yield positions, result.predictions
            if self.config.speedups:
                give_back_freed_memory()

    def array(self, tokens: Tokens) -> np.ndarray:
        """Return the model's outputs in the order of the examples, (examples, outputs), float32."""
        result = None
        for positions, batches in self.outputs(tokens):
            outputs = np.concatenate(batches)
            result = np.empty((len(tokens), outputs.shape[1]), dtype=np.float32) if result is None else result
            result[positions] = outputs
        return result

    def _new_trainer(self, lengths: np.ndarray) -> Trainer:
        arguments = TrainingArguments(
            tempfile.gettempdir(),  # the Trainer creates this folder, but writes nothing into it
            eval_do_concat_batches=False,  # the time to concatenate after each batch is quadratic in the number of rows
            disable_tqdm=True,
            label_names=[],
            report_to="none",
            **machine_arguments(self.config),
        )
        collate = partial(self.task.collate, tokenizer=self.tokenizer, config=self.config)
        trainer = Trainer(model=self.model, args=arguments, data_collator=collate, processing_class=self.tokenizer)
        trainer.add_callback(RowBar(lengths, self.show_progress))
        return trainer


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Return the positions of `lengths` in falling order: little padding, and the same batches for any number of processes."""
    return np.argsort(-lengths.astype(np.int64), kind="stable")
