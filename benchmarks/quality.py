"""Train and measure the experiments of studies.py: each is one or more runs of fine_tune.py.

    python benchmarks/quality.py --list            list the experiments, with the minutes and the result of each run
    python benchmarks/quality.py recipe            run a study, an experiment of it (recipe/base), or one seed (recipe/base/0)
    python benchmarks/quality.py recipe --jobs 4   four runs at a time, for a GPU that one run does not fill
    python benchmarks/tables.py                    fill in the tables of the pages from the records

Each run is a process of its own. A finished run leaves a record in results/quality/ and is not run again.
"""

import argparse
import contextlib
import io
import pickle
import shutil
import sys
import tempfile
import time
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import MACHINE_SETTINGS, RESULTS, ROOT, flags, new_processes
from studies import BASELINES, COSINE, STUDIES, TFIDF, TFIDF_OF_TOKENS, file_name, pretrained

import fine_tune
from config import Config
from finetuning import console, tasks
from finetuning.data.sources import find_model
from finetuning.data.splits import Data, load_data
from finetuning.data.text import clean
from finetuning.data.tokens import encode, tokenize_texts
from finetuning.disk import read_json, unlock, write_json
from finetuning.model.base import load_tokenizer
from finetuning.results import evaluation, run_folder
from finetuning.task import Evaluation, Metric, Statistics
from finetuning.tasks.entities import Entities
from finetuning.use import exporting


class Run(NamedTuple):
    study: str
    experiment: str
    seed: int


class Measured(NamedTuple):
    """The results of a run; `about` goes into its record unchanged."""

    data: Data
    evaluation: Evaluation
    about: dict


def runs(names: list[str]) -> list[Run]:
    """Return the runs with these names: "study", "study/experiment" or "study/experiment/seed"; all runs for []."""
    known = [
        Run(study, name, seed)
        for study, s in STUDIES.items()
        for seed in s.seeds
        for name, settings in s.experiments.items()
        if seed == s.seeds[0] or settings.get("method") not in BASELINES
    ]

    def names_of(run: Run) -> set[str]:
        return {"/".join(map(str, run[:length])) for length in (1, 2, 3)}

    if unknown := [name for name in names if not any(name in names_of(run) for run in known)]:
        sys.exit(f"unknown: {', '.join(unknown)}; --list shows the experiments")
    return [run for run in known if not names or names_of(run) & set(names)]


def metric_of(record: dict) -> Metric:
    """Return the metric that picked the checkpoint of the record."""
    settings = record.get("config") or record.get("settings") or record["run"]["config"]
    task = tasks.pick(Config(**{name: settings[name] for name in ("task", "problem_type", "prompt_column") if name in settings}))
    name = settings.get("metric_for_best_model") or task.metrics[0].name
    metric = next(metric for metric in task.metrics if metric.name == name)
    return replace(metric, format=".2f") if name == "perplexity" else metric


def record_file(study: str, name: str, seed: int) -> Path:
    return RESULTS / "quality" / study / f"{file_name(name)}-{seed}.json"


def settings_of(study: str, name: str) -> dict:
    """Return the settings of an experiment. `length_warmup` is 0, so texts have their full length from the first step."""
    settings = STUDIES[study].common | STUDIES[study].experiments[name]
    if "best_of" in settings:
        settings |= best_settings(*settings.pop("best_of").split("/"))
    return dict(dataset_name="stanfordnlp/imdb") | ({} if "task" in settings else dict(length_warmup=0.0)) | settings


def best_settings(study: str, method: str) -> dict:
    """Return the settings of the study's experiment with the best main metric, among those whose name begins with `method`."""
    names = [name for name in STUDIES[study].experiments if name.startswith(f"{method},")]
    if missing := [name for name in names if not record_file(study, name, 0).exists()]:
        sys.exit(f"run the experiments of {study} first: {'; '.join(missing)}")

    def quality(name: str) -> float:
        record = read_json(record_file(study, name, 0))
        metric = metric_of(record)
        return record[metric.name] if metric.better == "higher" else -record[metric.name]

    return STUDIES[study].experiments[max(names, key=quality)]


def measure(study: str, name: str, seed: int, dataset_name: str | None) -> dict:
    """Train an experiment with one seed, and return its record: metrics on the split of the study, and statistics of each row."""
    settings = settings_of(study, name) | dict(seed=seed)
    settings |= dict(dataset_name=str(Path(dataset_name).resolve())) if dataset_name else {}
    started, environment, split = time.perf_counter(), run_folder.environment(), STUDIES[study].split
    if settings.get("method") in (TFIDF, TFIDF_OF_TOKENS):
        data, evaluated, about = tfidf(settings, split)
    elif settings.get("method") == COSINE:
        data, evaluated, about = cosine(settings, split)
    else:
        kept = ROOT / pretrained(study, name)["model_name"] if STUDIES[study].keep and seed == 0 else None
        data, evaluated, about = fine_tuned(settings, split, kept)
    evaluated = evaluation.measure(data.task, evaluated, data.unseen() if split == "test" else None)
    measured = {key: value for key, value in evaluated.metrics.items() if key not in ("calibration", *evaluated.calibration)}
    return {
        "study": study,
        "experiment": name,
        "seed": seed,
        "settings": {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS},
        "split": data.test_split if split == "test" else f"validation, {data.validation_split}",
        **measured,
        **lower_cased_bleu(evaluated),
        **about,
        "minutes": (time.perf_counter() - started) / 60,
        "dataset": {
            "name": data.source.name,
            "origin": data.source.origin,
            "sha256": data.sha256,
            "train": len(data.train),
            "validation": len(data.validation),
        },
        "environment": environment,
        "statistics": as_text(evaluated.statistics),
    }


def lower_cased_bleu(evaluated: Evaluation) -> dict:
    """Return BLEU of lower-cased tokens, as in papers on Multi30k; {} for other tasks than translation."""
    if evaluated.config.task != "translation":
        return {}
    from sacrebleu.metrics import BLEU
    from sacremoses import MosesTokenizer

    from finetuning.tasks.translation import references

    split = MosesTokenizer("en").tokenize
    pairs = evaluated.predictions.texts, references(evaluated.split)
    tokens = [[split(text.lower(), escape=False, return_str=True) for text in texts] for texts in pairs]
    return {"bleu_lower_tokens": BLEU(tokenize="none").corpus_score(tokens[0], [tokens[1]]).score}


def fine_tuned(settings: dict, split: str, kept: Path | None = None) -> Measured:
    """Train with fine_tune.py and predict as evaluate.py does; copy the merged model to `kept`."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            fine_tune.main(flags(**settings, output_dir=folder, run_name="run"))
        unlock()  # what the script does when it ends
        run = run_folder.open_run(Path(folder) / "run", tasks.pick)
        data = load_data(run.task, run.config, run.origins["dataset"])
        source = run_folder.find_base_model(run)
        predictor = run_folder.load_predictor(run, source)
        measured = getattr(data, split)
        encoded = encode(run.task, measured, predictor.tokenizer, run.config)
        predictions = run.task.predict(predictor, encoded)
        evaluated = Evaluation(predictions, measured, encoded.lengths, data.label_names, run.calibration, run.config)
        about = {
            "config": {name: value for name, value in asdict(run.config).items() if name not in MACHINE_SETTINGS},
            "model": source.name,
            "model_origin": source.origin,
            "model_sha256": source.sha256,
            **{key: run.training[key] for key in ("validation", "trainable_parameters", "total_parameters", "peak_memory_gib")},
            "training_seconds": run.training["seconds"]["training"],
            "saved_mib": (run.folder / "adapter" / run_folder.ADAPTER_FILES[1]).stat().st_size / 2**20,
        }
        if kept:
            exporting.export(run, ["merged"], n=50)
            shutil.copytree(run.folder / "export" / "merged", kept, dirs_exist_ok=True)
    return Measured(data, evaluated, about)


def tfidf(settings: dict, split: str) -> Measured:
    """Train and measure the baseline like `fine_tuned`: TF-IDF over words and pairs of words, and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    config = Config(**settings | dict(method="lora"))
    data = load_data(tasks.pick(config), config)
    measured = getattr(data, split)
    texts = [clean(part.columns()["text"]) for part in (data.train, measured)]
    if settings["method"] == TFIDF_OF_TOKENS:
        tokenizer = load_tokenizer(data.task, find_model(config.model_name), config)
        ids = (tokenize_texts(part, tokenizer, config)[0] for part in texts)
        texts = [tokenizer.batch_decode(part, skip_special_tokens=True) for part in ids]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    started = time.perf_counter()
    model.fit(texts[0], data.train.labels)
    seconds = time.perf_counter() - started
    logits, weights = model.predict_log_proba(texts[1]).astype(np.float32), model[-1].coef_.size + 1
    lengths = np.array([len(text.split()) for text in texts[1]])
    evaluated = Evaluation(logits, measured, lengths, data.label_names, dict(temperature=1.0), config)
    about = {
        "model": "TF-IDF, 1-2-grams, min_df 3, sublinear; logistic regression, C 10",
        "model_origin": "scikit-learn",
        "trainable_parameters": weights,
        "total_parameters": weights,
        "training_seconds": seconds,
        "peak_memory_gib": run_folder.peak_memory_gib(),
        "saved_mib": len(pickle.dumps(model)) / 2**20,
    }
    return Measured(data, evaluated, about)


def cosine(settings: dict, split: str) -> Measured:
    """Measure the base model without training, for pairs of texts with a similarity from 0 to 5, like `fine_tuned`.

    A text's embedding is the mean of the model's outputs for its tokens. The prediction is 5 times the cosine of two embeddings.
    """
    from transformers import AutoModel

    config = Config(**settings | dict(method="lora"))
    data, source = load_data(tasks.pick(config), config), find_model(config.model_name)
    measured = getattr(data, split)
    tokenizer, model = load_tokenizer(data.task, source, config), AutoModel.from_pretrained(source.path).eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=config.max_length, return_tensors="pt")
        mask = batch["attention_mask"][:, :, None]
        return (model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

    pairs = list(zip(*(clean(measured.columns()[name]) for name in ("text", "text_pair")), strict=True))
    batches = [pairs[start : start + 64] for start in range(0, len(pairs), 64)]
    cosines = torch.cat([torch.cosine_similarity(*map(embed, map(list, zip(*batch, strict=True)))) for batch in batches])
    lengths = np.array([len(" ".join(pair).split()) for pair in pairs])
    evaluated = Evaluation(5 * cosines[:, None].numpy(), measured, lengths, data.label_names, {}, config)
    about = {
        "model": source.name,
        "model_origin": source.origin,
        "model_sha256": source.sha256,
        "trainable_parameters": 0,
        "total_parameters": model.num_parameters(),
    }
    return Measured(data, evaluated, about)


# --- statistics of rows --------------------------------------------------------------------------------------------------


def as_text(statistics: Statistics) -> dict[str, str]:
    """Return statistics in the form of a record: one text each, with blanks between rows and slashes between the numbers of a row.

    Rows that are mostly zeros, such as a number for each of many classes, have only their other numbers, each after its position:
    "77|5:1 12:1" stands for two rows of 77 numbers.
    """
    texts = {}
    for name, values in statistics.items():
        rows = np.asarray(values).reshape(len(values), -1)
        if rows.shape[1] > 1 and np.count_nonzero(rows) < rows.size / 10:
            parts = ["/".join(f"{i}:{row[i]:.6g}" for i in np.flatnonzero(row)) or "-" for row in rows]
            texts[name] = f"{rows.shape[1]}|" + " ".join(parts)
        else:
            texts[name] = " ".join("/".join(f"{number:.6g}" for number in row) for row in rows.tolist())
    texts.pop("rows", None)
    return texts


def from_text(text: str) -> np.ndarray:
    """Return the numbers of a text of `as_text`, shape (rows,) or (rows, k)."""
    width, separator, positions = text.partition("|")
    if separator:
        rows = np.zeros((len(positions.split()), int(width)))
        for row, numbers in zip(rows, positions.split(), strict=True):
            for number in [] if numbers == "-" else numbers.split("/"):
                position, value = number.split(":")
                row[int(position)] = float(value)
        return rows
    rows = np.array([row.split("/") for row in text.split()], dtype=np.float64)
    return rows[:, 0] if rows.shape[1] == 1 else rows


def statistics_of(records: list[dict]) -> list[Statistics]:
    """Return the per-row statistics of records on the same rows.

    Older records have another field in place of `statistics`. `wrong`: the numbers, within the file, of the rows with a wrong
    prediction (comparable with a newer record only if the split is the whole file); `counts`: correct, predicted and actual
    entities of each sentence; `documents`: loss per token and tokens of each document; `bleu_counts`: the counts of BLEU for each
    pair.
    """
    older = [record for record in records if "wrong" in record]
    wrong_rows = sorted({row for record in older for row in record["wrong"].split()})
    if len(older) not in (0, len(records)):
        all_rows = [str(row) for row in range(records[0]["n"])]
        if not {*wrong_rows} <= {*all_rows}:
            raise ValueError("a record of the older form cannot be compared with a newer one: measure both anew")
        wrong_rows = all_rows

    def read(record: dict) -> Statistics:
        if "statistics" in record:
            return {name: from_text(text) for name, text in record["statistics"].items()}
        if "wrong" in record:  # rows that no record has wrong: their order does not matter
            return {"correct": np.r_[~np.isin(wrong_rows, record["wrong"].split()), np.ones(record["n"] - len(wrong_rows))]}
        if "counts" in record:
            counts = dict(zip(("true_positives", "predicted", "actual"), from_text(record["counts"]).T, strict=True))
            return counts | {"group": Entities().groups(np.empty(record["n"]))}
        if "documents" in record:
            loss, tokens = from_text(record["documents"]).T
            return {"loss": loss * tokens, "tokens": tokens}
        return {"bleu": np.roll(from_text(record["bleu_counts"]), 2, axis=1)}  # sacreBLEU puts the two lengths first

    return [{"rows": np.ones(record["n"])} | read(record) for record in records]


def measure_and_record(run: Run, dataset_name: str | None) -> None:
    console.quiet_libraries()
    record, file = measure(*run, dataset_name), record_file(*run)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)


def show(run: Run) -> None:
    """Print a run with its result, if it has one."""
    result = "not run yet"
    if (file := record_file(*run)).exists():
        record = read_json(file)
        name = metric_of(record).name
        result = f"{record['minutes']:5.1f} min  {STUDIES[run.study].split} {name} {record[name]:.4f}, loss {record['loss']:.4f}"
    print(f"{f'{run.study}/{run.experiment}':<42} seed {run.seed}  {result}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="STUDY, STUDY/EXPERIMENT or STUDY/EXPERIMENT/SEED (default: all)")
    parser.add_argument("--list", action="store_true", help="list the runs with their results, and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--dataset_name", help="folder of a copy of the study's data with its official splits")
    arguments = parser.parse_args()
    chosen = runs(arguments.names)
    to_run = [run for run in chosen if not (arguments.list or record_file(*run).exists())]
    for run in chosen:
        if run not in to_run:
            show(run)
    with new_processes(arguments.jobs) as processes:
        futures = {processes.submit(measure_and_record, run, arguments.dataset_name): run for run in to_run}
        for future in as_completed(futures):
            if error := future.exception():
                print(f"{'/'.join(map(str, futures[future]))} failed: {error!r}", flush=True)
            else:
                show(futures[future])
    sys.exit(any(future.exception() for future in futures))


if __name__ == "__main__":
    main()
