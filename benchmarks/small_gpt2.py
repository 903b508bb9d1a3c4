"""Make a small GPT-2 with random weights and a BPE tokenizer of its own, for where no pre-trained decoder can be downloaded.

    python benchmarks/small_gpt2.py outputs/small-gpt2
    python fine_tune.py --task causal-lm --method full --model_name outputs/small-gpt2 --learning_rate 1e-3 --train_samples 0

The tokenizer is trained on the rows of `--dataset_name` that fine_tune.py trains on, not on held-out rows.
"""

import argparse
from pathlib import Path

import common  # noqa: F401  it puts the repository on the import path
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from config import ALL_ROWS, Config
from finetuning import console, tasks
from finetuning.data.splits import load_data
from finetuning.data.text import clean

VOCABULARY = 8192  # tokens
SIZES = dict(n_embd=256, n_layer=6, n_head=8, n_positions=512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is saved")
    parser.add_argument("--dataset_name", default="stanfordnlp/imdb", help="as for fine_tune.py")
    arguments = parser.parse_args()
    console.quiet_libraries()
    end, config = "<|endoftext|>", Config(task="causal-lm", dataset_name=arguments.dataset_name, **ALL_ROWS)
    texts = clean(load_data(tasks.pick(config), config).train.columns()["text"])
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end)
    set_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **special, **SIZES))
    for part in (model, tokenizer):
        part.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {model.num_parameters():,} random parameters, {len(tokenizer):,} tokens from {len(texts):,} texts")


if __name__ == "__main__":
    main()
