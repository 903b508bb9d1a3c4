"""Use of a finished run: report, model card, upload, comparison with another run, predictions for new texts, explanations."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BAD, GOOD, make_rows
from datasets import Dataset
from hub import hub_for_uploads, use_hub
from huggingface_hub import ModelCard
from scipy.stats import binomtest

from config import Config
from finetuning import processes, tasks
from finetuning.errors import UserError
from finetuning.results import cards, run_folder
from finetuning.use import explaining, predicting

pytestmark = pytest.mark.predictions
WORDS = [set(" ".join(texts).replace(",", "").split()) for texts in (GOOD, BAD)]
ONLY = [sorted(WORDS[0] - WORDS[1]), sorted(WORDS[1] - WORDS[0])]  # words of good texts alone, of bad texts alone
COMMON = sorted(WORDS[0] & WORDS[1])


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    """Return a folder with a data set: two of six words decide a text's label, a tenth of the labels is wrong, all texts have markup.

    The run of this module goes there too.
    """
    folder = tmp_path_factory.mktemp("use")
    generator = np.random.default_rng(0)
    texts = [generator.permutation([*generator.choice(ONLY[i % 2], 2), *generator.choice(COMMON, 4)]) for i in range(400)]
    labels = [("good", "bad")[(i + (i % 20 in (3, 6))) % 2] for i in range(400)]
    rows = pd.DataFrame({"review": [" ".join(words) + " <script>alert('x')</script>" for words in texts], "sentiment": labels})
    rows.drop_duplicates("review").to_csv(folder / "rows.csv", index=False)
    return folder


@pytest.fixture
def flags(trained, tiny_flags):
    """Return the flags of a run with full fine-tuning: with fewer weights a tiny random encoder does not learn these labels."""
    paths = ["--dataset_name", trained / "rows.csv", "--output_dir", trained / "outputs"]
    return [*tiny_flags, *paths, "--learning_rate", 0.003, "--method", "full"]


@pytest.fixture
def run(trained, flags, call, pictures):
    """Return the evaluated run of this module; the first test that needs it trains it."""
    folder = trained / "outputs" / "run"
    if not folder.exists():
        assert call("fine_tune.py", *flags).code == 0
        evaluated = call("evaluate.py", folder)
        assert evaluated.code == 0, evaluated.err
        assert "report.html" in evaluated.out
        assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.8
    return run_folder.open_run(folder, tasks.pick)


def test_errors_are_the_wrong_rows_most_confident_first(run):
    errors = pd.read_csv(run.folder / "errors.csv")
    predictions = pd.read_parquet(run.folder / "predictions.parquet").set_index("row")
    wrong = predictions[predictions.label != predictions.prediction]
    assert len(errors) > 0 and set(errors.row) == set(wrong.index)
    assert errors.probability.is_monotonic_decreasing
    for row in errors.itertuples():
        assert (row.actual, row.predicted, row.tokens) == tuple(wrong.loc[row.row, ["label", "prediction", "tokens"]])
    assert errors.text.str.endswith("</script>").any()


def test_the_report_page_is_one_file_that_shows_markup_as_text(run):
    page = (run.folder / "report.html").read_text()
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert page.count("data:image/png;base64,") == 6 and "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace(metrics["run"]["command"], ""), "nothing is fetched"
    assert f"Accuracy {metrics['accuracy']:.2%}" in page and "held out from train" in page and metrics["run"]["command"] in page
    assert {file.stem for file in run.folder.glob("*.png")} == {
        "confusion_matrix", "training", "roc", "precision_recall", "reliability", "by_length",
    }  # fmt: skip


def test_the_model_card_has_the_header_of_the_hub_and_the_metrics(run):
    card = ModelCard.load(run.folder / "adapter" / "README.md")
    metrics = json.loads((run.folder / "metrics.json").read_text())
    header = card.data.to_dict()
    assert (header["library_name"], header["pipeline_tag"]) == ("peft", "text-classification")
    assert "base_model" not in header and f"local folder `{run.config.model_name}`" in card.text, "the base model is not on the Hub"
    accuracy = next(result for result in card.data.eval_results if result.metric_type == "accuracy")
    assert accuracy.metric_value == metrics["accuracy"] and "held out from train" in accuracy.dataset_name
    assert accuracy.dataset_split == "train"
    assert "held out from train" in card.text and str(run.folder) not in card.content


def test_nothing_is_uploaded_without_a_hub(run, call):
    refused = call("evaluate.py", run.folder, "--push_to_hub", "me/reviews")
    assert refused.code == 2 and "does not answer" in refused.err
    refused = call("export.py", run.folder, "--formats", "onnx", "--push_to_hub", "me/reviews")
    assert refused.code == 2 and "add merged" in refused.err and not (run.folder / "export").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Let this process use a local server for uploads; return what `hub_for_uploads` yields."""
    monkeypatch.setenv("HF_TOKEN", "hf_no")
    with hub_for_uploads() as (address, created, uploaded):
        use_hub(address, tmp_path, timeout=10, replace=monkeypatch.setattr)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        monkeypatch.setattr(cards, "hub_answers", lambda: True)
        yield address, created, uploaded


def test_all_processes_ask_together_whether_the_hub_answers(monkeypatch):
    """If the first one asked alone, the others would take its question for the address that they wait for."""
    asked = []
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(processes, "broadcast_object_list", lambda outcome: outcome.__setitem__(0, "address"))
    monkeypatch.setattr(cards, "hub_answers", lambda: asked.append(True) or True)
    assert cards.push_to_hub({}, "me/name", private=False, message="") == "address" and asked == [True]


def test_nothing_private_is_uploaded_to_a_public_repository(hub, tmp_path):
    (tmp_path / "file.txt").write_text("secret")
    _, _, uploaded = hub
    cards.push_to_hub({"a.txt": tmp_path / "file.txt"}, "me/name", private=False, message="public")
    with pytest.raises(UserError, match="is public already, so nothing was uploaded"):
        cards.push_to_hub({"b.txt": tmp_path / "file.txt"}, "me/name", private=True, message="private")
    assert [*uploaded["me/name"]] == ["a.txt"]


def test_adapter_and_exports_are_uploaded_completely(run, call, hub, tmp_path):
    """Upload with the Hub's own client to a local server."""
    folder = shutil.copytree(run.folder, tmp_path / "run")
    address, created, uploaded = hub
    for script, *flags in (("evaluate.py",), ("export.py", "--formats", "merged", "--private")):
        done = call(script, folder, *flags, "--push_to_hub", f"me/{script[:-3]}")
        assert done.code == 0 and f"pushed to {address}/me/{script[:-3]}" in done.out, done.err
    visibility = {repository["name"]: repository.get("visibility") for repository in created}
    assert visibility == {"evaluate": None, "export": "private"}
    for name, part in (("me/evaluate", folder / "adapter"), ("me/export", folder / "export" / "merged")):
        assert uploaded[name] == {file.name: file.read_bytes() for file in part.iterdir()}
        assert "README.md" in uploaded[name]


def test_two_runs_are_compared_row_by_row(run, trained, call, flags):
    assert call("fine_tune.py", *flags, "--run_name", "other", "--num_train_epochs", 1, "--learning_rate", 1e-4).code == 0
    folder = trained / "outputs" / "other"
    early = call("evaluate.py", run.folder, folder)
    assert early.code == 2 and f"python evaluate.py {folder}" in early.err
    assert call("evaluate.py", folder).code == 0
    a, b = (pd.read_parquet(f / "predictions.parquet") for f in (run.folder, folder))
    out = call("evaluate.py", run.folder, folder).out
    header, accuracy, f1 = (line.split() for line in out.splitlines()[:3])
    assert header[0] == "metric" and header[-1] == "p" and f1[0] == "f1" and len(f1) == len(accuracy)
    correct = [(frame.prediction == frame.label).to_numpy() for frame in (a, b)]
    difference = correct[0].mean() - correct[1].mean()
    assert accuracy[:4] == ["accuracy", f"{correct[0].mean():.2%}", f"{correct[1].mean():.2%}", f"{difference:+.2%}"]
    only = [(correct[0] & ~correct[1]).sum(), (correct[1] & ~correct[0]).sum()]
    assert float(accuracy[-1]) == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=0.05)
    low, high = (float(accuracy[i].rstrip("%")) / 100 for i in (4, 6))
    assert low < difference < high and f"on the same {len(a)} rows" in out
    differing = pd.read_csv(run.folder / "against-other.csv")
    assert differing.row.tolist() == a.row[a.prediction != b.prediction].tolist()
    texts = pd.read_csv(trained / "rows.csv").review
    assert differing.text.tolist() == texts[differing.row].tolist()
    assert differing.label.tolist() == a.label[a.prediction != b.prediction].tolist()
    assert (differing.prediction_a != differing.prediction_b).all()


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_files_are_predicted_in_their_order_some_rows_at_a_time(ending, run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "ROWS_IN_MEMORY", 8)
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
    answers = pd.read_parquet("out.parquet")
    assert answers["text" if ending == "txt" else "review"].tolist() == rows.review.tolist()
    if ending != "txt":
        assert answers.other.tolist() == (rows.other.astype(str) if ending in ("csv", "tsv") else rows.other).tolist()
    alone = [json.loads(line) for line in call("predict.py", "--run", run.folder, "--json", *rows.review).out.splitlines()]
    assert answers.prediction.tolist() == [answer["label"] for answer in alone]
    assert answers.probability.tolist() == pytest.approx([answer["probability"] for answer in alone], abs=0.02)
    if ending == "csv":
        for out in ("out.csv", "out.jsonl"):
            assert call("predict.py", "--run", run.folder, "--file", "in.csv", "--out", out).code == 0
        assert pd.read_csv("out.csv").prediction.tolist() == answers.prediction.tolist()
        assert pd.read_json("out.jsonl", lines=True).prediction.tolist() == answers.prediction.tolist()


def test_a_number_among_texts_is_predicted_as_a_text(run, call, tmp_path):
    rows = [{"review": "a fine film", "id": 1}, {"review": 1984, "id": 2}, {"review": "dull", "id": 3}]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = call("predict.py", "--run", run.folder, "--file", "in.jsonl", "--out", "out.jsonl")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{"review": row["review"], "id": row["id"]} for row in answers] == rows
    printed = call("predict.py", "--run", run.folder, "--file", "in.jsonl", "--json").out.splitlines()
    alone = json.loads(call("predict.py", "--run", run.folder, "--json", "1984").out)
    assert json.loads(printed[1]) == pytest.approx(alone, abs=0.02) and answers[1]["prediction"] == alone["label"]


def test_json_is_one_list_and_jsonl_is_lines(run, call, tmp_path):
    rows = make_rows(1100).assign(note='a "word"\nand \u00e9\u2028')  # the library writes 1,000 rows at a time
    rows.to_parquet("in.parquet")
    for out in ("out.json", "out.jsonl"):
        done = call("predict.py", "--run", run.folder, "--file", "in.parquet", "--out", out)
        assert done.code == 0, done.err
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert isinstance(content, list) and content == lines and len(lines) == 1100
    assert [*content[0]] == ["review", "sentiment", "note", "prediction", "probability"]
    assert [row["review"] for row in content] == rows.review.tolist() and {row["note"] for row in content} == {*rows.note}


def test_a_bad_file_is_refused_and_nothing_is_written(run, call, tmp_path):
    make_rows(10).to_csv("in.csv", index=False)
    make_rows(10).assign(review=lambda rows: rows.review.where(rows.index != 6, " ")).to_csv("gap.csv", index=False)
    make_rows(10).assign(n=range(10)).to_parquet("numbers.parquet", index=False)
    make_rows(10).assign(probability=1, prediction="good").to_csv("human.csv", index=False)
    (tmp_path / "existing.csv").write_text("")
    for arguments, words in (
        (["--file", "in.csv", "--out", "existing.csv"], "use another name"),
        (["--file", "in.csv", "--out", "out.xlsx"], ".parquet"),
        (["--file", "in.csv", "--out", "nowhere/out.csv"], "no folder nowhere"),
        (["--file", "in.csv", "--text_column", "words", "--out", "out.csv"], "review, sentiment"),
        (["--file", "gap.csv", "--out", "out.csv"], "text 7 is empty"),
        (["--file", "human.csv", "--out", "out.csv"], "probability, prediction: --out adds columns with these names"),
        (["a text", " "], "text 2 is empty"),
        (["--file", "numbers.parquet", "--text_column", "n"], "text 1 is 0, which is no text: set --text_column"),
        (["--file", "nowhere.txt"], "--file nowhere.txt: there is no such file"),
        (["--num_beams", "2", "--file", "in.csv"], "--num_beams is not for text-classification"),
        (["--out", "out.csv", "a text"], "--out writes the answers for the rows of a --file"),
        (["--file", "in.csv", "--out", "out.csv", "--json"], "--json is for answers that are printed"),
        (["--explain", "--engine", "openvino", "a text"], "leave --engine out"),
    ):
        result = call("predict.py", "--run", run.folder, *arguments)
        assert result.code == 2 and words in result.err, (arguments, result.err)
    assert {file.name for file in tmp_path.iterdir()} == {"in.csv", "gap.csv", "numbers.parquet", "human.csv", "existing.csv"}


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.problem_type or task.name)
def test_every_task_refuses_numbers_as_texts(task):
    columns = task.input_columns(["n"], Config(task=task.name), "n")
    with pytest.raises(
        UserError, match="text 1 .*(2.5, which is no text: set --text_column|a number, which is neither a text nor)"
    ):
        predicting.check_rows(task, Dataset.from_dict({"n": [2.5]}), columns)


def test_all_rows_are_checked_before_the_first_is_answered(run, call, monkeypatch, tmp_path):
    monkeypatch.setattr(predicting, "ROWS_IN_MEMORY", 2)
    monkeypatch.setattr(predicting, "load_engine", None)  # a call would fail
    (tmp_path / "rows.txt").write_text("a\nb\nc\n \n", encoding="utf-8")
    result = call("predict.py", "--run", run.folder, "--file", "rows.txt")
    assert (result.code, result.out) == (2, "") and "text 4 is empty" in result.err


def test_explained_words_are_those_that_decide_the_label(run, call, monkeypatch):
    """Use a network whose weights are set so that words vote, because a trained network may use anything.

    An embedding is a constant plus a vote along one direction, attention takes the mean over the text, the head reads the direction.
    """
    predictor = predicting.load_engine(run, "torch")
    model, tokenizer = predictor.model, predictor.tokenizer
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
            elif "pre_classifier" in name:  # one unit, in the linear part of its ReLU
                parameter[0] = direction if name.endswith("weight") else 100
            elif "classifier" in name:  # rows: "bad", "good"
                parameter.copy_(torch.eye(32)[[1, 0]] if name.endswith("weight") else torch.tensor([100.0, 0]))
    monkeypatch.setattr(predicting, "load_engine", lambda run, engine: predictor)
    for sign, label in ((1, "good"), (-1, "bad")):
        direction *= sign  # in the head's weights only: the same words now speak for the other label
        for name, parameter in model.named_parameters():
            if "pre_classifier" in name and name.endswith("weight"):
                parameter.data[0] = direction
        (line,) = call("predict.py", "--run", run.folder, "--json", "--explain", " ".join(votes)).out.splitlines()
        answer = json.loads(line)
        assert answer["label"] == label and [word for word, _ in answer["words"]] == list(votes)
        contributions = np.array([contribution for _, contribution in answer["words"]])
        np.testing.assert_allclose(contributions / contributions[1], np.array(list(votes.values())) / 2, atol=0.05)
        assert contributions[1] > 0


def test_contributions_sum_to_the_difference_from_a_blank_text(run, monkeypatch):
    monkeypatch.setattr(explaining, "STEPS", 512)
    answers, changes = predicting.Answers(run), []
    model, tokenizer = answers.predictor.model, answers.predictor.tokenizer
    for words in ONLY:
        text = " ".join(words[:3])
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        blank = ids.clone()
        blank[0, 1:-1] = tokenizer.pad_token_id
        with torch.no_grad():
            end, start = (model(input_ids=x).logits[0] for x in (ids, blank))
        label = int(end.argmax())
        changes.append(float((end[label] - end[1 - label]) - (start[label] - start[1 - label])))
        contributions = [contribution for _, contribution in answers.run.task.explain(answers.predictor, text)]
        assert sum(contributions) == pytest.approx(changes[-1], rel=0.05, abs=0.05)
    assert max(changes) > 0.5, "at least one of the two labels is not that of padding alone"
