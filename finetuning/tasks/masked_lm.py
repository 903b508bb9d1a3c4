"""Further pre-training: an encoder predicts masked tokens of texts without labels."""

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from datasets import Features, List, Value
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerBase

from config import Config
from finetuning.data.text import clean, shortened
from finetuning.data.tokens import special_tokens
from finetuning.errors import UserError
from finetuning.model.generation import fill_masks
from finetuning.results.report import Example
from finetuning.tasks.language_model import LanguageModel, token_ids
from finetuning.training.prediction import Predictor

SAMPLE_TOKENS = 48  # tokens at the start of a document that the model reads for the report page
MASK = "[MASK]"  # the mask in texts for predict.py, for all tokenizers


class MaskedLM(LanguageModel):
    """Further pre-training of an encoder on texts without labels (arXiv 2004.10964).

    A fraction of the tokens of a block is masked, and the model predicts them (BERT, arXiv 1810.04805). In training, each epoch
    masks other tokens. In validation and test, every run masks the same tokens, so that runs can be compared.
    """

    name = "masked-lm"
    pipeline_tag = "fill-mask"
    auto_class = AutoModelForMaskedLM
    settings = (*LanguageModel.settings, "mlm_probability")
    token_settings = (*LanguageModel.token_settings, "mlm_probability")
    examples = (f"This film was {MASK} from beginning to end.", f"The acting is {MASK} and the plot is {MASK}.")
    answer_features = Features({"words": List(List({"word": Value("string"), "probability": Value("float64")}))})
    code_template = "masked-lm.py.jinja"
    placeholder = f"YOUR {MASK} TEXT"
    widgets = (("json", f"The most probable tokens for each {MASK}"),)
    samples_title = ("Masked tokens", "Open a text to see each masked token, and the most probable tokens for it.")
    guesses_per_mask = 5  # the most probable tokens, in answers and on the report page

    def blocks(self, ids: list[int], tokenizer: PreTrainedTokenizerBase, config: Config) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the result of `mask_tokens` for each block. The masked tokens depend only on the block."""
        if tokenizer.mask_token_id is None:
            raise UserError(f"task=masked-lm: the tokenizer of {config.model_name} has no mask token: set task to causal-lm")
        before, after = special_tokens(tokenizer)
        ids = ids or [tokenizer.unk_token_id]  # some texts have no token at all
        width = config.max_length - len(before) - len(after)
        for start in range(0, len(ids), width):
            block = np.array([*before, *ids[start : start + width], *after])
            yield mask_tokens(block, np.random.default_rng(zlib.crc32(block.tobytes())), tokenizer, config)

    def augment(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[dict, int, int], dict]:
        """Return a function of (block, epoch, row) that masks other tokens of the block in each epoch."""

        def mask_others(block: dict, epoch: int, row: int) -> dict:
            ids, targets = np.array(block["input_ids"]), np.array(block["targets"])
            rng = np.random.default_rng([config.seed, epoch, row])
            masked, targets = mask_tokens(np.where(targets >= 0, targets, ids), rng, tokenizer, config)
            return block | {"input_ids": masked.tolist(), "targets": targets.tolist()}

        return mask_others

    def prepare_export(self, merged: torch.nn.Module, source_path: str, calibration: dict) -> None:
        """Add layers of the base model's file that the masked language model lacks, such as BERT's pooler.

        A classifier that starts from the export needs them.
        """
        base, info = AutoModel.from_pretrained(source_path, output_loading_info=True, trust_remote_code=False)
        for name, layer in base.named_children():
            in_file = not any(key.startswith(f"{name}.") for key in info["missing_keys"])
            if in_file and getattr(merged.base_model, name, None) is None:
                setattr(merged.base_model, name, layer)

    # --- results ---------------------------------------------------------------------------------------------------------

    def samples(self, predictor: Predictor, rows: list[int], texts: list[str]) -> list[dict]:
        """Return the beginnings of some documents with masked tokens, the guesses of the model, and the actual tokens."""
        samples, tokenizer = [], predictor.tokenizer
        before, after = special_tokens(tokenizer)
        for row, ids in zip(rows, token_ids(texts, tokenizer), strict=True):
            ids = ids[: min(SAMPLE_TOKENS, predictor.config.max_length - len(before) - len(after))]
            positions = sorted(np.random.default_rng(row).permutation(len(ids))[: max(1, len(ids) // 8)].tolist())
            masked = [tokenizer.mask_token_id if i in positions else token for i, token in enumerate(ids)]
            guesses = fill_masks(predictor.model, tokenizer, [*before, *masked, *after], self.guesses_per_mask)
            actual = [tokenizer.decode([ids[i]]).strip() for i in positions]
            samples.append({"row": row, "text": tokenizer.decode(masked), "guesses": guesses, "actual": actual})
        return samples

    def as_example(self, sample: dict) -> Example:
        guesses = zip(sample["actual"], sample["guesses"], strict=True)
        sides = [(f"{n} {word}", _show_guesses(of_mask, ".2f")) for n, (word, of_mask) in enumerate(guesses, 1)]
        return Example(f"row {sample['row']}: {sample['text']}", sides=tuple(sides))

    def remark(self, metrics: dict) -> str:
        config = metrics["run"]["config"]
        return (
            f"Perplexity is per masked token: {config['mlm_probability']:.0%} of the tokens were masked, the same ones in every "
            f"run, in blocks of at most {config['max_length']} tokens. It can't be compared between tokenizers, nor with causal "
            "models."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def refusal(self, inputs: dict) -> str:
        no_mask = f"can't be answered: it has no {MASK}: write {MASK} in place of a word"
        return super().refusal(inputs) or ("" if MASK in inputs["text"] else no_mask)

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return `words` for each text: for each [MASK] the most probable tokens, each with `word` and `probability`."""
        words, tokenizer, max_length = [], predictor.tokenizer, predictor.config.max_length
        for text in clean(batch["text"]):
            masked = text.replace(MASK, tokenizer.mask_token)
            ids = tokenizer(masked, truncation=True, max_length=max_length)["input_ids"]
            if ids.count(tokenizer.mask_token_id) < masked.count(tokenizer.mask_token):
                raise UserError(
                    f"only the first {max_length} tokens of {text[:60]!r} are read, and it has a {MASK} after them: shorten it"
                )
            words.append(fill_masks(predictor.model, tokenizer, ids, self.guesses_per_mask))
        return {"words": words}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        guesses = "; ".join(_show_guesses(of_mask, ".3f") for of_mask in answer["words"])
        return f"{shortened(inputs)}  ->  {guesses}"

    def widget_values(self, predictor: Predictor, text: str) -> list:
        if reason := self.refusal({"text": text}):
            raise UserError(f"The text {reason}")
        return self.answers(predictor, {"text": [text]})["words"]

    def pipeline(self, config: Config) -> tuple[str, str]:
        return "", "It reads the tokenizer's own mask token, and a text that is longer than the model can read raises an error."


def mask_tokens(
    block: np.ndarray, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Mask the fraction `mlm_probability` of the tokens, at least one. Return token ids and targets, both (tokens,).

    A masked token becomes the mask token with probability 0.8, a random token with 0.1, and stays as it is with 0.1 (BERT, arXiv
    1810.04805). Targets are the original tokens, and -100 where no token is masked.
    """
    positions = np.flatnonzero(~np.isin(block, tokenizer.all_special_ids))
    positions = positions if len(positions) else np.arange(len(block))
    positions = rng.permutation(positions)[: max(1, round(config.mlm_probability * len(positions)))]
    kind, random_tokens = rng.random(len(positions)), rng.integers(len(tokenizer), size=len(positions))
    masked, targets = block.copy(), np.full_like(block, -100)
    targets[positions] = block[positions]
    masked[positions] = np.select([kind < 0.8, kind < 0.9], [tokenizer.mask_token_id, random_tokens], block[positions])
    return masked, targets


def _show_guesses(guesses: list[dict], format: str) -> str:
    """Return the most probable tokens for a mask as text. `format` is that of their probabilities."""
    return ", ".join(f"{guess['word']} {guess['probability']:{format}}" for guess in guesses)
