"""The studies that quality.py runs: named experiments, each with the settings that it changes.

The runs of a study are measured on its split. Choices are made on validation; the test only reports. It is the official test, except
in "sentences" and "critics", where it is held out from train. Unless a study names other data, rows are those of IMDb, with 2,500
of the official training reviews held out for validation. Settings are flags of fine_tune.py.
"""

from dataclasses import dataclass

from config import ALL_ROWS, PRESETS

# Methods that only quality.py has: scikit-learn on the same rows, with their whole texts or with the tokens that a model reads.
BASELINES = TFIDF, TFIDF_OF_TOKENS, COSINE = "tf-idf", "tf-idf of tokens", "cosine"  # methods without a seed
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Study:
    split: str  # "validation" or "test"
    common: dict
    experiments: dict[str, dict]  # name -> settings that differ from `common`
    seeds: tuple[int, ...] = (0,)
    keep: bool = False  # whether to keep the merged models, where `pretrained` finds them
    # The beginning of the name of the experiment to compare with, after STUDY/ if it is in another study. {0}, {1} and {2} stand
    # for the parts, between commas, of the name of the experiment that is compared.
    reference: str = ""


def file_name(experiment: str) -> str:
    return experiment.replace(", ", "_").replace(" ", "-")


def pretrained(study: str, experiment: str) -> dict:
    """Return the setting that starts from the model of an experiment of a study with `keep`."""
    return dict(model_name=f"outputs/{study}/{file_name(experiment)}/export/merged")


def lora(rank: int, **more) -> dict:
    return dict(lora_r=rank, lora_alpha=2 * rank) | more


def full(learning_rate: float, **more) -> dict:
    return dict(method="full", learning_rate=learning_rate) | more


def beside_full(rate: float, **settings) -> dict[str, dict]:
    """Return LoRA with `settings`, and full fine-tuning at the learning rate `rate`."""
    return {"LoRA on all linear layers": settings, "full fine-tuning": full(rate)}


def best(study: str) -> dict[str, dict]:
    """Return LoRA and full fine-tuning, each with the settings that were best in another study, on validation; quality.py finds them."""
    methods = {"LoRA on all linear layers": "LoRA", "full fine-tuning": "full"}
    return {name: dict(best_of=f"{study}/{method}") for name, method in methods.items()}


def rates(name: str, *texts: str, **more) -> dict[str, dict]:
    """Return an experiment for each learning rate."""
    return {name.format(text): dict(learning_rate=float(text)) | more for text in texts}


def each(name: str, setting: str, *values) -> dict[str, dict]:
    """Return an experiment for each value of a setting."""
    return {name.format(value): {setting: value} for value in values}


def ranks(*sizes: tuple[int, int], texts: tuple[str, ...]) -> dict[str, dict]:
    """Return an experiment for each (rank, lora_alpha) and learning rate: lora_alpha scales the update by alpha / rank."""
    return {
        f"rank {rank}, alpha {alpha}, {text}": dict(lora_r=rank, lora_alpha=alpha, learning_rate=float(text))
        for rank, alpha in sizes
        for text in texts
    }


def both(lora_rates: tuple[str, ...], full_rates: tuple[str, ...]) -> dict[str, dict]:
    """Return LoRA and full fine-tuning, each at several learning rates."""
    return rates("LoRA, {}", *lora_rates) | rates("full, {}", *full_rates, method="full")


STEP_WEIGHTS = {"own words": {}, "mean number of words": {}}
# The linear layers of the stand-in's last four layers, of six.
LINEAR = [*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"]
LINEAR += ["intermediate.dense", "output.dense"]
UPPER_LAYERS = ",".join(f"layer.{number}.{name}" for number in (2, 3, 4, 5) for name in LINEAR)
PLAIN = dict(dropout=0.1, lora_dropout=0.1, padding="max_length", precision="float32")
QUERY_VALUE = dict(target_modules="query-value", lora_r=8, lora_alpha=32, learning_rate=2e-4, truncation="head")
NO_EARLY_STOP = dict(early_stopping_patience=0)  # so that all experiments train equally long
LAPTOP = dict(val_samples=0, eval_steps=0.5) | NO_EARLY_STOP
SHORT = LAPTOP | dict(max_length=128)
SHORT_RUN = SHORT | dict(train_samples=5000, num_train_epochs=2)  # for many experiments
FULL = PRESETS["full"] | NO_EARLY_STOP
# Number of training reviews -> settings: few reviews need more epochs.
SMALL = {n: dict(train_samples=n, num_train_epochs=epochs) for n, epochs in ((500, 10), (2_000, 5), (8_000, 3))}
MPNET = {"all-mpnet-base-v2": dict(model_name="sentence-transformers/all-mpnet-base-v2")}
ENTITIES = PRESETS["ner"] | lora(64, learning_rate=1e-3) | NO_EARLY_STOP
SENTENCES = ENTITIES | lora(16, context="sentence", batch_size=32, eval_steps=0.1)
SENTENCES_RUN = SENTENCES | dict(num_train_epochs=3, eval_steps=0.5)
NEIGHBOURS = dict(context="neighbours", batch_size=8)
TRANSLATION = dict(task="translation", dataset_name="bentrevett/multi30k", **ALL_ROWS, max_length=64, batch_size=128)
TRANSLATION |= dict(label_smoothing_factor=0.1, **NO_EARLY_STOP, eval_steps=0.25)
FROM_SCRATCH = TRANSLATION | full(3e-3, model_name="outputs/small-translator", warmup_steps=0.2, num_train_epochs=12)
EN_DE = dict(source_column="en", target_column="de")
DE_EN = dict(source_column="de", target_column="en")
EN_FR = dict(source_column="en", target_column="fr")
PAIRS = {
    "1,000": dict(train_samples=1_000, num_train_epochs=30),
    "5,000": dict(train_samples=5_000, num_train_epochs=12),
    "all": dict(num_train_epochs=4),
}
ADAPTED = TRANSLATION | pretrained("translation-base", "English to German") | dict(warmup_steps=0.1)
LORA_128 = lora(128, learning_rate=3e-3)
ADAPTATIONS = rates("LoRA, rank 16, {}", "3e-3", **lora(16)) | rates("LoRA, rank 64, {}", "3e-3", "1e-2", **lora(64))
ADAPTATIONS |= {"LoRA, rank 128, 3e-3": LORA_128} | rates("full, {}", "1e-3", "3e-3", method="full")
AUGMENTATIONS = each("{}", "augmentation", "none", "token-dropout", "crop", "sentence-shuffle")
PASSES = {"LoRA, 1 pass": lora(64, learning_rate=1e-3), "full, 1 pass": full(3e-4)}
PASSES |= {"full, 3 passes": full(3e-4, num_train_epochs=3)}
PRETRAINED = {"no further pre-training": {}} | {name: pretrained("pretraining", name) for name in PASSES}
# Other kinds of labels. `--dataset_name` names the folder of each.
GOEMOTIONS = PRESETS["go_emotions"] | NO_EARLY_STOP  # several of 28 labels
BANKING77 = PRESETS["banking77"] | dict(label_column="label", **ALL_ROWS) | NO_EARLY_STOP  # one of 77 labels
SNLI = dict(text_column="premise", text_pair_column="hypothesis", **ALL_ROWS)  # pairs of texts, one of three labels
SNLI |= dict(max_length=128, num_train_epochs=3) | NO_EARLY_STOP
STSB = PRESETS["stsb"] | NO_EARLY_STOP  # pairs of texts, a number from 0 to 5
# A decoder: SmolLM2-135M-Instruct. The records have it with weights rounded to 4 bits, stored as float32.
SMOLLM2 = dict(model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
# Answers to prompts: descriptions of restaurants (E2E).
E2E = PRESETS["instruct"] | dict(num_train_epochs=1, **NO_EARLY_STOP)
UNTRAINED = dict(train_samples=16, learning_rate=1e-9)  # the model as it is: its learning rate is next to nothing
RATES = both(("5e-4", "1e-3", "2e-3"), ("5e-5", "1e-4", "2e-4"))
HIGHER_RATES = both(("5e-4", "1e-3", "2e-3"), ("1e-4", "2e-4", "4e-4"))  # for full fine-tuning
DECODER_RATES = both(("2e-4", "5e-4", "1e-3"), ("2e-5", "5e-5", "1e-4", "2e-4"))
INTENTS, WORDS = BANKING77 | SMOLLM2, SENTENCES | SMOLLM2 | dict(num_train_epochs=3)
CRITICS = SMOLLM2 | dict(task="causal-lm", dataset_name="cornell-movie-review-data/rotten_tomatoes", max_length=64)
CRITICS |= ALL_ROWS | dict(train_samples=3_000, num_train_epochs=1, eval_steps=0.5) | NO_EARLY_STOP
# Studies that were not run yet, or not all of them; benchmarks/gpu.sh runs most of these.
PLANNED = (
    "rank-entities-mpnet-neighbours",
    *("decoder-reviews-recipe", "decoder-intents-recipe", "decoder-intents"),
    *("decoder-entities-recipe", "decoder-entities"),
)

STUDIES = {
    # Does fast training cost accuracy? Three steps change what is computed: no dropout, batches of similar length, bf16.
    "fast": Study("validation", SHORT | dict(train_samples=4000), {"ours": {}, "plain": PLAIN}, SEEDS, reference="plain"),
    # Ways to make the first command shorter, and their cost in accuracy.
    "shorter": Study(
        "validation",
        LAPTOP,
        {"whole texts": {}, "short for two thirds": dict(length_warmup=0.67), "short for four fifths": dict(length_warmup=0.8)},
        SEEDS,
        reference="whole texts",
    ),
    "shorter-ways": Study(
        "validation",
        LAPTOP,
        {
            "short for half": dict(length_warmup=0.5),
            "10,000 reviews": dict(train_samples=10_000),
            "short for two thirds, upper four layers": dict(length_warmup=0.67, target_modules=UPPER_LAYERS),
        },
        reference="shorter/whole texts",
    ),
    # One change at a time from "base", on 5,000 reviews.
    "recipe": Study(
        "validation",
        SHORT_RUN,
        {"base": {}}
        | rates("learning rate {}", "2e-4", "5e-4", "2e-3", "4e-3")
        | rates("full, learning rate {}", "5e-5", "1e-4", "2e-4", "4e-4", method="full")
        | {"head alone, learning rate 1e-3": dict(method="head")}
        | rates("head alone, learning rate {}", "1e-2", method="head")
        | {"query and value": dict(target_modules="query-value"), "attention": dict(target_modules="attention")}
        | {"MLP": dict(target_modules="mlp"), "rank 4, alpha 8": lora(4), "rank 64, alpha 128": lora(64)}
        | each("alpha {}", "lora_alpha", 16, 64)
        | each("{} tokens", "max_length", 256, 512)
        | each("truncation {}", "truncation", "head", "tail")
        | each("batches of {}", "batch_size", 16, 64)
        | each("{} epoch", "num_train_epochs", 1)
        | each("{} epochs", "num_train_epochs", 3, 5)
        | {"cosine schedule": dict(lr_scheduler_type="cosine")}
        | {"constant learning rate": dict(lr_scheduler_type="constant_with_warmup")}
        | each("dropout {}", "dropout", 0.1)
        | each("LoRA dropout {}", "lora_dropout", 0.1)
        | each("label smoothing {}", "label_smoothing_factor", 0.1)
        | {"rsLoRA": dict(use_rslora=True), "DoRA": dict(use_dora=True)}
        | {"LoRA+, ratio 8": dict(loraplus_lr_ratio=8, learning_rate=5e-4), "PiSSA": dict(init_lora_weights="pissa")},
        reference="base",
    ),
    # Is it the rank that matters, or lora_alpha?
    "rank-labels": Study(
        "validation",
        SHORT_RUN,
        ranks((4, 8), (4, 32), (16, 32), (64, 32), (64, 128), texts=("5e-4", "1e-3", "2e-3")),
        (0, 1),
        reference="rank 16, alpha 32, 1e-3",
    ),
    "rank-entities": Study(
        "validation",
        SENTENCES_RUN,
        ranks((16, 32), (64, 32), (64, 128), texts=("5e-4", "1e-3", "2e-3")),
        (0, 1),
        reference="rank 16, alpha 32, {2}",
    ),
    # With 5,000 of 14,041 sentences this model learned nothing, so the other settings were not run.
    "rank-entities-mpnet": Study(
        "validation",
        SENTENCES_RUN | MPNET["all-mpnet-base-v2"] | dict(train_samples=5_000),
        ranks((16, 32), texts=("4e-4", "1e-3")) | ranks((64, 32), texts=("4e-4",)),
    ),
    # With all sentences and their neighbours it learns, at rank 16 and 4e-4 ("entities-model").
    "rank-entities-mpnet-neighbours": Study(
        "validation",
        ENTITIES | MPNET["all-mpnet-base-v2"],
        ranks((16, 32), (64, 32), (64, 128), texts=("4e-4", "1e-3")),
        reference="rank 16, alpha 32, 4e-4",
    ),
    "rank-translation": Study(
        "validation",
        ADAPTED | PAIRS["5,000"] | DE_EN,
        ranks((16, 32), (64, 32), (64, 128), (128, 32), (128, 256), texts=("1e-3", "3e-3", "6e-3")),
        (0, 1),
        reference="rank 16, alpha 32, {2}",
    ),
    # The best changes on all the reviews, with the settings of `--preset full`.
    "confirm": Study(
        "validation",
        FULL,
        {"base": {}}
        | rates("full, learning rate {}", "1e-4", method="full")
        | each("{} tokens", "max_length", 512)
        | each("{} epochs", "num_train_epochs", 3)
        | rates("full, learning rate {}", "5e-5", "2e-5", method="full")
        | rates("learning rate {}", "5e-4"),
        reference="base",
    ),
    # The official test: `--preset full`, and full fine-tuning at its own best learning rate.
    "comparison": Study("test", FULL, beside_full(5e-5), SEEDS, reference="full fine-tuning"),
    "baselines": Study(
        "test",
        FULL,
        {
            "LoRA on query and value, rank 8, 2e-4, beginning of the text": QUERY_VALUE,
            "the head alone": dict(method="head"),
            "TF-IDF and logistic regression": dict(method=TFIDF),
            "TF-IDF and logistic regression, 256 tokens": dict(method=TFIDF_OF_TOKENS),
        },
        reference="comparison/full fine-tuning",
    ),
    # "pretrained-test" has LoRA with 500 reviews.
    "growth": Study(
        "test",
        FULL | dict(val_samples=500),
        {f"LoRA, {n} reviews": some for n, some in SMALL.items() if n > 500}
        | {f"TF-IDF, {n} reviews": dict(train_samples=n, method=TFIDF) for n in SMALL},
        SEEDS,
    ),
    "augmentation-500": Study("validation", FULL | SMALL[500], AUGMENTATIONS, SEEDS, reference="none"),
    "augmentation-8000": Study("validation", FULL | SMALL[8_000], AUGMENTATIONS, SEEDS, reference="none"),
    # Another data set: short sentences, a quarter of the rows. The test is held out from train.
    "sentences": Study("test", PRESETS["rotten_tomatoes"] | NO_EARLY_STOP, {"Rotten Tomatoes": {}}, SEEDS),
    # Named entities: one change at a time, for each of the two methods.
    "entities-recipe": Study(
        "validation",
        SENTENCES,
        rates("LoRA, learning rate {}", "1e-3", "2e-3", "4e-3")
        | {"LoRA, rank 64, alpha 128": lora(64), "LoRA, neighbours": NEIGHBOURS}
        | {"LoRA, neighbours, rank 64": NEIGHBOURS | lora(64)}
        | rates("LoRA, neighbours, rank 64, {}", "5e-4", **NEIGHBOURS, **lora(64))
        | {"LoRA, neighbours, batches of 4": NEIGHBOURS | dict(batch_size=4)}
        | rates("full, learning rate {}", "1e-4", "2e-4", method="full")
        | rates("full, neighbours, {}", "2e-4", "4e-4", method="full", **NEIGHBOURS),
        reference="{0}, ",
    ),
    # What the loss of a step is divided by: its own number of words, or the mean number of all steps. The records name the commits
    # whose code does the one and the other. Since then it is the mean.
    "step-weights": Study("validation", SENTENCES_RUN, STEP_WEIGHTS, SEEDS, reference="own words"),
    "step-weights-translation": Study(
        "validation", ADAPTED | PAIRS["5,000"] | DE_EN | LORA_128, STEP_WEIGHTS, SEEDS, reference="own words"
    ),
    # Both methods on the official test, each at its own best learning rate.
    "entities": Study("test", ENTITIES, beside_full(2e-4), SEEDS, reference="full fine-tuning"),
    # At 1e-3 and rank 64 the larger model learned nothing: its training loss did not fall below that of guessing.
    "entities-model": Study("test", ENTITIES | lora(16, learning_rate=4e-4), MPNET, reference="entities/full fine-tuning"),
    # Further pre-training on the training reviews, without their labels. Perplexity of masked tokens on the validation reviews.
    "pretraining": Study("validation", PRESETS["pretrain"] | NO_EARLY_STOP, PASSES, keep=True),
    # A classifier on top of it with few labelled reviews. "confirm/base" is that of all reviews without further pre-training.
    "pretrained": Study(
        "validation",
        FULL | dict(eval_steps=0.5),
        {f"{n} reviews, {base}": SMALL[n] | model for n in (500, 2_000) for base, model in PRETRAINED.items()}
        | {"all reviews, full, 3 passes": PRETRAINED["full, 3 passes"]},
        reference="{0}, no",
    ),
    # The official test, in the setting where it helped most.
    "pretrained-test": Study(
        "test",
        FULL | dict(eval_steps=0.5) | SMALL[500],
        {base: PRETRAINED[base] for base in ("no further pre-training", "full, 3 passes")},
        SEEDS,
        reference="no further",
    ),
    # Other kinds of labels: the learning rate of each method on validation, then both methods on the official test.
    "banking77-recipe": Study("validation", BANKING77, HIGHER_RATES, reference="LoRA, 1e-3"),
    "banking77": Study("test", BANKING77, best("banking77-recipe"), SEEDS, reference="full fine-tuning"),
    "snli-recipe": Study("validation", SNLI, RATES, reference="LoRA, 1e-3"),
    "snli-epochs": Study(
        "validation",
        SNLI,
        each("LoRA, {} epochs", "num_train_epochs", 1, 6) | {"full, 6 epochs": full(1e-4, num_train_epochs=6)},
        reference="snli-recipe/{0}, 1e-",
    ),
    "snli": Study("test", SNLI, best("snli-recipe"), SEEDS, reference="full fine-tuning"),
    "stsb-recipe": Study("validation", STSB, HIGHER_RATES, reference="LoRA, 1e-3"),
    "stsb": Study("test", STSB, best("stsb-recipe"), SEEDS, reference="full fine-tuning"),
    "stsb-untrained": Study("test", STSB, {"cosine": dict(method=COSINE)}, reference="stsb/LoRA"),
    # "without first bias" ran before `initial_bias` was written: its head's bias starts at zero.
    "goemotions-recipe": Study(
        "validation",
        GOEMOTIONS,
        HIGHER_RATES | {"LoRA, without first bias": {}},
        reference="LoRA, 1e-3",
    ),
    "goemotions": Study("test", GOEMOTIONS, best("goemotions-recipe"), SEEDS, reference="full fine-tuning"),
    "translation-recipe": Study("validation", FROM_SCRATCH | EN_DE, {"no dropout": {}}),
    # A translation model from scratch: the random weights of small_translator.py. Multi30k's official test of 2016.
    "translation-base": Study("test", FROM_SCRATCH | dict(dropout=0.1), {"English to German": EN_DE}, SEEDS, keep=True),
    # That model learns another direction and another language. First the settings for each method, in one of the cases.
    "translation-lora": Study(
        "validation",
        ADAPTED | PAIRS["5,000"] | DE_EN,
        {f"German to English, 5,000 pairs, {method}": settings for method, settings in ADAPTATIONS.items()},
        reference="{0}, {1}, full, 3e-3",
    ),
    "translation-transfer": Study(
        "test",
        ADAPTED,
        {
            f"{direction}, {n} pairs, {method}": columns | some | settings
            for direction, columns in {"German to English": DE_EN, "English to French": EN_FR}.items()
            for n, some in PAIRS.items()
            for method, settings in {
                "LoRA, rank 128": LORA_128,
                "full fine-tuning": full(3e-3),
                "from scratch": FROM_SCRATCH | some,
            }.items()
            if (n, method) != ("1,000", "from scratch")  # not run
        }
        | {
            "English to French, 5,000 pairs, LoRA, rank 128, and embeddings": EN_FR
            | PAIRS["5,000"]
            | LORA_128
            | dict(train_embeddings=True)
        },
        reference="{0}, {1}, full",
    ),
    # A base model of a common size.
    "model": Study("test", FULL, MPNET, reference="comparison/full fine-tuning"),
    # A pre-trained decoder with a head: reviews, then 77 labels, then entities.
    "decoder-reviews-recipe": Study("validation", SHORT_RUN | SMOLLM2, DECODER_RATES, reference="LoRA, 5e-4"),
    # The first command with this decoder, and as it is.
    "decoder-reviews": Study(
        "test",
        dict(length_warmup=0.67),
        {"SmolLM2-135M-Instruct": SMOLLM2 | dict(best_of="decoder-reviews-recipe/LoRA"), "all-MiniLM-L6-v2": {}},
        reference="all-MiniLM-L6-v2",
    ),
    "decoder-intents-recipe": Study("validation", INTENTS, DECODER_RATES, reference="LoRA, 5e-4"),
    "decoder-intents": Study("test", INTENTS, best("decoder-intents-recipe"), reference="full fine-tuning"),
    "decoder-entities-recipe": Study("validation", WORDS, DECODER_RATES, reference="LoRA, 5e-4"),
    "decoder-entities": Study("test", WORDS, best("decoder-entities-recipe"), reference="full fine-tuning"),
    # The decoder answers prompts.
    "e2e-recipe": Study(
        "validation",
        E2E | dict(train_samples=1_000),
        both(("5e-4", "1e-3", "2e-3", "4e-3"), ("1e-4", "2e-4", "4e-4")),
        reference="LoRA, 1e-3",
    ),
    "e2e": Study(
        "test",
        E2E,
        {"LoRA, 1,000 pairs": dict(train_samples=1_000, learning_rate=1e-3), "no training": UNTRAINED},
        reference="LoRA, 1,000 pairs",
    ),
    # Frozen weights in 4 bits (QLoRA), and as they are.
    "four-bits": Study(
        "validation",
        E2E | dict(train_samples=1_000, learning_rate=1e-3),
        {"LoRA": {}, "LoRA, frozen weights in 4 bits": dict(quantization="4bit")},
        reference="LoRA",
    ),
    "e2e-all": Study("test", E2E, best("e2e-recipe"), reference="full fine-tuning"),
    # `--dataset_name` names a copy of the data whose prompts begin with the instruction in results/decoder.md and an empty line.
    "e2e-instruction": Study("test", E2E, {"no training": UNTRAINED}),
    # The decoder learns a style: short sentences of critics.
    "critics-recipe": Study(
        "validation",
        CRITICS,
        both(("1e-3", "2e-3", "4e-3"), ("1e-4", "2e-4", "4e-4")) | {"no training": UNTRAINED},
        reference="LoRA, 1e-3",
    ),
    "critics": Study("test", CRITICS, best("critics-recipe"), SEEDS, reference="full fine-tuning"),
}
