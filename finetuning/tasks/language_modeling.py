"""Language models of texts without labels: they predict the next token (causal-lm) or masked tokens (masked-lm).

A row is a document. It is read in blocks of at most `max_length` tokens, and no block holds tokens of two documents. The model
returns the log-likelihood of the tokens that it has to predict. Perplexity is the exponential of their mean loss.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value
from peft import TaskType
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase

from config import Config
from finetuning.data.blocks import causal_blocks, mask_tokens, masked_blocks, special_ids, start_token, token_ids
from finetuning.data.cache import map_once, read_columns
from finetuning.data.formats import read_documents
from finetuning.data.labels import encode_labels
from finetuning.data.text import LABEL_COLUMNS, check_texts, clean, find_column, renamed, shortened, text_columns
from finetuning.errors import UserError
from finetuning.model.generation import continue_text, fill_masks
from finetuning.model.scoring import padded, scoring
from finetuning.results.report import MAX_EXAMPLES, Example, Section
from finetuning.task import Evaluation, Metric, Rows, Statistics, Task

if TYPE_CHECKING:
    from finetuning.data.splits import Split
    from finetuning.data.tokens import Tokens
    from finetuning.training.prediction import Predictor

SAMPLE_DOCUMENTS = 6  # documents on the report page that the model continues, or whose masks it fills
PROMPT_TOKENS = 24  # tokens at the start of a document that a causal model continues
MASKED_SAMPLE_TOKENS = 48  # tokens at the start of a document that a masked model reads
MAX_LINE_CHARACTERS = 100  # of a document, on a line of the report page
MASK = "[MASK]"  # the mask in texts for predict.py, for all tokenizers
GUESSES_PER_MASK = 5


class _LanguageModel(Task):
    """Base class of the language models. Predictions are (documents, 3), see `predict`."""

    metrics = (
        Metric("perplexity", lambda sums: np.exp(sums["loss"] / sums["tokens"]), "lower", ".3f", "Perplexity", log_scale=True),
        Metric("loss", lambda sums: sums["loss"] / sums["tokens"], "lower"),  # nats per token
    )
    settings = ("text_column", "label_column")
    token_settings = ("max_length",)
    readers = {".txt": read_documents}
    labels_required = False
    mixed_lengths = True  # after many steps with only short texts, a model continues long texts badly
    truncates = False
    prediction_column = "loss"
    blocks: Callable[..., Iterator[tuple]]  # (token ids of a text, tokenizer, config) -> blocks, each with `block_columns`
    block_columns: tuple[str, ...]  # names of lists of token ids

    def check(self, config: Config) -> None:
        if config.method == "head":
            raise UserError(f"method=head is not for {self.name}, which has no new head to train alone: set it to lora or full")

    # --- rows ------------------------------------------------------------------------------------------------------------

    def input_columns(self, available: list[str], config: Config, text_column: str | None) -> dict[str, str]:
        return text_columns(available, config, text_column)

    def columns(self, available: list[str], config: Config) -> dict[str, str]:
        """Return the column of the text, and that of the label if there is one.

        With the labels, this task and a classifier of the same data hold out the same rows.
        """
        columns = self.input_columns(available, config, config.text_column)
        others = [column for column in available if column not in columns.values()]
        if config.label_column or any(column.strip().lower() in LABEL_COLUMNS for column in others):
            columns["label"] = find_column("label_column", config.label_column, LABEL_COLUMNS, others)
        return columns

    def read(self, raw: dict[str, Dataset], columns: dict[str, str], config: Config) -> Rows:
        """Return the texts; empty ones are left out. A missing label is -1. All labels are 0 if no classifier could use them."""
        remarks = check_texts(raw, columns)
        rows = renamed(raw, columns)
        texts = {split: part.select_columns("text") for split, part in rows.items()}
        labels = {split: np.zeros(len(part), dtype=np.int64) for split, part in rows.items()}
        if "label" in columns:
            with contextlib.suppress(UserError):
                labels = encode_labels(rows, "label", named=config.label_column is not None).labels
        left_out = {split: _blank(part) for split, part in texts.items()}
        remarks += [f"{blank.sum():,} empty texts of split {split} left out" for split, blank in left_out.items() if blank.any()]
        return Rows(texts, labels, left_out=left_out, remarks=remarks)

    def has_label(self, labels: np.ndarray) -> np.ndarray:
        return labels >= 0

    def contents(self, batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
        return clean(batch["text"]), labels

    # --- tokens and model ------------------------------------------------------------------------------------------------

    def features(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
        """Return the columns of a block: its token ids, its document (`rows`) and its length."""
        token_ids = {name: List(Value("int32")) for name in self.block_columns}
        return Features(token_ids | {"rows": List(Value("int64")), "length": Value("int32")})

    def tokenize(self, batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, list]:
        columns = {name: [] for name in (*self.block_columns, "rows", "length")}
        for row, ids in enumerate(token_ids(batch["text"], tokenizer)):
            for block in self.blocks(ids, tokenizer, config):
                for name, value in zip(columns, (*block, [row], len(block[0])), strict=True):
                    columns[name].append(value)
        return columns

    def adapt(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, changed so that it returns (blocks, 2) in place of logits for a batch with `targets`.

        The two numbers are the sum of the targets' log-likelihoods and the number of targets.
        """
        return scoring(model, getattr(model, model.base_model_prefix))

    def loss_function(self, train_labels: np.ndarray, n_labels: int, config: Config) -> Callable:
        return lambda scores, labels: -scores[:, 0].sum()

    # --- predictions and results -----------------------------------------------------------------------------------------

    def predict(self, predictor: "Predictor", tokens: "Tokens") -> np.ndarray:
        """Return (documents, 3): mean log-likelihood of the predicted tokens, number of predicted tokens, tokens in all blocks."""
        scores = np.empty((len(tokens), 2))
        for blocks, outputs in predictor.outputs(tokens):
            scores[blocks] = np.concatenate(outputs)
        sums, counts, lengths = (np.bincount(tokens.rows, column) for column in (*scores.T, tokens.lengths))
        return np.stack([sums / counts, counts, lengths], axis=1)

    def statistics(self, predictions: np.ndarray, split: "Split", calibration: dict) -> Statistics:
        """Return `loss`, the negative log-likelihood of each document, and `tokens`, the number of its predicted tokens."""
        means, counts, _ = predictions.T
        return {"rows": np.ones(len(means)), "loss": -means * counts, "tokens": counts}

    def lengths(self, evaluation: Evaluation) -> np.ndarray:
        return evaluation.predictions[:, 2]

    def details(self, evaluation: Evaluation, statistics: Statistics) -> dict:
        return {"tokens": int(statistics["tokens"].sum())}

    def prediction_columns(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return `tokens`, the number of predicted tokens of each document, and `loss`, their mean loss."""
        return {"tokens": evaluation.predictions[:, 1].astype(int), "loss": -evaluation.predictions[:, 0]}

    def errors(self, evaluation: Evaluation) -> tuple[np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
        """Return all documents, those with the highest loss first."""
        documents = pd.DataFrame({"row": evaluation.split.rows} | self.prediction_columns(evaluation))

        def lines_of(positions: np.ndarray) -> pd.DataFrame:
            return documents.iloc[positions].assign(**self.readable(evaluation.split.select(positions).columns()))

        return np.argsort(-documents.loss.to_numpy(), kind="stable"), lines_of

    def report(self, evaluation: Evaluation) -> list[Section]:
        metrics = evaluation.metrics
        validation, interval = metrics["validation"], self.metrics[1].show_interval(metrics["loss_ci95"])
        numbers = (
            ("loss", f"{metrics['loss']:.4f}", f"nats per token; {interval}"),
            ("tokens", f"{metrics['tokens']:,}", f"predicted in {metrics['n']:,} documents"),
            ("validation perplexity", f"{validation['perplexity']:.3f}", f"{validation['n']:,} documents"),
        )
        samples = [self.as_example(sample) for sample in metrics["samples"]]
        return [
            Section(text=self.remark(metrics), numbers=numbers),
            Section(*self.samples_title(), examples=(("", samples),)),
            self._hardest(evaluation),
        ]

    def samples(self, predictor: "Predictor", split: "Split") -> list[dict]:
        """Return the answers of the model for some documents."""
        raise NotImplementedError

    def more_details(self, predictor: "Predictor", split: "Split") -> dict:
        return {"samples": self.samples(predictor, split)}

    def samples_title(self) -> tuple[str, str]:
        """Return the title of the section of samples on the report page, and the text below it."""
        raise NotImplementedError

    def as_example(self, sample: dict) -> Example:
        """Return one of `samples` for the report page."""
        raise NotImplementedError

    def _hardest(self, evaluation: Evaluation) -> Section:
        """Return the section with the documents of the highest and of the lowest perplexity."""
        order, lines_of = self.errors(evaluation)
        examples = []
        for kind, positions in (("The hardest", order[:MAX_EXAMPLES]), ("The easiest", order[::-1][:MAX_EXAMPLES])):
            lines = lines_of(positions[: len(order) // 2 + 1])
            titles = [f"perplexity {np.exp(line.loss):,.1f}, row {line.row}: " for line in lines.itertuples()]
            documents = [Example(title + text[:MAX_LINE_CHARACTERS], text) for title, text in zip(titles, lines.text, strict=True)]
            examples.append((kind, documents))
        return Section("The hardest and the easiest documents", f"All {len(order):,} are in errors.csv.", examples=tuple(examples))


def _blank(texts: Dataset) -> np.ndarray:
    """Return True for rows without text, (rows,) bool."""

    def blank(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        return {"blank": [not text.strip() for text in clean(batch["text"])]}

    return read_columns(map_once(texts, blank, Features({"blank": Value("bool")}), []), "blank")["blank"].to_numpy()


def _first_texts(split: "Split") -> tuple[list[int], list[str]]:
    """Return the numbers and the texts of the first rows, for samples."""
    first = split.select(range(min(SAMPLE_DOCUMENTS, len(split))))
    return first.rows.tolist(), first.columns()["text"]


class CausalLM(_LanguageModel):
    """A model that predicts each token from the tokens before it, and continues texts in the style of its training texts.

    A document begins with the tokenizer's token for the start of a text and ends with the one for its end. A block begins with the
    last token of the block before, so each token is predicted once.
    """

    name = "causal-lm"
    pipeline_tag = "text-generation"
    auto_class = AutoModelForCausalLM
    peft_type = TaskType.CAUSAL_LM
    options = dict(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=0)
    answer_features = Features({"continuation": Value("string")})
    examples = ("This film", "The worst thing about it is", "I had never heard of the director, but")
    code_template = "causal-lm.py.jinja"
    widgets = (("text", "The text and its continuation"),)
    blocks = staticmethod(causal_blocks)
    block_columns = ("input_ids",)

    def collate(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, torch.Tensor]:
        """Return a batch, (blocks, tokens). The target of each token is the next token.

        `labels`, which the Trainer counts, are all tokens but the first, which is not predicted.
        """
        batch = padded([example["input_ids"] for example in examples], tokenizer.pad_token_id)
        labels = padded([[-100, *example["input_ids"][1:]] for example in examples], -100)["input_ids"]
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return batch | {"targets": targets, "labels": labels}

    # --- results ---------------------------------------------------------------------------------------------------------

    def samples(self, predictor: "Predictor", split: "Split") -> list[dict]:
        """Return the beginnings of some documents, with the continuations by the model and the actual ones."""
        samples, tokenizer = [], predictor.tokenizer
        for row, text in zip(*_first_texts(split), strict=True):
            (ids,) = token_ids([text], tokenizer)
            n = min(PROMPT_TOKENS, len(ids) // 2)
            prompt, actual = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:n], ids[n : 3 * PROMPT_TOKENS]))
            (continuation,) = self.answers(predictor, {"text": [prompt]}, [], {})["continuation"]
            samples.append({"row": row, "prompt": prompt, "model": continuation, "actual": actual})
        return samples

    def samples_title(self) -> tuple[str, str]:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return "Continuations", f"Sampled with {options}. Open a continuation to see it beside the actual one."

    def as_example(self, sample: dict) -> Example:
        sides = (("the model", sample["model"]), ("the document", sample["actual"]))
        return Example(f"row {sample['row']}: {sample['prompt']} …", sides=sides)

    def remark(self, metrics: dict) -> str:
        return (
            "Perplexity is per token of this model, so it can't be compared between tokenizers. Documents were read in blocks of "
            f"{metrics['run']['config']['max_length']} tokens. No block has tokens of two documents. Each token is predicted once."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: "Predictor", batch: dict[str, list], label_names: list[str], calibration: dict) -> dict[str, list]:
        """Return the `continuation` of each prompt. It does not depend on the other prompts, because each is read alone."""
        model, tokenizer, options = predictor.model, predictor.tokenizer, self.options | predictor.options
        prompts = [[start_token(tokenizer), *ids] for ids in token_ids(batch["text"], tokenizer)]
        return {"continuation": [continue_text(model, tokenizer, prompt, options) for prompt in prompts]}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return inputs["text"] + answer["continuation"]

    def widget_values(self, predictor: "Predictor", text: str, label_names: list[str], calibration: dict) -> list:
        (continuation,) = self.answers(predictor, {"text": [text]}, label_names, calibration)["continuation"]
        return [text + continuation]

    def pipeline(self, config: Config) -> tuple[str, str]:
        return "", "It samples with its own settings, and does not put the token for the start of a text before the prompt."

    def code_variables(self, config: Config, calibration: dict) -> dict:
        return {"options": self.options}


class MaskedLM(_LanguageModel):
    """Further pre-training of an encoder on texts without labels (arXiv 2004.10964).

    A fraction of the tokens of a block is masked, and the model predicts them (BERT, arXiv 1810.04805). In training, each epoch
    masks other tokens. In validation and test, every run masks the same tokens, so that runs can be compared.
    """

    name = "masked-lm"
    pipeline_tag = "fill-mask"
    auto_class = AutoModelForMaskedLM
    settings = (*_LanguageModel.settings, "mlm_probability")
    token_settings = (*_LanguageModel.token_settings, "mlm_probability")
    examples = (f"This film was {MASK} from beginning to end.", f"The acting is {MASK} and the plot is {MASK}.")
    answer_features = Features({"words": List(List({"word": Value("string"), "probability": Value("float64")}))})
    code_template = "masked-lm.py.jinja"
    widgets = (("json", f"The most probable tokens for each {MASK}"),)
    blocks = staticmethod(masked_blocks)
    block_columns = ("input_ids", "targets")

    def collate(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[str, torch.Tensor]:
        """Return a batch, (blocks, tokens). Targets are -100 where no token is masked. The Trainer counts them as `labels`."""
        targets = padded([example["targets"] for example in examples], -100)["input_ids"]
        inputs = padded([example["input_ids"] for example in examples], tokenizer.pad_token_id)
        return inputs | {"targets": targets, "labels": targets}

    def augment(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict]:
        """Return a function of (block, epoch, row) that masks other tokens of the block in each epoch."""

        def mask_others(block: dict, epoch: int, row: int) -> dict:
            ids, targets = np.array(block["input_ids"]), np.array(block["targets"])
            rng = np.random.default_rng([config.seed, epoch, row])
            masked, targets = mask_tokens(np.where(targets >= 0, targets, ids), rng, tokenizer, config)
            return block | {"input_ids": masked.tolist(), "targets": targets.tolist()}

        return mask_others

    def extra_export_weights(self, source_path: str, merged: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return weights of the base model's file that the masked language model lacks, such as BERT's pooler.

        A classifier that starts from the export needs them.
        """
        base, info = AutoModel.from_pretrained(source_path, output_loading_info=True, trust_remote_code=False)
        known, prefix = merged.state_dict(), merged.base_model_prefix
        weights = {f"{prefix}.{name}": weight for name, weight in base.state_dict().items() if name not in info["missing_keys"]}
        return {name: weight for name, weight in weights.items() if name not in known}

    # --- results ---------------------------------------------------------------------------------------------------------

    def samples(self, predictor: "Predictor", split: "Split") -> list[dict]:
        """Return the beginnings of some documents with masked tokens, the guesses of the model, and the actual tokens."""
        samples, tokenizer = [], predictor.tokenizer
        before, after = special_ids(tokenizer)
        rows, texts = _first_texts(split)
        for row, ids in zip(rows, token_ids(texts, tokenizer), strict=True):
            ids = ids[: min(MASKED_SAMPLE_TOKENS, predictor.config.max_length - len(before) - len(after))]
            positions = sorted(np.random.default_rng(row).permutation(len(ids))[: max(1, len(ids) // 8)].tolist())
            masked = [tokenizer.mask_token_id if i in positions else token for i, token in enumerate(ids)]
            guesses = fill_masks(predictor.model, tokenizer, [*before, *masked, *after], GUESSES_PER_MASK)
            actual = [tokenizer.decode([ids[i]]).strip() for i in positions]
            samples.append({"row": row, "text": tokenizer.decode(masked), "guesses": guesses, "actual": actual})
        return samples

    def samples_title(self) -> tuple[str, str]:
        return "Masked tokens", "Open a text to see each masked token, and the most probable tokens for it."

    def as_example(self, sample: dict) -> Example:
        guesses = [
            ", ".join(f"{guess['word']} {guess['probability']:.2f}" for guess in of_one_mask) for of_one_mask in sample["guesses"]
        ]
        sides = [(f"{n} {word}", text) for n, (word, text) in enumerate(zip(sample["actual"], guesses, strict=True), 1)]
        return Example(f"row {sample['row']}: {sample['text']}", sides=tuple(sides))

    def remark(self, metrics: dict) -> str:
        config = metrics["run"]["config"]
        return (
            f"Perplexity is per masked token: {config['mlm_probability']:.0%} of the tokens were masked, the same ones in every "
            f"run, in blocks of at most {config['max_length']} tokens. It can't be compared between tokenizers, nor with causal "
            "models."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: "Predictor", batch: dict[str, list], label_names: list[str], calibration: dict) -> dict[str, list]:
        """Return `words` for each text: for each [MASK] the most probable tokens, each with `word` and `probability`."""
        words, tokenizer, max_length = [], predictor.tokenizer, predictor.config.max_length
        for text in clean(batch["text"]):
            ids = tokenizer(text.replace(MASK, tokenizer.mask_token), truncation=True, max_length=max_length)["input_ids"]
            if tokenizer.mask_token_id not in ids:
                raise UserError(f"no {MASK} in the first {max_length} tokens of {text[:60]!r}: write {MASK} in place of a word")
            words.append(fill_masks(predictor.model, tokenizer, ids, GUESSES_PER_MASK))
        return {"words": words}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        guesses = (
            ", ".join(f"{guess['word']} {guess['probability']:.3f}" for guess in of_one_mask) for of_one_mask in answer["words"]
        )
        return f"{shortened(inputs)}  ->  {'; '.join(guesses)}"

    def widget_values(self, predictor: "Predictor", text: str, label_names: list[str], calibration: dict) -> list:
        return self.answers(predictor, {"text": [text]}, label_names, calibration)["words"]

    def pipeline(self, config: Config) -> tuple[str, str]:
        return "", "It reads the tokenizer's own mask token, and a text that is longer than the model can read raises an error."

    def code_variables(self, config: Config, calibration: dict) -> dict:
        return {"mask": MASK, "guesses": GUESSES_PER_MASK}
