"""Language models: blocks, perplexity, continuations, masked tokens, and classifiers that start from them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import DECODERS, TINY, make_model, make_rows
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from config import Config
from finetuning import tasks
from finetuning.data.sources import find_model, find_rows
from finetuning.data.splits import load_data
from finetuning.data.tokens import encode
from finetuning.errors import UserError
from finetuning.model.architectures import TESTED
from finetuning.model.base import build_base, load_tokenizer
from finetuning.model.generation import check_options
from finetuning.model.lora import add_lora
from finetuning.results import metrics as results
from finetuning.results.run_folder import open_run
from finetuning.tasks.causal_lm import CausalLM
from finetuning.tasks.classification import SingleLabel
from finetuning.tasks.masked_lm import MaskedLM
from finetuning.training.prediction import Predictor
from finetuning.use.predicting import Answers

FLAGS = ["--batch_size", 8, "--max_length", 16, "--early_stopping_patience", 0, "--eval_steps", 0.5, "--run_name", "run"]
LEARN = ["--method", "full", "--learning_rate", 0.01, "--num_train_epochs", 6]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a model whose file has a pooler and no language model head."""
    return make_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.mark.predictions
def test_a_gpt_goes_through_all_the_scripts(gpt, data_file, call, tmp_path, pictures):
    flags = ["--task", "causal-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS]
    trained = call("fine_tune.py", *flags, *LEARN)
    assert trained.code == 0 and "validation  perplexity" in trained.out, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert 1 < metrics["perplexity"] < 20 and metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    page = (run / "report.html").read_text()
    assert (
        all(sample["actual"] for sample in metrics["samples"])
        and any(sample["model"] for sample in metrics["samples"])
        and "The hardest" in page
        and "Each token is predicted once" in page
    )
    card = ModelCard.load(run / "adapter" / "README.md")
    assert card.data.pipeline_tag == "text-generation" and f"Perplexity {metrics['perplexity']:.3f}" in card.text
    test = pd.read_parquet(run / "predictions.parquet")
    assert np.average(test.loss, weights=test.tokens) == pytest.approx(metrics["loss"])
    assert pd.read_csv(run / "errors.csv").loss.is_monotonic_decreasing

    greedy = [
        json.loads(call("predict.py", "--json", *texts, "--temperature", "0").out.splitlines()[0])["continuation"]
        for texts in (["we loved every", "a fine film"], ["we loved every"])
    ]
    assert call("predict.py", "we loved every", "--temperature", "0").out.startswith("we loved every minute"), "with the space"
    assert greedy[0] == greedy[1] and greedy[0].split()[0] == "minute", (
        "all training texts continue so, and other texts in the batch change nothing"
    )
    sampled = [call("predict.py", "a", "--seed", seed, "--temperature", 2, "--max_new_tokens", 12).out for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert len(call("predict.py", "a", "--max_new_tokens", 2, "--temperature", 0).out.split()) <= 3
    answers = Answers(open_run(run, tasks.pick))
    (text,) = answers.run.task.widget_values(answers.predictor, "we hated every")
    assert text.startswith("we hated every") and len(text) > 20, "what app.py shows"
    words = ["a"] * 90 + ["we", "loved", "every"] * 20
    of_end, of_all = (
        call("predict.py", "--json", " ".join(part), "--max_new_tokens", 4, "--temperature", 0) for part in (words[90:], words)
    )
    assert json.loads(of_all.out)["continuation"] == json.loads(of_end.out)["continuation"], "it reads the end of a long prompt"
    refused = call("predict.py", "a", "--max_new_tokens", 100)
    assert refused.code == 2 and "--max_new_tokens 100" in refused.err and "64 positions" in refused.err
    pd.DataFrame({"text": ["a fine", "we"]}).to_csv("in.csv", index=False)
    assert call("predict.py", "--file", "in.csv", "--out", "out.csv").code == 0
    assert pd.read_csv("out.csv").continuation.str.len().min() > 1

    lora = call("fine_tune.py", *flags, "--run_name", "lora")
    assert lora.code == 0, lora.err
    assert all("lora_" in name for name in load_file("outputs/lora/adapter/adapter_model.safetensors")), (
        "the embeddings stay as they are"
    )
    assert call("evaluate.py", "outputs/lora").code == 0
    compared = call("evaluate.py", run, "outputs/lora")
    assert compared.code == 0 and "perplexity" in compared.out
    refused = call("export.py", run, "--formats", "onnx")
    assert refused.code == 2 and "merged only" in refused.err
    exported = call("export.py", run)
    assert exported.code == 0, exported.err
    plain = transformers.AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    assert plain.lm_head.weight is plain.transformer.wte.weight
    continued = call("fine_tune.py", *flags, "--model_name", run / "export" / "merged", "--run_name", "on")
    assert continued.code == 0, continued.err
    first = next(log for log in json.loads((tmp_path / "outputs/on/training.json").read_text())["log_history"] if "loss" in log)
    assert first["loss"] < 1.5 * metrics["loss"] + 0.5, "the new run continues where the first one ended"


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.predictions)])
def test_a_classifier_can_start_from_a_pretrained_and_merged_model(method, bert, data_file, call, tiny_flags, tmp_path):
    flags = ["--task", "masked-lm", "--model_name", bert, "--dataset_name", data_file, *FLAGS, *LEARN]
    trained = call("fine_tune.py", *flags, "--method", method, "--run_name", "pretrained")
    assert trained.code == 0, trained.err
    assert call("evaluate.py").code == 0
    run = tmp_path / "outputs" / "pretrained"
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["samples"]) == 6 and "Perplexity is per masked token" in (run / "report.html").read_text()
    assert method == "lora" or metrics["perplexity"] < 60, "better than guessing; LoRA on random weights learns next to nothing"
    words = json.loads(call("predict.py", "--json", "we [MASK] every minute of it").out)["words"]
    assert len(words[0]) == 5 and sum(guess["probability"] for guess in words[0]) <= 1
    answers = Answers(open_run(run, tasks.pick))
    (words,) = answers.run.task.widget_values(answers.predictor, "we [MASK] every [MASK] of it")
    assert [len(guesses) for guesses in words] == [5, 5], "what app.py shows"
    missing = call("predict.py", "no word is masked")
    assert missing.code == 2 and "[MASK]" in missing.err
    with pytest.raises(UserError, match=r"The text can't be answered: it has no \[MASK\]"):
        answers.run.task.widget_values(answers.predictor, "no word is masked")
    cut = call("predict.py", f"we [MASK] {'every minute ' * 60}[MASK]")
    assert cut.code == 2 and "a [MASK] after them: shorten it" in cut.err
    exported = call("export.py", run, "--formats", "merged")
    assert exported.code == 0, exported.err
    merged = run / "export" / "merged"
    before, after = load_file(bert / "model.safetensors"), load_file(merged / "model.safetensors")
    assert torch.equal(after["bert.pooler.dense.weight"], before["pooler.dense.weight"]), "a classifier starts from it"
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(after[f"bert.{name}"], before[name])
    classified = call("fine_tune.py", *tiny_flags, "--model_name", merged, "--num_train_epochs", 1)
    assert classified.code == 0, classified.err
    assert call("evaluate.py").code == 0
    assert transformers.pipeline("fill-mask", str(merged))("we <|endoftext|> it")


@pytest.mark.parametrize("task", [CausalLM(), MaskedLM()])
def test_a_language_model_holds_out_the_rows_that_a_classifier_of_the_same_data_holds_out(task, tmp_path):
    rows = make_rows(120)
    rows.loc[::7, "sentiment"] = None
    rows.loc[3::10, "review"] = " "
    rows.to_csv(tmp_path / "rows.csv", index=False)
    config = Config(dataset_name=str(tmp_path / "rows.csv"))
    classified = load_data(SingleLabel(), replace(config, on_bad_rows="skip"))
    read = load_data(task, replace(config, task=task.name))
    for name in ("validation", "test"):
        assert getattr(read, name).rows.tolist() == getattr(classified, name).rows.tolist()
    filled = set(rows.index[rows.review.str.strip() != ""])
    assert set(read.train.rows) == filled - {*read.validation.rows, *read.test.rows}
    unlabelled = {*range(0, 120, 7)}
    assert unlabelled & filled <= {*read.train.rows.tolist()} and not {*classified.train.rows} & unlabelled


@pytest.mark.parametrize(
    "labels", [None, [f"{i}.5" for i in range(80)], ["only one"] * 80], ids=["no column", "no classes", "one class"]
)
def test_a_language_model_ignores_labels_that_no_classifier_could_use(labels, tmp_path):
    rows = make_rows().drop(columns="sentiment")
    (rows if labels is None else rows.assign(label=labels)).to_csv(tmp_path / "rows.csv", index=False)
    data = load_data(CausalLM(), Config(task="causal-lm", dataset_name=str(tmp_path / "rows.csv")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [56, 8, 16]
    assert not data.train.labels.any()


def test_the_text_column_may_have_the_usual_name_of_a_label_column(tmp_path):
    make_rows().rename(columns={"review": "target"}).to_csv(tmp_path / "rows.csv", index=False)
    data = load_data(CausalLM(), Config(task="causal-lm", dataset_name=str(tmp_path / "rows.csv"), text_column="target"))
    assert len(data.test) == 16 and set(data.train.labels) == {0, 1}


def test_every_token_of_a_document_is_predicted_once(gpt):
    task, config = CausalLM(), Config(task="causal-lm", max_length=8)
    tokenizer = load_tokenizer(task, find_model(str(gpt)), config)
    texts = ["we loved every minute of it", "a", "a fine film with a warm heart . a dull film"]
    blocks = task.tokenize({"text": texts}, tokenizer, config)
    rows = [row for (row,) in blocks["rows"]]
    assert max(blocks["length"]) == 8 and rows == sorted(rows)
    batch = task.collate(
        [{name: blocks[name][i] for name in ("input_ids", "targets")} for i in range(len(rows))], tokenizer, config
    )
    for row, text in enumerate(texts):
        targets = [token for i in np.flatnonzero(np.array(rows) == row) for token in batch["targets"][i].tolist() if token >= 0]
        assert targets == tokenizer(text, truncation=False, padding=False)["input_ids"] + [tokenizer.eos_token_id]
    assert (batch["labels"] >= 0).sum() == (batch["targets"] >= 0).sum()


@pytest.mark.parametrize("model_type", [name for name in TINY if name in TESTED])
def test_the_loss_equals_that_of_the_plain_model(model_type, data_file, tmp_path):
    source, task = find_model(str(make_model(tmp_path / "tiny", model_type))), CausalLM() if model_type in DECODERS else MaskedLM()
    config = Config(task=task.name, dataset_name=str(data_file), max_length=12, precision="float32", eval_batch_size=4)
    tokenizer, test = load_tokenizer(task, source, config), load_data(task, config).test
    tokens, plain = encode(task, test, tokenizer, config), build_base(task, source, [], config).eval()
    model = add_lora(task, plain, replace(config, method="full")).eval()
    predictions = task.predict(Predictor(task, model, tokenizer, config), tokens)
    expected = np.zeros((len(test), 3))
    for block, row in zip(tokens.inputs, tokens.rows, strict=True):
        ids = torch.tensor([block["input_ids"]])
        targets = torch.tensor(block["targets"])
        with torch.no_grad():
            log_probabilities = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
        predicted = targets >= 0
        log_likelihood = float(log_probabilities[predicted, targets[predicted]].sum())
        expected[row] += [log_likelihood, int(predicted.sum()), ids.shape[1]]
    sums, counts, read = expected.T
    np.testing.assert_allclose(predictions, np.stack([sums / counts, counts, read], axis=1), rtol=1e-5)
    statistics = task.statistics(predictions, test, {})
    np.testing.assert_allclose(task.metrics[0].of(statistics), np.exp(-sums.sum() / counts.sum()), rtol=1e-5)


def test_masked_tokens_are_the_same_in_every_evaluation_and_change_with_each_epoch(bert):
    task, config = MaskedLM(), Config(task="masked-lm", max_length=42)
    tokenizer = load_tokenizer(task, find_model(str(bert)), config)
    text = "a fine film with a warm heart " * 12
    once, again = (task.tokenize({"text": texts}, tokenizer, config) for texts in ([text, "we"], ["it", text]))
    assert np.array_equal(once["input_ids"][0], again["input_ids"][1]) and once["length"][:2] == [42, 42]
    blocks = [{name: np.array(once[name][i]).tolist() for name in ("input_ids", "targets")} for i in range(3)]
    assert [sum(target >= 0 for target in block["targets"]) for block in blocks] == [6, 6, 1], "15 %, and at least one"
    augment = task.augment(tokenizer, config)

    def original(block: dict) -> np.ndarray:
        return np.where(np.array(block["targets"]) >= 0, block["targets"], block["input_ids"])

    assert tokenizer.decode(original(blocks[0])[1:-1]).startswith("a fine film with a warm heart a fine")
    epochs = [augment(blocks[0], epoch, 7) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert all(np.array_equal(original(block), original(blocks[0])) for block in epochs)
    special = np.isin(original(blocks[0]), tokenizer.all_special_ids)
    masked = [augment(blocks[0], epoch, 0) for epoch in range(200)]
    positions = np.concatenate([np.flatnonzero(np.array(block["targets"]) >= 0) for block in masked])
    assert not special[positions].any() and len({*positions.tolist()}) == 40
    masks = sum(block["input_ids"].count(tokenizer.mask_token_id) for block in masked)
    assert 0.75 < masks / len(positions) < 0.85


def test_text_files_are_read_as_documents(tmp_path):
    def texts(path) -> dict:
        return {name: rows["text"][:] for name, rows in find_rows(str(path), readers=CausalLM.readers)[0].items()}

    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n", encoding="utf-8-sig")
    (tmp_path / "paragraphs.txt").write_text("\n\none\nmore\n\ntwo\n")
    assert texts(tmp_path / "lines.txt") == {"train": ["one", "two", "three"]}
    assert [text.strip() for text in texts(tmp_path / "paragraphs.txt")["train"] if text.strip()] == ["one\nmore", "two"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"{name} one\n\n{name} two\n")
    assert [text.split() for text in texts(folder)["train"]] == [["a", "one", "a", "two"], ["b", "one", "b", "two"]]
    splits = tmp_path / "splits"
    splits.mkdir()
    for name in ("train", "validation", "test"):
        (splits / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    assert texts(splits) == {name: [f"{name} one", f"{name} two"] for name in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\n \n", ["empty"]),
        (b"word " * 100_000, ["a single line", "empty lines or line breaks"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 50, ["binary"]),
    ],
    ids=["empty", "blank", "one endless line", "picture"],
)
def test_a_bad_text_file_is_refused_in_one_line(content, words, gpt, call, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    result = call("fine_tune.py", "--task", "causal-lm", "--model_name", gpt, "--dataset_name", "text.txt", *FLAGS)
    assert result.code == 2 and all(word in result.err for word in ["text.txt", *words]), result.err
    assert len(result.err.splitlines()) == 1 and not (tmp_path / "outputs" / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "head"], ["method=head"]),
        (["--truncation", "tail"], ["truncation=tail"]),
        (["--augmentation", "crop"], ["augmentation=crop"]),
        (["--label_smoothing_factor", "0.1"], ["label_smoothing_factor"]),
        (["--mlm_probability", "0.3"], ["mlm_probability"]),
        (["--mlm_probability", "1.5"], ["mlm_probability=1.5"]),
    ],
)
def test_a_setting_that_does_not_apply_is_refused(flags, words, gpt, data_file, call):
    result = call("fine_tune.py", "--task", "causal-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS, *flags)
    assert result.code == 2 and all(word in result.err for word in words), result.err


def test_a_tokenizer_without_a_mask_token_is_refused(gpt, data_file, call):
    refused = call("fine_tune.py", "--task", "masked-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS)
    assert refused.code == 2 and "masked-lm" in refused.err and "gpt2" in refused.err


def test_predict_refuses_the_options_of_another_task(call, finished_run):
    refused = call("predict.py", "a film", "--temperature", "0.5")
    assert refused.code == 2 and "--temperature is not for text-classification" in refused.err


def test_an_encoder_which_would_see_the_tokens_that_it_predicts_is_refused(bert, data_file, call):
    refused = call("fine_tune.py", "--task", "causal-lm", "--model_name", bert, "--dataset_name", data_file, *FLAGS)
    assert refused.code == 2 and "is an encoder (bert)" in refused.err and "masked-lm" in refused.err, refused.err


@pytest.mark.parametrize("option", ["max_new_tokens 0", "temperature -1", "temperature nan", "top_p 0", "top_p 2", "seed -1"])
def test_an_option_out_of_range_is_refused(option):
    name, value = option.split()
    with pytest.raises(UserError, match=f"--{name} .* out of range"):
        check_options(CausalLM.options | {name: float(value)}, [name])


def test_empty_rows_are_left_out_and_the_others_keep_their_numbers(tmp_path):
    rows = make_rows(40)
    rows.loc[::10, "review"] = ["  ", None, "", "<br />"]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    data = load_data(CausalLM(), Config(dataset_name=str(tmp_path / "rows.csv"), task="causal-lm"))
    assert data.remarks == ["4 of 40 rows of split train with an empty text (row 0, 10, 20, 30): left out"]
    splits = (data.train, data.validation, data.test)
    assert sorted(row for split in splits for row in split.rows) == [row for row in range(40) if row % 10]
    assert all(split.columns()["text"] == rows.review[split.rows].tolist() for split in splits)
    pd.DataFrame({"text": ["", " "] * 20}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="text_column"):
        load_data(CausalLM(), Config(dataset_name=str(tmp_path / "rows.csv"), task="causal-lm"))


def test_labels_that_are_no_classes_are_named(tmp_path):
    rows = make_rows(40).assign(sentiment=np.arange(40) / 7)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (remark,) = load_data(CausalLM(), Config(dataset_name=str(tmp_path / "rows.csv"), task="causal-lm")).remarks
    assert "the labels do not decide which rows are held out" in remark and "label_column=sentiment has 40" in remark


def test_the_interval_of_the_loss_covers_the_true_loss():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        tokens = rng.integers(5, 200, size=150)
        means = 3 + rng.normal(size=150) * 0.3 + (tokens < 50) * 0.5  # short documents are harder
        statistics = CausalLM().statistics(np.stack([-means, tokens, tokens], axis=1), None, {})
        low, high = results.interval(CausalLM.metrics[1], statistics)
        covered += low < 3 + 0.5 * 1215 / 19890 < high  # the numbers 5 to 199 sum to 19,890, those below 50 to 1,215
        assert CausalLM.metrics[1].of(statistics) == pytest.approx((means * tokens).sum() / tokens.sum())
    assert covered >= 88
