"""The code in model cards gives the answers of predict.py, in a process without this repository."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BAD, GOOD, as_flags, make_model, make_pairs, make_rows
from huggingface_hub import ModelCard
from test_tasks import KINDS, pairs, ratings, sentences, tagged  # noqa: F401  (fixtures)
from transformers import AutoModelForSequenceClassification

from config import Config
from finetuning import tasks
from finetuning.data.sources import find_model
from finetuning.data.splits import load_data
from finetuning.results import report, run_folder
from finetuning.tasks.regression import Regression
from finetuning.use.predicting import Answers

# For each folder of the standard input: run its codes.json in a fork, and print an empty line when it has ended.
RUN_CODES = """
import json, os, sys, traceback
import peft, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

for folder in map(str.strip, sys.stdin):
    if process := os.fork():
        os.waitpid(process, 0)
        print(flush=True)
        continue
    try:
        os.chdir(folder)
        sys.stdout = sys.stderr = open("errors.txt", "w")
        answers = []
        for code, expression in json.load(open("codes.json")):
            variables = {"json": json}
            exec(code, variables)
            answers.append(eval(expression, variables))
        with open("answers.json", "w") as file:
            json.dump(answers, file)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def elsewhere():
    """Start a process without this repository that runs codes in forks, so that they need not import the libraries again."""
    env = os.environ | {"PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-I", "-c", RUN_CODES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.stdin.close()


def run_code(cards: list[tuple[Path, dict[str, Path]]], expression: str, folder: Path, elsewhere: subprocess.Popen) -> list[list]:
    """Run the last Python block of each card in a process without this repository; return the value of `expression` after each.

    `cards` holds the folder of each card, and the paths that replace names in its code.
    """
    codes = []
    for card, names in cards:
        code = re.findall(r"```python\n(.*?)```", ModelCard.load(card / "README.md").text, flags=re.DOTALL)[-1]
        for name, path in names.items():
            assert f'"{name}"' in code
            code = code.replace(f'"{name}"', repr(str(path)))
        codes.append((code, expression))
    (folder / "codes.json").write_text(json.dumps(codes))
    (folder / "answers.json").unlink(missing_ok=True)
    print(folder, file=elsewhere.stdin, flush=True)
    elsewhere.stdout.readline()
    assert (folder / "answers.json").exists(), (folder / "errors.txt").read_text()
    return json.loads((folder / "answers.json").read_text())


VARIANTS = [(kind, {}) for kind in ["single label", *KINDS] if kind != "chat"]  # test_chat.py has the card of a chat
VARIANTS += [
    ("single label", dict(truncation="tail", method="full")),
    ("single label", dict(truncation="head", method="head", model_name="gpt2")),
    ("single label", dict(labels_of_base=5)),  # the base model's file has a head with other labels
    ("pairs", dict(truncation="tail", model_name="bert")),
    ("regression", dict(method="full")),
    ("masked-lm", dict(method="full")),
    ("masked-lm", dict(train_embeddings=True, model_name="bert")),
    ("causal-lm", dict(train_embeddings=True)),
    ("translation", dict(method="full")),
    ("translation", dict(train_embeddings=True)),
    ("translation", dict(method="full", model_name="t5")),
]


# For each task: a function that picks the answer from a line of `predict.py --json`, and the card's call for the same answer.
ANSWERS = {
    "single label": (lambda answer: [answer["label"], answer["probability"]], "label(text)"),
    "several labels": (lambda answer: answer["labels"], "labels(text)"),
    "regression": (lambda answer: [answer["prediction"]], "numbers(text)"),
    "entities": (
        lambda answer: [entity["text"] for entity in answer["entities"]],
        "[word for word, tag in tags(text.split()) if tag != 'O']",
    ),
    "causal-lm": (lambda answer: answer["text"] + answer["continuation"], "(torch.manual_seed(0), continue_text(text))[1]"),
    "translation": (lambda answer: answer["translation"], "translate(text)"),
    "masked-lm": (
        lambda answer: [[[guess["word"], guess["probability"]] for guess in guesses] for guesses in answer["words"]],
        "fill_masks(text)",
    ),
}


def settings_of(kind: str, files: dict[str, Path]) -> dict:
    """Return the settings of a short run."""
    return {
        "single label": dict(dataset_name=files["reviews"], num_train_epochs=12),
        "pairs": dict(dataset_name=files["pairs"], text_column="premise", text_pair_column="hypothesis", num_train_epochs=4),
        "several labels": dict(dataset_name=files["tagged"]),
        "regression": dict(dataset_name=files["ratings"], problem_type="regression", label_column="score"),
        "entities": dict(dataset_name=files["sentences"], task="token-classification", num_train_epochs=8),
        "causal-lm": dict(dataset_name=files["reviews"], task="causal-lm"),
        "masked-lm": dict(dataset_name=files["reviews"], task="masked-lm"),
        "translation": dict(dataset_name=files["translations"], task="translation", source_column="low", target_column="high")
        | dict(source_lang="en", target_lang="de"),
    }[kind]


def texts_of(kind: str) -> list[str]:
    """Return texts whose answers differ."""
    if kind == "masked-lm":  # short, so that no mask is truncated
        starts = [" ".join(text.split()[:6]) for text in make_rows().review[:8]]
        texts = [text.replace("film", "[MASK]").replace("plot", "[MASK]") for text in starts]
        return [*(text for text in texts if "[MASK]" in text), "we [MASK]<br />every"]
    if kind == "entities":  # short and clear, because the card's code decides on each word by itself
        return [f"the {i} film with {i + 7} a" for i in range(8)]
    if kind == "translation":
        return [*make_pairs(8).low.tolist(), "1 2 3 4 5 6 7 1 2 3 4<br />5 6 7"]
    if kind == "causal-lm":
        return ["a fine", "we hated every", "poor cast", "moving", "we hated<br />every"]
    long = [f"{BAD[i]} {i} {GOOD[i]} {GOOD[i - 1]} {BAD[i]} {GOOD[i]}" for i in range(4)]  # the answer depends on the truncation
    return long + make_rows().review[:4].tolist()


@pytest.fixture
def files(data_file, pairs, tagged, ratings, sentences, tmp_path) -> dict[str, Path]:  # noqa: F811
    """Return the data file of each task."""
    make_pairs(80).to_csv(tmp_path / "translations.csv", index=False)
    easy = pd.read_csv(pairs / "pairs.csv")
    easy.assign(label=[text.startswith(tuple(GOOD)) for text in easy.hypothesis]).to_csv(tmp_path / "easy.csv", index=False)
    paths = dict(reviews=data_file, tagged=tagged / "lists.parquet", ratings=ratings, sentences=sentences)
    return paths | dict(pairs=tmp_path / "easy.csv", translations=tmp_path / "translations.csv")


@pytest.mark.parametrize(
    ("kind", "changed"),
    VARIANTS,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "plain",
)
def test_the_code_of_each_model_card_gives_the_answers_of_predict(kind, changed, files, tmp_path, call, elsewhere):
    model_type = changed.get("model_name", {"causal-lm": "gpt2", "translation": "marian"}.get(kind, "distilbert"))
    model = make_model(tmp_path / f"tiny-{model_type}", model_type)
    changed = dict(changed)
    if n_labels := changed.pop("labels_of_base", None):
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=n_labels, dtype=torch.bfloat16)
        base.save_pretrained(model)
    settings = dict(max_length=16, precision="float32", learning_rate=0.01, batch_size=8, run_name="run")
    settings |= settings_of(kind, files) | changed | {"model_name": model}
    flags = as_flags(settings)
    for script, *more in (("fine_tune.py", *flags), ("evaluate.py",), ("export.py", "--formats", "merged")):
        done = call(script, *more)
        assert done.code == 0, done.err or done.code
    texts = texts_of(kind)
    if kind == "pairs":
        rows = pd.read_csv(files["pairs"])[:8].assign(hypothesis=texts)
        rows.to_csv("rows.csv", index=False)
        assert call("predict.py", "--file", "rows.csv", "--out", "out.jsonl").code == 0
        answers = pd.read_json("out.jsonl", lines=True)[["prediction", "probability"]]
        expected = [list(answer) for answer in answers.itertuples(index=False)]
        expression = f"[label(*pair) for pair in {rows[['premise', 'hypothesis']].to_numpy().tolist()!r}]"
    else:
        pick, code = ANSWERS[kind]
        expected = [pick(json.loads(line)) for line in call("predict.py", "--json", *texts).out.splitlines()]
        expression = f"[{code} for text in {texts!r}]"
    if kind in ("single label", "pairs", "regression"):
        assert np.ptp([answer[-1] for answer in expected]) > 0.01, expected
    opened = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    inputs = opened.task.input_columns(["text", "source", "premise", "hypothesis"], opened.config, None)
    assert Answers(opened).answer_batch(dict.fromkeys(inputs, texts)).keys() == opened.task.answer_features.keys()
    run, merged = tmp_path / "outputs" / "run", tmp_path / "outputs" / "run" / "export" / "merged"
    if changed.get("truncation") == "tail":
        assert "It reads the last 16 tokens" in ModelCard.load(merged / "README.md").text
    cards = [(run / "adapter", {"ADAPTER": run / "adapter"}), (merged, {"MODEL": merged})]  # the base model is where it was
    for answers in run_code(cards, expression, tmp_path, elsewhere):
        assert len(answers) == len(expected) > 3
        for answer, expected_answer in zip(answers, expected, strict=True):
            assert equal(answer, expected_answer), (answer, expected_answer)


def equal(a, b) -> bool:
    """Compare two answers; numbers may differ by rounding."""
    if isinstance(a, float):
        return abs(a - b) < 1e-4
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list) else a == b


def test_card_code_gives_real_reviews_the_probabilities_of_predict(call, tmp_path, elsewhere):
    """Use 50 reviews of the stand-in data, from one line to far more than the model reads; also try a plain pipeline."""
    settings = dict(train_samples=320, max_length=32, learning_rate=0.003, batch_size=16, run_name="run")
    settings |= dict(early_stopping_patience=0, eval_steps=0.5, precision="float32")
    flags = as_flags(settings)
    for script, *more in (("fine_tune.py", "--preset", "smoke", *flags), ("evaluate.py",), ("export.py", "--formats", "merged")):
        done = call(script, *more)
        assert done.code == 0, done.err or done.code
    run = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    reviews = sorted(load_data(run.task, run.config).test.columns()["text"], key=len)
    reviews = [reviews[i * (len(reviews) - 1) // 49] for i in range(50)]
    assert len(reviews[0].split()) < 60 and len(reviews[-1].split()) > 600
    (tmp_path / "reviews.json").write_text(json.dumps([{"text": review} for review in reviews]))
    assert call("predict.py", "--file", "reviews.json", "--out", "out.jsonl").code == 0
    answers = pd.read_json("out.jsonl", lines=True)[["prediction", "probability"]]
    expected = [list(answer) for answer in answers.itertuples(index=False)]
    merged = run.folder / "export" / "merged"
    base = find_model("distilbert-base-uncased")
    expression = "[label(review['text']) for review in json.load(open('reviews.json'))]"
    cards = [(run.folder / "adapter", {"ADAPTER": run.folder / "adapter", base.name: base.path}), (merged, {"MODEL": merged})]
    for answers in run_code(cards, expression, tmp_path, elsewhere):
        assert all(map(equal, answers, expected)) and len(answers) == len(expected)
    model_config, tokenizer_config = (json.loads((merged / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert model_config["id2label"] == {"0": "neg", "1": "pos"}
    assert model_config["problem_type"] == "single_label_classification" and tokenizer_config["model_max_length"] == 32
    card = ModelCard.load(merged / "README.md").text
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0].replace("MODEL", str(merged))
    variables: dict = {}
    exec(code, variables)
    pipeline = variables["model"]
    for review, (label, probability) in zip(reviews, expected, strict=True):
        text = review.replace("<br />", " ")
        (answer,) = pipeline(text)
        if len(pipeline.tokenizer(text)["input_ids"]) <= 32:  # the pipeline reads the same tokens
            assert answer["label"] == label and abs(answer["score"] - probability) < 1e-4
    assert "first 32 tokens" in card and "reads the first 8 and the last 24" in card


def test_the_model_card_names_the_test_split(call, tiny_flags, tmp_path):
    rows = make_rows(120)
    (tmp_path / "rows").mkdir()
    rows[:80].to_parquet(tmp_path / "rows" / "train.parquet")
    rows[80:].to_parquet(tmp_path / "rows" / "validation.parquet")
    flags = ["--dataset_name", "rows", "--test_split", "validation", "--num_train_epochs", 1]
    trained = call("fine_tune.py", *tiny_flags, *flags)
    assert trained.code == 0 and "40 test (official validation)" in trained.out, trained.err
    assert call("evaluate.py").code == 0
    card = ModelCard.load("outputs/run/adapter/README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "(official validation)" in card.text and "on 40 rows of" in card.text


def test_the_code_for_numbers_adds_their_mean_even_if_their_standard_deviation_is_1():
    factor, offset = Regression().output_scale({"label_mean": 3.0, "label_std": 1.0})
    values = dict(config=Config(), load="", factor=factor, offset=offset, line_break="", separator="")
    code = report.template("numbers.py.jinja").render(values)
    assert "return (3.0 + 1.0 * logits).tolist()\n\n\nprint(" in code
