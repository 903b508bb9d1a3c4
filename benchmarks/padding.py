"""Count the padding in the training steps of `--preset full` on IMDb: batches without padding could save this fraction of the tokens.

    python benchmarks/padding.py

Writes results/padding.json.
"""

import numpy as np
from common import write_record

from config import PRESETS, Config
from finetuning import console, tasks
from finetuning.data.sources import find_model
from finetuning.data.splits import load_data
from finetuning.data.tokens import encode
from finetuning.model.base import load_tokenizer
from finetuning.speed.cuda_graphs import lengths_to_record
from finetuning.training.batches import steps_of_epoch


def fraction_of_padding(lengths: np.ndarray, config: Config, by_length: bool = True, padded_to: list[int] | None = None) -> float:
    """Return the fraction of an epoch's tokens that are padding.

    `lengths` are the tokens of each row. Steps are padded to their longest row, or to the next of the lengths `padded_to`.
    """
    tokens = 0
    for rows in steps_of_epoch(lengths, config.batch_size, config.seed, epoch=0, by_length=by_length):
        longest = lengths[rows].max()
        tokens += len(rows) * (longest if padded_to is None else min(length for length in padded_to if length >= longest))
    return float(1 - lengths.sum() / tokens)


def main() -> None:
    console.quiet_libraries()
    config = Config(**PRESETS["full"])
    task, source = tasks.pick(config), find_model(config.model_name)
    data = load_data(task, config)
    whole = encode(task, data.train, load_tokenizer(task, source, config), config).lengths
    by_max_length = []
    for max_length in (128, 256, 512):
        lengths = np.minimum(whole, max_length)
        fractions = {
            "padded to max_length": fraction_of_padding(lengths, config, padded_to=[max_length]),
            "random batches": fraction_of_padding(lengths, config, by_length=False),
            "batches of similar length": fraction_of_padding(lengths, config),
            "the same, as CUDA graphs": fraction_of_padding(lengths, config, padded_to=lengths_to_record(max_length)),
        }
        by_max_length.append({"max_length": max_length, "mean_tokens": float(lengths.mean()), "padding": fractions})
        print(max_length, "tokens:", ", ".join(f"{way} {fraction:.1%}" for way, fraction in fractions.items()))
    record = {"n": len(whole), "dataset": data.source.name, "tokenizer": source.name, "batch_size": config.batch_size}
    write_record("padding", record | {"ways": by_max_length})


if __name__ == "__main__":
    main()
