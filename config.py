"""Every setting of the project, with its default, and the reason where a measurement decided it.

Change a default here, or for one run as a flag: `python fine_tune.py --learning_rate 5e-4 --max_length 128`.
A setting that is passed to a library (transformers, peft) has the library's name for it, so its documentation applies. "In the
study" refers to results/recipe.md: IMDb reviews, one change at a time, measured on validation rows.
"""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg


@dataclass
class Config:
    # --- task --------------------------------------------------------------------------------------------------------
    task: str = HfArg(
        default="text-classification",
        help="text-classification (a label or a number for each text), token-classification (named entities), causal-lm (predict "
        "the next token), masked-lm (predict masked tokens) or translation",
    )

    # --- model -------------------------------------------------------------------------------------------------------
    model_name: str = HfArg(default="distilbert-base-uncased", help="a model on the Hugging Face Hub, or a local folder")
    dropout: float = HfArg(
        default=0.0,
        help="dropout of the base model; 0, because dropout doubled the training time on two cores with AMX, partly because the faster "
        "attention is then not used, and did not help in the study (one seed)",
    )

    # --- data --------------------------------------------------------------------------------------------------------
    dataset_name: str = HfArg(
        default="stanfordnlp/imdb",
        help="a data set on the Hub; or a local parquet, csv, tsv, json, jsonl, xlsx or conll file (also .gz and .zip), a folder "
        "of such files, a folder that save_to_disk wrote, or aclImdb (folder or .tar.gz)",
    )
    encoding: str | None = HfArg(
        default=None,
        help="encoding of csv, json and text files, by its name in Python; not given: UTF-8, else guessed, with a note",
    )
    text_column: str | None = HfArg(
        default=None, help="column with the text, or with lists of its words; not given: the first column with a usual name"
    )
    text_pair_column: str | None = HfArg(default=None, help="column with the second text, if a label belongs to a pair of texts")
    label_column: str | None = HfArg(
        default=None,
        help="column with the label, the tags or the spans; or several columns of 0 and 1, separated by commas; not given: the "
        "first column with a usual name",
    )
    group_column: str | None = HfArg(
        default=None,
        help="column whose equal values mark rows that belong together, such as a document or an author: held-out rows are whole "
        "groups, and intervals resample whole groups",
    )
    span_offsets: Literal["characters", "utf-16"] | None = HfArg(
        default=None,
        help="named entities: the unit of the spans' offsets: characters, or UTF-16 units as in JavaScript, where an emoji counts "
        "as two; not given: characters, but a span whose text depends on the unit is refused",
    )
    prompt_column: str | None = HfArg(
        default=None,
        help="causal-lm: column with the prompt, or with whole conversations (lists of messages); not given: messages "
        "or conversations; or prompt or instruction, if there is a column with answers",
    )
    completion_column: str | None = HfArg(
        default=None, help="causal-lm: column with the answer; not given: completion, response or output"
    )
    source_column: str | None = HfArg(
        default=None, help="column with the text to translate; not given: the first with a usual name"
    )
    target_column: str | None = HfArg(default=None, help="column with the translation; not given: the first with a usual name")
    source_lang: str | None = HfArg(
        default=None, help="language of the source text, a name or code (German, de, deu_Latn); not given: the column's name"
    )
    target_lang: str | None = HfArg(default=None, help="language of the translation, in the same form")
    problem_type: str | None = HfArg(
        default=None,
        help="for text-classification: single_label_classification, multi_label_classification (any number of labels per text) or "
        "regression (a number per text); not given: multi_label_classification if a list in the label column has several labels "
        "or if label_column names several columns, else single_label_classification",
    )
    on_bad_rows: Literal["error", "skip"] = HfArg(
        default="error",
        help="what to do with rows that have an empty text or no label; skip: leave them out and print how many; for translation, "
        "also leave out pairs with swapped sides or very different lengths",
    )
    validation_split: str = HfArg(default="validation", help="the split used to choose checkpoints and settings")
    test_split: str = HfArg(
        default="test",
        help="the split to test on; set it to validation if the test split has no labels: validation rows are then held out from "
        "train",
    )
    test_fraction: float = HfArg(default=0.2, help="fraction of train that is held out for the test, if there is no test split")
    validation_fraction: float = HfArg(
        default=0.1, help="fraction of train held out for validation, if there is no validation split"
    )
    folds: int = HfArg(
        default=0,
        help="cut the rows of train into this many folds, and test on one of them instead of the test split; 0: no folds. "
        "label_errors.py trains once for each fold",
    )
    fold: int = HfArg(default=1, help="the fold to test on, from 1 to `folds`; the model does not learn from it")
    split_seed: int = HfArg(
        default=13,
        help="decides which rows are held out or sampled; separate from `seed`, so that runs with different seeds use the same "
        "rows",
    )
    train_samples: int = HfArg(default=12_500, help="number of training rows, stratified by label; 0: all")
    val_samples: int = HfArg(default=1_000, help="number of validation rows, stratified by label; 0: all")
    test_samples: int = HfArg(default=5_000, help="number of test rows, stratified by label; 0: all")

    # --- tokens ------------------------------------------------------------------------------------------------------
    max_length: int = HfArg(
        default=256,
        help="the model reads at most this many tokens of a text; 41 %% of IMDb's training reviews are longer than 256; 128 "
        "lost two points in the study",
    )
    truncation: Literal["head", "tail", "head+tail", "error"] = HfArg(
        default="head+tail",
        help="which tokens of a longer text are kept; head+tail: a quarter of max_length from the start, the rest from the end "
        "(arXiv 1905.05583), because a review's verdict is often last; translation keeps the head; error: refuse a longer text",
    )
    context: Literal["sentence", "neighbours"] = HfArg(
        default="sentence",
        help="named entities: sentence reads each row alone; neighbours reads rows together with those before and after, up to "
        "`max_length`: for rows that are the sentences of documents, in order",
    )
    padding: Literal["longest", "max_length"] = HfArg(
        default="longest",
        help="longest: batches of texts of similar length, padded to the longest text; max_length: rows in random order, all "
        "padded to max_length (slower)",
    )
    augmentation: Literal["none", "token-dropout", "crop", "sentence-shuffle"] = HfArg(
        default="none",
        help="change each training text in every epoch: token-dropout drops a tenth of the tokens, crop keeps a window of at "
        "least 70 %% of them, sentence-shuffle reorders the sentences; three seeds showed no gain with "
        "500 reviews; with 8,000 only the interval of sentence-shuffle excludes zero, which may be chance",
    )
    mlm_probability: float = HfArg(default=0.15, help="fraction of the tokens that masked-lm masks, as in BERT")
    completion_only_loss: bool = HfArg(
        default=True, help="prompts and answers: the loss counts only the tokens of the answers; False: those of the prompts too"
    )
    max_new_tokens: int = HfArg(
        default=128,
        help="prompts and answers: length of the longest answer in evaluate.py, in tokens; predict.py has a flag with this name",
    )
    num_beams: int = HfArg(
        default=5, help="translation: number of beams in beam search; 1: the most probable token at each step (greedy search)"
    )

    # --- trainable parameters ----------------------------------------------------------------------------------------
    method: Literal["lora", "full", "head"] = HfArg(
        default="lora",
        help="trainable parameters; lora: the adapter and the head; full: all weights; head: only the head, for BERT with its pooler",
    )
    quantization: Literal["none", "4bit"] = HfArg(
        default="none",
        help="4bit: store the frozen weights in 4 bits (QLoRA, arXiv 2305.14314), for large models that do not fit into memory; slower; "
        "a small model took more memory than without; needs bitsandbytes",
    )
    lora_r: int = HfArg(
        default=16,
        help="rank of the update; for labels, with lora_alpha 32, no difference between 4, 16 and 64 was visible (two seeds); in "
        "translation 128 was about one BLEU ahead of 16, which may be chance (two seeds)",
    )
    lora_alpha: int = HfArg(
        default=32,
        help="the update is scaled by lora_alpha / lora_r; with rank 64 on IMDb, 32 always learned, and 128 in two of five runs at 1e-3 and 2e-3",
    )
    lora_dropout: float = HfArg(
        default=0.0,
        help="dropout on the adapter's input; above 0, layers are not fused: 0.1 tripled the training time on two cores with AMX, and did "
        "not help in the study (one seed)",
    )
    target_modules: str = HfArg(
        default="all-linear",
        help="layers that LoRA adapts: all-linear, attention, mlp or query-value, or names of modules, separated by commas; in the "
        "study (one seed) query-value was two points behind all-linear, attention and mlp a point, which may be chance",
    )
    train_embeddings: bool = HfArg(
        default=False,
        help="with LoRA, also train the word embeddings and the output layer, for a language that the model can't write yet; the "
        "saved adapter gets larger",
    )
    use_rslora: bool = HfArg(default=False, help="scale by lora_alpha / sqrt(lora_r) instead (arXiv 2312.03732)")
    use_dora: bool = HfArg(
        default=False,
        help="DoRA: learn magnitude and direction separately (arXiv 2402.09353); layers are then not fused: three times as slow on two "
        "cores with AMX",
    )
    init_lora_weights: Literal["default", "pissa"] = HfArg(
        default="default",
        help="default: LoRA does not change the model at first; pissa: start from the weights' largest singular values (arXiv "
        "2404.02948)",
    )
    loraplus_lr_ratio: float = HfArg(default=1.0, help="learning rate of B divided by that of A; above 1: LoRA+ (arXiv 2402.12354)")

    # --- training ----------------------------------------------------------------------------------------------------
    learning_rate: float = HfArg(
        default=1e-3,
        help="try this first; for labels, entities, answers and continuations the best was 2.5 to 20 times that of full fine-tuning (one "
        "run for each rate); for translation 6e-3, the highest of three, was mostly best with a small model; on IMDb 4e-3 failed",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = HfArg(
        default="linear", help="how the learning rate changes after the warm-up"
    )
    warmup_steps: float = HfArg(default=0.06, help="steps of rising learning rate; below 1: a fraction of all steps")
    weight_decay: float = HfArg(default=0.01, help="AdamW's weight decay")
    label_smoothing_factor: float = HfArg(default=0.0, help="fraction of each label's probability that is spread over all labels")
    class_weights: Literal["none", "balanced"] = HfArg(
        default="none",
        help="balanced: weight the loss of each text so that all labels have the same total weight; several labels: for each label, "
        "the texts with it weigh as much as the texts without it",
    )
    length_warmup: float = HfArg(
        default=0.67,
        help="labels and numbers of single texts: in this fraction of the steps, from the first ones on, cut texts to 128 tokens; 0: never; "
        "saves 30 %% of the training time, and three seeds showed no loss of accuracy in results/length-warmup.md (arXiv 2108.06084 "
        "does it for stability)",
    )
    num_train_epochs: float = HfArg(
        default=1.0, help="passes over the training rows; from the third on, the validation loss rose in the study"
    )
    batch_size: int = HfArg(
        default=32,
        help="texts per forward pass, over all processes; 16 and 64 were no better in the study. A step reads batch_size x "
        "gradient_accumulation_steps texts, with any number of processes",
    )
    eval_batch_size: int | None = HfArg(
        default=None,
        help="texts per batch and process in prediction; changes only the speed and the memory; not given: 32, or 256 on a GPU",
    )
    gradient_accumulation_steps: int = HfArg(
        default=1, help="forward passes per step, to save memory: 4 passes of 8 texts give the same result as 1 of 32"
    )
    seed: int = HfArg(default=0, help="seed of the new weights, the order of the rows, and dropout")
    precision: Literal["auto", "bf16", "float32"] = HfArg(default="auto", help="auto: bf16 if the hardware supports it")
    speedups: bool = HfArg(
        default=True,
        help="use finetuning/speed; False: train and predict with plain transformers and peft (`precision` stays), slower, with the "
        "same results up to rounding",
    )
    cuda_graphs: bool = HfArg(
        default=True,
        help="labels, numbers and named entities on one CUDA GPU: record a training step for a few lengths, and replay it; 2.6 "
        "times as fast with a model of DistilBERT's size on one H100, measured with earlier code",
    )

    # --- evaluation while training -----------------------------------------------------------------------------------
    eval_strategy: Literal["steps", "epoch"] = HfArg(default="steps", help="validate every `eval_steps`, or after each epoch")
    eval_steps: float = HfArg(default=0.25, help="steps between two validations; below 1: a fraction of all steps")
    save_steps: float | None = HfArg(
        default=None, help="steps between two checkpoints, not counting the best one; not given: a checkpoint at every validation"
    )
    metric_for_best_model: str | None = HfArg(
        default=None,
        help="the validation metric that picks the checkpoint and decides early stopping; not given: accuracy (one label), "
        "rmse (numbers), f1 (several labels, named entities), perplexity (language models) or bleu (translation)",
    )
    early_stopping_patience: int = HfArg(default=3, help="stop after this many validations without improvement; 0: never")

    # --- output ------------------------------------------------------------------------------------------------------
    output_dir: str = HfArg(default="outputs", help="folder that holds the run folders")
    report_to: str = HfArg(
        default="none", help="also log to tensorboard, wandb or trackio, if installed; separate several with commas"
    )
    run_name: str | None = HfArg(default=None, help="name of the run folder; not given: model, data set and time")


ALL_ROWS = dict(train_samples=0, val_samples=0, test_samples=0)

# `--preset NAME` replaces these defaults. A flag on the command line overrides the preset.
PRESETS: dict[str, dict] = {
    "laptop": {},
    "full": dict(**ALL_ROWS, num_train_epochs=2.0, eval_steps=0.2, length_warmup=0.0),
    "smoke": dict(train_samples=64, val_samples=32, test_samples=64, max_length=64, batch_size=16),
    # Data sets on the Hub.
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
    # Several of 28 labels, and the similarity of two sentences: measured in results/kinds-of-labels.md.
    "go_emotions": dict(
        dataset_name="google-research-datasets/go_emotions",
        problem_type="multi_label_classification",
        **ALL_ROWS,
        max_length=64,
    ),
    "stsb": dict(
        dataset_name="mteb/stsbenchmark-sts",
        problem_type="regression",
        text_column="sentence1",
        text_pair_column="sentence2",
        label_column="score",
        **ALL_ROWS,
        max_length=128,
        num_train_epochs=3.0,
        metric_for_best_model="spearman",
    ),
    # Further pre-training on IMDb's training reviews, without their labels.
    "pretrain": dict(task="masked-lm", **ALL_ROWS, max_length=128, batch_size=64, eval_batch_size=64),
    # Answers to prompts: descriptions of restaurants from their properties.
    "instruct": dict(
        task="causal-lm",
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        dataset_name="tuetschek/e2e_nlg",
        **ALL_ROWS | dict(val_samples=400),
        max_length=256,
        batch_size=16,
        eval_steps=0.5,
    ),
    "translation": dict(
        task="translation",
        dataset_name="bentrevett/multi30k",
        model_name="Helsinki-NLP/opus-mt-en-de",
        source_column="en",
        target_column="de",
        **ALL_ROWS | dict(val_samples=500),
        max_length=128,
        learning_rate=5e-4,  # not measured: opus-mt could not be downloaded
    ),
    "ner": dict(
        task="token-classification",
        dataset_name="lhoestq/conll2003",
        model_name="distilbert-base-cased",
        context="neighbours",
        max_length=128,
        **ALL_ROWS,
        num_train_epochs=5.0,
        # With neighbouring sentences, all-mpnet-base-v2 learned at 4e-4 and rank 16, but not at 1e-3 and rank 64 (no record).
        learning_rate=4e-4,
        batch_size=8,
        eval_steps=0.2,
    ),
}

# `--search N` draws each trial from this space. (low, high): a number between them, on a logarithmic scale unless low is 0.
# [...]: one of the list.
SEARCH_SPACE: dict[str, tuple | list] = {
    "learning_rate": (1e-4, 4e-3),
    "lora_r": [4, 8, 16, 32, 64],
    "batch_size": [16, 32, 64],
    "num_train_epochs": [1.0, 2.0, 3.0],
}
