"""Frozen weights in 4 bits."""

import importlib.util
import json
import re

import pytest
import torch
from conftest import as_flags, make_model, make_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

from config import Config
from finetuning import tasks
from finetuning.data.sources import find_model
from finetuning.model import four_bits
from finetuning.model.base import build_base, read_model_config
from finetuning.model.lora import add_lora, count_parameters
from finetuning.speed import precision


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


def built(decoder, quantization: str):
    config = Config(task="causal-lm", model_name=str(decoder), max_length=16, quantization=quantization)
    task = tasks.pick(config)
    return add_lora(task, build_base(task, find_model(str(decoder)), [], config), config)


def test_frozen_layers_are_stored_in_four_bits_and_counted_as_before(decoder):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = built(decoder, "4bit").eval()
    types = {name: type(p).__name__ for name, p in model.named_parameters() if "q_proj" in name}
    assert {type_name for name, type_name in types.items() if "lora" not in name} == {"Params4bit"}
    assert count_parameters(model) == count_parameters(built(decoder, "none"))
    (quantized, *_), (plain, *_) = (
        [p for name, p in built(decoder, kind).named_parameters() if name.endswith("q_proj.base_layer.weight")]
        for kind in ("4bit", "none")
    )
    restored = bitsandbytes.functional.dequantize_4bit(quantized.data, quantized.quant_state).float().cpu()
    error, size = ((restored - plain.float()).abs().mean(), plain.float().abs().mean())
    assert 0 < error < 0.15 * size


@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
def test_a_quantized_run_trains_predicts_and_is_merged_into_the_plain_model(task, call, decoder, tiny_flags, tmp_path):
    pytest.importorskip("bitsandbytes")
    if task == "causal-lm":
        make_rows().to_csv(tmp_path / "texts.csv", index=False)
        settings = dict(task=task, model_name=decoder, dataset_name=tmp_path / "texts.csv", max_length=16, learning_rate=0.01)
        tiny_flags = as_flags(settings | dict(batch_size=8, num_train_epochs=3, eval_steps=0.5, run_name="run"))
    trained = call("fine_tune.py", *tiny_flags, "--quantization", "4bit")
    assert trained.code == 0 and "bitsandbytes" not in trained.err
    losses = [
        entry["loss"]
        for entry in json.loads((tmp_path / "outputs/run/training.json").read_text())["log_history"]
        if "loss" in entry
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert (
        call("evaluate.py").code == 0
        and call(
            "predict.py", "a fine film", "--max_new_tokens" if task == "causal-lm" else "--json", *["3"] * (task == "causal-lm")
        ).code
        == 0
    )
    exported = call("export.py", "--formats", "merged", "--rows", 10)
    (own, merged) = json.loads((tmp_path / "outputs/run/export/export.json").read_text())["exports"]
    assert exported.code == 0 and merged["agrees"] and merged["largest_difference"] > 0 and merged["mib"] > own["mib"]
    assert "stores the base model in 4 bits" in (tmp_path / "outputs/run/adapter/README.md").read_text()
    if task == "causal-lm":  # a classifier's merged head is scaled, too
        plain = AutoModelForCausalLM.from_pretrained(decoder)
        adapted = PeftModel.from_pretrained(plain, tmp_path / "outputs/run/adapter").eval()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "outputs/run/export/merged").eval()
        ids = torch.tensor([[5, 6, 7, 4]])
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("model_type", "task_name"),
    [("bert", "text-classification"), ("t5", "text-classification"), ("bert", "masked-lm"), ("llama", "causal-lm")],
)
def test_heads_are_not_quantized(model_type, task_name, tmp_path):
    pytest.importorskip("bitsandbytes")
    source = find_model(str(make_model(tmp_path / model_type, model_type)))
    config = Config(task=task_name, model_name=source.path, max_length=16, quantization="4bit")
    task, names = tasks.pick(config), ["a", "b"] if task_name == "text-classification" else []
    model = add_lora(task, build_base(task, source, names, config), config)
    quantized = [name for name, parameter in model.named_parameters() if type(parameter).__name__ == "Params4bit"]
    assert quantized and not [name for name in quantized if re.search(r"classifi|score|cls|lm_head|pooler", name)]
    ids = torch.tensor([[5, 6, 7, 4]])
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **({} if names else {"targets": ids}))
    outputs.logits.sum().backward()


def test_products_are_in_the_precision_of_the_run(monkeypatch):
    pytest.importorskip("bitsandbytes")

    def compute_dtype(**settings):
        return four_bits.four_bits(Config(quantization="4bit", **settings)).bnb_4bit_compute_dtype

    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", dict)  # a CPU without bf16
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    assert compute_dtype() == compute_dtype(precision="float32") == torch.float32
    monkeypatch.setattr(four_bits, "pick_precision", lambda wanted: ("bf16", ""))
    assert compute_dtype() == torch.bfloat16


def test_without_bitsandbytes_four_bits_are_refused(decoder, call, tiny_flags, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    refused = call("fine_tune.py", *tiny_flags, "--quantization", "4bit")
    assert refused.code == 2 and "quantization=4bit needs bitsandbytes" in refused.err
    assert read_model_config(tasks.pick(Config()), find_model(str(decoder)), Config(max_length=16))
