"""Masked language modelling: further pre-training of an encoder on texts without labels (arXiv 2004.10964).

A share of a block's tokens is hidden and has to be found again (BERT, arXiv 1810.04805). In training they are drawn anew each
epoch; validation and test hide the same ones in every run, so that runs compare. What is not here is as in causal_lm.py.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from markupsafe import Markup
from peft import PeftModel
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerBase

from config import Config
from finetuning.data import Split
from finetuning.errors import UserError
from finetuning.page import Mistake, Section
from finetuning.sources import Source
from finetuning.tasks import causal_lm
from finetuning.tasks.causal_lm import (  # noqa: F401  (parts of this task too)
    COMPARED,
    FORMATS,
    INPUTS,
    METRICS,
    MIXED,
    READERS,
    SHOWN,
    TOKENIZER,
    adapt,
    calibrate,
    compare,
    contents,
    figures_of,
    find_columns,
    find_inputs,
    hardest,
    headline,
    ids_of,
    interval,
    loss,
    measure,
    model_settings,
    padded,
    read_rows,
    settle_text,
    show_comparison,
    show_metrics,
    strata,
    validation_metrics,
)
from finetuning.tasks.text_classification import clean, shortened
from finetuning.tokenizing import Tokens, special_tokens

if TYPE_CHECKING:
    from finetuning.run_folder import Run

NAME = "masked-lm"
PIPELINE = "fill-mask"

# --- rows ----------------------------------------------------------------------------------------------------------------


def settle(train: Dataset, config: Config) -> Config:
    return settle_text(config)


# --- tokens and model ----------------------------------------------------------------------------------------------------


def features(tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
    """A block: its token ids, some of them hidden; what those were (-100 for the others); the row it is of."""
    there = {"targets": List(Value("int32")), "rows": List(Value("int64"))}
    return Features({"input_ids": List(Value("int32")), **there, "length": Value("int32")})


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    """Blocks of at most `max_length` tokens, none across two documents; what is hidden depends on the block alone."""
    if tokenizer.mask_token_id is None:
        raise UserError(f"task=masked-lm: the tokenizer of {config.model_name} has no token to hide others with; use causal-lm")
    whole, (first, last) = tokenizer("a")["input_ids"], special_tokens(tokenizer)
    before, behind, width = whole[:first], whole[len(whole) - last :], config.max_length - first - last
    found = {"input_ids": [], "targets": [], "rows": [], "length": []}
    for row, ids in enumerate(ids_of(batch["text"], tokenizer)):
        ids = ids or [tokenizer.unk_token_id]  # the tokenizer makes nothing of some signs
        for start in range(0, len(ids), width):
            block = np.array([*before, *ids[start : start + width], *behind])
            hidden, targets = hide(block, np.random.default_rng(zlib.crc32(block.tobytes())), tokenizer, config)
            found["input_ids"].append(hidden)
            found["targets"].append(targets)
            found["rows"].append([row])
            found["length"].append(len(block))
    return found


def hide(
    block: np.ndarray, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """A block's ids with `mlm_probability` of its tokens hidden, at least one; and what those were, -100 elsewhere.

    Of ten hidden tokens eight become the mask, one any other token, and one stays as it is. Both are (tokens,).
    """
    places = np.flatnonzero(~np.isin(block, tokenizer.all_special_ids))
    places = places if len(places) else np.arange(len(block))
    places = rng.permutation(places)[: max(1, round(config.mlm_probability * len(places)))]
    kind, others = rng.random(len(places)), rng.integers(len(tokenizer), size=len(places))
    hidden, targets = block.copy(), np.full_like(block, -100)
    targets[places] = block[places]
    hidden[places] = np.select([kind < 0.8, kind < 0.9], [tokenizer.mask_token_id, others], block[places])
    return hidden, targets


MODEL = AutoModelForMaskedLM
PEFT_TYPE = None  # peft has no name for it


def collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """`input_ids`, `attention_mask` and `targets` (blocks, tokens), which the Trainer counts as `labels`."""

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        targets = padded([row["targets"] for row in rows], -100)["input_ids"]
        return padded([row["input_ids"] for row in rows], tokenizer.pad_token_id) | {"targets": targets, "labels": targets}

    return collate


def change(tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict]:
    """(block, epoch, row) -> the block with other tokens hidden."""

    def hide_others(block: dict, epoch: int, row: int) -> dict:
        ids, targets = np.array(block["input_ids"]), np.array(block["targets"])
        rng = np.random.default_rng([config.seed, epoch, row])
        hidden, targets = hide(np.where(targets >= 0, targets, ids), rng, tokenizer, config)
        return block | {"input_ids": hidden.tolist(), "targets": targets.tolist()}

    return hide_others


def left_over(source: Source, merged: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the base model's file that have no place in a masked language model, the pooler's of BERT: what a classifier
    that starts from an export would miss."""
    whole, about = AutoModel.from_pretrained(source.path, output_loading_info=True)
    there, prefix = merged.state_dict(), merged.base_model_prefix
    of_file = {name: tensor for name, tensor in whole.state_dict().items() if name not in about["missing_keys"]}
    return {f"{prefix}.{name}": tensor for name, tensor in of_file.items() if f"{prefix}.{name}" not in there}


# --- predictions ---------------------------------------------------------------------------------------------------------


def predict(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, config: Config, show_progress: bool = True
) -> np.ndarray:
    """Of each document the mean log-likelihood of its hidden tokens, and how many they are: (rows, 2)."""
    return causal_lm.predict(model, tokenizer, tokens, config, show_progress, collator)


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------

SAMPLE = 48  # tokens of a document that are shown


def samples(model: PeftModel, tokenizer: PreTrainedTokenizerBase, test: Split, run: "Run") -> list[dict]:
    """The beginnings of some documents with tokens hidden, what the model takes them for, and what they were."""
    whole, (first, last) = tokenizer("a")["input_ids"], special_tokens(tokenizer)
    texts, found = test.select(range(min(SHOWN, len(test)))).columns()["text"], []
    for row, ids in zip(test.rows[:SHOWN].tolist(), ids_of(texts, tokenizer), strict=True):
        ids = ids[: min(SAMPLE, run.config.max_length - first - last)]
        places = sorted(np.random.default_rng(row).permutation(len(ids))[: max(1, len(ids) // 8)].tolist())
        hidden = [tokenizer.mask_token_id if place in places else token for place, token in enumerate(ids)]
        guesses = guess(model, tokenizer, torch.tensor([*whole[:first], *hidden, *whole[len(whole) - last :]]))
        found.append(
            {
                "row": row,
                "text": tokenizer.decode(hidden),
                "guesses": guesses,
                "actual": [tokenizer.decode([ids[place]]).strip() for place in places],
            }
        )
    return found


def write(folder: Path, config: Config, metrics: dict, test: Split, documents: np.ndarray, lengths: np.ndarray) -> list[Section]:
    """As `causal_lm.write`."""
    line = Markup("{} <b>{}</b>: {}<br>")
    shown = []
    for one in metrics["samples"]:
        guesses = (", ".join(f"{guess['word']} {guess['probability']:.2f}" for guess in of) for of in one["guesses"])
        lines = (line.format(n, word, of) for n, (word, of) in enumerate(zip(one["actual"], guesses, strict=True), 1))
        shown.append(Mistake(None, f"row {one['row']}: {one['text']}", Markup("").join(lines)))
    return [
        figures_of(metrics, remark(metrics)),
        Section(
            "What it takes hidden tokens for",
            "Opened: each hidden token, and the likeliest tokens in its place.",
            mistakes=(("", shown),),
        ),
        hardest(folder, test, documents),
    ]


def remark(metrics: dict) -> str:
    return (
        f"Perplexity is of hidden tokens, {metrics['run']['config']['mlm_probability']:.0%} of each block of at most "
        f"{metrics['run']['config']['max_length']}, the same ones in every run; models that cut texts into other tokens can't be compared "
        "by it, nor can those that read from left to right."
    )


# --- use -----------------------------------------------------------------------------------------------------------------

OPTIONS: dict = {}
MASK = "[MASK]"
GUESSES = 5


def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run") -> dict[str, list]:
    """`words` for each text: of every [MASK] in it the likeliest tokens, each a `word` and its `probability`."""
    found = []
    for text in clean(batch["text"]):
        encoded = tokenizer(text.replace(MASK, tokenizer.mask_token), truncation=True, max_length=run.config.max_length)
        if tokenizer.mask_token_id not in encoded["input_ids"]:
            raise UserError(
                f"no {MASK} among the first {run.config.max_length} tokens of {text[:60]!r}: write it in place of a word"
            )
        found.append(guess(model, tokenizer, torch.tensor(encoded["input_ids"])))
    return {"words": found}


def guess(model: PeftModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> list[list[dict]]:
    """Of each mask among `ids` (tokens,) the likeliest tokens."""
    ids = ids.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, ids == tokenizer.mask_token_id]
    shares, tokens = (both.tolist() for both in logits.float().softmax(dim=-1).topk(GUESSES))
    return [
        [{"word": tokenizer.decode([token]).strip(), "probability": round(share, 6)} for share, token in zip(*one, strict=True)]
        for one in zip(shares, tokens, strict=True)
    ]


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    return inputs | {"words": answered["words"]}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    said = (", ".join(f"{guess['word']} {guess['probability']:.3f}" for guess in guesses) for guesses in answered["words"])
    return f"{shortened(inputs)}  ->  {'; '.join(said)}"


def code(config: Config, load: str, calibrated: dict) -> str:
    return f"""import torch
{load}


def guess(text):
    encoded = tokenizer(text.replace("{MASK}", tokenizer.mask_token), truncation=True, max_length={config.max_length}, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0, encoded["input_ids"][0] == tokenizer.mask_token_id]
    shares, tokens = logits.softmax(-1).topk({GUESSES})
    return [[(tokenizer.decode([t]).strip(), s) for s, t in zip(*one)] for one in zip(shares.tolist(), tokens.tolist())]


print(guess("A {MASK} film."))
"""


def pipeline(config: Config) -> tuple[str, str]:
    return "", "It wants the tokenizer's own sign for a hidden word, and a text longer than the model's positions is an error."


EXAMPLES = ["This film was [MASK] from beginning to end.", "The acting is [MASK] and the plot is [MASK]."]


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [gradio.JSON(label="The likeliest tokens in the place of each [MASK]")]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> list:
    """Of every [MASK] the likeliest tokens."""
    return answer(model, tokenizer, {"text": [text]}, run)["words"][0]
