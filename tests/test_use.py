"""What a finished run is good for: its report, and labels for new texts."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BAD, GOOD, ROOT, make_rows
from hub import hub_that_takes_uploads
from huggingface_hub import ModelCard

from finetuning.results import run_folder
from finetuning.use import explaining as explanation
from finetuning.use import predicting as labelling

WORDS = [set(" ".join(texts).replace(",", "").split()) for texts in (GOOD, BAD)]
ONLY = [sorted(WORDS[0] - WORDS[1]), sorted(WORDS[1] - WORDS[0])]
COMMON = sorted(WORDS[0] & WORDS[1])


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    """The folder for a run on texts whose label hangs on two words of six; every tenth label is wrong, every text has markup."""
    folder = tmp_path_factory.mktemp("use")
    generator = np.random.default_rng(0)
    texts = [generator.permutation([*generator.choice(ONLY[i % 2], 2), *generator.choice(COMMON, 4)]) for i in range(400)]
    labels = [("good", "bad")[(i + (i % 20 in (3, 6))) % 2] for i in range(400)]
    rows = pd.DataFrame({"review": [" ".join(words) + " <script>alert('x')</script>" for words in texts], "sentiment": labels})
    rows.drop_duplicates("review").to_csv(folder / "rows.csv", index=False)
    return folder


@pytest.fixture
def flags(trained, tiny_flags):
    """A tiny random encoder learns these labels only as a whole."""
    paths = ["--dataset_name", trained / "rows.csv", "--output_dir", trained / "outputs"]
    return [*tiny_flags, *paths, "--learning_rate", 0.003, "--method", "full"]


@pytest.fixture
def run(trained, flags, call):
    folder = trained / "outputs" / "run"
    if not folder.exists():
        assert call("fine_tune.py", *flags).code == 0
        evaluated = call("evaluate.py", folder)
        assert evaluated.code == 0, evaluated.err
        assert "report.html" in evaluated.out
        assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.8
    return run_folder.open_run(folder)


def test_errors_are_the_wrong_rows_most_confident_first(run):
    errors = pd.read_csv(run.folder / "errors.csv")
    predictions = pd.read_parquet(run.folder / "predictions.parquet").set_index("row")
    wrong = predictions[predictions.label != predictions.prediction]
    assert len(errors) > 0 and set(errors.row) == set(wrong.index)
    assert errors.probability.is_monotonic_decreasing
    for row in errors.itertuples():
        assert (row.actual, row.predicted, row.tokens) == tuple(wrong.loc[row.row, ["label", "prediction", "tokens"]])
    assert errors.text.str.endswith("</script>").any()


def test_the_page_is_one_file_that_shows_texts_and_runs_none(run):
    page = (run.folder / "report.html").read_text()
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert page.count("data:image/png;base64,") == 6 and "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace(metrics["run"]["command"], ""), "nothing is fetched"
    assert f"{100 * metrics['accuracy']:.2f} %" in page and "held out from train" in page and metrics["run"]["command"] in page
    assert {file.stem for file in run.folder.glob("*.png")} == {
        "confusion_matrix", "training", "roc", "precision_recall", "reliability", "by_length",
    }  # fmt: skip


def test_the_model_card_has_the_hubs_header_and_says_what_was_measured(run):
    card = ModelCard.load(run.folder / "adapter" / "README.md")
    metrics = json.loads((run.folder / "metrics.json").read_text())
    header = card.data.to_dict()
    assert [header[name] for name in ("base_model", "library_name", "pipeline_tag")] == [
        "tiny-distilbert",
        "peft",
        "text-classification",
    ]
    accuracy = next(result for result in card.data.eval_results if result.metric_type == "accuracy")
    assert accuracy.metric_value == metrics["accuracy"] and "held out from train" in accuracy.dataset_name
    assert "held out from train" in card.text and str(run.folder) not in card.content


def test_nothing_is_uploaded_without_a_hub(run, call):
    refused = call("evaluate.py", run.folder, "--push_to_hub", "me/reviews")
    assert refused.code == 2 and "does not answer" in refused.err
    refused = call("export.py", run.folder, "--formats", "onnx", "--push_to_hub", "me/reviews")
    assert refused.code == 2 and "add merged" in refused.err and not (run.folder / "export").exists()


def test_adapter_and_exports_are_uploaded_as_the_hub_has_them(run, tmp_path):
    """Through the Hub's own client, to a server on loopback that takes uploads."""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_TOKEN": "hf_no",
        "HF_HOME": tmp_path,
    }
    with hub_that_takes_uploads() as (address, created, taken):
        for script, *flags in (("evaluate.py",), ("export.py", "--formats", "merged", "--private")):
            command = [sys.executable, ROOT / script, run.folder, *flags, "--push_to_hub", f"me/{script[:-3]}"]
            done = subprocess.run(command, env=env | {"HF_ENDPOINT": address}, capture_output=True, text=True)
            assert done.returncode == 0 and f"pushed to {address}/me/{script[:-3]}" in done.stdout, done.stderr
    assert [(one["name"], one.get("visibility")) for one in created] == [("evaluate", None), ("export", "private")]
    for name, folder in (("me/evaluate", run.folder / "adapter"), ("me/export", run.folder / "export" / "merged")):
        assert taken[name] == {file.name: file.read_bytes() for file in folder.iterdir()}
        assert "README.md" in taken[name]


def test_two_runs_are_compared_row_by_row(run, trained, call, flags):
    assert call("fine_tune.py", *flags, "--run_name", "other", "--num_train_epochs", 1, "--learning_rate", 1e-4).code == 0
    folder = trained / "outputs" / "other"
    early = call("evaluate.py", run.folder, folder)
    assert early.code == 2 and f"python evaluate.py {folder}" in early.err
    assert call("evaluate.py", folder).code == 0
    a, b = (pd.read_parquet(f / "predictions.parquet") for f in (run.folder, folder))
    only = [(x.prediction == x.label) & (y.prediction != y.label) for x, y in ((a, b), (b, a))]
    out = call("evaluate.py", run.folder, folder).out
    assert f"alone right in {only[0].sum()} of {len(a)} rows" in out and f"alone right in {only[1].sum()} of {len(a)} rows" in out
    difference = 100 * ((a.prediction == a.label).mean() - (b.prediction == b.label).mean())
    assert f"difference {difference:+.2f} points" in out and "McNemar p = " in out
    assert f"they differ in {(a.prediction != b.prediction).sum()} rows" in out
    differences = pd.read_csv(run.folder / "against-other.csv")
    assert differences.row.tolist() == a.row[a.prediction != b.prediction].tolist()
    texts = pd.read_csv(trained / "rows.csv").review
    assert differences.text.tolist() == texts[differences.row].tolist()


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_files_are_labelled_in_their_order_chunk_by_chunk(ending, run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "CHUNK", 8)
    rows = make_rows(30).assign(other=range(30)).sample(frac=1, random_state=0)
    {
        "csv": lambda: rows.to_csv("in.csv", index=False),
        "tsv": lambda: rows.to_csv("in.tsv", index=False, sep="\t"),
        "jsonl": lambda: rows.to_json("in.jsonl", orient="records", lines=True),
        "parquet": lambda: rows.to_parquet("in.parquet", index=False),
        "txt": lambda: (tmp_path / "in.txt").write_text("\n".join(rows.review) + "\n"),
    }[ending]()
    done = call("predict.py", "--run", run.folder, "--file", f"in.{ending}", "--out", "out.parquet")
    assert done.code == 0, done.err
    assert {file.name for file in tmp_path.iterdir()} == {f"in.{ending}", "out.parquet"}, "nothing is left behind"
    labelled = pd.read_parquet("out.parquet")
    assert labelled["text" if ending == "txt" else "review"].tolist() == rows.review.tolist()
    if ending != "txt":
        assert labelled.other.tolist() == rows.other.tolist()
    alone = [json.loads(line) for line in call("predict.py", "--run", run.folder, "--json", *rows.review).out.splitlines()]
    assert labelled.prediction.tolist() == [one["label"] for one in alone]
    assert labelled.probability.tolist() == pytest.approx([one["probability"] for one in alone], abs=0.02)
    if ending == "csv":
        for out in ("out.csv", "out.jsonl"):
            assert call("predict.py", "--run", run.folder, "--file", "in.csv", "--out", out).code == 0
        assert pd.read_csv("out.csv").prediction.tolist() == labelled.prediction.tolist()
        assert pd.read_json("out.jsonl", lines=True).prediction.tolist() == labelled.prediction.tolist()


def test_what_is_wrong_with_a_file_is_said_and_nothing_is_written(run, call, tmp_path):
    make_rows(10).to_csv("in.csv", index=False)
    make_rows(10).assign(review=lambda rows: rows.review.where(rows.index != 6, " ")).to_csv("gap.csv", index=False)
    make_rows(10).assign(n=range(1, 11)).to_csv("numbers.csv", index=False)
    (tmp_path / "there.csv").write_text("")
    for arguments, words in (
        (["--file", "in.csv", "--out", "there.csv"], "take another name"),
        (["--file", "in.csv", "--out", "out.xlsx"], ".parquet"),
        (["--file", "in.csv", "--out", "nowhere/out.csv"], "no folder nowhere"),
        (["--file", "in.csv", "--text_column", "words", "--out", "out.csv"], "review, sentiment"),
        (["--file", "gap.csv", "--out", "out.csv"], "text 7 is empty"),
        (["a text", " "], "text 2 is empty"),
        (["--file", "numbers.csv", "--text_column", "n"], "text 1 is empty"),
        (["--out", "out.csv", "a text"], "--out takes the labels of a --file"),
    ):
        result = call("predict.py", "--run", run.folder, *arguments)
        assert result.code == 2 and words in result.err, (arguments, result.err)
    assert {file.name for file in tmp_path.iterdir()} == {"in.csv", "gap.csv", "numbers.csv", "there.csv"}


def test_explained_words_are_those_that_decide(run, call, monkeypatch):
    """On a network whose weights are set so that words vote: a constant and a vote along one direction make an embedding,
    attention takes the mean over the text, the head reads the direction. A trained one may look at anything."""
    model, tokenizer, source = run_folder.load_model(run)
    constant, direction = torch.tensor([1.0, -1, 1, -1]).repeat(8), torch.tensor([1.0, 1, -1, -1]).repeat(8)
    votes = {COMMON[0]: 0, ONLY[0][0]: 2, COMMON[1]: 0, ONLY[0][1]: 1, COMMON[2]: 0, ONLY[1][0]: -1.5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if name.endswith(("v_lin.weight", "out_lin.weight", "v_lin.base_layer.weight", "out_lin.base_layer.weight")):
                parameter.copy_(torch.eye(32))
            elif name.endswith("orm.weight"):
                parameter.fill_(1)
            elif "word_embeddings" in name:
                parameter.copy_(constant)
                for word, vote in votes.items():
                    parameter[tokenizer.convert_tokens_to_ids(word)] += 0.25 * vote * direction
            elif "pre_classifier" in name:  # one unit, where its ReLU does not bend
                parameter[0] = direction if name.endswith("weight") else 100
            elif "classifier" in name:  # of "bad" and "good"
                parameter.copy_(torch.eye(32)[[1, 0]] if name.endswith("weight") else torch.tensor([100.0, 0]))
    monkeypatch.setattr(labelling, "load_model", lambda _: (model, tokenizer, source))
    for sign, label in ((1, "good"), (-1, "bad")):
        direction *= sign  # in the head's weights alone: the same words now speak for the other label
        for name, parameter in model.named_parameters():
            if "pre_classifier" in name and name.endswith("weight"):
                parameter.data[0] = direction
        (line,) = call("predict.py", "--run", run.folder, "--json", "--explain", " ".join(votes)).out.splitlines()
        said = json.loads(line)
        assert said["label"] == label and [word for word, _ in said["words"]] == list(votes)
        found = np.array([contribution for _, contribution in said["words"]])
        np.testing.assert_allclose(found / found[1], np.array(list(votes.values())) / 2, atol=0.05)
        assert found[1] > 0


def test_contributions_sum_to_what_the_text_changes(run, monkeypatch):
    monkeypatch.setattr(explanation, "STEPS", 512)
    labeller, changes = labelling.Labeller(run), []
    for words in ONLY:
        text = " ".join(words[:3])
        ids = torch.tensor([labeller.tokenizer(text)["input_ids"]])
        nothing = ids.clone()
        nothing[0, 1:-1] = labeller.tokenizer.pad_token_id
        with torch.no_grad():
            there, start = (labeller.model(input_ids=x).logits[0] for x in (ids, nothing))
        label = int(there.argmax())
        changes.append(float((there[label] - there[1 - label]) - (start[label] - start[1 - label])))
        contributions = [contribution for _, contribution in labeller.explain(text)]
        assert sum(contributions) == pytest.approx(changes[-1], rel=0.05, abs=0.05)
    assert max(changes) > 0.5, "two labels, so one of them at least is not that of no text"
