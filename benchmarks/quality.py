"""Which recipe is best, and what it reaches: named experiments, each one or more runs of fine_tune.py.

    python benchmarks/quality.py --list            what there is, and the minutes each took
    python benchmarks/quality.py recipe            run a study, an experiment of it (recipe/base), one seed (recipe/base/0)
    python benchmarks/tables.py                    the tables of the READMEs from the records

A finished run leaves a record in results/quality/ and is not run again. What the studies are stands in studies.py.
"""

import argparse
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from studies import STUDIES, TFIDF, pretrained  # noqa: E402

from config import Config  # noqa: E402

RECORDS = ROOT / "results" / "quality"
OF_THE_MACHINE = ("dataset_name", "output_dir", "run_name", "report_to")  # settings that a record leaves out


def runs(names: list[str]) -> list[tuple[str, str, int]]:
    """(study, experiment, seed) of all that `names` ask for: "study", "study/experiment", "study/experiment/seed"; none is everything."""
    known = [(study, name, seed) for study, s in STUDIES.items() for seed in s.seeds for name in s.experiments]

    def called(run: tuple) -> set[str]:
        return {"/".join(map(str, run[:length])) for length in (1, 2, 3)}

    if wrong := [name for name in names if not any(name in called(run) for run in known)]:
        sys.exit(f"unknown: {', '.join(wrong)}; --list shows what there is")
    return [run for run in known if not names or called(run) & set(names)]


def record_file(study: str, name: str, seed: int) -> Path:
    return RECORDS / study / f"{name.replace(', ', '_').replace(' ', '-')}-{seed}.json"


def measure(study: str, name: str, seed: int, dataset_name: str | None) -> dict:
    """Train one experiment with one seed; what it reaches on the study's split, and how each row comes out."""
    from finetuning import data, run_folder

    settings = (
        dict(dataset_name="stanfordnlp/imdb", length_warmup=0.0)
        | STUDIES[study].common
        | STUDIES[study].experiments[name]
        | dict(seed=seed)
    )
    settings |= dict(dataset_name=str(Path(dataset_name).resolve())) if dataset_name else {}
    split = STUDIES[study].split
    started = time.perf_counter()
    environment = run_folder.environment()
    if settings.get("method") == TFIDF:
        rows = data.load_data(Config(**settings | dict(method="lora")))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # so that its peak of memory is its own
            logits, about = alone.submit(tfidf, rows, split).result()
    else:
        kept = ROOT / pretrained(study, name) if STUDIES[study].keep and seed == 0 else None
        rows, logits, about = fine_tuned(settings, split, kept)
    measured = getattr(rows, split)
    unseen = ~np.isin(measured.hashes, [*rows.train.hashes, *rows.validation.hashes])  # those whose text was not trained on
    of_tasks = {"token-classification": of_entities, "masked-lm": of_documents, "causal-lm": of_documents, "translation": of_pairs}
    found, each = of_tasks.get(settings.get("task"), of_labels)(logits, measured, rows.label_names, unseen)
    if split != "test":
        found.pop("unseen", None)
    return {
        "study": study,
        "experiment": name,
        "seed": seed,
        "settings": {knob: value for knob, value in settings.items() if knob not in OF_THE_MACHINE},
        "split": rows.test_split if split == "test" else f"validation, {rows.validation_split}",
        **found,
        **about,
        "minutes": (time.perf_counter() - started) / 60,
        "dataset": {
            "name": rows.source.name,
            "origin": rows.source.origin,
            "sha256": rows.sha256,
            "train": len(rows.train),
            "validation": len(rows.validation),
        },
        "environment": environment,
        **each,
    }


def of_labels(logits: np.ndarray, measured, label_names: list[str], unseen: np.ndarray) -> tuple[dict, dict]:
    """Figures, and the numbers of the rows that are wrong, on one line."""
    from finetuning.tasks.text_classification import classification_metrics

    found = classification_metrics(logits, measured.labels, label_names)
    found = {key: found[key] for key in ("accuracy", "accuracy_ci95", "loss", "n", "label_names", "confusion_matrix")}
    right = logits.argmax(axis=-1) == measured.labels
    found["unseen"] = {"accuracy": float(right[unseen].mean()) if unseen.any() else None, "n": int(unseen.sum())}
    return found, {"wrong": " ".join(map(str, measured.rows[~right]))}


def of_entities(logits: list[np.ndarray], measured, label_names: list[str], unseen: np.ndarray) -> tuple[dict, dict]:
    """Figures, and of each row its entities that are right, predicted and there, on one line."""
    from finetuning import entities
    from finetuning.tasks import token_classification as task

    found = task.measure(logits, measured, None, label_names, dict(temperature=1.0))
    found = {key: value for key, value in found.items() if key not in ("temperature", "calibration")}
    spans = ([entities.entities(codes) for codes in both] for both in (task.gold_of(measured), task.decide(logits, {})))
    counts = entities.counts(*spans)
    found["unseen"] = {"f1": float(entities.f1(*counts[unseen].T)), "n": int(unseen.sum())}
    return found, {"counts": " ".join("/".join(map(str, row)) for row in counts)}


def of_documents(documents: np.ndarray, measured, label_names: list[str], unseen: np.ndarray) -> tuple[dict, dict]:
    """Figures of a language model, and each document's loss and number of tokens, on one line."""
    from finetuning.tasks.causal_lm import lm_metrics

    found = lm_metrics(documents)
    found["unseen"] = {"perplexity": lm_metrics(documents[unseen])["perplexity"] if unseen.any() else None, "n": int(unseen.sum())}
    return found, {"documents": " ".join(f"{-mean:.4f}/{n:.0f}" for mean, n in documents)}


def of_pairs(found, measured, label_names: list[str], unseen: np.ndarray) -> tuple[dict, dict]:
    """Figures, those of lower-cased tokens too, as papers on Multi30k have them; and what BLEU counts of each pair, on one line."""
    from sacrebleu.metrics import BLEU
    from sacremoses import MosesTokenizer

    from finetuning.tasks import translation as task

    pairs, split = (found.texts, task.references(measured)), MosesTokenizer("en").tokenize
    tokens = [[split(text.lower(), escape=False, return_str=True) for text in texts] for texts in pairs]
    figures = task.measure(found, measured, None, label_names, {})
    lower = {"bleu_lower_tokens": BLEU(tokenize="none").corpus_score(tokens[0], [tokens[1]]).score}
    counted = [BLEU().corpus_score([text], [[reference]]) for text, reference in zip(*pairs, strict=True)]
    rows = ("/".join(map(str, (*one.counts, *one.totals, one.sys_len, one.ref_len))) for one in counted)
    return figures | lower, {"bleu_counts": " ".join(rows)}


def fine_tuned(settings: dict, split: str, kept: Path | None = None):
    """Rows, predictions and what the run says of itself, through fine_tune.py and the code of evaluate.py.

    `kept` is where the merged model goes, if it stays.
    """
    from finetuning import data, exporting, run_folder, tokenizing

    with tempfile.TemporaryDirectory() as folder:
        flags = [part for knob, value in settings.items() for part in (f"--{knob}", str(value))]
        script = [sys.executable, str(ROOT / "fine_tune.py"), *flags, "--output_dir", folder, "--run_name", "run"]
        done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(f"{settings}:\n{done.stderr[-3000:]}")
        run = run_folder.open_run(Path(folder) / "run")
        rows = data.load_data(run.config, run.record["dataset"]["origin"])
        lora, tokenizer, source = run_folder.load_model(run)
        tokens = tokenizing.encode(getattr(rows, split), tokenizer, run.config)
        logits = run.task.predict(lora, tokenizer, tokens, run.config, show_progress=False)
        said = run.training
        about = {
            "config": {knob: value for knob, value in asdict(run.config).items() if knob not in OF_THE_MACHINE},
            "model": source.name,
            "model_origin": source.origin,
            "model_sha256": source.sha256,
            "validation": said["validation"],
            "trainable_parameters": said["trainable_parameters"],
            "total_parameters": said["total_parameters"],
            "training_seconds": said["seconds"]["training"],
            "peak_memory_gib": said["peak_memory_gib"],
            "saved_mib": (run.folder / "adapter" / run_folder.ADAPTER_FILES[1]).stat().st_size / 2**20,
        }
        if kept:
            exporting.export(run, ["merged"], n=50)
            shutil.copytree(run.folder / "export" / "merged", kept, dirs_exist_ok=True)
    return rows, logits, about


def tfidf(rows, split: str):
    """Rows' logits and the figures of TF-IDF over words and pairs of words with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from finetuning import run_folder
    from finetuning.tasks.text_classification import texts

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    started = time.perf_counter()
    model.fit(texts(rows.train.columns()), rows.train.labels)
    seconds = time.perf_counter() - started
    logits = model.predict_log_proba(texts(getattr(rows, split).columns())).astype(np.float32)
    weights = model[-1].coef_.size + 1
    return logits, {
        "model": "TF-IDF, 1-2-grams, min_df 3, sublinear; logistic regression, C 10",
        "model_origin": "scikit-learn",
        "trainable_parameters": weights,
        "total_parameters": weights,
        "training_seconds": seconds,
        "peak_memory_gib": run_folder.peak_memory_gib(),
        "saved_mib": len(pickle.dumps(model)) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a study, or study/experiment; none: all")
    parser.add_argument("--list", action="store_true", help="show them and what each took, and run nothing")
    parser.add_argument(
        "--dataset_name", help="a copy of the studies' data, IMDb, CoNLL-2003 or Multi30k, with its official splits"
    )
    arguments = parser.parse_args()
    for study, name, seed in runs(arguments.names):
        file = record_file(study, name, seed)
        if not file.exists() and not arguments.list:
            from finetuning import console, run_folder

            console.quiet_libraries()
            found = measure(study, name, seed, arguments.dataset_name)
            file.parent.mkdir(parents=True, exist_ok=True)
            run_folder.write_json(file, found)
        record = json.loads(file.read_text()) if file.exists() else None
        split = STUDIES[study].split
        said = "not run yet"
        if record:
            metric = next(name for name in ("f1", "accuracy", "perplexity", "bleu") if name in record)
            said = f"{record['minutes']:5.1f} min  {split} {metric} {record[metric]:.4f}, loss {record['loss']:.4f}"
        print(f"{f'{study}/{name}':<42} seed {seed}  {said}", flush=True)


if __name__ == "__main__":
    main()
