"""LoRA on every architecture of the table, and the fast road, in its forms for a CPU and a GPU, against the libraries' own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DECODERS, TRANSLATORS, make_model
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification

from config import Config
from finetuning.data.sources import find_model
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError
from finetuning.model import lora as model
from finetuning.speed import fast
from finetuning.tasks import text_classification

CONFIG = Config(max_length=32, lora_r=4, precision="float32")
# Linear layers by target: query-value, attention, mlp. Both layers of ALBERT are one.
LABELLERS = [name for name in model.ARCHITECTURES if name not in TRANSLATORS]
ADAPTED = dict.fromkeys(LABELLERS, (4, 8, 4)) | {
    "albert": (2, 4, 2),
    "modernbert": (2, 4, 4),
    "gpt2": (2, 4, 4),
    **dict.fromkeys(["llama", "qwen2", "qwen3", "gemma2", "gemma3_text"], (4, 8, 6)),
}


def build(folder, config=CONFIG, labels=("neg", "pos")):
    base = model.build_base(find_model(str(folder)), list(labels), config)
    return model.add_lora(base, config)


def batch(n=6, tokens=20, pad=0):
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 60, (n, tokens)), torch.ones(n, tokens, dtype=torch.long)
    for row in range(1, n):
        ids[row, tokens - 2 * row :], mask[row, tokens - 2 * row :] = pad, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 2}


def randomise(lora):
    """As after some training: LoRA starts as no change at all, which would hide mistakes."""
    torch.manual_seed(1)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)


@pytest.mark.parametrize("model_type", LABELLERS)
def test_every_architecture_is_adapted_where_asked_reloads_merges_and_does_not_see_padding(model_type, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    query_value, attention, mlp = ADAPTED[model_type]
    for target, count in {"query-value": query_value, "attention": attention, "mlp": mlp, "all-linear": attention + mlp}.items():
        lora = build(folder, replace(CONFIG, target_modules=target))
        adapted = [name for name, module in lora.named_modules() if isinstance(module, fast.LoraLinear)]
        assert len(adapted) == count, adapted
        assert not any(part in name for name in adapted for part in ("classifier", "pooler", "score"))
    randomise(lora.eval())
    whole = [name for name, parameter in lora.named_parameters() if parameter.requires_grad and "lora_" not in name]
    assert any("score" in name if model_type in DECODERS else "classifier" in name for name in whole), (
        "a new head learns as a whole"
    )
    rows = batch(pad=lora.config.pad_token_id)
    lora.save_pretrained(str(tmp_path / "adapter"))
    fresh = model.build_base(find_model(str(folder)), ["neg", "pos"], replace(CONFIG, seed=99))
    reloaded = model.load_adapter(fresh, tmp_path / "adapter", CONFIG)
    with torch.no_grad():
        logits = lora(**rows).logits
        assert torch.equal(reloaded(**rows).logits, logits)
        lengths = rows["attention_mask"].sum(dim=1)
        alone = [lora(input_ids=ids[None, :n]).logits[0] for ids, n in zip(rows["input_ids"], lengths, strict=True)]
        torch.testing.assert_close(torch.stack(alone), logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(reloaded.merge_and_unload()(**rows).logits, logits, rtol=1e-3, atol=1e-3)
    assert reloaded.config.id2label == {0: "neg", 1: "pos"}


@pytest.mark.parametrize("model_type", ["distilbert", "bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["full", "head"])
def test_the_methods_to_compare_with_train_all_or_the_head_alone_and_reload(method, model_type, tmp_path):
    folder = make_model(tmp_path / "base", model_type)
    config = replace(CONFIG, method=method, precision="auto")
    tuned = build(folder, config)
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    head = sum(p.numel() for name, p in whole.named_parameters() if any(part in name for part in ("classifier", "pooler", "score")))
    total = sum(p.numel() for p in whole.parameters())
    assert model.count_parameters(tuned) == ({"full": total, "head": head}[method], total)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    tuned.train()(**batch()).loss.backward()
    optimizer.step()
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert any("classifier" in name or "score" in name for name in moved)
    embeddings = ("word_embeddings", "wte", "embed_tokens")
    assert any(part in name for name in moved for part in embeddings) == (method == "full")
    tuned.save_pretrained(str(tmp_path / "adapter"))
    fresh = model.build_base(find_model(str(folder)), ["neg", "pos"], replace(config, seed=99))
    reloaded = model.load_adapter(fresh, tmp_path / "adapter", config)
    with torch.no_grad():
        assert torch.equal(reloaded(**batch()).logits, tuned.eval()(**batch()).logits)


def test_pissa_reloads_although_it_changes_the_frozen_weights(model_dir, tmp_path):
    config = replace(CONFIG, init_lora_weights="pissa")
    lora = build(model_dir, config).eval()
    randomise(lora)
    lora.save_pretrained(str(tmp_path / "adapter"))
    fresh = model.build_base(find_model(str(model_dir)), ["neg", "pos"], config)
    with torch.no_grad():
        reloaded = model.load_adapter(fresh, tmp_path / "adapter", config)(**batch()).logits
        torch.testing.assert_close(reloaded, lora(**batch()).logits)


@pytest.mark.parametrize("model_type", LABELLERS)
def test_dropout_is_set_in_every_place_of_the_architecture(model_type, tmp_path):
    lora = build(make_model(tmp_path / model_type, model_type), replace(CONFIG, dropout=0.25))
    rates = {module.p for module in lora.modules() if isinstance(module, torch.nn.Dropout)}
    rates |= {
        rate for module in lora.modules() for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)
    }
    assert rates <= {0.25, 0.0} and 0.25 in rates


def test_positions_are_counted_as_the_architecture_counts_them(tmp_path):
    folder = make_model(tmp_path / "roberta", "roberta")  # 66 in its config, two of them never used
    model.read_model_config(find_model(str(folder)), replace(CONFIG, max_length=64))
    with pytest.raises(UserError, match="64 positions"):
        model.read_model_config(find_model(str(folder)), replace(CONFIG, max_length=65))


@pytest.mark.parametrize("model_type", LABELLERS)
def test_the_fast_road_has_the_libraries_logits_and_gradients(model_type, tmp_path, monkeypatch):
    folder = make_model(tmp_path / model_type, model_type)
    base = AutoModel.from_pretrained(folder)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):  # a new model's are all zero, which would hide one that is left out
            parameter.data.normal_(std=0.2)
    base.save_pretrained(folder)

    def step(lora, rows):
        lora.zero_grad()
        out = lora(**rows)
        out.loss.backward()
        return out.logits.detach(), {name: p.grad for name, p in lora.named_parameters() if p.grad is not None}

    ours = build(folder)
    monkeypatch.setattr(fast, "on_cpu", lambda: False)
    on_gpu = build(folder)
    monkeypatch.setattr(fast, "fuse_lora", lambda model: None)  # peft's and PyTorch's own code
    stock = build(folder)
    own = stock.config._attn_implementation
    assert own == "sdpa" or model_type in ("mpnet", "deberta-v2", "gemma2")
    assert ours.config._attn_implementation == (fast.ATTENTION if own == "sdpa" else own)
    for lora in (ours, on_gpu, stock):
        randomise(lora.train())
    two_batches = (batch(pad=ours.config.pad_token_id), batch(n=1))  # with padding and without, where a decoder has no mask
    for lora, rows in itertools.product((ours, on_gpu), two_batches):
        (logits, gradients), (stock_logits, stock_gradients) = step(lora, rows), step(stock, rows)
        torch.testing.assert_close(logits, stock_logits, rtol=1e-4, atol=1e-5)
        assert gradients.keys() == stock_gradients.keys()
        for name, gradient in gradients.items():
            expected = stock_gradients[name]
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=float(1e-4 * expected.abs().max()))


def test_an_adapter_that_is_disabled_or_merged_is_so_on_the_fast_road_too(model_dir):
    lora = build(model_dir)
    randomise(lora.eval())
    plain = model.build_base(find_model(str(model_dir)), ["neg", "pos"], CONFIG).eval()
    with torch.no_grad():
        adapted = lora.base_model.model.distilbert(batch()["input_ids"]).last_hidden_state
        with lora.disable_adapter():
            without = lora.base_model.model.distilbert(batch()["input_ids"]).last_hidden_state
        merged = lora.merge_and_unload().distilbert(batch()["input_ids"]).last_hidden_state
        torch.testing.assert_close(without, plain.distilbert(batch()["input_ids"]).last_hidden_state)
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(adapted, without, atol=1e-2)


@pytest.mark.parametrize("settings", [dict(lora_dropout=0.1), dict(dropout=0.1), dict(use_dora=True), dict(use_rslora=True)])
def test_knobs_that_the_fast_road_does_not_know_still_train(settings, model_dir):
    lora = build(model_dir, replace(CONFIG, precision="auto", **settings)).train()
    lora(**batch()).loss.backward()
    gradients = [p.grad for p in lora.parameters() if p.requires_grad]
    assert gradients and all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_what_trains_stays_in_float32(model_dir):
    lora = build(model_dir, replace(CONFIG, precision="auto"))
    assert {p.dtype for p in lora.parameters() if p.requires_grad} == {torch.float32}


def test_predictions_come_back_in_the_order_of_the_rows(model_dir):
    lora = build(model_dir)
    randomise(lora.eval())
    tokenizer = model.load_tokenizer(find_model(str(model_dir)), Config())
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 60, size=length).tolist() for length in generator.integers(3, 33, size=50)]
    tokens = Tokens(Dataset.from_dict({"input_ids": ids}), np.array([len(row) for row in ids]))
    logits = text_classification.predict(lora, tokenizer, tokens, replace(CONFIG, eval_batch_size=8))
    with torch.no_grad():
        alone = torch.cat([lora(input_ids=torch.tensor([row])).logits for row in ids]).numpy()
    np.testing.assert_allclose(logits, alone, atol=1e-4)


def test_parameters_are_counted_once(model_dir):
    trainable, total = model.count_parameters(build(model_dir))
    plain = AutoModelForSequenceClassification.from_pretrained(model_dir)
    adapters = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))  # layers x rank x (attention, MLP)
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert trainable == adapters + head
    assert total == sum(p.numel() for p in plain.parameters()) + adapters


@pytest.mark.parametrize("in_cache", [1, 2**20], ids=["one at a time", "together"])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "of another text"])
def test_attention_in_bf16_is_that_of_float32(mask, in_cache, monkeypatch):
    monkeypatch.setattr(fast, "IN_CACHE", in_cache)
    torch.manual_seed(0)
    queries, keys = (9, 14) if mask == "of another text" else (14, 14)
    inputs = [torch.randn(5, tokens, 3, 8).transpose(1, 2).bfloat16() for tokens in (queries, keys, keys)]
    seen = None
    if mask != "none":
        seen = (torch.arange(keys) < torch.tensor([14, 9, 12, 1, 14])[:, None])[:, None, None, :].expand(5, 1, queries, keys)
    if mask == "causal":
        seen = seen & torch.ones(queries, keys, dtype=torch.bool).tril()
    module, grad, found = torch.nn.Module(), torch.randn(5, queries, 3, 8), []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        if dtype == torch.float32:
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen).transpose(1, 2)
        else:
            out = fast.attention(module, *leaves, seen)[0]
            with torch.no_grad():
                assert torch.equal(fast.attention(module, *leaves, seen)[0], out), "while predicting too"
        out.backward(grad.to(dtype))
        found.append([out, *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.float(), exact, rtol=0.05, atol=0.05)
