"""`--speedups False` turns all of finetuning/speed off, and changes results by rounding only."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import as_flags, make_model, make_pairs, make_rows
from peft import LoraModel
from peft.tuners.lora import LoraLayer

from config import Config
from finetuning import speed, tasks
from finetuning.data.sources import find_model
from finetuning.model.base import build_base
from finetuning.model.lora import add_lora
from finetuning.speed import attention, beam_search, cuda_graphs, fused_lora, greedy_search, openvino
from finetuning.training import prediction, trainer, writing
from finetuning.use import predicting

# The functions and classes that replace code of the libraries, in the modules that call them.
PARTS = [
    (speed, "store_frozen_in_bf16"),
    (speed, "fuse_lora"),
    (speed, "keep_freed_memory"),
    (LoraModel, "merge_adapter"),
    (trainer, "give_back_freed_memory"),
    (prediction, "give_back_freed_memory"),
    (writing, "give_back_freed_memory"),
    (fused_lora._FusedLora, "forward"),
    (attention._Attention, "forward"),
    (attention, "has_sdpa"),
    (beam_search, "search"),
    (greedy_search, "search"),
    (cuda_graphs, "Graphs"),
    (openvino, "OpenVino"),
]


@pytest.fixture
def without_speedups(monkeypatch):
    """Return a function that makes each part of finetuning/speed fail if it is used."""

    def fail(*_, **__):
        raise AssertionError("a part of finetuning/speed is used")

    def forbid():
        for holder, name in PARTS:
            monkeypatch.setattr(holder, name, fail)
        monkeypatch.setattr(predicting, "ROWS_FOR_OPENVINO", 1)

    return forbid


def test_a_classifier_has_the_same_results_without_speedups(call, tiny_flags, tmp_path, without_speedups):
    make_rows(20)[["review"]].to_csv("in.csv", index=False)
    runs = {}
    for name, speedups in (("with", True), ("without", False)):
        if not speedups:
            without_speedups()
        flags = [*tiny_flags, "--num_train_epochs", 3, "--precision", "float32", "--run_name", name, "--speedups", speedups]
        trained = call("fine_tune.py", *flags)
        assert trained.code == 0, trained.err
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
        folder = tmp_path / "outputs" / name
        log = json.loads((folder / "training.json").read_text())["log_history"]
        losses = [entry.get("loss", entry.get("eval_loss")) for entry in log[:-1]]
        logits = np.stack(pd.read_parquet(folder / "predictions.parquet").logits)
        runs[name] = losses, logits, json.loads((folder / "metrics.json").read_text())
        predicted = call("predict.py", "--run", folder, "--file", "in.csv", "--out", f"{name}.csv")
        assert predicted.code == 0 and (speedups or "engine" not in predicted.err), predicted.err
    (losses, logits, metrics), (plain_losses, plain_logits, plain_metrics) = runs["with"], runs["without"]
    assert losses == pytest.approx(plain_losses, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(logits, plain_logits, rtol=1e-2, atol=1e-3)
    for name in ("loss", "accuracy", "f1_macro", "temperature"):
        assert metrics[name] == pytest.approx(plain_metrics[name], rel=1e-2)
    a, b = (pd.read_csv(f"{name}.csv") for name in ("with", "without"))
    assert a.prediction.equals(b.prediction) and np.allclose(a.probability, b.probability, atol=0.02)


def test_a_translator_has_the_same_losses_without_speedups(call, tmp_path, without_speedups):
    make_pairs(100).to_csv("pairs.csv", index=False)
    settings = dict(task="translation", source_column="low", target_column="high", max_length=16, batch_size=16, num_train_epochs=4)
    settings |= dict(dataset_name="pairs.csv", model_name=make_model(tmp_path / "marian", "marian"), precision="float32")
    flags = as_flags(settings)
    losses = []
    for name, speedups in (("with", True), ("without", False)):
        if not speedups:
            without_speedups()
        trained = call("fine_tune.py", *flags, "--run_name", name, "--speedups", speedups)
        assert trained.code == 0, trained.err
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
        log = json.loads((tmp_path / "outputs" / name / "training.json").read_text())["log_history"]
        losses.append([entry.get("loss", entry.get("eval_loss")) for entry in log[:-1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("modules", "is_merged"), [("c_attn", True), ("c_attn,lm_head", False)])
def test_an_update_of_a_layer_that_shares_its_weights_is_not_merged(modules, is_merged, tmp_path):
    model = str(make_model(tmp_path / "gpt2", "gpt2"))
    config = Config(task="causal-lm", model_name=model, max_length=16, precision="float32", target_modules=modules)
    task = tasks.pick(config)
    adapted = add_lora(task, build_base(task, find_model(model), [], config), config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(8)[None] + 5
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        speed.merge(adapted, config)
        torch.testing.assert_close(adapted(input_ids=ids).logits, before, rtol=1e-3, atol=1e-3)
    assert any(layer.merged for layer in adapted.modules() if isinstance(layer, LoraLayer)) == is_merged


def test_a_run_in_float32_has_no_tf32_after_one_in_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speed, "on_cpu", lambda: False)
    monkeypatch.setattr(speed, "uses_autocast", lambda config: True)  # nothing else is done then
    monkeypatch.setattr(speed, "pick_precision", lambda precision: (precision, ""))
    before = torch.get_float32_matmul_precision()
    try:
        for precision, expected in (("bf16", "high"), ("float32", "highest")):
            speed.prepare(None, SimpleNamespace(precision=precision, speedups=True))
            assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
