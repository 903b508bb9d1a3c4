"""Language models: what they are asked, what their perplexity is of, how they go on, and what a classifier takes over."""

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
from finetuning import data, labelling, model, run_folder, tokenizing
from finetuning.errors import UserError
from finetuning.metrics import mean_of_all
from finetuning.sources import find_model, find_rows
from finetuning.tasks import causal_lm, masked_lm

FLAGS = ["--batch_size", 8, "--max_length", 16, "--early_stopping_patience", 0, "--eval_steps", 0.5, "--run_name", "run"]
LEARN = ["--method", "full", "--learning_rate", 0.01, "--num_train_epochs", 6]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """With a pooler of its own in its file, and no head over words."""
    return make_model(tmp_path_factory.mktemp("models") / "bert", "bert")


def test_a_gpt_goes_through_all_the_scripts(gpt, data_file, call, tmp_path):
    flags = ["--task", "causal-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS]
    trained = call("fine_tune.py", *flags, *LEARN)
    assert trained.code == 0 and "validation perplexity" in trained.out, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert 1 < metrics["perplexity"] < 20 and metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    page = (run / "report.html").read_text()
    assert (
        all(one["actual"] for one in metrics["samples"])
        and any(one["model"] for one in metrics["samples"])
        and "The hardest" in page
        and "each token predicted once" in page
    )
    card = ModelCard.load(run / "adapter" / "README.md")
    assert card.data.pipeline_tag == "text-generation" and f"Perplexity {metrics['perplexity']:.3f}" in card.text
    test = pd.read_parquet(run / "predictions.parquet")
    assert np.average(test.loss, weights=test.tokens) == pytest.approx(metrics["loss"])
    assert pd.read_csv(run / "errors.csv").loss.is_monotonic_decreasing

    said = [json.loads(call("predict.py", "--json", *texts, "--temperature", "0").out.splitlines()[0])["continuation"]
            for texts in (["we loved every", "a fine film"], ["we loved every"])]  # fmt: skip
    assert said[0] == said[1] and said[0].split()[0] == "minute", "as all texts go on, whatever else is asked"
    drawn = [call("predict.py", "a", "--seed", seed, "--temperature", 2, "--max_new_tokens", 12).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(call("predict.py", "a", "--max_new_tokens", 2, "--temperature", 0).out.split()) <= 3
    labeller = labelling.Labeller(run_folder.open_run(run))
    shown = causal_lm.demo(labeller.model, labeller.tokenizer, "we hated every", labeller.run)
    assert shown.startswith("we hated every") and len(shown) > 20, "what app.py shows"
    long = call("predict.py", "a film " * 60, "--max_new_tokens", 4)
    assert long.code == 0, "of a prompt longer than the model can read its end is read"
    refused = call("predict.py", "a", "--max_new_tokens", 100)
    assert refused.code == 2 and "max_new_tokens=100" in refused.err and "64 positions" in refused.err
    pd.DataFrame({"text": ["a fine", "we"]}).to_csv("in.csv", index=False)
    assert call("predict.py", "--file", "in.csv", "--out", "out.csv").code == 0
    assert pd.read_csv("out.csv").continuation.str.len().min() > 1

    lora = call("fine_tune.py", *flags, "--run_name", "lora")
    assert lora.code == 0, lora.err
    assert all("lora_" in name for name in load_file("outputs/lora/adapter/adapter_model.safetensors")), "words stay as they are"
    assert call("evaluate.py", "outputs/lora").code == 0
    compared = call("evaluate.py", run, "outputs/lora")
    assert compared.code == 0 and "nats a token" in compared.out
    refused = call("export.py", run, "--formats", "onnx")
    assert refused.code == 2 and "causal-lm is exported as merged only" in refused.err
    exported = call("export.py", run)
    assert exported.code == 0, exported.err
    plain = transformers.AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    assert plain.lm_head.weight is plain.transformer.wte.weight
    own = call("fine_tune.py", *flags, "--model_name", run / "export" / "merged", "--run_name", "on")
    assert own.code == 0, own.err
    first = next(log for log in json.loads((tmp_path / "outputs/on/training.json").read_text())["log_history"] if "loss" in log)
    assert first["loss"] < 1.5 * metrics["loss"] + 0.5, "it goes on where the run before ended"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_pretrain_merge_classify(method, bert, data_file, call, tiny_flags, tmp_path):
    flags = ["--task", "masked-lm", "--model_name", bert, "--dataset_name", data_file, *FLAGS, *LEARN]
    trained = call("fine_tune.py", *flags, "--method", method, "--run_name", "pretrained")
    assert trained.code == 0, trained.err
    assert call("evaluate.py").code == 0
    run = tmp_path / "outputs" / "pretrained"
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["samples"]) == 6 and "Perplexity is of hidden tokens" in (run / "report.html").read_text()
    assert method == "lora" or metrics["perplexity"] < 60, "less than guessing has; LoRA on random weights learns next to nothing"
    said = json.loads(call("predict.py", "--json", "we [MASK] every minute of it").out)
    assert len(said["words"][0]) == 5 and sum(guess["probability"] for guess in said["words"][0]) <= 1
    labeller = labelling.Labeller(run_folder.open_run(run))
    shown = masked_lm.demo(labeller.model, labeller.tokenizer, "we [MASK] every [MASK] of it", labeller.run)
    assert [len(guesses) for guesses in shown] == [5, 5], "what app.py shows"
    missing = call("predict.py", "no word is hidden")
    assert missing.code == 2 and "[MASK]" in missing.err
    exported = call("export.py", run, "--formats", "merged")
    assert exported.code == 0, exported.err
    merged = run / "export" / "merged"
    before, after = load_file(bert / "model.safetensors"), load_file(merged / "model.safetensors")
    assert torch.equal(after["bert.pooler.dense.weight"], before["pooler.dense.weight"]), "a classifier starts from it"
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(after[f"bert.{name}"], before[name])
    classified = call("fine_tune.py", *tiny_flags, "--model_name", merged)
    assert classified.code == 0, classified.err
    assert call("evaluate.py").code == 0
    assert transformers.pipeline("fill-mask", str(merged))("we <|endoftext|> it")


def test_rows_are_held_out_as_a_classifier_of_the_same_data_holds_them_out(data_file):
    splits = [data.load_data(Config(dataset_name=str(data_file), task=task)) for task in ("text-classification", "masked-lm")]
    for name in ("train", "validation", "test"):
        a, b = (getattr(one, name) for one in splits)
        assert a.rows.tolist() == b.rows.tolist()


def test_every_token_of_a_document_is_predicted_once(gpt):
    tokenizer = model.load_tokenizer(find_model(str(gpt)), Config(task="causal-lm"))
    config = Config(task="causal-lm", max_length=8)
    texts = ["we loved every minute of it", "a", "a fine film with a warm heart . a dull film"]
    found = causal_lm.tokenize({"text": texts}, tokenizer, config)
    assert max(found["length"]) == 8 and [rows[0] for rows in found["rows"]] == sorted(rows[0] for rows in found["rows"])
    batch = causal_lm.collator(tokenizer, config)([{"input_ids": ids} for ids in found["input_ids"]])
    for row, text in enumerate(texts):
        blocks = [i for i, rows in enumerate(found["rows"]) if rows == [row]]
        asked = [token for i in blocks for token in batch["targets"][i].tolist() if token >= 0]
        assert asked == tokenizer(text, truncation=False, padding=False)["input_ids"] + [tokenizer.eos_token_id]
    assert (batch["labels"] >= 0).sum() == (batch["targets"] >= 0).sum()


@pytest.mark.parametrize("model_type", [name for name in TINY if name != "convbert"])  # whose convolution reads padding
def test_the_loss_is_that_of_the_plain_model(model_type, data_file, tmp_path):
    source, task = (
        find_model(str(make_model(tmp_path / "tiny", model_type))),
        "causal-lm" if model_type in DECODERS else "masked-lm",
    )
    config = Config(task=task, dataset_name=str(data_file), max_length=12, precision="float32", eval_batch_size=4)
    tokenizer, rows = model.load_tokenizer(source, config), data.load_data(config)
    tokens, plain = tokenizing.encode(rows.test, tokenizer, config), model.build_base(source, [], config).eval()
    of_task = causal_lm if task == "causal-lm" else masked_lm
    found = of_task.predict(model.add_lora(plain, replace(config, method="full")).eval(), tokenizer, tokens, config, False)
    sums, counts = np.zeros(len(rows.test)), np.zeros(len(rows.test))
    for block, row in zip(tokens.inputs, tokens.rows, strict=True):
        ids = torch.tensor([block["input_ids"]])
        targets = torch.tensor(block["targets"] if task == "masked-lm" else [*block["input_ids"][1:], -100])
        with torch.no_grad():
            likely = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
        here = targets >= 0
        sums[row] += float(likely[here, targets[here]].sum())
        counts[row] += int(here.sum())
    np.testing.assert_allclose(found, np.stack([sums / counts, counts], axis=1), rtol=1e-5)


def test_the_hidden_tokens_are_the_same_in_every_evaluation_and_others_in_every_epoch(bert):
    config = Config(task="masked-lm", max_length=42)
    tokenizer = model.load_tokenizer(find_model(str(bert)), config)
    text = "a fine film with a warm heart " * 12
    once, again = (masked_lm.tokenize({"text": texts}, tokenizer, config) for texts in ([text, "we"], ["it", text]))
    assert np.array_equal(once["input_ids"][0], again["input_ids"][1]) and once["length"][:2] == [42, 42]
    blocks = [{name: np.array(once[name][i]).tolist() for name in ("input_ids", "targets")} for i in range(3)]
    assert [sum(target >= 0 for target in block["targets"]) for block in blocks] == [6, 6, 1], "15 %, and one at least"
    change = masked_lm.change(tokenizer, config)

    def whole(block: dict) -> np.ndarray:
        return np.where(np.array(block["targets"]) >= 0, block["targets"], block["input_ids"])

    assert tokenizer.decode(whole(blocks[0])[1:-1]).startswith("a fine film with a warm heart a fine")
    drawn = [change(blocks[0], epoch, 7) for epoch in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1] and all(np.array_equal(whole(one), whole(blocks[0])) for one in drawn)
    special = np.isin(whole(blocks[0]), tokenizer.all_special_ids)
    places = np.concatenate([np.flatnonzero(np.array(change(blocks[0], epoch, 0)["targets"]) >= 0) for epoch in range(200)])
    assert not special[places].any() and len({*places.tolist()}) == 40
    masks = np.concatenate([np.array(change(blocks[0], epoch, 0)["input_ids"]) for epoch in range(200)]) == tokenizer.mask_token_id
    assert 0.75 < masks.sum() / len(places) < 0.85


def test_documents_of_text_files(tmp_path):
    def texts(path) -> dict:
        return {name: rows["text"][:] for name, rows in find_rows(str(path), readers=causal_lm.READERS)[0].items()}

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
def test_a_bad_text_file_is_refused_in_words(content, words, gpt, call, tmp_path):
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
        (["--max_length", "65"], ["max_length=65", "64 positions"]),
    ],
)
def test_a_knob_that_means_nothing_to_it_is_refused(flags, words, gpt, data_file, call):
    result = call("fine_tune.py", "--task", "causal-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS, *flags)
    assert result.code == 2 and all(word in result.err for word in words), result.err


def test_a_tokenizer_without_a_mask_is_refused_and_so_are_options_of_another_task(gpt, data_file, call, tiny_flags):
    refused = call("fine_tune.py", "--task", "masked-lm", "--model_name", gpt, "--dataset_name", data_file, *FLAGS)
    assert refused.code == 2 and "masked-lm" in refused.err and "gpt2" in refused.err
    assert call("fine_tune.py", *tiny_flags, "--num_train_epochs", 1).code == 0
    refused = call("predict.py", "a film", "--temperature", "0.5")
    assert refused.code == 2 and "--temperature is not for text-classification" in refused.err


def test_a_tokenizer_that_knows_no_end_of_a_text_is_refused(bert, data_file, call):
    refused = call("fine_tune.py", "--task", "causal-lm", "--model_name", bert, "--dataset_name", data_file, *FLAGS)
    assert refused.code == 2 and "causal-lm" in refused.err and "masked-lm" in refused.err, refused.err


@pytest.mark.parametrize("option", ["max_new_tokens 0", "temperature -1", "temperature nan", "top_p 0", "top_p 2", "seed -1"])
def test_an_option_out_of_range_is_refused(option):
    name, value = option.split()
    with pytest.raises(UserError, match=f"--{name} .* out of range"):
        causal_lm.answer(None, None, {"text": ["a"]}, None, **{name: float(value)})


def test_empty_rows_are_left_out_and_counted(tmp_path):
    make_rows(40).assign(review=lambda rows: rows.review.where(rows.index % 10 > 0, "  ")).to_csv(
        tmp_path / "rows.csv", index=False
    )
    found = data.load_data(Config(dataset_name=str(tmp_path / "rows.csv"), task="causal-lm"))
    assert sum(map(len, (found.train, found.validation, found.test))) == 36 and found.remarks == [
        "4 empty texts of split train left out"
    ]
    pd.DataFrame({"text": ["", " "] * 20}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="text_column"):
        data.load_data(Config(dataset_name=str(tmp_path / "rows.csv"), task="causal-lm"))


def test_the_interval_of_a_mean_over_items_holds_what_it_says():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        counts = rng.integers(5, 200, size=150)
        means = 3 + rng.normal(size=150) * 0.3 + (counts < 50) * 0.5  # short documents are harder
        mean, low, high = mean_of_all(means, counts)
        inside += low < 3 + 0.5 * 1215 / 19890 < high  # of counts 5 to 199 those below 50 sum to 1,215 of 19,890
        assert mean == pytest.approx((means * counts).sum() / counts.sum())
    assert 0.91 < inside / 300 < 0.98
