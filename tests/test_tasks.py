"""Each architecture and each task goes through all the scripts."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BAD, GOOD, as_flags, make_model, make_pairs, make_rows
from forked import STEP, Kill, flags_of, outcome
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from config import PRESETS, Config
from finetuning import tasks
from finetuning.cli import parse_config
from finetuning.data.sources import find_model
from finetuning.data.splits import load_data
from finetuning.model.base import build_base, load_tokenizer
from finetuning.results import run_folder
from finetuning.tasks.regression import Regression

BRIEFLY = ["--learning_rate", 0.001, "--num_train_epochs", 2]  # the tiny network can still tell texts apart


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted_by_the_command_line(name):
    config, _ = parse_config(["--preset", name])
    assert replace(Config(), **PRESETS[name]) == config
    tasks.pick(config)


def test_output_dir_may_begin_with_the_home_folder():
    config, _ = parse_config(["--output_dir=~/runs"])
    assert config.output_dir == str(Path.home() / "runs")


# --- architectures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen3", "modernbert", "deberta-v2", "longformer", "bart", "t5"])
def test_an_architecture_goes_through_all_the_scripts(model_type, call, tiny_flags, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    trained = call("fine_tune.py", *tiny_flags, "--model_name", folder, *BRIEFLY)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    adapter = load_file(tmp_path / "outputs" / "run" / "adapter" / "adapter_model.safetensors")
    untrained = {name for name, tensor in adapter.items() if "lora_B" in name and not tensor.any()}
    # Longformer's head reads only the first token, which has weights of its own in the attention.
    expected = [f"layer.1.attention.self.{part}.lora_B" for part in ("key", "query", "value") if model_type == "longformer"]
    assert [re.search(r"layer\.\d.*lora_B", name)[0] for name in sorted(untrained)] == expected, (
        "all other layers with LoRA are trained"
    )
    predictions = pd.read_parquet(tmp_path / "outputs" / "run" / "predictions.parquet")
    texts = make_rows().review[predictions.row[:6]].tolist()
    answers = [json.loads(line) for line in call("predict.py", "--json", *texts).out.splitlines()]
    assert [answer["probability"] for answer in answers] == pytest.approx(predictions.probability[:6].tolist(), abs=0.02)
    explained = call("predict.py", "--json", "--explain", *texts)
    if model_type in ("longformer", "bart", "t5"):
        assert explained.code == 2 and f"--explain is not for {model_type}" in explained.err
    else:
        first_words = [[word for word, _ in json.loads(line)["words"]][:3] for line in explained.out.splitlines()]
        assert first_words == [re.findall(r"\w+|,", text)[:3] for text in texts]
    exported = call("export.py", "--formats", "merged")
    assert exported.code == 0, exported.err


def test_a_decoder_pads_on_the_right_with_its_end_of_text_token(tmp_path):
    file = make_model(tmp_path / "gpt2", "gpt2") / "config.json"
    source, task = find_model(str(file.parent)), tasks.pick(Config())
    tokenizer = load_tokenizer(task, source, Config())
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == "right"
    for named in (None, 0):  # as in older copies of Llama, whose tokenizers have no padding token
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": named}))
        model = build_base(task, source, ["a", "b"], Config(max_length=32))
        assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_end_token_in_a_text_is_text(tmp_path):
    """BART and T5 find a text's last token by it."""
    source, task = find_model(str(make_model(tmp_path / "bart", "bart"))), tasks.pick(Config())
    ids = task.tokenize({"text": ["a dull [SEP] film"]}, load_tokenizer(task, source, Config()), Config())["input_ids"][0]
    assert ids.count(4) == 1


def test_a_model_without_a_class_for_the_task_is_refused(call, tiny_flags, tmp_path):
    folder = make_model(tmp_path / "other")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    transformers.ViTModel(config).save_pretrained(folder)
    result = call("fine_tune.py", *tiny_flags, "--model_name", folder)
    assert result.code == 2 and "no text-classification model of this type" in result.err and "vit" in result.err


# --- a data set for each task --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a folder with pairs of texts; the label tells whether both texts are good or both bad."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(400):
        sentiments = i % 2, (i // 2) % 2
        premise, hypothesis = ((GOOD, BAD)[sentiment][generator.integers(4)] for sentiment in sentiments)
        label = ["differ", "agree"][sentiments[0] == sentiments[1]]
        rows.append({"premise": f"{premise} {i % 60}", "hypothesis": f"{hypothesis} {i // 60}", "label": label})
    folder = tmp_path_factory.mktemp("pairs")
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder


TELLING = {"good": ["warm", "clever", "loved", "funny"], "bad": ["dull", "poor", "hated", "boring"]}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Return a folder of texts with the labels good, bad, both or none, as lists, as one text, and as columns of 0 and 1."""
    generator, rows = np.random.default_rng(0), []
    for i in range(400):
        labels = [name for name, given in (("good", i % 2), ("bad", i // 2 % 2)) if given]
        words = [word for name in labels for word in generator.choice(TELLING[name], 2)]
        rows.append({"text": f"{' '.join(words)} a film {i % 60} {i // 60}", "labels": labels, "other": i})
    rows = pd.DataFrame(rows)
    folder = tmp_path_factory.mktemp("tagged")
    rows.to_parquet(folder / "lists.parquet")
    rows.assign(labels=rows.labels.map("; ".join)).to_csv(folder / "text.csv", index=False)
    for name in ("good", "bad"):
        rows[name] = rows.labels.map(lambda labels, name=name: int(name in labels))
    rows.drop(columns="labels").to_csv(folder / "columns.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Return a file of texts with four good or bad words each, and a rating from 0 to 5: 1.25 for each good word."""
    generator, rows = np.random.default_rng(0), []
    for i in range(400):
        good = i % 5
        words = [*generator.choice(TELLING["good"], good), *generator.choice(TELLING["bad"], 4 - good)]
        rows.append({"text": f"{' '.join(generator.permutation(words))} a film {i % 60} {i // 60}", "score": 1.25 * good})
    file = tmp_path_factory.mktemp("ratings") / "ratings.csv"
    pd.DataFrame(rows).to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Return a file of words with their tags; each number is an entity."""
    generator, lines = np.random.default_rng(0), []
    for i in range(120):
        words = [*generator.permutation([*["a", "the", "film", "with"], *map(str, generator.integers(60, size=4))]), str(i)]
        lines += [f"{word} {'B-NUM' if word.isdigit() else 'O'}" for word in words] + [""]
    file = tmp_path_factory.mktemp("sentences") / "sentences.conll"
    file.write_text("\n".join(lines))
    return file


# --- pairs of texts ------------------------------------------------------------------------------------------------------


def test_pairs_of_texts_go_through_all_the_scripts(pairs, call, tiny_flags, tmp_path):
    folder = make_model(tmp_path / "bert", "bert")
    flags = [*tiny_flags, "--model_name", folder, "--dataset_name", pairs / "pairs.csv", "--text_column", "premise"]
    flags += ["--text_pair_column", "hypothesis", *BRIEFLY]
    trained = call("fine_tune.py", *flags, "--max_length", 12)
    assert trained.code == 0, trained.err
    truncation_note = "the longer text of a pair is cut first, at its end"
    assert f"to max_length=12 tokens ({truncation_note})" in trained.out and "head+tail" not in trained.out
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    rows = pd.read_csv(pairs / "pairs.csv")
    predicted = call("predict.py", "--file", pairs / "pairs.csv", "--out", "out.csv")
    assert predicted.code == 0, predicted.err
    answers = pd.read_csv("out.csv")
    test = pd.read_parquet(run.folder / "predictions.parquet").set_index("row")
    assert answers.probability[test.index].tolist() == pytest.approx(test.probability.tolist(), abs=0.02), "as in the evaluation"
    rows.assign(hypothesis="a dull film").to_csv("other.csv", index=False)
    assert call("predict.py", "--file", "other.csv", "--out", "other_out.csv").code == 0
    assert (pd.read_csv("other_out.csv").probability != answers.probability).mean() > 0.5, "the second text is read"
    assert call("fine_tune.py", *flags, "--max_length", 12, "--run_name", "other", "--seed", 1).code == 0
    assert call("evaluate.py", "outputs/other").code == 0
    assert "95 % interval" in call("evaluate.py", run.folder, "outputs/other").out
    card = ModelCard.load(run.folder / "adapter" / "README.md")
    assert "`agree`, `differ`" in card.text and card.data.pipeline_tag == "text-classification"
    assert truncation_note in card.text and "head+tail" not in card.text
    alone = call("predict.py", "--run", run.folder, "a text")
    assert alone.code == 2 and "reads pairs of texts: give them as rows of a --file" in alone.err
    assert call("export.py", run.folder, "--formats", "merged").code == 0
    assert call("app.py", run.folder).code == 2


# --- several labels per text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ["lists.parquet"],
        ["text.csv", "--problem_type", "multi_label_classification"],
        ["columns.csv", "--label_column", "bad,good"],
    ],
    ids=lambda flags: flags[0],
)
def test_several_labels_per_text_are_read_from_lists_texts_and_columns(flags, tagged):
    config, _ = parse_config(["--dataset_name", str(tagged / flags[0]), *flags[1:]])
    data = load_data(tasks.pick(config), config)
    assert data.label_names == ["bad", "good"] and data.config.problem_type == "multi_label_classification"
    written = pd.read_parquet(tagged / "lists.parquet")
    for split in (data.train, data.validation, data.test):
        labels = [sorted(row) for row in written.labels[split.rows]]
        assert [[data.label_names[i] for i in np.flatnonzero(row)] for row in split.labels] == labels
    counts = np.unique(data.test.labels, axis=0, return_counts=True)[1]
    assert counts.tolist() == [20, 20, 20, 20], "every set of labels keeps its fraction"


def test_several_labels_per_text_go_through_all_the_scripts(tagged, call, tiny_flags, tmp_path, pictures):
    flags = [*tiny_flags, "--dataset_name", tagged / "lists.parquet", "--method", "full", "--learning_rate", 0.001]
    for name, epochs in (("run", 12), ("other", 1)):
        trained = call("fine_tune.py", *flags, "--run_name", name, "--num_train_epochs", epochs)
        assert trained.code == 0, trained.err
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    predictions = pd.read_parquet(run / "predictions.parquet")
    correct = [set(row.label) == set(row.prediction) for row in predictions.itertuples()]
    validation = json.loads((run / "training.json").read_text())["validation"]
    assert validation["ci95"][0] <= validation["f1"] <= validation["ci95"][1], "the metric that the threshold is fitted for"
    assert metrics["accuracy"] == np.mean(correct) and metrics["loss"] < 0.6, "it learned: guessing has 0.69"
    assert [label["n"] for label in metrics["by_label"]] == [40, 40] and 0.05 <= metrics["threshold"] <= 0.95
    assert len(pd.read_csv(run / "errors.csv")) == len(correct) - sum(correct)
    texts = pd.read_parquet(tagged / "lists.parquet").text[predictions.row[:8]]
    answers = [json.loads(line) for line in call("predict.py", "--run", run, "--json", *texts).out.splitlines()]
    assert [set(answer["labels"]) for answer in answers] == [set(labels) for labels in predictions.prediction[:8]]
    assert call("predict.py", "--run", run, "--file", tagged / "columns.csv", "--out", "out.jsonl").code == 0
    answers = pd.read_json("out.jsonl", lines=True).prediction
    same = [set(a) == set(b) for a, b in zip(answers[predictions.row], predictions.prediction, strict=True)]
    assert np.mean(same) > 0.95
    assert call("predict.py", "--run", run, "--file", tagged / "columns.csv", "--out", "out.csv").code == 0
    assert pd.read_csv("out.csv", keep_default_na=False).prediction.tolist() == ["; ".join(labels) for labels in answers]
    card = ModelCard.load(run / "adapter" / "README.md")
    assert f"F1, micro {metrics['f1']:.4f}" in card.text and "`bad`, `good`" in card.text
    compared = call("evaluate.py", run, tmp_path / "outputs" / "other")
    assert compared.code == 0 and "about these two models" in compared.out
    assert call("export.py", run, "--formats", "merged").code == 0
    merged = json.loads((run / "export" / "merged" / "config.json").read_text())
    assert merged["problem_type"] == "multi_label_classification", "a pipeline gives each label a probability of its own"
    assert call("predict.py", "--run", run, "--explain", "a text").code == 2


# --- a number per text ---------------------------------------------------------------------------------------------------


def test_regression_goes_through_all_the_scripts(ratings, call, tiny_flags, tmp_path, pictures):
    flags = [*tiny_flags, "--dataset_name", ratings, "--problem_type", "regression", "--label_column", "score"]
    for name, learning_rate, epochs in (("run", 0.003, 6), ("other", 1e-4, 1)):
        more = ["--method", "full", "--run_name", name, "--learning_rate", learning_rate, "--num_train_epochs", epochs]
        trained = call("fine_tune.py", *flags, *more)
        assert trained.code == 0, trained.err
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
    run, other = tmp_path / "outputs" / "run", tmp_path / "outputs" / "other"

    # The metrics are those of the predictions; the checkpoint is the one with the lowest validation RMSE.
    rows, metrics = pd.read_csv(ratings), json.loads((run / "metrics.json").read_text())
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert predictions.label.tolist() == rows.score[predictions.row].tolist() and len(predictions) == metrics["n"] == 80
    error = predictions.prediction - predictions.label
    assert metrics["rmse"] == pytest.approx(np.sqrt((error**2).mean())) and metrics["mae"] == pytest.approx(error.abs().mean())
    for method in ("pearson", "spearman"):
        assert metrics[method] == pytest.approx(predictions.prediction.corr(predictions.label, method=method), abs=1e-4)
    assert metrics["rmse"] < 0.6 * metrics["rmse_of_mean"], "it learned"
    log = [entry for entry in json.loads((run / "training.json").read_text())["log_history"] if "eval_rmse" in entry]
    assert metrics["validation"]["rmse"] == min(entry["eval_rmse"] for entry in log)
    errors = pd.read_csv(run / "errors.csv")
    assert errors.error.abs().is_monotonic_decreasing and errors.text.tolist() == rows.text[errors.row].tolist()
    assert (run / "scatter.png").is_file() and f"RMSE {metrics['rmse']:.4f}" in (run / "report.html").read_text()

    # predict.py gives new texts the numbers of the evaluation, from arguments and from a file.
    texts, expected = rows.text[predictions.row[:8]].tolist(), predictions.prediction[:8].tolist()
    lines = call("predict.py", "--run", run, "--json", *texts).out.splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == pytest.approx(expected, abs=0.05)
    first = call("predict.py", "--run", run, texts[0]).out.split()
    assert float(first[0]) == pytest.approx(expected[0], abs=0.05) and " ".join(first[1:]) == texts[0]
    assert call("predict.py", "--run", run, "--file", ratings, "--out", "out.csv").code == 0
    assert pd.read_csv("out.csv").prediction[predictions.row].tolist() == pytest.approx(predictions.prediction.tolist(), abs=0.05)
    assert call("predict.py", "--run", run, "--explain", "a text").code == 2

    # The model card, the comparison and the exports.
    card = ModelCard.load(run / "adapter" / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"mae": metrics["mae"], "pearsonr": metrics["pearson"], "spearmanr": metrics["spearman"]}
    assert f"RMSE {metrics['rmse']:.4f} (95 % interval" in card.text
    compared = call("evaluate.py", run, other)
    assert compared.code == 0, compared.err
    table = {line.split()[0]: line.split()[1:] for line in compared.out.splitlines() if line}
    worse = json.loads((other / "metrics.json").read_text())
    assert table["rmse"][:2] == [f"{metrics['rmse']:.4f}", f"{worse['rmse']:.4f}"]
    low, high = float(table["rmse"][3]), float(table["rmse"][5])
    assert low < float(table["rmse"][2]) < high < 0, "the first run has the smaller error, and the interval excludes 0"
    differing = pd.read_csv(run / "against-other.csv")
    assert differing.label.tolist() == rows.score[differing.row].tolist() and {"prediction_a", "error_b"} < {*differing}
    pytest.importorskip("onnxruntime")
    exported = call("export.py", run, "--formats", "merged", "onnx")
    assert exported.code == 0, exported.err
    exports = json.loads((run / "export" / "export.json").read_text())["exports"]
    agreement = {export["format"]: export.get("agrees") for export in exports}
    assert agreement == {"run": None, "merged": True, "onnx": True}
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "export" / "merged")
    with torch.no_grad():
        values = [float(merged(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
    assert values == pytest.approx(expected, abs=0.05) and merged.config.problem_type == "regression"


def test_numbers_of_any_size_are_learned_alike(ratings, call, tiny_flags, tmp_path):
    """Years, for example, or prices: the mean and the standard deviation of the labels do not matter."""
    rows, rmse = pd.read_csv(ratings), {}
    for name, factor, offset in (("small", 1, 0), ("large", 1000, 1_000_000)):
        rows.assign(score=rows.score * factor + offset).to_csv(tmp_path / f"{name}.csv", index=False)
        flags = [*tiny_flags, "--dataset_name", f"{name}.csv", "--problem_type", "regression", "--label_column", "score"]
        assert call("fine_tune.py", *flags, "--run_name", name, "--num_train_epochs", 2, "--precision", "float32").code == 0
        rmse[name] = json.loads((tmp_path / "outputs" / name / "training.json").read_text())["validation"]["rmse"]
    assert rmse["large"] == pytest.approx(1000 * rmse["small"], rel=1e-2)


def test_rows_without_a_number_are_refused_or_left_out(ratings, tmp_path, call, tiny_flags):
    rows = pd.read_csv(ratings)
    rows.loc[[0, 7], "score"] = None
    rows.to_csv(tmp_path / "gaps.csv", index=False)
    flags = [*tiny_flags, "--dataset_name", "gaps.csv", "--problem_type", "regression", "--label_column", "score"]
    refused = call("fine_tune.py", *flags)
    assert refused.code == 2 and "2 of 400 rows of split train without a label (row 0, 7)" in refused.err
    config, _ = parse_config([*map(str, flags), "--on_bad_rows", "skip"])
    data = load_data(tasks.pick(config), config)
    used = sorted([*data.train.rows, *data.validation.rows, *data.test.rows])
    assert used == [row for row in range(400) if row not in (0, 7)]
    quantiles = [np.quantile(split.labels, [0.25, 0.5, 0.75]) for split in (data.test, data.validation)]
    np.testing.assert_allclose(quantiles, [np.quantile(data.train.labels, [0.25, 0.5, 0.75])] * 2, atol=1.25)


# --- all tasks -----------------------------------------------------------------------------------------------------------
KINDS = ["pairs", "several labels", "regression", "entities", "chat", "causal-lm", "masked-lm", "translation"]
FIRST_METRICS = {
    "regression": "rmse",
    "chat": "perplexity",
    "causal-lm": "perplexity",
    "masked-lm": "perplexity",
    "translation": "bleu",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_resumes_bit_for_bit_trains_on_two_processes_and_stops_early(
    kind, data_file, pairs, tagged, ratings, sentences, model_dir, tmp_path
):
    make_pairs(80).to_csv(tmp_path / "translations.csv", index=False)
    settings = {
        "pairs": dict(dataset_name=pairs / "pairs.csv", text_column="premise", text_pair_column="hypothesis"),
        "several labels": dict(dataset_name=tagged / "lists.parquet"),
        "regression": dict(dataset_name=ratings, problem_type="regression", label_column="score"),
        "entities": dict(dataset_name=sentences, task="token-classification"),
        "chat": dict(task="causal-lm", prompt_column="low", completion_column="high", max_new_tokens=4)
        | dict(model_name=make_model(tmp_path / "llama", "llama"), dataset_name=tmp_path / "translations.csv"),
        "causal-lm": dict(task="causal-lm", model_name=make_model(tmp_path / "gpt2", "gpt2")),
        "masked-lm": dict(task="masked-lm"),
        "translation": dict(task="translation", source_column="low", target_column="high", num_beams=2)
        | dict(model_name=make_model(tmp_path / "marian", "marian"), dataset_name=tmp_path / "translations.csv"),
    }[kind] | dict(train_samples=56, batch_size=8, metric_for_best_model="loss")
    outcomes = []
    for name, processes, kill in (("uninterrupted", 1, None), ("killed", 1, Kill(STEP, 11)), ("two", 2, None)):
        command = ["fine_tune.py", *flags_of(settings, model_dir, data_file, name)]
        results = forked.run(tmp_path, *command, processes=processes, kill=kill)
        if kill:
            assert results[0][0] == -9, results
            results = forked.run(tmp_path, "fine_tune.py", "--resume", f"outputs/{name}")
        assert {code for code, _ in results} == {0}, results
        outcomes.append(outcome(tmp_path / "outputs" / name))
    uninterrupted, killed, two = outcomes
    for name, tensor in uninterrupted["adapter"].items():
        assert torch.equal(tensor, killed["adapter"][name])
        torch.testing.assert_close(two["adapter"][name], tensor, rtol=1e-3, atol=1e-5)
    assert killed["log"] == uninterrupted["log"] and killed["validation"] == uninterrupted["validation"]

    settings |= dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-12)
    settings |= dict(metric_for_best_model=FIRST_METRICS.get(kind, "accuracy"))
    ((code, output),) = forked.run(tmp_path, "fine_tune.py", *flags_of(settings, model_dir, data_file, "stopped"))
    assert code == 0, output
    log = json.loads((tmp_path / "outputs" / "stopped" / "training.json").read_text())["log_history"]
    assert log[-1]["step"] == 15, "the metric does not improve at steps 10 and 15 of 63"


# The first ten rows of the file are not used: they have no text, no label, or a translation of a very different length.
LEFT_OUT = {
    "single label": dict(text="a fine film", label=None),
    "regression": dict(text="a fine film", label=None),
    "causal-lm": dict(text="  ", label="good"),
    "masked-lm": dict(text=None, label="good"),
    "translation": dict(source="1", target="2 " * 40),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_row_numbers_are_those_of_the_file_even_if_rows_are_left_out(kind, call, tiny_flags, tmp_path):
    reviews, translations = make_rows(), make_pairs(80)
    rows = {
        "translation": pd.DataFrame({"source": translations.low, "target": translations.high}),
        "regression": pd.DataFrame({"text": reviews.review, "label": np.arange(80) / 7}),
    }.get(kind, reviews.rename(columns={"review": "text", "sentiment": "label"}))
    rows = pd.concat([pd.DataFrame([LEFT_OUT[kind]] * 10), rows], ignore_index=True)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    settings = dict(dataset_name="rows.csv", num_train_epochs=1, on_bad_rows="error" if kind.endswith("lm") else "skip")
    settings |= dict(problem_type="regression") if kind == "regression" else {} if kind == "single label" else dict(task=kind)
    if model_type := {"causal-lm": "gpt2", "translation": "marian"}.get(kind):
        settings |= dict(model_name=make_model(tmp_path / model_type, model_type))
    trained = call("fine_tune.py", *tiny_flags, *as_flags(settings))
    assert trained.code == 0 and "left out" in trained.out, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err

    predictions = pd.read_parquet("outputs/run/predictions.parquet")
    assert predictions.row.min() >= 10 and predictions.row.max() > 80, "numbers go from 10 to 89"
    for column, column_of_file in (("label", "label"), ("reference", "target")):
        if column in predictions:
            assert predictions[column].tolist() == pytest.approx(rows[column_of_file][predictions.row].tolist())
    errors = pd.read_csv("outputs/run/errors.csv")
    column = "source" if kind == "translation" else "text"
    assert errors[column].tolist() == rows[column][errors.row].tolist()
    assert kind == "single label" or len(errors) == len(predictions) == 16


@pytest.mark.parametrize(
    "mean, std, numbers, shown", [(3e-7, 1e-8, [3.1e-7, 2.9e-7], "3.1e-07"), (249_998, 1, [249_999, 249_997], "249999")]
)
def test_predicted_numbers_of_any_size_keep_their_digits(mean, std, numbers, shown, monkeypatch):
    task = Regression()
    monkeypatch.setattr(task, "logits_of", lambda predictor, batch: np.array([[1], [-1]], dtype=np.float32))
    predictor = SimpleNamespace(calibration={"label_mean": mean, "label_std": std})
    answers = task.answers(predictor, {"text": ["a", "b"]})["prediction"]
    assert answers == pytest.approx(numbers, rel=1e-6)
    assert task.as_line({"text": "a"}, {"prediction": answers[0]}, []).split() == [shown, "a"]
