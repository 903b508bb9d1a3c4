"""What tasks, architectures and kinds of labelled text have in common: each goes through all the scripts."""

import inspect
import json
import re
from dataclasses import replace

import apart
import numpy as np
import pandas as pd
import pytest
import torch
from apart import STEP, Death, flags_of, outcome
from conftest import BAD, GOOD, make_model, make_pairs, make_rows
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from config import PRESETS, Config
from finetuning import tasks
from finetuning.cli import parse_config
from finetuning.data import splits as data
from finetuning.data import tokens as tokenizing
from finetuning.data.sources import find_model
from finetuning.errors import UserError
from finetuning.model import lora as model
from finetuning.results import run_folder
from finetuning.results.metrics import wilson_interval

CONFIGS = [Config(), Config(problem_type="multi_label_classification"), Config(task="token-classification")]
CONFIGS += [Config(task=task) for task in ("causal-lm", "masked-lm", "translation")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: tasks.task_of(config).__name__)
def test_a_task_answers_what_all_of_them_answer_in_the_same_order(config):
    task = tasks.task_of(config)
    assert config.task == task.NAME
    table = re.findall(r"^.{13}(\w+(?:, \w+)*)  +(.*)$", tasks.__doc__, flags=re.MULTILINE)
    names = [name for names, about in table for name in names.split(", ") if "not every task" not in about or hasattr(task, name)]
    assert len(names) > 30 and not [name for name in names if not hasattr(task, name)]
    source = inspect.getsource(task)
    found = [re.search(rf"^(?:def )?{name}\b", source, flags=re.MULTILINE) for name in names]
    places = [match.start() for match in found if match]
    assert places == sorted(places)


BRIEFLY = ["--learning_rate", 0.001, "--num_train_epochs", 2]  # so that texts are not all alike to the tiny network


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "modernbert", "deberta-v2", "albert"])
def test_an_architecture_goes_through_all_the_scripts(model_type, call, tiny_flags, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    trained = call("fine_tune.py", *tiny_flags, "--model_name", folder, *BRIEFLY)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    adapter = load_file(tmp_path / "outputs" / "run" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name), "all of it trained"
    predictions = pd.read_parquet(tmp_path / "outputs" / "run" / "predictions.parquet")
    texts = make_rows().review[predictions.row[:6]].tolist()
    said = [json.loads(line) for line in call("predict.py", "--json", "--explain", *texts).out.splitlines()]
    assert [one["probability"] for one in said] == pytest.approx(predictions.probability[:6].tolist(), abs=0.02)
    assert [[word for word, _ in one["words"]][:3] for one in said] == [re.findall(r"\w+|,", text)[:3] for text in texts]
    exported = call("export.py", "--formats", "merged")
    assert exported.code == 0, exported.err


def test_a_decoder_pads_on_the_right_with_the_end_of_a_text_and_reads_the_last_real_token(tmp_path):
    source = find_model(str(make_model(tmp_path / "gpt2", "gpt2")))
    tokenizer = model.load_tokenizer(source, Config())
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == "right"
    assert model.build_base(source, ["a", "b"], Config(max_length=32)).config.pad_token_id == tokenizer.pad_token_id


def test_a_model_without_a_class_for_the_task_is_refused(call, tiny_flags, tmp_path):
    import transformers

    folder = make_model(tmp_path / "other")
    transformers.ViTModel(transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)).save_pretrained(
        folder
    )
    result = call("fine_tune.py", *tiny_flags, "--model_name", folder)
    assert result.code == 2 and "no text-classification for" in result.err and "vit" in result.err


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Rows whose label says whether two texts are of the same kind."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(400):
        kinds = i % 2, (i // 2) % 2
        premise, hypothesis = ((GOOD, BAD)[kind][generator.integers(4)] for kind in kinds)
        rows.append(
            {
                "premise": f"{premise} {i % 60}",
                "hypothesis": f"{hypothesis} {i // 60}",
                "label": ["differ", "agree"][kinds[0] == kinds[1]],
            }
        )
    folder = tmp_path_factory.mktemp("pairs")
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_pairs_of_texts_go_through_all_the_scripts(model_type, pairs, call, tiny_flags, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    flags = [*tiny_flags, "--model_name", folder, "--dataset_name", pairs / "pairs.csv", "--text_column", "premise"]
    flags += ["--text_pair_column", "hypothesis", *BRIEFLY]
    trained = call("fine_tune.py", *flags)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = run_folder.open_run(tmp_path / "outputs" / "run")
    labelled = call("predict.py", "--file", pairs / "pairs.csv", "--out", "out.csv")
    assert labelled.code == 0, labelled.err
    found = pd.read_csv("out.csv").set_index(pd.read_csv(pairs / "pairs.csv").index)
    test = pd.read_parquet(run.folder / "predictions.parquet").set_index("row")
    assert found.probability[test.index].tolist() == pytest.approx(test.probability.tolist(), abs=0.02), "as in the evaluation"
    pd.read_csv(pairs / "pairs.csv").assign(hypothesis="a dull film").to_csv("other.csv", index=False)
    assert call("predict.py", "--file", "other.csv", "--out", "other_out.csv").code == 0
    assert (pd.read_csv("other_out.csv").probability != found.probability.to_numpy()).mean() > 0.5, "the second text is read"
    assert call("fine_tune.py", *flags, "--run_name", "other", "--seed", 1).code == 0
    assert call("evaluate.py", "outputs/other").code == 0
    assert "McNemar" in call("evaluate.py", run.folder, "outputs/other").out
    card = ModelCard.load(run.folder / "adapter" / "README.md")
    assert "`agree`, `differ`" in card.text and card.data.pipeline_tag == "text-classification"
    alone = call("predict.py", "--run", run.folder, "a text")
    assert alone.code == 2 and "text_pair_column=hypothesis" in alone.err
    assert call("export.py", run.folder, "--formats", "merged").code == 0
    assert call("app.py", run.folder).code == 2


TELLING = {"good": ["warm", "clever", "loved", "funny"], "bad": ["dull", "poor", "hated", "boring"]}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Texts with the labels good, bad, both or none, written as lists, as one text, and as columns of 0 and 1."""
    generator, rows = np.random.default_rng(0), []
    for i in range(400):
        labels = [name for name, there in (("good", i % 2), ("bad", i // 2 % 2)) if there]
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


@pytest.mark.parametrize(
    "flags",
    [
        ["lists.parquet"],
        ["text.csv", "--problem_type", "multi_label_classification"],
        ["columns.csv", "--label_column", "bad,good"],
    ],
    ids=lambda flags: flags[0],
)
def test_several_labels_a_text_are_read_from_lists_texts_and_columns(flags, tagged):
    config, _ = parse_config(["--dataset_name", str(tagged / flags[0]), *flags[1:]])
    loaded = data.load_data(config)
    assert loaded.label_names == ["bad", "good"] and loaded.config.problem_type == "multi_label_classification"
    written = pd.read_parquet(tagged / "lists.parquet")
    for split in (loaded.train, loaded.validation, loaded.test):
        labels = [sorted(row) for row in written.labels[split.rows]]
        assert [[loaded.label_names[i] for i in np.flatnonzero(row)] for row in split.labels] == labels
    assert np.unique(loaded.test.labels, axis=0, return_counts=True)[1].tolist() == [20, 20, 20, 20], "every set keeps its share"


def test_several_labels_a_text_go_through_all_the_scripts(tagged, call, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--dataset_name", tagged / "lists.parquet", "--method", "full", "--learning_rate", 0.001]
    for name, epochs in (("run", 24), ("other", 1)):
        trained = call("fine_tune.py", *flags, "--run_name", name, "--num_train_epochs", epochs)
        assert trained.code == 0, trained.err
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    predictions = pd.read_parquet(run / "predictions.parquet")
    right = [set(row.label) == set(row.prediction) for row in predictions.itertuples()]
    found = json.loads((run / "training.json").read_text())["validation"]
    assert found["ci95"] == pytest.approx(wilson_interval(round(found["accuracy"] * found["n"]), found["n"]))
    assert metrics["accuracy"] == np.mean(right) and metrics["loss"] < 0.6, "it learned: guessing has 0.69"
    assert [one["n"] for one in metrics["by_label"]] == [40, 40] and 0.05 <= metrics["threshold"] <= 0.95
    assert len(pd.read_csv(run / "errors.csv")) == len(right) - sum(right)
    texts = pd.read_parquet(tagged / "lists.parquet").text[predictions.row[:8]]
    said = [json.loads(line) for line in call("predict.py", "--run", run, "--json", *texts).out.splitlines()]
    assert [set(one["labels"]) for one in said] == [set(labels) for labels in predictions.prediction[:8]]
    assert call("predict.py", "--run", run, "--file", tagged / "columns.csv", "--out", "out.jsonl").code == 0
    found = pd.read_json("out.jsonl", lines=True).prediction[predictions.row]
    assert np.mean([set(a) == set(b) for a, b in zip(found, predictions.prediction, strict=True)]) > 0.95
    assert call("predict.py", "--run", run, "--file", tagged / "columns.csv", "--out", "out.csv").code == 0
    as_text = pd.read_csv("out.csv", keep_default_na=False).prediction.tolist()
    assert as_text == ["; ".join(labels) for labels in pd.read_json("out.jsonl", lines=True).prediction]
    card = ModelCard.load(run / "adapter" / "README.md")
    assert f"All labels right: accuracy {100 * metrics['accuracy']:.2f} %" in card.text and "`bad`, `good`" in card.text
    compared = call("evaluate.py", run, tmp_path / "outputs" / "other")
    assert compared.code == 0 and "McNemar" in compared.out
    assert call("export.py", run, "--formats", "merged").code == 0
    merged = json.loads((run / "export" / "merged" / "config.json").read_text())
    assert merged["problem_type"] == "multi_label_classification", "a pipeline gives each label a probability of its own"
    assert call("predict.py", "--run", run, "--explain", "a text").code == 2


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Words with their tags: numbers are entities."""
    generator, lines = np.random.default_rng(0), []
    for i in range(120):
        words = [*generator.permutation([*["a", "the", "film", "with"], *map(str, generator.integers(60, size=4))]), str(i)]
        lines += [f"{word} {'B-NUM' if word.isdigit() else 'O'}" for word in words] + [""]
    file = tmp_path_factory.mktemp("sentences") / "sentences.conll"
    file.write_text("\n".join(lines))
    return file


def pairs_file(folder):
    make_pairs(80).to_csv(folder / "translations.csv", index=False)
    return folder / "translations.csv"


@pytest.mark.parametrize("kind", ["one label", "pairs", "several labels", "entities", "causal-lm", "masked-lm", "translation"])
def test_each_kind_resumes_bit_for_bit_runs_on_two_processes_and_stops_early(
    kind, data_file, pairs, tagged, sentences, model_dir, tmp_path
):
    flags = {
        "one label": dict(dataset_name=data_file, class_weights="balanced"),
        "pairs": dict(dataset_name=pairs / "pairs.csv", text_column="premise", text_pair_column="hypothesis"),
        "several labels": dict(dataset_name=tagged / "lists.parquet"),
        "entities": dict(dataset_name=sentences, task="token-classification"),
        "causal-lm": dict(task="causal-lm", model_name=make_model(tmp_path / "gpt2", "gpt2")),
        "masked-lm": dict(task="masked-lm"),
        "translation": dict(task="translation", source_column="low", target_column="high", num_beams=2)
        | dict(model_name=make_model(tmp_path / "marian", "marian"), dataset_name=pairs_file(tmp_path)),
    }[kind] | dict(train_samples=56, batch_size=8, metric_for_best_model="loss")
    ends = []
    for name, processes, death in (("undisturbed", 1, None), ("killed", 1, Death(STEP, 11)), ("two", 2, None)):
        command = ["fine_tune.py", *flags_of(flags, model_dir, data_file, name)]
        found = apart.run(tmp_path, *command, processes=processes, death=death)
        if death:
            assert found[0][0] == -9, found
            found = apart.run(tmp_path, "fine_tune.py", "--resume", f"outputs/{name}")
        assert {code for code, _ in found} == {0}, found
        ends.append(outcome(tmp_path / "outputs" / name))
    undisturbed, killed, two = ends
    for name, tensor in undisturbed["adapter"].items():
        assert torch.equal(tensor, killed["adapter"][name])
        torch.testing.assert_close(two["adapter"][name], tensor, rtol=1e-3, atol=1e-5)
    assert killed["log"] == undisturbed["log"] and killed["validation"] == undisturbed["validation"]
    flags |= dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-12)
    flags |= dict(metric_for_best_model="perplexity" if kind.endswith("lm") else "bleu" if kind == "translation" else "accuracy")
    ((code, said),) = apart.run(tmp_path, "fine_tune.py", *flags_of(flags, model_dir, data_file, "stopped"))
    assert code == 0, said
    log = json.loads((tmp_path / "outputs" / "stopped" / "training.json").read_text())["log_history"]
    assert log[-1]["step"] == 15, "nothing was gained at steps 10 and 15 of 63"


def test_another_split_may_serve_as_the_test(tmp_path):
    rows = make_rows(120)
    rows[:80].to_parquet(tmp_path / "train.parquet")
    rows[80:].to_parquet(tmp_path / "validation.parquet")
    loaded = data.load_data(Config(dataset_name=str(tmp_path), test_split="validation"))
    assert (loaded.test_split, loaded.validation_split) == ("official validation", "held out from train")
    assert (len(loaded.test), len(loaded.validation), len(loaded.train)) == (40, 8, 72)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_one_the_command_line_takes(name):
    config, _ = parse_config(["--preset", name])
    assert replace(Config(), **PRESETS[name]) == config


def test_rotten_tomatoes_has_a_stand_in_too():
    loaded = data.load_data(Config(**PRESETS["rotten_tomatoes"]))
    assert loaded.source.name == "Rotten Tomatoes train sentences" and loaded.source.origin == "stand-in"
    assert len(loaded.test) == 1706 and loaded.label_names == ["neg", "pos"]
    tokens = tokenizing.encode(
        loaded.test, model.load_tokenizer(find_model("distilbert-base-uncased"), Config()), Config(max_length=64)
    )
    assert np.mean(tokens.lengths > 64) < 0.01
