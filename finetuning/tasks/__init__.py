"""What a model learns to do with a text: one file a task, all of the same shape, so that two can be read side by side.

A task's file answers, in this order:

rows         NAME, PIPELINE    its name in config.py, and on the Hub
             READERS           endings of files that it reads in a way of its own, as in sources.py
             INPUTS            the types of what a column that the model reads may hold
             EMPTY             what is answered to an empty text (not every task)
             find_inputs       the columns with what the model reads: the task's name for one -> the data set's
             find_columns      those and the labels'
             settle            settings that were left open and that the data decide
             read_rows         rows as the task has them; what is held of each in memory, as arrays; the labels' names; and
                               what there is to say of them, in words
             strata            whose shares are kept when rows are held out or sampled
             labelled          which rows have a label, of tasks with one label a row (not every task)
             contents          of each row a text that must not be empty, equal where two rows are, and what else it says
tokens       features          what lies on disk of a row: `input_ids`, `length` in tokens before any cut, and more
             tokenize          rows -> features; without labels where the columns have none
             TOKENIZER         what its tokenizer is loaded with
model        MODEL, PEFT_TYPE  its class in transformers, its type in peft
             model_settings    fields of the model's config
             adapt             what is done to a loaded model, so that it answers with what is predicted (not every task)
             collator          rows -> a batch
             MIXED             whether steps of short and of long rows come in any order, or as transformers has them
             change            a function of (features, epoch, row) that changes a row each time it is trained on, or None
             shorten           a function that cuts the features of a row to so many tokens, or None (not every task)
             loss              training labels -> a function that sums the losses
             FORMATS           exports that can be compared with it
             EXPORTS           those of them that it writes by itself (not every task): (folder of the merged model, folder to write,
                               tokenizer) -> what predicts in the model's place
             left_over         weights of the base model's file to keep in an export beside its own (not every task)
predictions  METRICS           on validation: the first picks the checkpoint, the last is the loss
             predict           one prediction for each row, in their order
             validation_metrics  of the Trainer's evaluation, in the order of the tokens
             validate          those of METRICS that need the model itself (not every task)
             calibrate         what is fitted on validation
             decide            predictions -> what is compared with the labels (not every task has them)
             interval          of the first of METRICS as it is validated, 95 %
             measure           the figures of metrics.json
evaluate.py  samples           what the model says of some rows of the test (not every task)
             write             its files and pictures; what stands on the page
             headline, remark, show_metrics  the figures in words: on the page, on the model card, in the terminal
             COMPARED, compare, show_comparison  of predictions.parquet, the first two what was asked; two runs on the same rows
predict.py   OPTIONS           flags of predict.py that it knows, with their defaults
             answer            columns for new texts
             as_json, as_line  a row of them in words
             code              Python that answers as predict.py does with a `model` and a `tokenizer`, loaded by the given
                               lines, of plain transformers
             pipeline          arguments of transformers' pipeline for an export, and what it does otherwise, in words
             explain, show_words  the words that decided (not every task knows them)
app.py       EXAMPLES, demo_outputs, demo  texts to try, what is shown, what it shows

`task_of` finds it; what calls it is what all tasks share: data.py, tokenizing.py, model.py, training.py, evaluation.py,
labelling.py, exporting.py and the scripts.
"""

import importlib
from types import ModuleType

from config import Config

FILES = {  # by the config's task, or its problem_type
    "text-classification": "text_classification",
    "token-classification": "token_classification",
    "causal-lm": "causal_lm",
    "masked-lm": "masked_lm",
    "translation": "translation",
    "multi_label_classification": "multi_label",
}


def task_of(config: Config) -> ModuleType:
    """The task's file; read when it is asked for, as it builds on the files that ask."""
    return importlib.import_module(f"finetuning.tasks.{FILES.get(config.problem_type) or FILES[config.task]}")
