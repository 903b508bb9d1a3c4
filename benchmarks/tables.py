"""Write the tables, values and pictures of README.md, docs/learn.md and results/README.md anew from the records in results/.

    python benchmarks/tables.py

The pages hold the prose. They mark what comes from here:
* <!-- NAME --> and <!-- /NAME -->, on lines of their own: one of `TABLES` lies between them.
* <!-- v:RECORD FORMAT -->value<!-- /v -->, inside a line, never at its start: RECORD is a file in results/ without .json, or an
  experiment in results/quality/ without its seed; FORMAT is Python's, with the fields of the record and `records.DERIVED`.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT
from records import Record, experiment, experiments, machines, metric_of, named

from finetuning.results import plots

PAGES = ("README.md", "docs/learn.md", "results/README.md")


@dataclass(frozen=True)
class Table:
    """A table whose rows are the experiments of `studies`; or one for each results/KIND-*.json, with the `rows` of that record."""

    header: str  # with | between the columns; both are formats, with the fields of the first row, of each row
    cells: str
    studies: tuple[str, ...] = ()
    kind: str = ""
    rows: Callable[..., Iterable[dict]] = list  # of the experiments, or of the record
    caption: str = ""

    def markdown(self) -> str:
        """Return the tables in Markdown, each with its caption; "" without rows. Columns of numbers are aligned right."""
        tables = []
        for source in machines(self.kind) if self.kind else [experiments(*self.studies)]:
            if rows := list(self.rows(source)):
                cells = [self.cells.format_map(row).split(" | ") for row in rows]
                first = (next(filter(None, column), "") for column in zip(*cells, strict=True))
                marks = ["--:" if re.match(r"[*+-]*\d", cell) else "---" for cell in first]
                lines = [
                    f"| {self.header.format_map(rows[0])} |",
                    f"|{'|'.join(marks)}|",
                    *(f"| {' | '.join(row)} |" for row in cells),
                ]
                caption = self.caption.format_map(source if self.kind else rows[0])
                tables.append("\n".join([*lines, *(["", caption] if caption else [])]))
        return "\n\n".join(tables)


# --- rows ----------------------------------------------------------------------------------------------------------------


def growth(records: list[Record]) -> list[Record]:
    """Return LoRA's experiments by the number of training reviews, with those of TF-IDF as their references; one seed each."""
    first = [Record(record["runs"][0], runs=record["runs"][:1]) for record in records]
    lora, tfidf = ([r for r in first if re.match(names, r["experiment"])] for names in ("LoRA(,| on all)", "TF-IDF"))
    return [Record(a, reference=b) for a, b in zip(lora, tfidf, strict=True)]


def pretrained(records: list[Record]) -> list[Record]:
    """Return the experiments with what all the reviews reach without further pre-training."""
    base = experiment("confirm", "base")
    return [
        *records[:-1],
        Record(base, behind_first="no further pre-training", reference=None),
        Record(records[-1], reference=base),
    ]


KNOBS = {  # of docs/learn.md: the settings in config.py, and the experiments of "recipe" that change them
    "learning_rate": ("learning rate 2e-4", "learning rate 5e-4", "learning rate 2e-3", "learning rate 4e-3"),
    "target_modules": ("query and value", "attention", "MLP"),
    "lora_r, lora_alpha": ("rank 4, alpha 8", "rank 64, alpha 128"),
    "lora_alpha": ("alpha 16", "alpha 64"),
    "max_length": ("256 tokens", "512 tokens"),
    "truncation": ("truncation head", "truncation tail"),
    "num_train_epochs": ("1 epoch", "3 epochs", "5 epochs"),
    "batch_size": ("batches of 16", "batches of 64"),
    "method": ("full, learning rate 1e-4", "head alone, learning rate 1e-3"),
}


def knobs(_) -> list[dict]:
    """Return for each of `KNOBS` the settings with their lines in config.py, and what the changes bring."""
    lines = enumerate((ROOT / "config.py").read_text().splitlines(), 1)
    line_of = {match[1]: number for number, line in lines if (match := re.match(r"    (\w+): ", line))}
    return [
        {
            "settings": ", ".join(f"[`{name}`](../config.py#L{line_of[name]})" for name in settings.split(", ")),
            "changes": "<br>".join(f"{change}: {experiment('recipe', change)['difference']}" for change in changes),
        }
        for settings, changes in KNOBS.items()
    ]


RATES = {"train": "train_reviews_per_s", "predict": "predict_reviews_per_s"}


def ends_of_ladder(record: Record) -> list[dict]:
    """Return for each model and length ours, the baseline, and how many times faster ours is."""
    pairs = {}
    for row in record["rows"]:
        pairs.setdefault((row["model"], row["max_length"]), {})[row["variant"]] = row
    return [
        pair["ours"] | pair | {work: pair["ours"][rate] / pair["baseline"][rate] for work, rate in RATES.items()}
        for pair in pairs.values()
    ]


def ladder(record: Record) -> list[dict]:
    """Return the steps from the baseline to ours, each with how many times faster it is than the one before."""
    rows = [row for row in record["rows"] if row["model"].startswith("DistilBERT") and row["max_length"] == 256]
    gains = [dict.fromkeys(RATES, "")]
    gains += [
        {work: f"{row[rate] / before[rate]:.2f}x" for work, rate in RATES.items()} for before, row in itertools.pairwise(rows)
    ]
    return [row | gain | {"step": record["steps"][row["variant"]]} for row, gain in zip(rows, gains, strict=True)]


def sizes(record: Record) -> list[dict]:
    """Return the numbers of rows with what training, empty cache or not, and evaluation need."""
    pairs = zip(record["evaluation"]["sizes"], record["training"]["sizes"], strict=True)
    return [a | b | {"most_uss_gib": max(b["cold"]["uss_gib"], b["warm"]["uss_gib"])} for a, b in pairs]


# --- tables --------------------------------------------------------------------------------------------------------------

METHODS = ("comparison", "baselines", "model")
CHANGES = (
    "change | validation accuracy | difference, paired (95 %) | loss | trained | training",
    "{experiment} | {seeds} | {difference} | {loss:.3f} | {trainable_parameters:,} | {training_minutes:.1f} min",
)
TRANSLATIONS = (
    "direction, pairs | method | BLEU (95 %) | chrF | difference to full fine-tuning, paired (95 %) | trained | training | saved",
    "{parts[0]}, {parts[1]} | {behind_second} | {score} | {chrf:.2f} | {difference_p} | {trainable_parameters:,} | {training} | {saved_mib:.1f} MiB",
)
SPEEDS = (
    "model, tokens | training: tutorial | ours | prediction: tutorial | ours",
    "{model}, {max_length} | {baseline[train_reviews_per_s]:.1f}/s | {train_reviews_per_s:.1f}/s, **{train:.1f}x** "
    "| {baseline[predict_reviews_per_s]:.1f}/s | {predict_reviews_per_s:.1f}/s, **{predict:.1f}x**",
)
AUGMENTATIONS = (
    "augmentation | {dataset[train]:,} reviews, mean of 3 seeds | difference, paired (95 %)",
    "{experiment} | {accuracy:.2%} | {difference}",
)
SEEDS = ("accuracy, seed by seed | mean (95 %) | difference, paired (95 %)", "{seeds} | {score} | {difference}")
PERPLEXITY = ("trained | perplexity (95 %)", "{trainable_parameters:,} | {score}")

TABLES = {
    "claim": Table(
        "method, base model | accuracy on {n:,} test reviews | trained | training | saved",
        "{method} | {score_in_lines} | {trainable_parameters:,} | {training} | {saved_mib:.0f} MiB",
        METHODS,
    ),
    "comparison": Table(
        "method, base model | trained parameters | training | peak memory | accuracy on {n:,} test reviews (95 %) "
        "| without those seen in training | difference to full fine-tuning, paired (95 %) | McNemar's p",
        "{method} | {trained} | {training} | {peak_memory_gib:.1f} GiB | {score} | {unseen[accuracy]:.2%} | {difference} | {p}",
        METHODS,
    ),
    "growth": Table(
        "training reviews | LoRA | training | TF-IDF and logistic regression | training | difference, paired (95 %) | McNemar's p",
        "{dataset[train]:,} | {accuracy:.2%} | {training} | {reference[accuracy]:.2%} | {reference[training]} | {difference} | {p}",
        ("growth", "comparison", "baselines"),
        rows=growth,
    ),
    "augmentation_500": Table(*AUGMENTATIONS, ("augmentation-500",)),
    "augmentation_8000": Table(*AUGMENTATIONS, ("augmentation-8000",)),
    "recipe": Table(*CHANGES, ("recipe",)),
    "confirm": Table(*CHANGES, ("confirm",)),
    "shorter": Table(*CHANGES, ("shorter", "shorter-ways")),
    "fast": Table(f"{{dataset[train]:,}} reviews, 128 tokens, one epoch | {SEEDS[0]}", f"{{experiment}} | {SEEDS[1]}", ("fast",)),
    "sentences": Table(
        "data | rows: train | test | accuracy, seed by seed | mean | training",
        "{experiment} | {dataset[train]:,} | {n:,}, {split} | {seeds} | {score} | {training}",
        ("sentences",),
    ),
    "entities": Table(
        "method, base model | trained parameters | training | entity F1 on {n:,} sentences, {entities:,} entities (95 %) "
        "| difference to full fine-tuning, paired (95 %)",
        "{method} | {trained} | {training} | {score} | {difference}",
        ("entities", "entities-model"),
    ),
    "entities_types": Table(
        "method | F1 LOC | F1 MISC | F1 ORG | F1 PER | boundary | type | boundary and type | missed | spurious | unseen sentences: F1",
        "{method} | {by_type[0][f1]:.2%} | {by_type[1][f1]:.2%} | {by_type[2][f1]:.2%} | {by_type[3][f1]:.2%} | {errors[boundary]:.0f} "
        "| {errors[type]:.0f} | {errors[boundary and type]:.0f} | {errors[missed]:.0f} | {errors[spurious]:.0f} "
        "| {unseen[f1]:.2%} of {unseen[n]:,}",
        ("entities",),
    ),
    "entities_recipe": Table(
        "change | validation F1 | difference, paired (95 %) | precision | recall | trained",
        "{experiment} | {f1:.2%} | {difference} | {precision:.2%} | {recall:.2%} | {trainable_parameters:,}",
        ("entities-recipe",),
    ),
    "pretraining": Table(f"further pre-training | {PERPLEXITY[0]}", f"{{experiment}} | {PERPLEXITY[1]}", ("pretraining",)),
    "pretrained": Table(
        "labelled reviews | base model | validation accuracy | difference, paired (95 %) | loss",
        "{dataset[train]:,} | {behind_first} | {score} | {difference} | {loss:.3f}",
        ("pretrained",),
        rows=pretrained,
    ),
    "pretrained_test": Table(f"base model | {SEEDS[0]}", f"{{experiment}} | {SEEDS[1]}", ("pretrained-test",)),
    "gpt2_recipe": Table(f"setting | {PERPLEXITY[0]}", f"{{experiment}} | {PERPLEXITY[1]}", ("gpt2-recipe",)),
    "gpt2_style": Table(
        "setting | perplexity of test sentences, seed by seed | mean | 95 % of the first",
        "{experiment} | {runs[0][perplexity]:.1f}, {runs[1][perplexity]:.1f}, {runs[2][perplexity]:.1f} | **{perplexity:.1f}** | {runs[0][perplexity_ci95][0]:.1f} to {runs[0][perplexity_ci95][1]:.1f}",
        ("gpt2-style",),
    ),
    "gpt2_reviews": Table(
        "base model | validation accuracy | difference, paired (95 %)", "{experiment} | {score} | {difference}", ("gpt2-reviews",)
    ),
    "stsb_recipe": Table(
        "change | validation Spearman (95 %) | difference, paired (95 %) | trained | training",
        "{experiment} | {score} | {difference} | {trainable_parameters:,} | {training}",
        ("stsb-recipe",),
    ),
    "stsb": Table(
        "method, base model | trained parameters | training | Spearman on {n:,} test pairs (95 %) "
        "| difference to full fine-tuning, paired (95 %)",
        "{method} | {trained} | {training} | {score} | {difference}",
        ("stsb",),
    ),
    "translation_base": Table(
        "seed | BLEU (95 %) | chrF | BLEU, greedy | BLEU, lower-cased tokens | validation BLEU, greedy | training",
        "{seed} | {score} | {chrf:.2f} | {greedy[bleu]:.2f} | {bleu_lower_tokens:.2f} | {validation[bleu]:.2f} | {training}",
        ("translation-base",),
        rows=lambda records: map(Record, records[0]["runs"]),
        caption="{n:,} pairs; {bleu_signature}; {chrf_signature}.",
    ),
    "translation_lora": Table(*TRANSLATIONS, ("translation-lora",)),
    "translation": Table(*TRANSLATIONS, ("translation-transfer",)),
    "knobs": Table("knob | change: points, paired (95 %)", "{settings} | {changes}", rows=knobs),
    "speedup": Table(*SPEEDS, kind="speed", rows=ends_of_ladder, caption="{measured_on}"),
    "speed": Table(
        f"{SPEEDS[0]} | memory: tutorial | ours | share of the limit",
        f"{SPEEDS[1]} | {{baseline[peak_memory_gib]:.1f}} GiB | {{peak_memory_gib:.1f}} GiB | {{share_of_limit:.2f}}",
        kind="speed",
        rows=ends_of_ladder,
        caption="{measured_on}",
    ),
    "steps": Table(
        "step, on top of those above | training | gain | prediction | gain | memory",
        "{variant}: {step} | {train_reviews_per_s:.1f}/s | {train} | {predict_reviews_per_s:.1f}/s | {predict} "
        "| {peak_memory_gib:.1f} GiB",
        kind="speed",
        rows=ladder,
        caption="{measured_on}",
    ),
    "gpu": Table(
        "model, tokens, way | training | prediction | memory | share of the limit",
        "{model}, {max_length}: {variant} | {train_reviews_per_s:,.0f}/s | {predict_reviews_per_s:,.0f}/s "
        "| {peak_memory_gib:.1f} GiB | {share_of_limit:.2f}",
        kind="gpu",
        rows=lambda record: record["rows"],
        caption="{ways_of_gpu}.\n\n{measured_on} A step, mean of the first 20, whose texts are the longest: {launches}.",
    ),
    "time": Table(
        "what runs | minutes to 88% | minutes to 90% | accuracy at the end | after minutes",
        "{way} | {88%} | {90%} | {ends} | {minutes}",
        kind="time",
        rows=lambda record: record["by_way"].values(),
        caption="{trained_model}, {runs[0][train]:,} training reviews, accuracy on {runs[0][n]:,} of {runs[0][dataset]} "
        "({runs[0][split]}); {runs[0][environment][hardware]}.",
    ),
    "scale": Table(
        "rows | memory: training | evaluation | first step: empty cache | again | tokenised",
        "{rows:,} | {most_uss_gib:.2f} GiB | {uss_gib:.2f} GiB | {cold[seconds_to_first_step]:.0f} s "
        "| {warm[seconds_to_first_step]:.0f} s | {cold[tokenised_rows_per_s]:,.0f} rows/s",
        kind="scale",
        rows=sizes,
    ),
    "engines": Table(
        "from words to labels | texts/s | built in | accuracy | labels equal to float32's",
        "{way} | {texts_per_s:.1f} | {seconds_to_build:.0f} s | {accuracy:.2%} | {equal_labels:.2%}",
        kind="engines",
        rows=lambda record: record["ways"],
        caption="One text at a time, median: {one_text}; {seconds_to_first_label:.1f} s from the start of `predict.py` to its label.\n\n"
        "{model[name]} ({model[origin]}), {rows:,} of {dataset} {split}, {max_length} tokens, {environment[hardware]}; {libraries}.",
    ),
    "generation": Table(
        "from tokens to translations | rows/s | as fast as the first | BLEU",
        "{way} | {rows_per_s:.1f} | {gain:.1f}x | {bleu:.2f}",
        kind="generation",
        rows=lambda record: [way | {"gain": way["rows_per_s"] / record["ways"][0]["rows_per_s"]} for way in record["ways"]],
        caption="{rows:,} rows, {num_beams} beams, {environment[hardware]}; ctranslate2 {ctranslate2}.",
    ),
}

# --- pages ---------------------------------------------------------------------------------------------------------------


def filled(page: str) -> str:
    """Return a page's text with its tables and values as the records give them."""
    text = (ROOT / page).read_text()
    tables = r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)"
    text = re.sub(tables, lambda m: f"{m[1]}{TABLES[m[2]].markdown()}\n{m[3]}", text, flags=re.DOTALL)
    return re.sub(r"(<!-- v:(\S+) (.*?) -->).*?(<!-- /v -->)", lambda m: f"{m[1]}{m[3].format_map(named(m[2]))}{m[4]}", text)


def growth_picture(path: Path) -> None:
    """Draw accuracy and minutes of training against the number of training reviews."""
    lora = growth(experiments("growth", "comparison", "baselines"))
    reviews = [record["dataset"]["train"] for record in lora]
    tfidf = [record["reference"] for record in lora]
    figure, (accuracy, minutes) = plots.subplots(1, 2, figsize=(9, 3.8))
    for records, label in ((lora, f"LoRA, {lora[0]['model_name']}"), (tfidf, "TF-IDF and logistic regression")):
        draw_accuracies(accuracy, reviews, records, fmt="o-", label=label)
        minutes.plot(reviews, [record["training_minutes"] for record in records], "o-")
    accuracy.set(ylabel=f"accuracy on {lora[0]['n']:,} test reviews")
    minutes.set(ylabel="minutes of training", yscale="log")
    minutes.yaxis.set_major_formatter("{x:g}")
    for axes in (accuracy, minutes):
        axes.set(xlabel="training reviews", xscale="log", xticks=reviews, xticklabels=[f"{n:,}" for n in reviews])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    plots.save(figure, path)


def knobs_picture(path: Path) -> None:
    """Draw accuracy on validation against the learning rate, the targets and the rank."""
    groups = {
        "learning rate": {"2e-4": "learning rate 2e-4", "5e-4": "learning rate 5e-4", "1e-3": "base", "2e-3": "learning rate 2e-3"},
        "layers with LoRA": {"query,\nvalue": "query and value", "attention": "attention", "MLP": "MLP", "all\nlinear": "base"},
        "rank": {"4": "rank 4, alpha 8", "16": "base", "64": "rank 64, alpha 128"},
    }
    figure, panels = plots.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for axes, (title, changes) in zip(panels, groups.items(), strict=True):
        draw_accuracies(axes, [*changes], [experiment("recipe", name) for name in changes.values()], scale=100, fmt="o")
        axes.set(xlabel=title)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    base = experiment("recipe", "base")
    panels[0].set(ylabel=f"accuracy on {base['n']:,}\nvalidation reviews, %")
    title = f"{base['model_name']}, {base['dataset']['train']:,} reviews; bars: 95 % of the rows' own chance"
    figure.suptitle(title, fontsize=10)
    plots.save(figure, path)


def draw_accuracies(axes, x: list, records: list[Record], scale: int = 1, **style) -> None:
    """Draw the records' accuracies with their 95 % intervals."""
    accuracies, (low, high) = (scale * np.array([record[key] for record in records]).T for key in ("accuracy", "accuracy_ci95"))
    axes.errorbar(x, accuracies, yerr=[accuracies - low, high - accuracies], capsize=3, **style)


def draw() -> None:
    """Draw the pictures that come from records alone."""
    growth_picture(RESULTS / "growth.png")
    knobs_picture(RESULTS / "knobs.png")
    (run, *_), picture = experiments("comparison")[0]["runs"], RESULTS / "confusion_matrix.png"
    title = plots.title(metric_of(run), run | {"dataset": run["data"], "dataset_origin": run["dataset"]["origin"]})
    plots.plot_confusion_matrix(run["confusion_matrix"], (run["label_names"], run["label_names"]), title, picture)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page))
    draw()
