"""Answers to prompts, and conversations: a decoder learns to write the messages of the assistant."""

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute
import torch
from datasets import Dataset, Features, List, Value
from peft import TaskType
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, set_seed

from config import Config
from finetuning.data import chats
from finetuning.data.cache import read_column
from finetuning.data.chat_tokens import encode, end_tokens, prompt_ids, render
from finetuning.data.content import as_rows
from finetuning.data.splits import Split
from finetuning.data.text import TEXT_COLUMNS, find_column
from finetuning.data.tokens import Tokens
from finetuning.errors import BadRow, UserError, shorten
from finetuning.model.generation import longest_prompt, stream_text
from finetuning.results import answers as written
from finetuning.results import bleu
from finetuning.results.report import MAX_EXAMPLES, MAX_LINE_CHARACTERS, Example, Section, lines_of_rows
from finetuning.speed.precision import autocast
from finetuning.task import Converses, Evaluation, Rows, Statistics
from finetuning.tasks.language_model import PERPLEXITY, TokenTask
from finetuning.training.prediction import Predictor
from finetuning.training.writing import write_answers

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
MAX_CONVERSATION_CHARACTERS = 1_200  # of the conversation that is printed before training


@dataclass(frozen=True)
class Written:
    """Predictions in the order of the rows. Iteration yields the rows of `scores`, which compare an export with the run's model."""

    scores: np.ndarray  # (rows, 2): mean log-likelihood of the trained tokens, and their number
    prompts: np.ndarray  # (rows,): the number of each row's prompt; equal prompts have equal numbers
    answers: list[str] | None = None  # to each prompt; None if none were written

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.scores)


class Chat(TokenTask, Converses):
    """Answers to prompts, and conversations. The loss counts the tokens of the answers. Predictions are `Written`.

    A prompt that occurs in several rows has several references. It is answered once.
    """

    name = "causal-lm"
    pipeline_tag = "text-generation"
    auto_class = AutoModelForCausalLM
    peft_type = TaskType.CAUSAL_LM
    metrics = (*PERPLEXITY, *written.METRICS)
    settings = ("prompt_column", "completion_column", "completion_only_loss", "max_new_tokens", "text_column", "label_column")
    token_settings = ("max_length", "completion_only_loss")
    prediction_column = "answer"
    empty_text = "an empty prompt or answer"
    # the run's own max_new_tokens replaces this one
    options = dict(max_new_tokens=Config.max_new_tokens, temperature=0.0, top_p=1.0, seed=0)
    answer_features = Features({"answer": Value("string")})
    examples = ("Who are you?", "Explain in one sentence what LoRA is.")
    code_template = "chat.py.jinja"

    def fits(self, config: Config) -> bool:
        return super().fits(config) and config.prompt_column is not None

    def check(self, config: Config, given: Collection[str] = ()) -> None:
        super().check(config, given)
        for name in ("text_column", "label_column"):
            if getattr(config, name):
                raise UserError(
                    f"{name}={getattr(config, name)} is not for prompts and answers: leave it out, or leave out prompt_column"
                )
        if config.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={config.max_new_tokens} is out of range: it must be at least 1")

    def check_positions(self, positions: int, config: Config) -> None:
        if config.max_new_tokens >= positions:
            raise UserError(
                f"max_new_tokens={config.max_new_tokens} leaves no room for a prompt in the {positions} positions of the model: lower it"
            )

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        """Return the column of prompts or conversations. New rows may have it under another usual name, and lack the answers."""
        usual = (config.prompt_column, *chats.CONVERSATION_COLUMNS, "prompt", "instruction", *TEXT_COLUMNS)
        return chats.with_more({"prompt": find_column("text_column", text_column, usual, available)}, available)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        return chats.find_chat_columns(available, config)

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        """Return the rows as they are; the later steps read conversations from them."""
        names = {column: name for name, column in columns.items()}
        rows = {split: part.select_columns([*names]).rename_columns(names) for split, part in raw.items()}
        if getattr(raw["train"].features.get("label"), "dtype", None) == "bool":
            raise UserError(
                "the column label holds truth values, as if it said which answers are good, but all answers are learned: keep only the "
                "rows with good answers, and remove the column"
            )
        remarks = [f"prompts and answers are read from {', '.join(columns.values())}"]
        if unread := chats.unread_columns(columns, raw["train"].column_names):
            remarks[0] += f", but not from {', '.join(unread)}: if the model needs these, put them into the prompts"
        first_prompt = rows["train"][0]["prompt"]
        if "completion" not in columns and isinstance(first_prompt, str) and not chats.conversation_of_text(first_prompt):
            raise UserError(
                f"prompt_column={columns['prompt']} holds texts, and no column has a usual name for answers "
                f"({', '.join(chats.ANSWER_COLUMNS)}): set completion_column to the column with the answers"
            )
        return Rows(rows, {split: np.zeros(len(part), np.int64) for split, part in rows.items()}, remarks=remarks)

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        """Return the prompts, "" where the prompt or its answer is empty, and the answers. Equal prompts thus stay in one split."""
        prompts, answers = [], []
        for row in as_rows(batch):
            messages, answer = [], ""
            with contextlib.suppress(ValueError):  # `problems` tells why
                messages, answer = chats.split_last_answer(chats.conversation(row))
            prompts.append(chats.as_text(messages) if answer else "")
            answers.append(answer)
        return prompts, answers

    def groups(self, hashes: np.ndarray) -> np.ndarray:
        """Return a group for each prompt, so that all its references stay together."""
        return hashes.view(np.int64)

    def problems(self, batch: dict[str, list], texts: list[str]) -> list[str]:
        reasons = [_problem(row) or _no_conversation(row) for row in as_rows(batch)]
        empty = super().problems(batch, texts)
        return [f"can't be used: {reason}" if reason else other for reason, other in zip(reasons, empty, strict=True)]

    def readable(self, batch: dict[str, list]) -> dict[str, list[str]]:
        return {"prompt": self.contents(batch, np.zeros(len(batch["prompt"])))[0]}

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        ids = {name: List(Value("int32")) for name in ("input_ids", "targets", "prompt")}
        numbers = {"whole_prompt": Value("uint32"), "length": Value("int32"), "skipped": Value("int32")}
        return Features(ids | numbers | {"answer_cut": Value("bool")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        examples = []
        for position, row in enumerate(as_rows(batch)):
            try:
                examples.append(encode(chats.conversation(row), tokenizer, config))
            except UserError as error:
                raise BadRow(str(error), position) from error
        return {name: [example[name] for example in examples] for name in examples[0]}

    def first_example(self, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the first example with brackets around the tokens that the loss counts, and how many of these train has."""
        example, text = tokens.inputs[0], ""
        pairs = zip(example["input_ids"], [-100, *example["targets"][:-1]], strict=True)
        for is_trained, group in groupby(pairs, key=lambda pair: pair[1] >= 0):
            part = tokenizer.decode([token for token, _ in group])
            text += f"[[{part}]]" if is_trained else part
        text = f"...{text[-MAX_CONVERSATION_CHARACTERS:]}" if len(text) > MAX_CONVERSATION_CHARACTERS else text
        n_tokens, n_trained = tokens.count_targets("input_ids"), tokens.count_targets("targets")
        cut, skipped = (pyarrow.compute.sum(read_column(tokens.inputs, name)).as_py() for name in ("answer_cut", "skipped"))
        lines = [f"reads  {text.strip()}".replace("\n", "\n       ")]
        lines.append(f"       the loss counts the tokens in [[ ]]: {n_trained:,} of {n_tokens:,} ({n_trained / n_tokens:.1%})")
        if skipped:
            lines.append(
                f"       it leaves out {skipped:,} earlier answers, because the chat template renders them in another form"
            )
        if "strftime_now" in (tokenizer.chat_template or ""):
            lines.append("       the chat template writes the date of the day: on other days the model reads another one")
        return lines + ([f"cut    the end of the answer in {cut:,} of {len(tokens):,} rows, by max_length"] if cut else [])

    def truncation_note(self, config: Config) -> str:
        return "the oldest turns are left out first, then the beginning of the prompt is cut, then the end of the answer"

    def prepare_export(self, merged: torch.nn.Module, source_path: str, calibration: dict) -> None:
        """Make `generate` of the merged model end an answer where the run's model does."""
        settings = merged.generation_config
        settings.eos_token_id = calibration["ends"]
        if not settings.do_sample:  # transformers saves no changed file with settings of sampling that have no effect
            for name in SAMPLING:
                setattr(settings, name, None)

    # --- predictions -----------------------------------------------------------------------------------------------------

    def predict(self, predictor: Predictor, tokens: Tokens) -> Written:
        """Return the scores of the references, and the greedy answer to each prompt."""
        numbers, prompts = number_prompts(tokens)
        return Written(self.scores(predictor, tokens), numbers, self._write(predictor, prompts, self._options(predictor)))

    def validate(self, predictor: Predictor, tokens: Tokens) -> Written:
        """Return predictions without answers, which take long to write."""
        return Written(self.scores(predictor, tokens), number_prompts(tokens)[0])

    @staticmethod
    def _write(predictor: Predictor, prompts: list[list[int]], options: dict) -> list[str]:
        """Return the answers to prompts, given as token ids. The model reads only the end of a prompt that is too long."""
        limit = longest_prompt(predictor.model, options)
        return write_answers(predictor, [prompt[-limit:] for prompt in prompts], end_tokens(predictor.tokenizer), options)

    def calibrate(self, predictor: Predictor, predictions: Written, validation: Split) -> dict:
        """Return the tokens that end an answer, and whether the tokenizer has a chat template, for exports and model cards."""
        return {"ends": end_tokens(predictor.tokenizer), "has_template": bool(predictor.tokenizer.chat_template)}

    def decide(self, predictions: Written, calibration: dict) -> list[str]:
        return [predictions.answers[prompt] for prompt in predictions.prompts]

    def statistics(self, predictions: Written, split: Split, calibration: dict) -> Statistics:
        """Return the loss and number of the tokens of each row. The first row of each prompt also has the answer's statistics."""
        means, counts = predictions.scores.T
        result = {"rows": np.ones(len(means)), "loss": -means * counts, "tokens": counts}
        _, first_rows = np.unique(predictions.prompts, return_index=True)
        if predictions.answers is not None:
            for name, values in written.statistics(predictions.answers, _references(predictions, split)).items():
                result[name] = np.zeros((len(means), *values.shape[1:]))
                result[name][first_rows] = values
        return result

    # --- results ---------------------------------------------------------------------------------------------------------

    def details(self, evaluation: Evaluation) -> dict:
        """Return the numbers of tokens and prompts, and sacreBLEU's signatures."""
        references = _references(evaluation.predictions, evaluation.split)
        counts = {len(texts) for texts in references}
        n_references = str(*counts) if len(counts) == 1 else "var"
        signatures = {name: text.replace("nrefs:1", f"nrefs:{n_references}") for name, text in bleu.signatures().items()}
        numbers = {"tokens": int(evaluation.statistics["tokens"].sum()), "prompts": len(references), "max_references": max(counts)}
        return numbers | {name: signatures[name] for name in ("bleu_signature", "chrf_signature")}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the reference of each row, the answer to its prompt, the answer's `chrf`, and the reference's `loss`."""
        predictions, references = evaluation.predictions, self.contents(evaluation.split.columns(), np.empty(0))[1]
        chrf = bleu.sentence_chrf(predictions.answers, _references(predictions, evaluation.split))
        columns = {"reference": references, "answer": self.decide(predictions, {})}
        return columns | {"chrf": [chrf[prompt] for prompt in predictions.prompts], "loss": -predictions.scores[:, 0]}

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return the first row of each prompt, those with the lowest chrF first."""
        _, first_rows = np.unique(evaluation.predictions.prompts, return_index=True)
        order = np.argsort(np.array(evaluation.columns["chrf"])[first_rows], kind="stable")
        return first_rows[order], lines_of_rows(self, evaluation)

    def report(self, evaluation: Evaluation) -> list[Section]:
        order, lines_of = self.errors(evaluation)
        references = _references(evaluation.predictions, evaluation.split)

        def examples_of(positions: np.ndarray) -> tuple:
            prompts = evaluation.predictions.prompts[positions]
            lines = zip(lines_of(positions).itertuples(), prompts, strict=True)
            return (("", [_as_example(line, references[prompt]) for line, prompt in lines]),)

        sample = np.sort(np.random.default_rng(0).permutation(order)[:MAX_EXAMPLES])
        return [
            Section(text=self.remark(evaluation.metrics)),
            Section("A random sample", "Open a line to see the answer beside the references.", examples=examples_of(sample)),
            Section("The worst answers", "Sorted by chrF. All are in errors.csv.", examples=examples_of(order[:MAX_EXAMPLES])),
        ]

    def remark(self, metrics: dict) -> str:
        config, n = metrics["run"]["config"], metrics["max_references"]
        counted = "the tokens of the answers" if config["completion_only_loss"] else "all tokens"
        return (
            f"Greedy answers of at most {config['max_new_tokens']} tokens to {metrics['prompts']:,} prompts, compared with "
            f"{f'up to {n} references each' if n > 1 else 'one reference each'}. Perplexity is per token of this model and counts "
            f"{counted}. sacreBLEU's signature of BLEU: {metrics['bleu_signature']}."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def refusal(self, inputs: dict) -> str:
        if problem := _problem(inputs):
            return f"can't be answered: {problem}"
        messages = _without_answer(inputs)
        is_answerable = messages and messages[-1]["content"] and messages[-1]["role"] == "user"
        return "" if is_answerable else "can't be answered: it has no message of the user to answer"

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return the `answer` to each prompt or conversation. If a conversation ends with an answer, that one is written again."""
        options, tokenizer, max_length = self._options(predictor), predictor.tokenizer, predictor.config.max_length
        conversations = [*map(_without_answer, as_rows(batch))]
        limit = min(max_length, longest_prompt(predictor.model, options))
        if cut := sum(len(render(messages, tokenizer, answer_follows=True)) > limit for messages in conversations):
            print(f"note: {cut:,} of {len(conversations):,} prompts were cut to {limit:,} tokens", file=sys.stderr)
        prompts = [prompt_ids(messages, tokenizer, max_length) for messages in conversations]
        set_seed(options["seed"])
        return {"answer": self._write(predictor, prompts, options)}

    def stream(self, predictor: Predictor, messages: list[dict[str, str]]) -> Iterator[str]:
        options, tokenizer = self._options(predictor), predictor.tokenizer
        if not tokenizer.chat_template:  # such a model was trained on single prompts
            messages = [message for message in messages if message["role"] == "system"] + messages[-1:]
        messages = [message | {"content": message["content"].strip()} for message in messages]
        prompt = prompt_ids(messages, tokenizer, predictor.config.max_length)
        precision = autocast(predictor.config)
        yield from stream_text(predictor.model.eval(), tokenizer, prompt, end_tokens(tokenizer), options, precision)

    def _options(self, predictor: Predictor) -> dict:
        """Return the options of predict.py."""
        return self.options | dict(max_new_tokens=predictor.config.max_new_tokens) | predictor.options

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return answer["answer"]

    def pipeline(self, config: Config) -> tuple[str, str]:
        greedy = f", do_sample=False, max_new_tokens={config.max_new_tokens}"  # otherwise the pipeline samples
        arguments = f'{greedy}, tokenizer_encode_kwargs={{"enable_thinking": False}}'
        return arguments, "Give it a list of messages, so that it uses the chat template."


def _problem(row: dict) -> str:
    """Return why a row holds no conversation; "" if it holds one or is empty."""
    try:
        chats.conversation(row)
    except ValueError as error:
        return str(error)
    return ""


def _no_conversation(row: dict) -> str:
    """Return why the text of a row without a column of answers holds no conversation; "" if it holds one or is empty."""
    text = row["prompt"]
    if "completion" in row or not isinstance(text, str) or not text.strip() or chats.conversation_of_text(text):
        return ""
    return "its text is no list of messages in JSON, each with role and content, or from and value"


def _without_answer(row: dict) -> list[dict[str, str]]:
    """Return the conversation of a row, without the answer that it may end with."""
    messages = chats.conversation(row)
    return messages[:-1] if messages[-1:] and messages[-1]["role"] == "assistant" else messages


def number_prompts(tokens: Tokens) -> tuple[np.ndarray, list[list[int]]]:
    """Return the number of each row's prompt, (rows,), and the token ids of each prompt."""
    numbers, columns = {}, (read_column(tokens.inputs, name).to_pylist() for name in ("prompt", "whole_prompt"))
    rows = [numbers.setdefault((tuple(ids), whole), len(numbers)) for ids, whole in zip(*columns, strict=True)]
    return np.array(rows), [list(ids) for ids, _ in numbers]


def _references(predictions: Written, split: Split) -> list[list[str]]:
    """Return the references of each prompt."""
    references = [[] for _ in range(predictions.prompts.max() + 1)]
    for prompt, row in zip(predictions.prompts, as_rows(split.columns()), strict=True):
        references[prompt].append(chats.split_last_answer(chats.conversation(row))[1])
    return references


def _as_example(line, references: list[str]) -> Example:
    """Return a line of errors.csv for the report page."""
    sides = (
        ("the prompt", line.prompt),
        ("the model", line.answer),
        ("the reference" + "s" * (len(references) > 1), "\n".join(references)),
    )
    return Example(f"chrF {line.chrf:.0f}, row {line.row}: {shorten(line.prompt, MAX_LINE_CHARACTERS)}", sides=sides)
