"""What leaves the house, in other hands: the code of a model card, run as it stands, answers as predict.py does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BAD, GOOD, make_model, make_pairs, make_rows
from huggingface_hub import ModelCard
from test_tasks import pairs, sentences, tagged  # noqa: F401  (fixtures)

from finetuning.data import sources
from finetuning.data import splits as data
from finetuning.results import run_folder

STRANGER = """
import json

for code, then in json.load(open("codes.json")):
    room = {"json": json}
    exec(code, room)
    print("ANSWER", json.dumps(eval(then, room)))
"""


def run_elsewhere(cards: list[tuple[Path, dict[str, Path]]], then: str, folder: Path) -> list[list]:
    """What `then` gives after the last Python of each card, in a process that knows nothing of this repository."""
    codes = []
    for card, names in cards:
        code = re.findall(r"```python\n(.*?)```", ModelCard.load(card / "README.md").text, flags=re.DOTALL)[-1]
        for name, path in names.items():
            assert f'"{name}"' in code
            code = code.replace(f'"{name}"', repr(str(path)))
        codes.append((code, then))
    (folder / "codes.json").write_text(json.dumps(codes))
    env = os.environ | {"PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-I", "-c", STRANGER], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]


KINDS = ["one label", "pairs", "several labels", "entities", "causal-lm", "masked-lm", "translation"]
VARIANTS = [(kind, {}) for kind in KINDS]
VARIANTS += [
    ("one label", dict(truncation="tail", method="full")),
    ("one label", dict(truncation="head", method="head", model_name="gpt2")),
    ("pairs", dict(truncation="tail", model_name="bert")),
    ("masked-lm", dict(method="full")),
    ("causal-lm", dict(method="full")),
    ("causal-lm", dict(train_embeddings=True)),
    ("translation", dict(method="full")),
    ("translation", dict(train_embeddings=True)),
    ("translation", dict(method="full", model_name="t5")),
]


@pytest.mark.parametrize(
    ("kind", "changed"),
    VARIANTS,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "plain",
)
def test_the_code_of_each_card_answers_as_predict_does(kind, changed, data_file, pairs, tagged, sentences, tmp_path, call):  # noqa: F811
    model_type = changed.get("model_name", {"causal-lm": "gpt2", "translation": "marian"}.get(kind, "distilbert"))
    model = make_model(tmp_path / f"tiny-{model_type}", model_type)
    make_pairs(80).to_csv("pairs.csv", index=False)
    easy = pd.read_csv(pairs / "pairs.csv")
    easy.assign(label=[text.startswith(tuple(GOOD)) for text in easy.hypothesis]).to_csv("easy.csv", index=False)
    settings = {
        "one label": dict(dataset_name=data_file, num_train_epochs=12),
        "pairs": dict(dataset_name="easy.csv", text_column="premise", text_pair_column="hypothesis") | dict(num_train_epochs=4),
        "several labels": dict(dataset_name=tagged / "lists.parquet"),
        "entities": dict(dataset_name=sentences, task="token-classification", num_train_epochs=8),
        "causal-lm": dict(dataset_name=data_file, task="causal-lm"),
        "masked-lm": dict(dataset_name=data_file, task="masked-lm"),
        "translation": dict(dataset_name="pairs.csv", task="translation", source_column="low", target_column="high")
        | dict(source_lang="en", target_lang="de"),
    }[kind] | changed
    settings = dict(max_length=16, precision="float32", learning_rate=0.01, batch_size=8, run_name="run") | settings
    settings["model_name"] = model
    flags = [str(part) for knob, value in settings.items() for part in (f"--{knob}", value)]
    for script, *more in (("fine_tune.py", *flags), ("evaluate.py",), ("export.py", "--formats", "merged")):
        done = call(script, *more)
        assert done.code == 0, done.err
    run = tmp_path / "outputs" / "run"
    texts = [f"{BAD[i]} {i} {GOOD[i]} {GOOD[i - 1]} {BAD[i]} {GOOD[i]}" for i in range(4)]  # what is read of them decides
    texts += make_rows().review[:4].tolist()
    if kind == "pairs":
        rows = pd.read_csv(pairs / "pairs.csv")[:8].assign(hypothesis=texts)
        rows.to_csv("rows.csv", index=False)
        assert call("predict.py", "--file", "rows.csv", "--out", "out.jsonl").code == 0
        expected = [
            list(one) for one in pd.read_json("out.jsonl", lines=True)[["prediction", "probability"]].itertuples(index=False)
        ]
        then = f"[label(*two) for two in {rows[['premise', 'hypothesis']].to_numpy().tolist()!r}]"
    else:
        if kind == "masked-lm":  # short: what hides a token must be read
            texts = make_rows().review[:8].tolist()
            texts = [text.replace("film", "[MASK]").replace("plot", "[MASK]") for text in texts if "film" in text or "plot" in text]
        if kind == "entities":  # as far as a plain model can tell: short, and clear
            texts = [f"the {i} film with {i + 7} a" for i in range(8)]
        if kind == "translation":
            texts = make_pairs(8).low.tolist()
        if kind == "causal-lm":
            texts = ["a fine", "we hated every", "poor cast", "moving"]
        said = [json.loads(line) for line in call("predict.py", "--json", *texts).out.splitlines()]
        of_kind = {
            "one label": (lambda one: [one["label"], one["probability"]], "label(text)"),
            "several labels": (lambda one: one["labels"], "labels(text)"),
            "entities": (lambda one: [entity["text"] for entity in one["entities"]], "[word for word, tag in tags(text.split()) if tag != 'O']"),
            "causal-lm": (lambda one: one["text"] + one["continuation"], "(torch.manual_seed(0), go_on(text))[1]"),
            "translation": (lambda one: one["translation"], "translate(text)"),
            "masked-lm": (lambda one: [[[guess["word"], guess["probability"]] for guess in of] for of in one["words"]], "guess(text)"),
        }[kind]  # fmt: skip
        expected, then = [of_kind[0](one) for one in said], f"[{of_kind[1]} for text in {texts!r}]"
    if kind in ("one label", "pairs"):
        assert np.ptp([probability for _, probability in expected]) > 0.01, expected
    merged = run / "export" / "merged"
    if changed.get("truncation") == "tail":
        assert "It reads the last 16 tokens" in ModelCard.load(merged / "README.md").text
    cards = [(run / "adapter", {"ADAPTER": run / "adapter", model.name: model}), (merged, {"MODEL": merged})]
    for found in run_elsewhere(cards, then, tmp_path):
        assert len(found) == len(expected) > 3
        for one, other in zip(found, expected, strict=True):
            assert same(one, other), (one, other)


def same(a, b) -> bool:
    if isinstance(a, float):
        return abs(a - b) < 1e-4
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


def test_real_reviews_get_the_same_labels_and_probabilities_elsewhere(call, tmp_path):
    """50 reviews of the stand-in data, from a line to far beyond what the model can read; also through a plain pipeline."""
    settings = dict(train_samples=320, max_length=64, batch_size=16, precision="float32", run_name="run")
    flags = [str(part) for knob, value in settings.items() for part in (f"--{knob}", value)]
    for script, *more in (("fine_tune.py", "--preset", "smoke", *flags), ("evaluate.py",), ("export.py", "--formats", "merged")):
        done = call(script, *more)
        assert done.code == 0, done.err
    run = run_folder.open_run(tmp_path / "outputs" / "run")
    reviews = sorted(data.load_data(run.config).test.columns()["text"], key=len)
    reviews = [reviews[i * (len(reviews) - 1) // 49] for i in range(50)]
    assert len(reviews[0].split()) < 60 and len(reviews[-1].split()) > 600
    (tmp_path / "reviews.json").write_text(json.dumps([{"text": review} for review in reviews]))
    assert call("predict.py", "--file", "reviews.json", "--out", "out.jsonl").code == 0
    answers = pd.read_json("out.jsonl", lines=True)
    expected = [[one.prediction, one.probability] for one in answers.itertuples()]
    merged = run.folder / "export" / "merged"
    base = sources.find_model("distilbert-base-uncased")
    then = "[label(review['text']) for review in json.load(open('reviews.json'))]"
    cards = [(run.folder / "adapter", {"ADAPTER": run.folder / "adapter", base.name: base.path}), (merged, {"MODEL": merged})]
    for found in run_elsewhere(cards, then, tmp_path):
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    about, cut = (json.loads((merged / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert about["id2label"] == {"0": "neg", "1": "pos"} and about["problem_type"] == "single_label_classification"
    assert cut["model_max_length"] == 64
    card = ModelCard.load(merged / "README.md").text
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0].replace("MODEL", str(merged))
    plain: dict = {}
    exec(code, plain)
    tokenizer = plain["model"].tokenizer
    for review, (label, probability) in zip(reviews, expected, strict=True):
        (found,) = plain["model"](review.replace("<br />", " "))
        if len(tokenizer(review.replace("<br />", " "))["input_ids"]) <= 64:  # the same tokens are read
            assert found["label"] == label and abs(found["score"] - probability) < 1e-4
    assert "first 64 tokens" in card and "its first quarter and its end" in card
