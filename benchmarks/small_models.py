"""Make a small model with random weights and a tokenizer of its own, for where no pre-trained one can be downloaded.

    python benchmarks/small_models.py gpt2 outputs/small-gpt2
    python fine_tune.py --task causal-lm --method full --model_name outputs/small-gpt2 --learning_rate 1e-3 --train_samples 0
    python benchmarks/small_models.py marian outputs/small-translator --columns en de
    python fine_tune.py --preset translation --model_name outputs/small-translator --method full

A tokenizer is byte-pair encoding that is trained on training rows only: of gpt2 on those that fine_tune.py trains on, of marian on all
`--columns` together. The translation model has Marian's classes with the sizes of Transformer-Tiny (arXiv 2105.14462).
"""

import argparse
from pathlib import Path

import common  # noqa: F401  it puts the repository on the import path
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel, PreTrainedTokenizerFast, set_seed

from config import ALL_ROWS, Config
from finetuning import console, tasks
from finetuning.data import sources
from finetuning.data.splits import load_data
from finetuning.data.text import clean


def small_gpt2(texts: list[str]) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    bpe, end = ByteLevelBPETokenizer(), "<|endoftext|>"
    bpe.train_from_iterator(texts, vocab_size=8192, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = GPT2Config(vocab_size=len(tokenizer), **special, n_embd=256, n_layer=6, n_head=8, n_positions=512)
    return GPT2LMHeadModel(config), tokenizer


def small_marian(texts: list[str]) -> tuple[MarianMTModel, PreTrainedTokenizerFast]:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    bpe.decoder = decoders.Metaspace()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=10_000, special_tokens=["</s>", "<unk>"], show_progress=False))
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    bpe.add_special_tokens(["<pad>"])  # the last token, as in Marian: the decoder starts with it, and its embedding is zero
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    sizes = dict(layers=4, attention_heads=4, ffn_dim=256)
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()},
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=0,
        forced_eos_token_id=0,
    )
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("gpt2", "marian"))
    parser.add_argument("folder", type=Path, help="where the model is saved")
    parser.add_argument("--dataset_name", help="as for fine_tune.py; not given: stanfordnlp/imdb, bentrevett/multi30k for marian")
    parser.add_argument("--columns", nargs="+", default=["en", "de"], help="marian: columns with texts, one per language")
    arguments = parser.parse_args()
    console.quiet_libraries()
    set_seed(0)
    if arguments.kind == "gpt2":
        config = Config(task="causal-lm", dataset_name=arguments.dataset_name or Config.dataset_name, **ALL_ROWS)
        texts = clean(load_data(tasks.pick(config), config).train.columns()["text"])
        model, tokenizer = small_gpt2(texts)
    else:
        rows = sources.find_rows(arguments.dataset_name or "bentrevett/multi30k")[0]["train"]
        texts = [text for column in arguments.columns for text in rows[column]]
        model, tokenizer = small_marian(texts)
    for part in (model, tokenizer):
        part.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {model.num_parameters():,} random parameters, {len(tokenizer):,} tokens from {len(texts):,} texts")


if __name__ == "__main__":
    main()
