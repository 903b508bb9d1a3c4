"""Write the tables and pictures of README.md and results/README.md anew from the records in results/.

python benchmarks/tables.py
"""

import itertools
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import record_file  # noqa: E402
from studies import STUDIES  # noqa: E402

from finetuning import plots  # noqa: E402
from finetuning.entities import f1_interval, paired_f1_difference  # noqa: E402
from finetuning.metrics import paired_difference, wilson_interval  # noqa: E402
from finetuning.model import ARCHITECTURES  # noqa: E402

LORA = "LoRA on all linear layers"  # the experiment of "comparison" that is the recipe


def comparison_table() -> str:
    """Methods on the official test, beside full fine-tuning on the same rows: "comparison", "baselines" and "model" of quality.py."""
    records = _quality_records("comparison", "baselines", "model")
    (n,) = {run["n"] for runs in records.values() for run in runs}
    lines = [
        f"| method, base model | trained parameters | training | peak memory | accuracy on {n:,} test reviews (95 %) "
        "| without those seen in training | difference to full fine-tuning, paired (95 %) | McNemar's p |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in records.items():
        first = runs[0]
        share = first["trainable_parameters"] / first["total_parameters"]
        cells = [
            f"{LORA if name == first['model'] else name}<br>{_model(first)}".removesuffix("<br>"),
            f"{first['trainable_parameters']:,}" + (f" ({share:.1%})" if share < 1 else ""),
            _duration(np.mean([run["training_seconds"] for run in runs])),
            f"{np.mean([run['peak_memory_gib'] for run in runs]):.1f} GiB",
            _accuracy(runs),
            f"{np.mean([run['unseen']['accuracy'] for run in runs]):.2%}",
        ]
        reference = records["full fine-tuning"]
        if runs is reference or first["model"] != reference[0]["model"] and first["model_origin"] != "scikit-learn":
            cells += ["", ""]
        else:
            found = compare(*zip(*((a, b) for a in runs for b in reference if a["seed"] == b["seed"]), strict=True))
            cells += [_points(found), ", ".join(_p(p) for p in found["mcnemar_p"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claim_table() -> str:
    """The comparison in five columns."""
    records = _quality_records("comparison", "baselines", "model")
    (n,) = {run["n"] for runs in records.values() for run in runs}
    lines = [f"| method, base model | accuracy on {n:,} test reviews | trained | training | saved |", "|---|---|--:|--:|--:|"]
    for name, runs in records.items():
        first = runs[0]
        cells = [
            f"{LORA if name == first['model'] else name}<br>{_model(first)}".removesuffix("<br>"),
            _accuracy(runs).replace(" (", "<br>("),
            f"{first['trainable_parameters']:,}",
            _duration(np.mean([run["training_seconds"] for run in runs])),
            f"{first['saved_mib']:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def entities_table() -> str:
    """Named entities on the official test: "entities" of quality.py, beside full fine-tuning on the same sentences."""
    records = _quality_records("entities", "entities-model")
    (about,) = {(run["n"], run["entities"]) for runs in records.values() for run in runs}
    lines = [
        f"| method, base model | trained parameters | training | entity F1 on {about[0]:,} sentences, {about[1]:,} entities (95 %) "
        "| difference to full fine-tuning, paired (95 %) |",
        "|---|--:|--:|--:|--:|",
    ]
    reference = records["full fine-tuning"]
    for name, runs in records.items():
        first = runs[0]
        share = first["trainable_parameters"] / first["total_parameters"]
        same = first["model"] == reference[0]["model"] and runs is not reference
        cells = [
            f"{LORA if name == first['model'].split('/')[-1] else name}, {_model(first)}",
            f"{first['trainable_parameters']:,}" + (f" ({share:.1%})" if share < 1 else ""),
            _duration(np.mean([run["training_seconds"] for run in runs])),
            _f1(runs),
            _points(paired_f1_difference(_counts(runs), _counts(reference))) if same else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def entities_sentence() -> str:
    """The comparison of `entities_table` in words."""
    records = _quality_records("entities")
    lora, full = (records[name] for name in (LORA, "full fine-tuning"))
    difference = _points(paired_f1_difference(_counts(lora), _counts(full)))
    share = lora[0]["trainable_parameters"] / lora[0]["total_parameters"]
    return (
        f"Measured: CoNLL-2003's official test of {lora[0]['n']:,} sentences, {_model(lora[0])}: LoRA on "
        f"{share:.1%} of the parameters finds them with an F1 of {_f1(lora)}, full fine-tuning with {_f1(full)}; paired difference {difference} points ([more](results/README.md#named-entities))."
    )


def entities_recipe_table() -> str:
    """One change at a time from the first of each method, on validation."""
    records = _quality_records("entities-recipe")
    lines = [
        "| change | validation F1 | difference, paired (95 %) | precision | recall | trained |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, runs in records.items():
        base = next(other for other in records if other.split(",")[0] == name.split(",")[0])
        difference = "" if name == base else _points(paired_f1_difference(_counts(runs), _counts(records[base])))
        trained = f"{runs[0]['trainable_parameters']:,}"
        shares = [f"{runs[0][metric]:.2%}" for metric in ("f1", "precision", "recall")]
        lines.append(f"| {' | '.join([name, shares[0], difference, *shares[1:], trained])} |")
    return "\n".join(lines)


def entities_types_table() -> str:
    """What each method gets right and wrong, the seeds averaged."""
    lines = []
    for name, runs in _quality_records("entities").items():
        types, kinds = [one["label"] for one in runs[0]["by_type"]], list(runs[0]["errors"])
        if not lines:
            lines = [f"| method | {' | '.join(f'F1 {t}' for t in types)} | {' | '.join(kinds)} | unseen sentences: F1 |"]
            lines += ["|---|" + "--:|" * (len(types) + len(kinds) + 1)]
        f1 = [f"{np.mean([run['by_type'][i]['f1'] for run in runs]):.2%}" for i in range(len(types))]
        wrong = [f"{np.mean([run['errors'][kind] for run in runs]):.0f}" for kind in kinds]
        unseen = f"{np.mean([run['unseen']['f1'] for run in runs]):.2%} of {runs[0]['unseen']['n']:,}"
        lines.append(f"| {' | '.join([f'{name}, {_model(runs[0])}', *f1, *wrong, unseen])} |")
    return "\n".join(lines)


def _f1(runs: list[dict]) -> str:
    values, (low, high) = [run["f1"] for run in runs], f1_interval(_counts(runs))
    spread = f" ± {100 * np.std(values, ddof=1):.2f} over {len(runs)} seeds" if len(runs) > 1 else ""
    return f"**{np.mean(values):.2%}**{spread} ({low:.2%} to {high:.2%})"


def _counts(runs: list[dict]) -> np.ndarray:
    """(seeds, sentences, 3): entities that are right, predicted, and there."""
    return np.array([[[int(n) for n in row.split("/")] for row in run["counts"].split()] for run in runs])


ENTITY_MODELS = (LORA, "all-mpnet-base-v2")  # experiments
TRAINED = {"all-MiniLM-L6-v2": "bert", "all-mpnet-base-v2": "mpnet"}  # the architectures of what was trained for real


def architectures_table() -> str:
    """Each architecture of model.py: what it reached where it was trained for real, else that tests train tiny ones of it."""
    lines = ["| architecture | measured |", "|---|---|"]
    records = _quality_records("comparison", "sentences", "model")
    shown = [records[name] for name in (LORA, "Rotten Tomatoes", "all-mpnet-base-v2")]
    for runs in shown:
        record = runs[0]
        data = f"{record['dataset']['name']}{_stand_in(record['dataset']['origin'])}"
        where = f"{record['n']:,} rows, {record['split']}"
        lines.append(f"| {TRAINED[Path(record['model']).name]} | accuracy {_accuracy(runs)} on {data}, {where}; {_model(record)} |")
    records = _quality_records("entities", "entities-model")
    for name in ENTITY_MODELS:
        record = records[name][0]
        where = f"{record['dataset']['name']}, {record['n']:,} sentences, {record['split']}"
        lines.append(
            f"| {TRAINED[Path(record['model']).name]} | named entities: F1 {_f1(records[name])} on {where}; {_model(record)} |"
        )
    (run,) = _quality_records("gpt2-reviews")["after 1 pass over the reviews"]
    lines.append(
        f"| gpt2 | accuracy {_accuracy([run])} on imdb, {run['n']:,} rows, {run['split']}; "
        f"{run['dataset']['train']:,} labels; a small one that read IMDb's training reviews once, not GPT-2 |"
    )
    others = [name for name in ARCHITECTURES if name not in (*TRAINED.values(), "gpt2")]
    lines.append(
        f"| {', '.join(others)} | not; tiny random models in the tests: adapted, reloaded, merged, gradients as the libraries have them |"
    )
    return "\n".join(lines)


def _model(record: dict) -> str:
    return "" if record["model_origin"] == "scikit-learn" else Path(record["model"]).name + _stand_in(record["model_origin"])


def _stand_in(origin: str) -> str:
    return " (stand-in)" if origin == "stand-in" else ""


def _accuracy(runs: list[dict]) -> str:
    """Mean over seeds, their standard deviation, and the interval that the number of test rows leaves."""
    accuracies = [run["accuracy"] for run in runs]
    low, high = wilson_interval(round(np.mean(accuracies) * runs[0]["n"]), runs[0]["n"])
    spread = f" ± {100 * np.std(accuracies, ddof=1):.2f} over {len(runs)} seeds" if len(runs) > 1 else ""
    return f"**{np.mean(accuracies):.2%}**{spread} ({low:.2%} to {high:.2%})"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _points(found: dict, of: int = 100) -> str:
    """A difference and its interval; `of` 1 where the metric itself is on 0 to 100."""
    low, high = found["difference_ci95"]
    return f"{of * found['difference']:+.2f} ({of * low:+.2f} to {of * high:+.2f})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def growth_table() -> str:
    """LoRA and TF-IDF against the number of training reviews; `growth_picture` draws it."""
    lines = [
        "| training reviews | LoRA | training | TF-IDF and logistic regression | training | difference, paired (95 %) | McNemar's p |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for n, lora, tfidf in _growth():
        cells = [f"{n:,}"]
        for run in (lora, tfidf):
            cells += [f"{run['accuracy']:.2%}", _duration(run["training_seconds"])]
        found = compare([lora], [tfidf])
        lines.append(f"| {' | '.join([*cells, _points(found), *map(_p, found['mcnemar_p'])])} |")
    return "\n".join(lines)


def _growth() -> list[tuple[int, dict, dict]]:
    """(training reviews, LoRA's record, TF-IDF's), with those of the comparison as the last."""
    records = _quality_records("growth", "comparison", "baselines")
    lora = [runs[0] for name, runs in records.items() if name.startswith("LoRA,") or name == LORA]
    tfidf = [runs[0] for name, runs in records.items() if name.startswith("TF-IDF")]
    return [(a["dataset"]["train"], a, b) for a, b in zip(lora, tfidf, strict=True)]


def growth_picture(path: Path) -> None:
    """Accuracy, with its interval, and minutes of training against the number of training reviews."""
    growth = _growth()
    reviews = [n for n, _, _ in growth]
    figure, (accuracy, minutes) = plots.subplots(1, 2, figsize=(9, 3.8))
    for column, label in ((1, f"LoRA, {_model(growth[0][1])}"), (2, "TF-IDF and logistic regression")):
        runs = [point[column] for point in growth]
        found = np.array([run["accuracy"] for run in runs])
        low, high = np.array([run["accuracy_ci95"] for run in runs]).T
        accuracy.errorbar(reviews, found, yerr=[found - low, high - found], fmt="o-", capsize=3, label=label)
        minutes.plot(reviews, [run["training_seconds"] / 60 for run in runs], "o-")
    accuracy.set(ylabel=f"accuracy on {growth[0][1]['n']:,} test reviews")
    minutes.set(ylabel="minutes of training", yscale="log")
    minutes.yaxis.set_major_formatter("{x:g}")
    for axes in (accuracy, minutes):
        axes.set(xlabel="training reviews", xscale="log", xticks=reviews, xticklabels=[f"{n:,}" for n in reviews])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    plots.save(figure, path)


def augmentation_table() -> str:
    """What each augmentation is worth with few and with more training reviews, on validation."""
    studies = {study: _quality_records(study) for study in ("augmentation-500", "augmentation-8000")}
    lines = ["| augmentation |", "|---|"]
    for name in next(iter(studies.values())):
        lines.append(f"| {name} |")
    for records in studies.values():
        none = records["none"]
        seeds = f", mean of {len(none)} seeds" if len(none) > 1 else ""
        lines[0] += f" {none[0]['dataset']['train']:,} reviews{seeds} | difference, paired (95 %) |"
        lines[1] += "--:|--:|"
        for i, (name, runs) in enumerate(records.items()):
            difference = "" if name == "none" else _points(compare(runs, none))
            lines[2 + i] += f" {np.mean([run['accuracy'] for run in runs]):.2%} | {difference} |"
    return "\n".join(lines)


def laptop_sentence() -> str:
    """What the first command reaches: results/run-laptop.json is a copy of its run's metrics.json."""
    m = json.loads((ROOT / "results" / "run-laptop.json").read_text())
    low, high = m["accuracy_ci95"]
    run = m["run"]
    return (
        f"Measured: **{m['accuracy']:.2%}** ({low:.2%} to {high:.2%}) on {m['n']:,} of {m['dataset']} ({m['split']}), "
        f"{Path(m['model']).name}{_stand_in(run['model']['origin'])}, trained on {run['dataset']['rows']['train']:,} reviews in "
        f"{m['seconds']['training'] / 60:.1f} minutes on {run['environment']['hardware']} ([record](results/run-laptop.json))."
    )


def gpu_sentence() -> str:
    """What a GPU did with `--preset full`: results/run-h100.json is a copy of its run's metrics.json."""
    m = json.loads((ROOT / "results" / "run-h100.json").read_text())
    low, high = m["accuracy_ci95"]
    return (
        f"On {m['run']['environment']['hardware']}, `python fine_tune.py --preset full` trained for {m['seconds']['training']:.0f} s, "
        f"and `python evaluate.py` labelled the {m['n']:,} reviews of IMDb's {m['split']} in {m['seconds']['prediction']:.0f} s: "
        f"{m['accuracy']:.2%} ({low:.2%} to {high:.2%}), one seed, all-MiniLM-L6-v2 (stand-in) with its weights rounded to float16 "
        "([record](results/run-h100.json))."
    )


def speed_table() -> str:
    """Baseline and ours side by side, for each model and length, with memory and the share of the limit."""

    def cells(base: dict, ours: dict) -> list[str]:
        memory = [f"{one['peak_memory_gib']:.1f} GiB" for one in (base, ours)]
        return [*_speed_cells(base, ours), *memory, f"{ours['share_of_limit']:.2f}"]

    return _of_each_machine(
        "| model, tokens | training: tutorial | ours | prediction: tutorial | ours | memory: tutorial | ours | share of the limit |",
        cells,
    )


def speedup_table() -> str:
    """The same without memory and limit."""
    return _of_each_machine("| model, tokens | training: tutorial | ours | prediction: tutorial | ours |", _speed_cells)


def _of_each_machine(header: str, cells: Callable[[dict, dict], list[str]]) -> str:
    """A table for each of results/speed-*.json, with what `cells` gives for the baseline and ours."""
    tables = []
    for record in _records("speed"):
        lines = [header, "|---" + "|--:" * (header.count("|") - 2) + "|"]
        pairs = {}
        for row in record["rows"]:
            pairs.setdefault((row["model"], row["max_length"]), {})[row["variant"]] = row
        for (model, length), variants in pairs.items():
            lines.append(f"| {' | '.join([f'{model}, {length}', *cells(variants['baseline'], variants['ours'])])} |")
        tables.append("\n".join([*lines, "", _measured_on(record)]))
    return "\n\n".join(tables)


def _speed_cells(base: dict, ours: dict) -> list[str]:
    cells = []
    for work in ("train", "predict"):
        slow, fast = (variant[f"{work}_reviews_per_s"] for variant in (base, ours))
        cells += [f"{slow:.1f}/s", f"{fast:.1f}/s, **{fast / slow:.1f}x**"]
    return cells


def _measured_on(record: dict) -> str:
    repeats = "each measured once" if record["repeats"] == 1 else f"medians of {record['repeats']} repeats"
    limit = np.median([row["matrix_product_tflops"] for row in record["rows"]])
    return f"{record['environment']['hardware']}, large bf16 matrix products {limit:.2f} TFLOP/s; {repeats}."


def gpu_table() -> str:
    """The WAYS of speed.py, for each GPU in results/gpu-*.json."""
    tables = []
    for record in _records("gpu"):
        lines = [
            "| model, tokens, way | training | prediction | memory | share of the limit |",
            "|---|--:|--:|--:|--:|",
        ]
        for row in record["rows"]:
            cells = [f"{row['model']}, {row['max_length']}: {row['variant']}"]
            cells += [f"{row[f'{work}_reviews_per_s']:,.0f}/s" for work in ("train", "predict")]
            lines.append(f"| {' | '.join(cells)} | {row['peak_memory_gib']:.1f} GiB | {row['share_of_limit']:.2f} |")
        lines += ["", "; ".join(f"{way}: {about}" for way, about in record["steps"].items()) + ".", "", _measured_on(record)]
        if profile := record.get("profile"):
            steps = (
                f"{way} {one['kernels_per_step']:,} launches, {one['gpu_ms_per_step']} ms of the GPU"
                for way, one in profile.items()
            )
            lines[-1] += f" A step, mean of the first 20, whose texts are the longest: {'; '.join(steps)}."
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


MISSED = "not reached"


def time_table() -> str:
    """Minutes until the accuracy was reached for good: time_to_accuracy.py, for each machine in results/time-*.json."""
    tables = []
    for record in _records("time"):
        targets = [f"minutes to {target:.0%}" for target in record["targets"]]
        lines = [f"| what runs | {' | '.join(targets)} | accuracy at the end | after minutes |", "|---|--:|--:|--:|--:|"]
        for way, runs in _by_way(record).items():
            cells = [_minutes_to(target, [run["marks"] for run in runs]) for target in record["targets"]]
            last = [run["marks"][-1] for run in runs]
            cells += [", ".join(f"{mark['accuracy']:.2%}" for mark in last)]
            cells += [", ".join(f"{mark['seconds'] / 60:.1f}" for mark in last)]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        run = record["runs"][0]
        about = (
            f"{_model_of(run)}, {run['train']:,} training reviews, accuracy on {run['n']:,} of {run['dataset']} ({run['split']})"
        )
        tables.append("\n".join([*lines, "", f"{about}; {run['environment']['hardware']}."]))
    return "\n\n".join(tables)


def time_sentence() -> str:
    """Minutes to the first target, way by way, and what the first command needs for the second."""
    (record,) = _records("time")
    low, high = record["targets"]
    ways = {way: [run["marks"] for run in runs] for way, runs in _by_way(record).items()}
    ours = ways.pop("first command")

    def of_way(runs: list[list[dict]]) -> str:
        minutes = _minutes_to(low, runs)
        ends = ", ".join(f"{marks[-1]['accuracy']:.2%}" for marks in runs)
        return f"{minutes}, given up after {record['minutes']} minutes at {ends}" if minutes == MISSED else minutes

    others = "; ".join(f"{way}: {of_way(runs)}" for way, runs in ways.items())
    run = record["runs"][0]
    return (
        f"Minutes from the start of the process until {low:.0%} of {run['n']:,} of {run['dataset']} ({run['split']}) get their label, "
        f"{_model_of(run)}: the first command **{_minutes_to(low, ours)}** ({high:.0%}: {_minutes_to(high, ours)}); {others}. "
        f"{run['environment']['hardware']}, a figure a seed ([how](results/README.md#how-long-until-it-is-good))."
    )


def _by_way(record: dict) -> dict[str, list[dict]]:
    ways = {}
    for run in record["runs"]:
        ways.setdefault(run["way"], []).append(run)
    return ways


def _model_of(run: dict) -> str:
    return f"{Path(run['model']['name']).name}{_stand_in(run['model']['origin'])}"


def _minutes_to(target: float, runs: list[list[dict]]) -> str:
    """Of each run, a list of its marks, the first from which on none misses the target; one word where none has such."""
    reached = [[*itertools.takewhile(lambda mark: mark["accuracy"] >= target, reversed(marks))] for marks in runs]
    return ", ".join(f"{marks[-1]['seconds'] / 60:.1f}" if marks else MISSED for marks in reached) if any(reached) else MISSED


def steps_table() -> str:
    """What each step from the baseline to ours is worth, where it was measured."""
    tables = []
    for record in _records("speed"):
        lines = ["| step, on top of those above | training | gain | prediction | gain | memory |", "|---|--:|--:|--:|--:|--:|"]
        measured = [row for row in record["rows"] if row["model"].startswith("DistilBERT") and row["max_length"] == 256]
        for before, row in zip([None, *measured], measured, strict=False):
            cells = [f"{row['variant']}: {record['steps'][row['variant']]}"]
            for work in ("train_reviews_per_s", "predict_reviews_per_s"):
                cells += [f"{row[work]:.1f}/s", f"{row[work] / before[work]:.2f}x" if before else ""]
            lines.append(f"| {' | '.join(cells)} | {row['peak_memory_gib']:.1f} GiB |")
        tables.append("\n".join([*lines, "", _measured_on(record)]))
    return "\n\n".join(tables)


def engines_table() -> str:
    """The ways to label new texts: engines.py, a table for each machine in results/engines-*.json."""
    tables = []
    for record in _records("engines"):
        lines = ["| from words to labels | texts/s | built in | accuracy | labels equal to float32's |", "|---|--:|--:|--:|--:|"]
        for one in record["ways"]:
            cells = [one["way"], f"{one['texts_per_s']:.1f}", f"{one['seconds_to_build']:.0f} s"]
            cells += [f"{one['accuracy']:.2%}", f"{one['equal_labels']:.2%}"]
            lines.append(f"| {' | '.join(cells)} |")
        alone = "; ".join(f"{n} tokens {one['p50_ms']:.0f} ms (p95 {one['p95_ms']:.0f})" for n, one in record["alone"].items())
        first = f"{record['seconds_to_first_label']:.1f} s from the start of `predict.py` to its label"
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        about = (
            f"{record['model']['name']} ({record['model']['origin']}), {record['rows']:,} of {record['dataset']} {record['split']}, "
            f"{record['max_length']} tokens, {record['environment']['hardware']}; {versions}."
        )
        tables.append("\n".join([*lines, "", f"One text at a time, median: {alone}; {first}.", "", about]))
    return "\n\n".join(tables)


def generation_table() -> str:
    """The ways to translate: generation.py, for each machine in results/generation-*.json."""
    lines = ["| from tokens to translations | rows/s | as fast as the first | BLEU |", "|---|--:|--:|--:|"]
    for record in _records("generation"):
        for one in record["ways"]:
            faster = one["rows_per_s"] / record["ways"][0]["rows_per_s"]
            lines.append(f"| {one['way']} | {one['rows_per_s']:.1f} | {faster:.1f}x | {one['bleu']:.2f} |")
        about = f"{record['rows']:,} rows, {record['num_beams']} beams, {record['environment']['hardware']}"
        lines += ["", f"{about}; ctranslate2 {record['ctranslate2']}."]
    return "\n".join(lines)


def translation_sentence() -> str:
    """What is said of translation in the README."""
    (base,) = _quality_records("translation-base").values()
    records = _quality_records("translation-transfer")

    def bleu(case: str, method: str) -> str:
        return f"{records[f'{case} pairs, {method}'][0]['bleu']:.1f}"

    lora, full = "LoRA, rank 128", "full fine-tuning"
    turned, all_pairs, new = "German to English, 5,000", "German to English, all", "English to French, 5,000"
    seeds = [run["bleu"] for run in base]
    return (
        f"Measured on Multi30k's official test of 2016, with a model of {base[0]['total_parameters'] / 1e6:.1f} million parameters that was "
        f"trained here from scratch, as none could be had: English to German, BLEU **{np.mean(seeds):.1f}** ± {np.std(seeds, ddof=1):.1f} "
        f"over {len(seeds)} seeds. From there to German to English by 5,000 pairs: LoRA {bleu(turned, lora)}, full fine-tuning "
        f"{bleu(turned, full)}; by all {base[0]['dataset']['train']:,}: {bleu(all_pairs, lora)} and {bleu(all_pairs, full)}. To French by "
        f"5,000: LoRA {bleu(new, lora)}, with `--train_embeddings` {bleu(new, f'{lora}, and embeddings')}, full fine-tuning {bleu(new, full)} "
        "([more](results/README.md#translation))."
    )


def _records(kind: str) -> list[dict]:
    files = (ROOT / "results").glob(f"{kind}-*.json")
    return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: file.stem)]


def scale_table() -> str:
    """Memory, start and tokenising by the number of rows, for each machine in results/scale-*.json."""
    lines = [
        "| rows | memory: training | evaluation | first step: empty cache | again | tokenised |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for record in _records("scale"):
        for train, test in zip(record["training"]["sizes"], record["evaluation"]["sizes"], strict=True):
            cold, warm = train["cold"], train["warm"]
            cells = [f"{train['rows']:,}", f"{max(cold['uss_gib'], warm['uss_gib']):.2f} GiB", f"{test['uss_gib']:.2f} GiB"]
            cells += [f"{run['seconds_to_first_step']:.0f} s" for run in (cold, warm)]
            cells += [f"{cold['tokenised_rows_per_s']:,.0f} rows/s"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def processes_sentence() -> str:
    """What two processes of half the cores bring against one of all."""
    (record,) = _records("scale")
    one, two = (record["processes"][name]["train_reviews_per_s"] for name in ("one", "two"))
    return (
        f"On {record['processes']['environment']['hardware']}, two processes of one core each train {two:.1f} reviews a second, one "
        f"process with both {one:.1f}: {two / one:.2f}x."
    )


def perplexity_table(study: str, what: str, of: str) -> str:
    """The perplexity that each experiment of a language model's study reaches on validation."""
    lines = [f"| {what} | trained | perplexity of {of} (95 %) |", "|---|--:|--:|"]
    for name, (run,) in _quality_records(study).items():
        low, high = run["perplexity_ci95"]
        lines.append(f"| {name} | {run['trainable_parameters']:,} | {run['perplexity']:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def pretrained_table() -> str:
    """What a classifier makes of further pre-training, by the number of its labelled reviews: the study "pretrained"."""
    lines = ["| labelled reviews | base model | validation accuracy | difference, paired (95 %) | loss |", "|--:|---|--:|--:|--:|"]
    first = {"all": _quality_records("confirm")["base"]}
    records = list(_quality_records("pretrained").items())
    records.insert(-1, ("all reviews, no further pre-training", first["all"]))
    for name, runs in records:
        reviews, base = name.split(" reviews, ", 1)
        reference = first.setdefault(reviews, runs)
        difference = "" if runs is reference else _points(compare(runs, reference))
        cells = [reviews if reviews == "all" else f"{int(reviews):,}", base, _accuracy(runs), difference, f"{runs[0]['loss']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pretrained_test_table() -> str:
    """What it is worth on the official test, seed by seed: the study "pretrained-test"."""
    lines = ["| base model | accuracy, seed by seed | mean (95 %) | difference, paired (95 %) |", "|---|---|--:|--:|"]
    records = _quality_records("pretrained-test")
    reference, after = records.values()
    for name, runs in records.items():
        difference = _points(compare(after, reference)) if runs is after else ""
        seeds = ", ".join(f"{run['accuracy']:.2%}" for run in runs)
        lines.append(f"| {name} | {seeds} | {_accuracy(runs)} | {difference} |")
    return "\n".join(lines)


def pretrained_sentence() -> str:
    """What further pre-training brings, for the README."""
    before, after = _quality_records("pretrained-test").values()
    return (
        f"What they bring depends on the labels: three passes over IMDb's training reviews, every weight trained (`--num_train_epochs 3 "
        f"--method full --learning_rate 3e-4`), lift a classifier of {before[0]['dataset']['train']:,} labels from "
        f"{_accuracy(before)} to {_accuracy(after)} on {before[0]['n']:,} reviews of the {before[0]['split']}, by "
        f"{_points(compare(after, before))} points. With 2,000 labels, and with all, one seed on validation showed no gain "
        f"({_model(before[0])}; [figures](results/README.md#further-pre-training))."
    )


def gpt2_style_table() -> str:
    """Perplexity on the test, seed by seed: the study "gpt2-style"."""
    lines = ["| setting | perplexity of test sentences, seed by seed | mean | 95 % of the first |", "|---|---|--:|--:|"]
    for name, runs in _quality_records("gpt2-style").items():
        found, (low, high) = [run["perplexity"] for run in runs], runs[0]["perplexity_ci95"]
        lines.append(f"| {name} | {', '.join(f'{p:.1f}' for p in found)} | **{np.mean(found):.1f}** | {low:.1f} to {high:.1f} |")
    return "\n".join(lines)


def gpt2_reviews_table() -> str:
    """A classifier on top of the small GPT-2: the study "gpt2-reviews"."""
    lines = ["| base model | validation accuracy | difference, paired (95 %) |", "|---|--:|--:|"]
    records = _quality_records("gpt2-reviews")
    for name, runs in records.items():
        reference = records["random weights"]
        lines.append(f"| {name} | {_accuracy(runs)} | {'' if runs is reference else _points(compare(runs, reference))} |")
    return "\n".join(lines)


def gpt2_sentence() -> str:
    """What the small GPT-2 learned before it was put to use."""
    ((name, (run,)),) = _quality_records("gpt2").items()
    low, high = run["perplexity_ci95"]
    return (
        f"{name} over {run['dataset']['train']:,} reviews, {run['trainable_parameters']:,} parameters: perplexity "
        f"**{run['perplexity']:.2f}** ({low:.2f} to {high:.2f}) on {run['n']:,} validation reviews."
    )


def translation_base_table() -> str:
    """The translation model from scratch, seed by seed: the study "translation-base"."""
    lines = [
        "| seed | BLEU (95 %) | chrF | BLEU, greedy | BLEU, lower-cased tokens | validation BLEU, greedy | training |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    (runs,) = _quality_records("translation-base").values()
    for run in runs:
        shares = [run["chrf"], run["greedy"]["bleu"], run["bleu_lower_tokens"], run["validation"]["bleu"]]
        cells = [run["seed"], _bleu(run), *(f"{share:.2f}" for share in shares), _duration(run["training_seconds"])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", f"{runs[0]['n']:,} pairs; {runs[0]['bleu_signature']}; {runs[0]['chrf_signature']}."])


def translation_table(study: str) -> str:
    """Methods beside full fine-tuning, by direction and number of pairs: one of the studies of translation."""
    lines = [
        "| direction, pairs | method | BLEU (95 %) | chrF | difference to full fine-tuning, paired (95 %) | trained | training | saved |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    records = {tuple(name.split(", ", 2)): run for name, (run,) in _quality_records(study).items()}
    for (direction, pairs, method), run in records.items():
        full = max(
            (run for (*here, method), run in records.items() if here == [direction, pairs] and method.startswith("full")),
            key=lambda run: run["bleu"],
        )
        found = None if run is full else paired_bleu_difference(run, full)
        cells = [
            f"{direction}, {pairs.removesuffix(' pairs')}",
            method,
            _bleu(run),
            f"{run['chrf']:.2f}",
            "" if found is None else f"{_points(found, of=1)}<br>p {_p(found['p'])}",
            f"{run['trainable_parameters']:,}",
            _duration(run["training_seconds"]),
            f"{run['saved_mib']:.1f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bleu(run: dict) -> str:
    low, high = run["bleu_ci95"]
    return f"**{run['bleu']:.2f}** ({low:.2f} to {high:.2f})"


def paired_bleu_difference(a: dict, b: dict) -> dict:
    """BLEU of a less that of b on the same pairs, its 95 % interval, and p of sacreBLEU's paired bootstrap test (Koehn 2004)."""
    counts = [np.array([row.split("/") for row in run["bleu_counts"].split()], dtype=np.int64) for run in (a, b)]
    n = len(counts[0])
    draws = np.vstack([np.ones(n, dtype=np.int64), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1000)])

    def bleu(sums: np.ndarray) -> float:
        return BLEU.compute_bleu(sums[:4].tolist(), sums[4:8].tolist(), *sums[8:].tolist()).score

    whole, *resampled = np.subtract(*([bleu(sums) for sums in draws @ rows] for rows in counts))
    sizes = np.abs(resampled)
    p = (1 + np.sum(sizes - sizes.mean() > abs(whole))) / (1 + len(sizes))
    return {"difference": whole, "difference_ci95": np.percentile(resampled, (2.5, 97.5)).tolist(), "p": p}


def fast_table() -> str:
    """Whether what changes the arithmetic for speed costs accuracy: the study "fast" of quality.py."""
    records = _quality_records("fast")
    lines = ["| 4,000 reviews, 128 tokens, one epoch | validation accuracy, seed by seed | mean |", "|---|---|--:|"]
    for name, runs in records.items():
        accuracies = [run["accuracy"] for run in runs]
        lines.append(f"| {name} | {', '.join(f'{a:.2%}' for a in accuracies)} | {np.mean(accuracies):.2%} |")
    if len(records) == 2:
        found = compare(*records.values())
        low, high = found["difference_ci95"]
        lines.append(
            f"| difference on the same {runs[0]['n']:,} rows (95 % interval) | | "
            f"**{100 * found['difference']:+.1f} points** ({100 * low:+.1f} to {100 * high:+.1f}) |"
        )
    return "\n".join(lines)


def sentences_table() -> str:
    """Another data set than IMDb, seed by seed: the study "sentences" of quality.py."""
    lines = ["| data | rows: train | test | accuracy, seed by seed | mean | training |", "|---|--:|--:|---|--:|--:|"]
    for name, runs in _quality_records("sentences").items():
        seeds = ", ".join(f"{run['accuracy']:.2%}" for run in runs)
        minutes = np.mean([run["training_seconds"] for run in runs])
        cells = [name, f"{runs[0]['dataset']['train']:,}", f"{runs[0]['n']:,}, {runs[0]['split']}", seeds, _accuracy(runs)]
        lines.append(f"| {' | '.join([*cells, _duration(minutes)])} |")
    return "\n".join(lines)


def changes_table(*studies: str, base: str = "base") -> str:
    """Studies of quality.py that make one change at a time from `base`, and what each is worth on validation."""
    records = _quality_records(*studies)
    lines = [
        "| change | validation accuracy | difference, paired (95 %) | loss | trained | training |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, runs in records.items():
        difference = "" if name == base else _points(compare(runs, records[base][: len(runs)]))
        cells = [name, ", ".join(f"{run['accuracy']:.2%}" for run in runs), difference]
        cells += [f"{np.mean([run['loss'] for run in runs]):.3f}", f"{runs[0]['trainable_parameters']:,}"]
        cells += [f"{np.mean([run['training_seconds'] for run in runs]) / 60:.1f} min"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


KNOBS = {  # of docs/learn.md: the knob of config.py, and the experiments of "recipe" that change it
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


def knobs_table() -> str:
    """What each knob is worth: the study "recipe", by knob, with its line in config.py."""
    records = _quality_records("recipe")
    line_of = {
        found[1]: number
        for number, line in enumerate((ROOT / "config.py").read_text().splitlines(), 1)
        if (found := re.match(r"    (\w+): ", line))
    }
    lines = ["| knob | change: points, paired (95 %) |", "|---|---|"]
    for knob, changes in KNOBS.items():
        places = ", ".join(f"[`{name}`](../config.py#L{line_of[name]})" for name in knob.split(", "))
        worth = [f"{change}: {_points(compare(records[change], records['base']))}" for change in changes]
        lines.append(f"| {places} | {'<br>'.join(worth)} |")
    return "\n".join(lines)


def knobs_picture(path: Path) -> None:
    """Accuracy on validation against the learning rate, the targets and the rank."""
    records = _quality_records("recipe")
    groups = {
        "learning rate": {"2e-4": "learning rate 2e-4", "5e-4": "learning rate 5e-4", "1e-3": "base", "2e-3": "learning rate 2e-3"},
        "layers with LoRA": {"query,\nvalue": "query and value", "attention": "attention", "MLP": "MLP", "all\nlinear": "base"},
        "rank": {"4": "rank 4, alpha 8", "16": "base", "64": "rank 64, alpha 128"},
    }
    figure, panels = plots.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for axes, (title, changes) in zip(panels, groups.items(), strict=True):
        runs = [records[name][0] for name in changes.values()]
        found = 100 * np.array([run["accuracy"] for run in runs])
        low, high = 100 * np.array([run["accuracy_ci95"] for run in runs]).T
        axes.errorbar([*changes], found, yerr=[found - low, high - found], fmt="o", capsize=3)
        axes.set(xlabel=title)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"accuracy on {runs[0]['n']:,}\nvalidation reviews, %")
    figure.suptitle(f"{_model(runs[0])}, {runs[0]['dataset']['train']:,} reviews; bars: 95 % of the rows' own chance", fontsize=10)
    plots.save(figure, path)


def compare(a: list[dict], b: list[dict]) -> dict:
    """`paired_difference` of two experiments' records, seed by seed."""
    n = a[0]["n"]
    column = {row: i for i, row in enumerate(sorted({row for run in (*a, *b) for row in run["wrong"].split()}))}

    def right(runs: list[dict]) -> np.ndarray:
        right = np.ones((len(runs), n), dtype=bool)
        for i, run in enumerate(runs):
            right[i, [column[row] for row in run["wrong"].split()]] = False
        return right

    return paired_difference(right(a), right(b))


def _quality_records(*studies: str) -> dict[str, list[dict]]:
    """By experiment, in the studies' own order, the records of its seeds."""
    records = {}
    for study in studies:
        for name in STUDIES[study].experiments:
            files = [file for seed in STUDIES[study].seeds if (file := record_file(study, name, seed)).exists()]
            if files:
                records[name] = [json.loads(file.read_text()) for file in files]
    return records


PAGES = {
    "README.md": {
        "claim": claim_table,
        "laptop": laptop_sentence,
        "gpu": gpu_sentence,
        "entities_sentence": entities_sentence,
        "pretrained_sentence": pretrained_sentence,
        "translation_sentence": translation_sentence,
        "scale": scale_table,
        "processes": processes_sentence,
        "time": time_sentence,
        "speedup": speedup_table,
    },
    "docs/learn.md": {"knobs": knobs_table},
    "results/README.md": {
        "comparison": comparison_table,
        "growth": growth_table,
        "architectures": architectures_table,
        "speed": speed_table,
        "gpu": gpu_table,
        "time": time_table,
        "recipe": partial(changes_table, "recipe"),
        "confirm": partial(changes_table, "confirm"),
        "shorter": partial(changes_table, "shorter", "shorter-ways", base="whole texts"),
        "augmentation": augmentation_table,
        "sentences": sentences_table,
        "entities": entities_table,
        "entities_types": entities_types_table,
        "entities_recipe": entities_recipe_table,
        "pretraining": partial(perplexity_table, "pretraining", "further pre-training", "hidden tokens"),
        "pretrained": pretrained_table,
        "pretrained_test": pretrained_test_table,
        "gpt2": gpt2_sentence,
        "gpt2_style": gpt2_style_table,
        "gpt2_reviews": gpt2_reviews_table,
        "gpt2_recipe": partial(perplexity_table, "gpt2-recipe", "setting", "validation sentences"),
        "translation_base": translation_base_table,
        "translation_lora": partial(translation_table, "translation-lora"),
        "translation": partial(translation_table, "translation-transfer"),
        "generation": generation_table,
        "engines": engines_table,
        "steps": steps_table,
        "fast": fast_table,
    },
}


def fill(page: str) -> str:
    """The page's text with what stands between each table's two marks replaced by what the records give."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"{page} must hold <!-- {name} --> and <!-- /{name} --> once, not {count} times")
    return text


def draw() -> None:
    """The pictures of README.md that come from records alone."""
    growth_picture(ROOT / "results" / "growth.png")
    knobs_picture(ROOT / "results" / "knobs.png")
    run = _quality_records("comparison")[LORA][0]
    dataset = dict(dataset=run["dataset"]["name"], dataset_origin=run["dataset"]["origin"])
    names = run["label_names"]
    title = plots.title("accuracy", run | dataset)
    plots.plot_confusion_matrix(run["confusion_matrix"], (names, names), title, ROOT / "results" / "confusion_matrix.png")


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(fill(page))
    draw()
