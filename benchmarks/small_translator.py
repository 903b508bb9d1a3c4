"""Make a small translation model with random weights and a tokenizer of its own, for where no pre-trained one can be downloaded.

    python benchmarks/small_translator.py outputs/small-translator --columns en de
    python fine_tune.py --preset translation --model_name outputs/small-translator --method full

The tokenizer is byte-pair encoding, trained on the training rows of all `--columns` together. The model has Marian's classes with the
sizes of Transformer-Tiny (arXiv 2105.14462).
"""

import argparse
from pathlib import Path

import common  # noqa: F401  it puts the repository on the import path
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast, set_seed

from finetuning import console
from finetuning.data import sources


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
    parser.add_argument("folder", type=Path, help="where the model is saved")
    parser.add_argument("--dataset_name", default="bentrevett/multi30k", help="as for fine_tune.py")
    parser.add_argument("--columns", nargs="+", default=["en", "de"], help="columns with texts, one per language")
    arguments = parser.parse_args()
    console.quiet_libraries()
    set_seed(0)
    rows = sources.find_rows(arguments.dataset_name)[0]["train"]
    texts = [text for column in arguments.columns for text in rows[column]]
    model, tokenizer = small_marian(texts)
    for part in (model, tokenizer):
        part.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {model.num_parameters():,} random parameters, {len(tokenizer):,} tokens from {len(texts):,} texts")


if __name__ == "__main__":
    main()
