"""Use of a finished run: labels for new texts, one by one or a file at a time, and the words behind a label."""

import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import torch
from datasets import Dataset, load_dataset
from scipy.special import softmax

from finetuning.data import clean
from finetuning.errors import UserError
from finetuning.processes import by_first
from finetuning.report import Run, load_model
from finetuning.sources import READERS
from finetuning.tokenizing import Tokens, special_tokens, tokenize, truncate
from finetuning.training import predict

FILES = READERS | {".txt": ("text", {})}
CHUNK = 2048  # rows in memory at a time
STEPS = 32  # of the integral in `explain`


class Labeller:
    """A run's model, loaded once."""

    def __init__(self, run: Run) -> None:
        self.config, self.temperature = run.config, run.training["temperature"]
        self.model, self.tokenizer, _ = load_model(run)
        self.label_names = run.record["dataset"]["label_names"]

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """(texts, labels), after temperature scaling."""
        ids, lengths = tokenize(clean(texts), self.tokenizer, self.config)
        tokens = Tokens(Dataset.from_dict({"input_ids": ids}), lengths)
        return softmax(predict(self.model, self.tokenizer, tokens, self.config, show_progress=False) / self.temperature, axis=-1)

    def label_rows(self, rows: Dataset, column: str, show_progress: bool = False) -> Dataset:
        """`rows` with the columns `prediction` and `probability`, in their order; kept on disk, a chunk at a time in memory."""

        def label(batch: dict[str, list], first: list[int]) -> dict[str, list]:
            _check_texts(batch[column], before=first[0])
            probabilities = self.probabilities(batch[column])
            labels = [self.label_names[i] for i in probabilities.argmax(axis=-1)]
            return {"prediction": labels, "probability": probabilities.max(axis=-1)}

        if show_progress:
            datasets.enable_progress_bars()
        fingerprint = datasets.fingerprint.generate_random_fingerprint()  # the model would be pickled to make one
        return rows.map(label, with_indices=True, batched=True, batch_size=CHUNK, new_fingerprint=fingerprint, desc="labelled")

    def explain(self, text: str) -> list[tuple[str, float]]:
        """(word, contribution) in the order of the text, of the words that the model reads.

        Integrated gradients (arXiv 1703.01365) of the label's logit over the mean of the others', from padding to the
        text: the contributions, and those of the special tokens, sum to what the text changes. Positive ones speak for
        the label that the text gets.
        """
        (text,) = clean([text])
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        around = special_tokens(self.tokenizer)
        kept = truncate(list(range(len(encoded["input_ids"]))), self.config.max_length, self.config.truncation, *around)
        ids = torch.tensor([encoded["input_ids"][i] for i in kept], device=self.model.device)
        embed = self.model.get_input_embeddings()
        base = torch.full_like(ids, self.tokenizer.pad_token_id)
        base[: around[0]], base[len(ids) - around[1] :] = ids[: around[0]], ids[len(ids) - around[1] :]
        there, start = embed(ids).detach().float(), embed(base).detach().float()
        share = (torch.arange(STEPS, device=ids.device) + 0.5) / STEPS
        points = (start + share[:, None, None] * (there - start)).requires_grad_()
        with torch.no_grad():
            label = int(self.model(input_ids=ids[None]).logits.argmax())
        logits = self.model(
            inputs_embeds=points.to(embed.weight.dtype),
            attention_mask=torch.ones(STEPS, len(ids), dtype=torch.long, device=ids.device),
        ).logits
        others = [i for i in range(len(self.label_names)) if i != label]
        (gradient,) = torch.autograd.grad((logits[:, label] - logits[:, others].mean(dim=1)).sum(), points)
        by_token = (gradient.float().mean(dim=0) * (there - start)).sum(dim=-1).tolist()
        words = {}
        for position, contribution in zip(kept, by_token, strict=True):
            if (word := encoded.word_ids()[position]) is not None:
                first, last = encoded["offset_mapping"][position]
                before = words.get(word, (first, last, 0.0))
                words[word] = (before[0], last, before[2] + contribution)
        return [(text[first:last], contribution) for first, last, contribution in words.values()]


@by_first
def read_stdin() -> list[str]:
    """A text a line of the standard input."""
    return sys.stdin.read().splitlines()


def rows_of(texts: list[str]) -> Dataset:
    """Texts as rows with the column `text`. Raises `UserError` for none, or an empty one."""
    if not texts:
        raise UserError("no texts: give them as arguments, with --file, or on the standard input, one a line")
    _check_texts(texts)
    return Dataset.from_dict({"text": texts})


def _check_texts(texts: list[str], before: int = 0) -> None:
    empty = [before + number for number, text in enumerate(texts, 1) if not isinstance(text, str) or not text.strip()]
    if empty:
        raise UserError(f"text {empty[0]} is empty: every text gets a label, so remove the empty ones")


def read_file(path: Path, cache: str) -> Dataset:
    """The rows of a file, on disk in the folder `cache`. Raises `UserError`."""
    if path.suffix.lower() not in FILES:
        raise UserError(f"--file {path}: not one of {', '.join(FILES)}")
    builder, options = FILES[path.suffix.lower()]
    try:
        return load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, **options)
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(f"--file {path}: cannot be read; it is not there, empty, cut short or not UTF-8 ({cause})") from error


WRITERS = {
    ".csv": Dataset.to_csv,
    ".tsv": lambda rows, file: rows.to_csv(file, sep="\t"),
    ".json": lambda rows, file: rows.to_json(file, force_ascii=False),
    ".jsonl": lambda rows, file: rows.to_json(file, force_ascii=False),
    ".parquet": Dataset.to_parquet,
}


@by_first
def check_out(path: Path) -> None:
    """Raises `UserError` where `write_file` could not write."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out {path}: not one of {', '.join(WRITERS)}")
    if path.exists() or not path.parent.is_dir():
        raise UserError(
            f"--out {path}: " + ("is there already; take another name" if path.exists() else f"there is no folder {path.parent}")
        )


@by_first
def write_file(rows: Dataset, path: Path) -> None:
    """Write rows as the ending of `path` says, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    WRITERS[path.suffix.lower()](rows, partial)
    os.replace(partial, path)
