"""The studies that quality.py runs: named experiments, each with what it changes.

A study's split is where its runs are measured: validation, where choices are made, or the test, which only reports: the
official one, but for "sentences". Rows are IMDb's, 2,500 of the official training reviews held out for validation, where a study
names no other data; "entities" and its kin have CoNLL-2003's official splits. What is named in `Study.common` and the
experiments are flags of fine_tune.py.
"""

from dataclasses import dataclass

from config import ALL_ROWS, PRESETS

TFIDF = "tf-idf"  # a method of quality.py alone: scikit-learn's, on the same rows


@dataclass(frozen=True)
class Study:
    split: str  # "validation" or "test"
    common: dict
    experiments: dict[str, dict]  # by name: what differs from `common`
    seeds: tuple[int, ...] = (0,)
    keep: bool = False  # its models, merged, where `pretrained` finds them


def pretrained(study: str, experiment: str) -> str:
    """The folder of the model that an experiment of a study with `keep` leaves."""
    return f"outputs/{study}/{experiment.replace(', ', '_').replace(' ', '-')}/export/merged"


# The linear layers of the stand-in's last four layers, of six.
UPPER_LAYERS = ",".join(
    f"layer.{number}.{name}"
    for number in (2, 3, 4, 5)
    for name in (
        *(f"attention.self.{of}" for of in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
)
LAPTOP = dict(val_samples=0, early_stopping_patience=0, eval_steps=0.5)
FULL = PRESETS["full"] | dict(early_stopping_patience=0)  # the same budget of epochs for all
# By number of training reviews: so few need more passes.
SMALL = {500: dict(num_train_epochs=10), 2_000: dict(num_train_epochs=5), 8_000: dict(num_train_epochs=3)}
ENTITIES = PRESETS["ner"] | dict(learning_rate=1e-3, lora_r=64, lora_alpha=128, early_stopping_patience=0)
SENTENCES = ENTITIES | dict(context="sentence", batch_size=32, lora_r=16, lora_alpha=32, eval_steps=0.1)
PRETRAINING = PRESETS["pretrain"] | dict(early_stopping_patience=0)
LANGUAGE = dict(task="causal-lm", **ALL_ROWS, early_stopping_patience=0, eval_steps=0.2)
SMALL_GPT2 = "outputs/small-gpt2"  # what small_gpt2.py leaves there
TRANSLATION = dict(
    task="translation",
    dataset_name="bentrevett/multi30k",
    **ALL_ROWS,
    max_length=64,
    batch_size=128,
    label_smoothing_factor=0.1,
    early_stopping_patience=0,
    eval_steps=0.25,
)
FROM_SCRATCH = TRANSLATION | dict(
    model_name="outputs/small-translator", method="full", learning_rate=3e-3, warmup_steps=0.2, num_train_epochs=12
)
EN_DE = dict(source_column="en", target_column="de")
ELSEWHERE = {
    "German to English": dict(source_column="de", target_column="en"),
    "English to French": dict(source_column="en", target_column="fr"),
}
TRANSLATOR = pretrained("translation-base", "English to German")
PAIRS = {
    "1,000": dict(train_samples=1_000, num_train_epochs=30),
    "5,000": dict(train_samples=5_000, num_train_epochs=12),
    "all": dict(num_train_epochs=4),
}
ADAPTED = TRANSLATION | dict(model_name=TRANSLATOR, warmup_steps=0.1)
ADAPTATIONS = {
    "LoRA, rank 16, 3e-3": dict(lora_r=16, lora_alpha=32, learning_rate=3e-3),
    "LoRA, rank 64, 3e-3": dict(lora_r=64, lora_alpha=128, learning_rate=3e-3),
    "LoRA, rank 64, 1e-2": dict(lora_r=64, lora_alpha=128, learning_rate=1e-2),
    "LoRA, rank 128, 3e-3": dict(lora_r=128, lora_alpha=256, learning_rate=3e-3),
    "full, 1e-3": dict(method="full", learning_rate=1e-3),
    "full, 3e-3": dict(method="full", learning_rate=3e-3),
}
AUGMENTATIONS = ("none", "token-dropout", "crop", "sentence-shuffle")

PASSES = {
    "LoRA, 1 pass": dict(lora_r=64, lora_alpha=128, learning_rate=1e-3),
    "full, 1 pass": dict(method="full", learning_rate=3e-4),
    "full, 3 passes": dict(method="full", learning_rate=3e-4, num_train_epochs=3),
}
PRETRAINED = {"no further pre-training": {}} | {name: dict(model_name=pretrained("pretraining", name)) for name in PASSES}
GPT2 = pretrained("gpt2", "1 pass")
STYLE = LANGUAGE | dict(
    model_name=GPT2, dataset_name="cornell-movie-review-data/rotten_tomatoes", max_length=64, num_train_epochs=3
)
STYLES = {
    "LoRA, 1e-3": dict(learning_rate=1e-3),
    "LoRA, 3e-3": dict(learning_rate=3e-3),
    "LoRA, rank 64, 1e-3": dict(learning_rate=1e-3, lora_r=64, lora_alpha=128),
    "LoRA, rank 64, 3e-3": dict(learning_rate=3e-3, lora_r=64, lora_alpha=128),
    "LoRA, rank 64, 1e-2": dict(learning_rate=1e-2, lora_r=64, lora_alpha=128),
    "full, 1e-4": dict(method="full", learning_rate=1e-4),
    "full, 3e-4": dict(method="full", learning_rate=3e-4),
    "full, 1e-3": dict(method="full", learning_rate=1e-3),
    "full, 3e-3": dict(method="full", learning_rate=3e-3),
}

STUDIES = {
    # Does what makes training fast cost accuracy? Three things change what is computed: dropout, batches of like length, bf16.
    "fast": Study(
        "validation",
        dict(train_samples=4000, val_samples=0, max_length=128, early_stopping_patience=0, eval_steps=0.5),
        {
            "ours": {},
            "tutorial": dict(dropout=0.1, lora_dropout=0.1, padding="max_length", precision="float32"),
        },
        seeds=(0, 1, 2),
    ),
    # What makes the first command shorter, and what that costs.
    "shorter": Study(
        "validation",
        LAPTOP,
        {
            "whole texts": {},
            "short for two thirds": dict(length_warmup=0.67),
            "short for four fifths": dict(length_warmup=0.8),
        },
        seeds=(0, 1, 2),
    ),
    "shorter-ways": Study(
        "validation",
        LAPTOP,
        {
            "short for half": dict(length_warmup=0.5),
            "10,000 reviews": dict(train_samples=10_000),
            "short for two thirds, upper four layers": dict(length_warmup=0.67, target_modules=UPPER_LAYERS),
        },
    ),
    # One change at a time from "base", on 5,000 reviews.
    "recipe": Study(
        "validation",
        dict(train_samples=5000, val_samples=0, max_length=128, num_train_epochs=2, early_stopping_patience=0, eval_steps=0.5),
        {
            "base": {},
            "learning rate 2e-4": dict(learning_rate=2e-4),
            "learning rate 5e-4": dict(learning_rate=5e-4),
            "learning rate 2e-3": dict(learning_rate=2e-3),
            "learning rate 4e-3": dict(learning_rate=4e-3),
            "full, learning rate 5e-5": dict(method="full", learning_rate=5e-5),
            "full, learning rate 1e-4": dict(method="full", learning_rate=1e-4),
            "full, learning rate 2e-4": dict(method="full", learning_rate=2e-4),
            "full, learning rate 4e-4": dict(method="full", learning_rate=4e-4),
            "head alone, learning rate 1e-3": dict(method="head"),
            "head alone, learning rate 1e-2": dict(method="head", learning_rate=1e-2),
            "query and value": dict(target_modules="query-value"),
            "attention": dict(target_modules="attention"),
            "MLP": dict(target_modules="mlp"),
            "rank 4, alpha 8": dict(lora_r=4, lora_alpha=8),
            "rank 64, alpha 128": dict(lora_r=64, lora_alpha=128),
            "alpha 16": dict(lora_alpha=16),
            "alpha 64": dict(lora_alpha=64),
            "256 tokens": dict(max_length=256),
            "512 tokens": dict(max_length=512),
            "truncation head": dict(truncation="head"),
            "truncation tail": dict(truncation="tail"),
            "batches of 16": dict(batch_size=16),
            "batches of 64": dict(batch_size=64),
            "1 epoch": dict(num_train_epochs=1),
            "3 epochs": dict(num_train_epochs=3),
            "5 epochs": dict(num_train_epochs=5),
            "cosine schedule": dict(lr_scheduler_type="cosine"),
            "constant learning rate": dict(lr_scheduler_type="constant_with_warmup"),
            "dropout 0.1": dict(dropout=0.1),
            "LoRA dropout 0.1": dict(lora_dropout=0.1),
            "label smoothing 0.1": dict(label_smoothing_factor=0.1),
            "rsLoRA": dict(use_rslora=True),
            "DoRA": dict(use_dora=True),
            "LoRA+, ratio 8": dict(loraplus_lr_ratio=8, learning_rate=5e-4),
            "PiSSA": dict(init_lora_weights="pissa"),
        },
    ),
    # The best of them on all the reviews, as `--preset full` has them.
    "confirm": Study(
        "validation",
        FULL,
        {
            "base": {},
            "full, learning rate 1e-4": dict(method="full", learning_rate=1e-4),
            "512 tokens": dict(max_length=512),
            "3 epochs": dict(num_train_epochs=3),
            "full, learning rate 5e-5": dict(method="full", learning_rate=5e-5),
            "full, learning rate 2e-5": dict(method="full", learning_rate=2e-5),
            "learning rate 5e-4": dict(learning_rate=5e-4),
        },
    ),
    # What the recipe reaches on the official test: `--preset full`, and full fine-tuning at its own best learning rate.
    "comparison": Study(
        "test",
        FULL,
        {
            "LoRA on all linear layers": {},
            "full fine-tuning": dict(method="full", learning_rate=5e-5),
        },
        seeds=(0, 1, 2),
    ),
    "baselines": Study(
        "test",
        FULL,
        {
            "LoRA on query and value, as tutorials have it": dict(
                target_modules="query-value", lora_r=8, lora_alpha=32, learning_rate=2e-4, truncation="head"
            ),
            "the head alone": dict(method="head"),
            "TF-IDF and logistic regression": dict(method=TFIDF),
        },
    ),
    "growth": Study(
        "test",
        FULL | dict(val_samples=500),
        {f"LoRA, {n} reviews": dict(train_samples=n, **more) for n, more in SMALL.items()}
        | {f"TF-IDF, {n} reviews": dict(train_samples=n, method=TFIDF) for n in SMALL},
    ),
    "augmentation-500": Study(
        "validation",
        FULL | dict(train_samples=500) | SMALL[500],
        {name: dict(augmentation=name) for name in AUGMENTATIONS},
        seeds=(0, 1, 2),
    ),
    "augmentation-8000": Study(
        "validation",
        FULL | dict(train_samples=8_000) | SMALL[8_000],
        {name: dict(augmentation=name) for name in AUGMENTATIONS},
        seeds=(0, 1, 2),
    ),
    # Another data set: short sentences, a quarter of the rows; its test is held out from train.
    "sentences": Study(
        "test", PRESETS["rotten_tomatoes"] | dict(early_stopping_patience=0), {"Rotten Tomatoes": {}}, seeds=(0, 1, 2)
    ),
    # Named entities: one change at a time from each of the two methods.
    "entities-recipe": Study(
        "validation",
        SENTENCES,
        {
            "LoRA, learning rate 1e-3": dict(learning_rate=1e-3),
            "LoRA, learning rate 2e-3": dict(learning_rate=2e-3),
            "LoRA, learning rate 4e-3": dict(learning_rate=4e-3),
            "LoRA, rank 64, alpha 128": dict(lora_r=64, lora_alpha=128),
            "LoRA, neighbours": dict(context="neighbours", batch_size=8),
            "LoRA, neighbours, rank 64": dict(context="neighbours", batch_size=8, lora_r=64, lora_alpha=128),
            "LoRA, neighbours, rank 64, 5e-4": dict(
                context="neighbours", batch_size=8, lora_r=64, lora_alpha=128, learning_rate=5e-4
            ),
            "LoRA, neighbours, batches of 4": dict(context="neighbours", batch_size=4),
            "full, learning rate 1e-4": dict(method="full", learning_rate=1e-4),
            "full, learning rate 2e-4": dict(method="full", learning_rate=2e-4),
            "full, neighbours, 2e-4": dict(method="full", learning_rate=2e-4, context="neighbours", batch_size=8),
            "full, neighbours, 4e-4": dict(method="full", learning_rate=4e-4, context="neighbours", batch_size=8),
        },
    ),
    # What they reach on the official test, each at its own best learning rate.
    "entities": Study(
        "test",
        ENTITIES,
        {"LoRA on all linear layers": {}, "full fine-tuning": dict(method="full", learning_rate=2e-4)},
        seeds=(0, 1, 2),
    ),
    # At 1e-3 and rank 64 the larger model learned nothing: its training loss stayed where guessing has it.
    "entities-model": Study(
        "test",
        ENTITIES | dict(learning_rate=4e-4, lora_r=16, lora_alpha=32),
        {"all-mpnet-base-v2": dict(model_name="sentence-transformers/all-mpnet-base-v2")},
    ),
    # Further pre-training on the training reviews, without their labels; perplexity of hidden tokens on the validation reviews.
    "pretraining": Study(
        "validation",
        PRETRAINING,
        PASSES,
        keep=True,
    ),
    # What a classifier makes of it that has this many labelled reviews; what all reviews reach without it is "confirm/base".
    "pretrained": Study(
        "validation",
        FULL | dict(eval_steps=0.5),
        {
            f"{n} reviews, {base}": dict(train_samples=n, **SMALL[n], **model)
            for n in (500, 2_000)
            for base, model in PRETRAINED.items()
        }
        | {"all reviews, full, 3 passes": PRETRAINED["full, 3 passes"]},
    ),
    # What it is worth on the official test where it helped most.
    "pretrained-test": Study(
        "test",
        FULL | dict(eval_steps=0.5, train_samples=500) | SMALL[500],
        {base: PRETRAINED[base] for base in ("no further pre-training", "full, 3 passes")},
        seeds=(0, 1, 2),
    ),
    # A decoder: the random weights of small_gpt2.py, which read IMDb's training reviews; perplexity on the validation reviews.
    "gpt2": Study(
        "validation",
        LANGUAGE | dict(model_name=SMALL_GPT2, method="full", max_length=256, learning_rate=1e-3),
        {"1 pass": {}},
        keep=True,
    ),
    # It goes on in another style: short sentences of critics.
    "gpt2-recipe": Study("validation", STYLE, STYLES),
    "gpt2-style": Study("test", STYLE, {name: STYLES[name] for name in ("LoRA, rank 64, 3e-3", "full, 1e-3")}, seeds=(0, 1, 2)),
    # A classifier of reviews on top of it, and on the weights it began with.
    "gpt2-reviews": Study(
        "validation",
        FULL | dict(train_samples=4_000),
        {"random weights": dict(model_name=SMALL_GPT2), "after 1 pass over the reviews": dict(model_name=GPT2)},
    ),
    "translation-recipe": Study("validation", FROM_SCRATCH | EN_DE, {"no dropout": {}}),
    # A translation model from scratch, the random weights of small_translator.py; on Multi30k's official test of 2016.
    "translation-base": Study(
        "test",
        FROM_SCRATCH | dict(dropout=0.1),
        {"English to German": EN_DE},
        seeds=(0, 1, 2),
        keep=True,
    ),
    # It learns another direction and another language. First what serves LoRA and full fine-tuning, in one of the cases.
    "translation-lora": Study(
        "validation",
        ADAPTED | PAIRS["5,000"] | ELSEWHERE["German to English"],
        {f"German to English, 5,000 pairs, {method}": settings for method, settings in ADAPTATIONS.items()},
    ),
    "translation-transfer": Study(
        "test",
        ADAPTED,
        {
            f"{name}, {n} pairs, {method}": columns | some | settings
            for name, columns in ELSEWHERE.items()
            for n, some in PAIRS.items()
            for method, settings in {
                "LoRA, rank 128": ADAPTATIONS["LoRA, rank 128, 3e-3"],
                "full fine-tuning": ADAPTATIONS["full, 3e-3"],
                "from scratch": FROM_SCRATCH | PAIRS[n],
            }.items()
            if (n, method) != ("1,000", "from scratch")  # not run
        }
        | {
            "English to French, 5,000 pairs, LoRA, rank 128, and embeddings": ELSEWHERE["English to French"]
            | PAIRS["5,000"]
            | ADAPTATIONS["LoRA, rank 128, 3e-3"]
            | dict(train_embeddings=True)
        },
    ),
    # A model of the size people use.
    "model": Study("test", FULL, {"all-mpnet-base-v2": dict(model_name="sentence-transformers/all-mpnet-base-v2")}),
}
