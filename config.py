"""Every setting of the project, with its default and the reason for it.

Change a default here, or for one run as a flag: `python fine_tune.py --learning_rate 5e-4 --max_length 128`.
Names are those of the library each setting is passed to (transformers, peft), so their documentation applies. Where a reason
says "in the study", results/recipe.md has the numbers: IMDb, one change at a time, on validation rows.
"""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg


@dataclass
class Config:
    # --- task --------------------------------------------------------------------------------------------------------
    task: str = HfArg(
        default="text-classification",
        help="what is learned: text-classification (a label or a number), token-classification (named entities), causal-lm (the next "
        "token), masked-lm (masked tokens) or translation; see finetuning/tasks",
    )

    # --- model -------------------------------------------------------------------------------------------------------
    model_name: str = HfArg(default="distilbert-base-uncased", help="a model on the Hugging Face Hub, or a local folder")
    dropout: float = HfArg(
        default=0.0, help="the base model's own dropout; 0: it doubles the time on a CPU, and brought nothing in the study"
    )

    # --- data --------------------------------------------------------------------------------------------------------
    dataset_name: str = HfArg(
        default="stanfordnlp/imdb",
        help="a data set on the Hub, or a local parquet, csv, tsv, json, jsonl, xlsx or conll file (.gz and .zip too), a folder of them, one of save_to_disk, aclImdb or its .tar.gz",
    )
    encoding: str | None = HfArg(
        default=None, help="of csv, json and text files, as Python names it; not given: UTF-8, or else guessed, with a note"
    )
    text_column: str | None = HfArg(
        default=None, help="column with the text, or with lists of its words; not given: found by its usual names"
    )
    text_pair_column: str | None = HfArg(default=None, help="column with a second text, if the label is about both")
    label_column: str | None = HfArg(
        default=None,
        help="column with the label, or several columns of 0 and 1 with commas between them; or with tags or spans; not given: found by its usual names",
    )
    span_offsets: Literal["characters", "utf-16"] | None = HfArg(
        default=None,
        help="named entities: what the places of spans count, characters or UTF-16 units as JavaScript does, where an emoji is two; not "
        "given: found by the words",
    )
    source_column: str | None = HfArg(default=None, help="column with the text to translate; not given: found by its usual names")
    target_column: str | None = HfArg(default=None, help="column with its translation; not given: found by its usual names")
    source_lang: str | None = HfArg(
        default=None, help="language of the source text, by name or code (German, de, deu_Latn); not given: the column's name"
    )
    target_lang: str | None = HfArg(default=None, help="language of the translation, likewise")
    problem_type: str | None = HfArg(
        default=None,
        help="of text-classification: single_label_classification, multi_label_classification (any number of labels per text) or "
        "regression (a number per text); not given: several labels if the label column holds lists with several or is several columns, else one",
    )
    on_bad_rows: Literal["error", "skip"] = HfArg(
        default="error",
        help="what to do about rows with an empty text or no label; skip: count them and leave them out, and pairs of translation that can't "
        "be right",
    )
    validation_split: str = HfArg(default="validation", help="the split of the data set that checkpoints and settings are chosen on")
    test_split: str = HfArg(
        default="test",
        help="the split to test on; for data sets whose own test has no labels: validation is then held out from train",
    )
    test_fraction: float = HfArg(default=0.2, help="fraction of train held out as test, if the data has no test split")
    validation_fraction: float = HfArg(default=0.1, help="fraction of train held out for validation, if the data has none")
    split_seed: int = HfArg(default=13, help="decides which rows are held out or sampled; not `seed`, so that runs with different seeds have the same rows")
    train_samples: int = HfArg(default=12_500, help="training rows, stratified by label; 0: all")
    val_samples: int = HfArg(default=1_000, help="validation rows, stratified by label; 0: all")
    test_samples: int = HfArg(default=5_000, help="test rows, stratified by label; 0: all")

    # --- tokens ------------------------------------------------------------------------------------------------------
    max_length: int = HfArg(
        default=256, help="tokens that are read of a text; 44 %% of the IMDb reviews are longer than 256; 128 lost two points in the study"
    )
    truncation: Literal["head", "tail", "head+tail", "error"] = HfArg(
        default="head+tail",
        help="which tokens of a longer text are read; head+tail: the first quarter and the end (arXiv 1905.05583), because a review's verdict "
        "comes last; translation: the head; error: a longer text is refused",
    )
    context: Literal["sentence", "neighbours"] = HfArg(
        default="sentence",
        help="named entities: what is read together; neighbours: the rows before and after too, up to `max_length`, if the rows are the "
        "sentences of documents in their order",
    )
    padding: Literal["longest", "max_length"] = HfArg(
        default="longest",
        help="longest: batches of texts of similar length, padded to their longest; max_length: rows in random order, always padded (slower)",
    )
    augmentation: Literal["none", "token-dropout", "crop", "sentence-shuffle"] = HfArg(
        default="none",
        help="change training texts each time they are used: a tenth of the tokens dropped, a window of 70%% or more, sentences in "
        "another order; no gain at 500 reviews, about half a point at 8,000",
    )

    mlm_probability: float = HfArg(default=0.15, help="fraction of the tokens that masked-lm masks, as in BERT")

    num_beams: int = HfArg(
        default=5, help="how many translations beam search follows; 1: the most probable token at each step (greedy search)"
    )

    # --- trainable parameters ----------------------------------------------------------------------------------------
    method: Literal["lora", "full", "head"] = HfArg(
        default="lora", help="lora: adapters and the head; full: every weight; head: only the new head"
    )
    quantization: Literal["none", "4bit"] = HfArg(
        default="none",
        help="4bit: the frozen weights in 4 bits (QLoRA, arXiv 2305.14314), for large models on a CUDA GPU; not tried yet",
    )
    lora_r: int = HfArg(default=16, help="rank of the update; 4 and 64 were about a point behind in the study")
    lora_alpha: int = HfArg(default=32, help="the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = HfArg(default=0.0, help="dropout on the adapters' input; 0 for the same reason as `dropout`")
    target_modules: str = HfArg(
        default="all-linear",
        help="layers that LoRA adapts: all-linear, attention, mlp or query-value (best first in the study); or names of modules, with commas between them",
    )
    train_embeddings: bool = HfArg(
        default=False,
        help="with LoRA, train the word embeddings and the output layer too: for a language that the model has never written; larger files",
    )
    use_rslora: bool = HfArg(default=False, help="scale by lora_alpha / sqrt(lora_r) instead (arXiv 2312.03732)")
    use_dora: bool = HfArg(
        default=False, help="learn magnitude and direction separately (arXiv 2402.09353); three times as slow on a CPU"
    )
    init_lora_weights: Literal["default", "pissa"] = HfArg(
        default="default", help="default: no change at the start; pissa: the weights' largest singular values (arXiv 2404.02948)"
    )
    loraplus_lr_ratio: float = HfArg(default=1.0, help="learning rate of B over that of A; above 1: LoRA+ (arXiv 2402.12354)")

    # --- training ----------------------------------------------------------------------------------------------------
    learning_rate: float = HfArg(
        default=1e-3, help="the setting that matters most; ten to twenty times that of full fine-tuning; at 4e-3 training failed"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = HfArg(
        default="linear", help="how the learning rate falls after the warm-up"
    )
    warmup_steps: float = HfArg(default=0.06, help="steps of rising learning rate; below 1: a fraction of all steps")
    weight_decay: float = HfArg(default=0.01, help="AdamW's weight decay")
    label_smoothing_factor: float = HfArg(default=0.0, help="fraction of each label's weight that is spread over all labels")
    class_weights: Literal["none", "balanced"] = HfArg(
        default="none", help="balanced: a text with a rare label counts more, so that all labels weigh the same"
    )
    length_warmup: float = HfArg(
        default=0.67,
        help="labels of single texts: fraction of the steps, the first ones, that read at most 128 tokens of a text; 0: none; 30 %% less "
        "training time, and no less accurate in the study (arXiv 2108.06084 does so for stability)",
    )
    num_train_epochs: float = HfArg(
        default=1.0, help="passes over the training rows; from the third on the loss on new texts rises in the study"
    )
    batch_size: int = HfArg(
        default=32,
        help="texts per forward pass, of all processes together; 16 and 64 were no better in the study. A step has batch_size x "
        "gradient_accumulation_steps texts for any number of processes",
    )
    eval_batch_size: int | None = HfArg(
        default=None, help="texts per process in prediction; changes the speed only; not given: 32, or 256 on a GPU"
    )
    gradient_accumulation_steps: int = HfArg(
        default=1, help="forward passes per step, if memory is short: 4 of 8 texts give the same as 1 of 32"
    )
    seed: int = HfArg(default=0, help="of the new weights, the order of the rows, and dropout")
    precision: Literal["auto", "bf16", "float32"] = HfArg(default="auto", help="auto: bf16 where the hardware has it")
    speedups: bool = HfArg(
        default=True,
        help="all of finetuning/speed: False trains and predicts with plain transformers and peft, slower, with equal results within rounding",
    )
    cuda_graphs: bool = HfArg(
        default=True,
        help="on one CUDA GPU, for labels of texts or words: record a step for a few lengths and start it as a whole; about twice as fast "
        "for small models",
    )

    # --- evaluation while training -----------------------------------------------------------------------------------
    eval_strategy: Literal["steps", "epoch"] = HfArg(default="steps", help="validate every `eval_steps`, or after each epoch")
    eval_steps: float = HfArg(default=0.25, help="steps between two validations; below 1: a fraction of all steps")
    save_steps: float | None = HfArg(
        default=None, help="steps between two checkpoints, besides the best; not given: at every validation"
    )
    metric_for_best_model: str | None = HfArg(
        default=None,
        help="the validation metric that picks the checkpoint and stops early; not given: the task's first: accuracy, rmse, f1, perplexity or bleu",
    )
    early_stopping_patience: int = HfArg(default=3, help="validations without a gain before training stops; 0: never")

    # --- where the run goes ------------------------------------------------------------------------------------------
    output_dir: str = HfArg(default="outputs", help="folder of the run folders")
    report_to: str = HfArg(
        default="none", help="also log to tensorboard, wandb or trackio, if installed; several with commas between them"
    )
    run_name: str | None = HfArg(default=None, help="name of the run's folder; not given: model, data set and time")


ALL_ROWS = dict(train_samples=0, val_samples=0, test_samples=0)

# `--preset NAME`: the defaults above with these changes; a flag given beside it wins.
PRESETS: dict[str, dict] = {
    "laptop": {},
    "full": dict(**ALL_ROWS, num_train_epochs=2.0, eval_steps=0.2, length_warmup=0.0),
    "smoke": dict(train_samples=64, val_samples=32, test_samples=64, max_length=64, batch_size=16),
    # Data sets of the Hub, with the columns they have.
    "rotten_tomatoes": dict(
        dataset_name="cornell-movie-review-data/rotten_tomatoes",
        max_length=64,
        **ALL_ROWS,
        num_train_epochs=3.0,
    ),
    "sst2": dict(dataset_name="stanfordnlp/sst2", max_length=64, text_column="sentence", test_split="validation", test_samples=0),
    "emotion": dict(
        dataset_name="dair-ai/emotion", max_length=64, num_train_epochs=3.0, test_samples=0, metric_for_best_model="f1_macro"
    ),
    "banking77": dict(
        dataset_name="mteb/banking77",
        max_length=64,
        label_column="label_text",
        num_train_epochs=5.0,
        test_samples=0,
        metric_for_best_model="f1_macro",
    ),
    "ag_news": dict(dataset_name="fancyzhx/ag_news", max_length=128),
    "dbpedia_14": dict(dataset_name="fancyzhx/dbpedia_14", text_column="content", max_length=128),
    "yelp_polarity": dict(dataset_name="fancyzhx/yelp_polarity"),
    "amazon_polarity": dict(dataset_name="fancyzhx/amazon_polarity", text_column="content", max_length=128),
    "mnli": dict(
        dataset_name="nyu-mll/multi_nli",
        text_column="premise",
        text_pair_column="hypothesis",
        validation_split="validation_mismatched",
        test_split="validation_matched",
        train_samples=50_000,
        max_length=128,
    ),
    # Further pre-training: IMDb's training reviews without their labels.
    "pretrain": dict(task="masked-lm", **ALL_ROWS, max_length=128, batch_size=64, eval_batch_size=64),
    "translation": dict(
        task="translation",
        dataset_name="bentrevett/multi30k",
        model_name="Helsinki-NLP/opus-mt-en-de",
        source_column="en",
        target_column="de",
        **ALL_ROWS | dict(val_samples=500),
        max_length=128,
        learning_rate=5e-4,
    ),
    "ner": dict(
        task="token-classification",
        dataset_name="lhoestq/conll2003",
        model_name="distilbert-base-cased",
        context="neighbours",
        max_length=128,
        **ALL_ROWS,
        num_train_epochs=5.0,
        learning_rate=4e-4,  # at 1e-3 and rank 64 all-mpnet-base-v2 learned nothing; the smaller stand-in was best there
        batch_size=8,
        eval_steps=0.2,
    ),
}

# `--search N`: what its trials draw. (low, high): a number between them, on a logarithmic scale; [...]: one of them.
SEARCH_SPACE: dict[str, tuple | list] = {
    "learning_rate": (1e-4, 4e-3),
    "lora_r": [4, 8, 16, 32, 64],
    "batch_size": [16, 32, 64],
    "num_train_epochs": [1.0, 2.0, 3.0],
}
