"""Convert words to token ids with a label per word, in overlapping windows if a text is too long for the model."""

from collections.abc import Iterator

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from finetuning.data.tokens import by_characters, require_fast, special_tokens

IGNORED = -100  # label of a token without a label; the losses of PyTorch and transformers ignore it


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int, together: bool) -> dict[str, list]:
    """Return windows of at most `max_length` tokens: of each row alone, or of all rows of the batch in sequence (`together`).

    The tag of a word is the label of its first sub-word. Neighbouring windows overlap. A word has its label in only one of them,
    the one in which it is farther from the border. Windows without a label are left out. If the batch has no tags, all labels are 0,
    which marks the words.
    """
    texts = zip(batch["text"], batch["starts"], batch["ends"], strict=True)
    words = [[text[start:end] for start, end in zip(starts, ends, strict=True)] for text, starts, ends in texts]
    tags = batch.get("tags") or [[0] * len(row) for row in words]
    sequences = []
    for part in by_characters(map(len, batch["text"])):
        group = label_sub_words(words[part], tags[part], tokenizer)
        for sequence in group:
            sequence[2] += part.start  # the number of the row in the batch
        sequences += group
    if together:
        sequences = [np.concatenate(sequences, axis=1)]

    before, after = special_tokens(tokenizer)
    windows = {"input_ids": [], "labels": [], "rows": [], "length": []}
    for sequence in sequences:
        for ids, labels, rows in split(sequence, max_length - len(before) - len(after)):
            if (labels < 0).all():  # inside a very long word: a step of such windows would have a loss of 0 / 0
                continue
            windows["input_ids"].append([*before, *ids.tolist(), *after])
            windows["labels"].append([IGNORED] * len(before) + labels.tolist() + [IGNORED] * len(after))
            windows["rows"].append(rows[labels >= 0].tolist())
            windows["length"].append(len(windows["input_ids"][-1]))
    return windows


def label_sub_words(words: list[list[str]], tags: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Return an array for each row, (3, sub-words): token ids, labels, and the number of the row."""
    encoded = _encode(words, tokenizer)
    dropped = [{*range(len(row))} - {*encoded.word_ids(number)} for number, row in enumerate(words)]
    if any(dropped):  # words without a token
        unknown = tokenizer.unk_token or "?"
        words = [[unknown if i in lost else word for i, word in enumerate(row)] for row, lost in zip(words, dropped, strict=True)]
        encoded = _encode(words, tokenizer)
    sequences = []
    for number, ids in enumerate(encoded["input_ids"]):
        word = np.array(encoded.word_ids(number), dtype=int)
        labels = np.where(np.diff(word, prepend=-1) != 0, np.array(tags[number])[word], IGNORED)
        sequences.append(np.stack([ids, labels, np.full(len(ids), number)]))
    return sequences


def _encode(words: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Return the token ids of the words of each row, without special tokens and truncation."""
    require_fast(tokenizer)
    ids_only = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    return tokenizer(words, is_split_into_words=True, padding=False, truncation=False, **ids_only)


def split(sequence: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Yield windows of at most `width` columns of a sequence of `label_sub_words`, (3, sub-words).

    A window overlaps the next one by a quarter of its columns. In the first half of the overlap the first window has the labels, in
    the second half the second window. The last window ends where the sequence ends, so its overlap may be larger.
    """
    length, step = sequence.shape[1], width - width // 4
    starts = [*range(0, length - width, step), length - width] if length > width else [0]
    middles = (np.array(starts[1:]) + starts[:-1] + width) / 2
    window_of_label = np.searchsorted(middles, range(length), "right")
    for number, start in enumerate(starts):
        window = sequence[:, start : start + width].copy()
        window[1, window_of_label[start : start + width] != number] = IGNORED
        yield window
