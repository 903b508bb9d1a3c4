"""LoRA on every supported architecture; the faster code for CPU and GPU equals that of the libraries."""

import functools
import itertools
import re
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from conftest import DECODERS, TRANSLATORS, make_model
from datasets import Dataset
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from config import Config
from finetuning import speed
from finetuning.data.sources import find_model
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError
from finetuning.model import base
from finetuning.model.architectures import TESTED
from finetuning.model.lora import LoraLayer, add_lora, count_parameters, load_adapter
from finetuning.speed import attention, fused_lora
from finetuning.tasks.classification import MultiLabel, SingleLabel
from finetuning.tasks.translation import Translation
from finetuning.training.prediction import Predictor

TASK = SingleLabel()
CONFIG = Config(max_length=32, lora_r=4, precision="float32")
LABELLERS = [name for name in TESTED if name not in TRANSLATORS]
# Number of adapted linear layers by target: query-value, attention, mlp. The two layers of ALBERT have the same weights.
ADAPTED = dict.fromkeys(LABELLERS, (4, 8, 4)) | {
    "albert": (2, 4, 2),
    "deberta-v2": (4, 12, 4),  # attention to positions has layers of its own
    "modernbert": (2, 4, 4),
    "gpt2": (2, 4, 4),
    **dict.fromkeys(["llama", "qwen2", "qwen3", "gemma2", "gemma3_text"], (4, 8, 6)),
}


def build_base(folder, config=CONFIG):
    return base.build_base(TASK, find_model(str(folder)), ["neg", "pos"], config)


def build(folder, config=CONFIG):
    return add_lora(TASK, build_base(folder, config), config)


def batch(n=6, tokens=20, pad=0):
    """Return `n` random texts of different lengths with labels."""
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 60, (n, tokens)), torch.ones(n, tokens, dtype=torch.long)
    for row in range(1, n):
        ids[row, tokens - 2 * row :], mask[row, tokens - 2 * row :] = pad, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 2}


def randomise(lora):
    """Give the trainable weights random values: new LoRA weights change nothing, which would hide mistakes."""
    torch.manual_seed(1)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)


@pytest.mark.parametrize("model_type", LABELLERS)
def test_every_architecture_is_adapted_where_asked_reloads_merges_and_ignores_padding(model_type, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    query_value, attention, mlp = ADAPTED[model_type]
    for target, count in {"query-value": query_value, "attention": attention, "mlp": mlp, "all-linear": attention + mlp}.items():
        lora = build(folder, replace(CONFIG, target_modules=target))
        adapted = [name for name, module in lora.named_modules() if isinstance(module, LoraLinear)]
        assert len(adapted) == count, adapted
        assert not any(part in name for name in adapted for part in ("classifier", "pooler", "score"))
    randomise(lora.eval())
    fully_trained = [name for name, parameter in lora.named_parameters() if parameter.requires_grad and "lora_" not in name]
    head = "score" if model_type in DECODERS else "classifier"
    assert any(head in name for name in fully_trained), "all weights of a new head are trained"
    rows = batch(pad=lora.config.pad_token_id)
    lora.save_pretrained(str(tmp_path / "adapter"))
    fresh = build_base(folder, replace(CONFIG, seed=99))
    reloaded = load_adapter(fresh, tmp_path / "adapter", CONFIG)
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
def test_full_fine_tuning_trains_all_weights_and_the_method_head_only_the_head(method, model_type, tmp_path):
    folder = make_model(tmp_path / "base", model_type)
    config = replace(CONFIG, method=method, precision="auto")
    tuned = build(folder, config)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    head = sum(p.numel() for name, p in plain.named_parameters() if any(part in name for part in ("classifier", "pooler", "score")))
    total = sum(p.numel() for p in plain.parameters())
    assert count_parameters(tuned) == ({"full": total, "head": head}[method], total)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    tuned.train()(**batch()).loss.backward()
    optimizer.step()
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert any("classifier" in name or "score" in name for name in moved)
    embeddings = ("word_embeddings", "wte", "embed_tokens")
    assert any(part in name for name in moved for part in embeddings) == (method == "full")
    tuned.save_pretrained(str(tmp_path / "adapter"))
    fresh = build_base(folder, replace(config, seed=99))
    reloaded = load_adapter(fresh, tmp_path / "adapter", config)
    with torch.no_grad():
        assert torch.equal(reloaded(**batch()).logits, tuned.eval()(**batch()).logits)


@pytest.mark.parametrize("model_type", ["distilbert", "bert", "roberta", "deberta-v2"])
def test_a_new_head_starts_with_the_frequencies_of_several_labels(model_type, tmp_path):
    """At first every text gets each label with about the probability with which texts of train have it."""
    task, source = MultiLabel(), find_model(str(make_model(tmp_path / model_type, model_type)))
    labels = np.zeros((1000, 3), dtype=np.float32)
    labels[:500, 0] = labels[:20, 1] = 1
    inputs = {name: values for name, values in batch().items() if name != "labels"}
    for weights, expected in (("none", [0.5, 0.02, 0.001]), ("balanced", [0.5, 0.5, 0.5])):
        model = base.build_base(task, source, ["a", "b", "c"], replace(CONFIG, class_weights=weights), labels).eval()
        with torch.no_grad():
            probabilities = torch.sigmoid(model(**inputs).logits)
        torch.testing.assert_close(probabilities, torch.tensor([expected] * 6), rtol=0.2, atol=1e-3)


def test_only_the_output_layer_starts_with_the_frequencies(model_dir):
    """Another new layer of the head has as many numbers in its bias if there are as many labels as hidden units."""
    size = AutoModel.from_pretrained(model_dir).config.dim
    labels = np.zeros((1000, size), dtype=np.float32)
    labels[:20] = 1
    names = [str(number) for number in range(size)]
    model = base.build_base(MultiLabel(), find_model(str(model_dir)), names, CONFIG, labels)
    assert (model.classifier.bias < -1).all() and not model.pre_classifier.bias.any()


def test_a_pissa_adapter_reloads_although_it_changes_the_frozen_weights(model_dir, tmp_path):
    config = replace(CONFIG, init_lora_weights="pissa")
    lora = build(model_dir, config).eval()
    randomise(lora)
    lora.save_pretrained(str(tmp_path / "adapter"))
    fresh = build_base(model_dir, config)
    with torch.no_grad():
        reloaded = load_adapter(fresh, tmp_path / "adapter", config)(**batch()).logits
        torch.testing.assert_close(reloaded, lora(**batch()).logits)


@pytest.mark.parametrize("model_type", LABELLERS)
def test_dropout_is_set_in_every_place_of_the_architecture(model_type, tmp_path):
    lora = build(make_model(tmp_path / model_type, model_type), replace(CONFIG, dropout=0.25))
    rates = {module.p for module in lora.modules() if isinstance(module, torch.nn.Dropout)}
    rates |= {
        rate for module in lora.modules() for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)
    }
    assert rates <= {0.25, 0.0} and 0.25 in rates


def test_max_length_is_limited_to_the_positions_that_the_architecture_can_use(tmp_path):
    folder = make_model(tmp_path / "roberta", "roberta")  # 66 in its config, of which it never uses two
    base.read_model_config(TASK, find_model(str(folder)), replace(CONFIG, max_length=64))
    with pytest.raises(UserError, match="64 positions"):
        base.read_model_config(TASK, find_model(str(folder)), replace(CONFIG, max_length=65))


def step(lora, rows):
    """Return logits, and the gradients of all trainable weights by their names."""
    lora.zero_grad()
    outputs = lora(**rows)
    outputs.loss.backward()
    return outputs.logits.detach(), {name: p.grad for name, p in lora.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", LABELLERS)
def test_the_faster_code_gives_the_logits_and_gradients_of_the_libraries(model_type, tmp_path, monkeypatch):
    folder = make_model(tmp_path / model_type, model_type)
    encoder = AutoModel.from_pretrained(folder)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):  # the biases of a new model are zero, which would hide that one is left out
            parameter.data.normal_(std=0.2)
    encoder.save_pretrained(folder)

    on_cpu, plain = build(folder), build(folder, replace(CONFIG, speedups=False))
    for module in (base, speed):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    on_gpu = build(folder)
    implementation = plain.config._attn_implementation
    assert implementation == "sdpa" or model_type in ("mpnet", "deberta-v2", "gemma2")
    assert on_cpu.config._attn_implementation == (attention.ATTENTION if implementation == "sdpa" else implementation)
    for lora in (on_cpu, on_gpu, plain):
        randomise(lora.train())
    batches = (batch(pad=plain.config.pad_token_id), batch(n=1))  # with padding and without, where a decoder has no mask
    for lora, rows in itertools.product((on_cpu, on_gpu), batches):
        (logits, gradients), (plain_logits, plain_gradients) = step(lora, rows), step(plain, rows)
        torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-5)
        assert gradients.keys() == plain_gradients.keys()
        for name, gradient in gradients.items():
            expected = plain_gradients[name]
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=float(1e-4 * expected.abs().max()))


def test_the_faster_code_respects_a_disabled_and_a_merged_adapter(model_dir):
    lora = build(model_dir)
    randomise(lora.eval())
    plain = build_base(model_dir).eval()
    with torch.no_grad():
        adapted = lora.base_model.model.distilbert(batch()["input_ids"]).last_hidden_state
        with lora.disable_adapter():
            without = lora.base_model.model.distilbert(batch()["input_ids"]).last_hidden_state
        merged = lora.merge_and_unload().distilbert(batch()["input_ids"]).last_hidden_state
        torch.testing.assert_close(without, plain.distilbert(batch()["input_ids"]).last_hidden_state)
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(adapted, without, atol=1e-2)


@pytest.mark.parametrize("settings", [dict(lora_dropout=0.1), dict(dropout=0.1), dict(use_dora=True), dict(use_rslora=True)])
def test_settings_that_the_faster_code_does_not_support_still_train(settings, model_dir):
    lora = build(model_dir, replace(CONFIG, precision="auto", **settings)).train()
    lora(**batch()).loss.backward()
    gradients = [p.grad for p in lora.parameters() if p.requires_grad]
    assert gradients and all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_the_settings_of_lora_reach_its_layers(model_dir):
    settings = dict(lora_r=4, lora_alpha=6, use_rslora=True, use_dora=True, lora_dropout=0.3, dropout=0.2)
    lora = build(model_dir, replace(CONFIG, **settings))
    layers = [module for module in lora.modules() if isinstance(module, LoraLinear)]
    assert layers and all(layer.scaling["default"] == 6 / 4**0.5 for layer in layers)
    assert all(layer.lora_dropout["default"].p == 0.3 and "default" in layer.lora_magnitude_vector for layer in layers)
    assert lora.config.dropout == 0.2


@pytest.mark.predictions
@pytest.mark.parametrize("model_type", LABELLERS)
def test_every_architecture_trains_in_bf16(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "pick_precision", lambda wanted: ("bf16", ""))
    model = build(make_model(tmp_path / model_type, model_type), replace(CONFIG, precision="auto")).train()
    model(**batch(pad=model.config.pad_token_id)).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_layer_that_is_fully_trained_cannot_have_lora(model_dir):
    with pytest.raises(UserError, match="no linear layer is called pre_classifier") as error:
        build(model_dir, replace(CONFIG, target_modules="q_lin,pre_classifier"))
    assert "names from attention.k_lin" in str(error.value) and "classifier" not in str(error.value).split("names from")[1]


@pytest.mark.predictions
def test_trainable_parameters_stay_in_float32(model_dir):
    lora = build(model_dir, replace(CONFIG, precision="auto"))
    assert {p.dtype for p in lora.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.predictions
def test_predictions_come_back_in_the_order_of_the_rows(model_dir):
    lora = build(model_dir)
    randomise(lora.eval())
    tokenizer = base.load_tokenizer(TASK, find_model(str(model_dir)), Config())
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 60, size=length).tolist() for length in generator.integers(3, 33, size=50)]
    tokens = Tokens(Dataset.from_dict({"input_ids": ids}), np.array([len(row) for row in ids]))
    logits = TASK.predict(Predictor(TASK, lora, tokenizer, replace(CONFIG, eval_batch_size=8)), tokens)
    with torch.no_grad():
        alone = torch.cat([lora(input_ids=torch.tensor([row])).logits for row in ids]).numpy()
    np.testing.assert_allclose(logits, alone, atol=1e-4)


def test_parameters_are_counted_once(model_dir):
    trainable, total = count_parameters(build(model_dir))
    plain = AutoModelForSequenceClassification.from_pretrained(model_dir)
    adapters = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))  # layers x rank x (attention, MLP)
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert trainable == adapters + head
    assert total == sum(p.numel() for p in plain.parameters()) + adapters


@pytest.mark.predictions
@pytest.mark.parametrize("in_cache", [1, 2**20], ids=["one at a time", "together"])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "of another text"])
def test_attention_in_bf16_is_close_to_float32(mask, in_cache, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_IN_CACHE", in_cache)
    torch.manual_seed(0)
    queries, keys = (9, 14) if mask == "of another text" else (14, 14)
    inputs = [torch.randn(5, tokens, 3, 8).transpose(1, 2).bfloat16() for tokens in (queries, keys, keys)]
    visible = None
    if mask != "none":
        visible = (torch.arange(keys) < torch.tensor([14, 9, 12, 1, 14])[:, None])[:, None, None, :].expand(5, 1, queries, keys)
    if mask == "causal":
        visible = visible & torch.ones(queries, keys, dtype=torch.bool).tril()
    module, grad, results = torch.nn.Module(), torch.randn(5, queries, 3, 8), []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        if dtype == torch.float32:
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=visible).transpose(1, 2)
        else:
            out = attention.attention(module, *leaves, visible)[0]
            with torch.no_grad():
                assert torch.equal(attention.attention(module, *leaves, visible)[0], out), "the same without gradients"
        out.backward(grad.to(dtype))
        results.append([out, *(leaf.grad for leaf in leaves)])
    for rounded, exact in zip(*results, strict=True):
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


# --- LoRA layers: the readable one, peft's, and the fused one ------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_the_readable_lora_layer_equals_the_one_of_peft(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=bias)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["0"])
    of_peft = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    readable = LoraLayer(torch.nn.Linear(24, 40, bias=bias), r=4, alpha=12)
    readable.linear.load_state_dict(linear.state_dict())
    trainable = {name for name, parameter in readable.named_parameters() if parameter.requires_grad}
    assert trainable == {"A", "B"}
    x = torch.randn(3, 7, 24)
    assert torch.equal(readable(x), readable.linear(x)), "no change at the start"
    largest, deviation = float(readable.A.abs().max()), float(readable.A.std())
    assert largest <= 24**-0.5 and deviation == pytest.approx(24**-0.5 / 3**0.5, rel=0.2), "the initial values of peft"
    a, b = of_peft.lora_A["default"].weight, of_peft.lora_B["default"].weight
    b.data.normal_()
    readable.A.data.copy_(a), readable.B.data.copy_(b)
    gradient, inputs, outputs = torch.randn(3, 7, 40), [x.clone().requires_grad_() for _ in range(2)], []
    for layer, leaf in zip((readable, of_peft), inputs, strict=True):
        outputs.append(layer(leaf))
        outputs[-1].backward(gradient)
    for actual, expected in (outputs, [leaf.grad for leaf in inputs], (readable.A.grad, a.grad), (readable.B.grad, b.grad)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class OwnLoraLinear(LoraLinear):
    def forward(self, x, *arguments, **named):
        return 2 * super().forward(x, *arguments, **named)


def subclassed(lora, monkeypatch):
    for layer in lora.modules():
        if type(layer) is LoraLinear:
            layer.__class__ = OwnLoraLinear


def patched_instance(lora, monkeypatch):
    for layer in lora.modules():
        if type(layer) is LoraLinear:
            layer.forward = lambda x, layer=layer: 2 * LoraLinear.forward(layer, x)


def patched_class(lora, monkeypatch):
    forward = LoraLinear.forward
    monkeypatch.setattr(LoraLinear, "forward", lambda self, x: 2 * forward(self, x))


def wrapped_class(lora, monkeypatch):
    forward = LoraLinear.forward

    @functools.wraps(forward)
    def doubled(self, x):
        return 2 * forward(self, x)

    monkeypatch.setattr(LoraLinear, "forward", doubled)


def patched_base_layer(lora, monkeypatch):
    for layer in lora.modules():
        if type(layer) is LoraLinear:
            layer.base_layer.forward = lambda x, layer=layer.base_layer: 2 * torch.nn.Linear.forward(layer, x)


class OwnLinear(torch.nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))


def subclassed_a(lora, monkeypatch):
    for layer in lora.modules():
        if type(layer) is LoraLinear:
            layer.lora_A["default"].__class__ = OwnLinear


CHANGES = [subclassed, patched_instance, patched_class, wrapped_class, patched_base_layer, subclassed_a]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_lora_layer_keeps_its_own_forward_pass(change, model_dir, monkeypatch):
    base_model = build_base(model_dir)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=r".*\.(q_lin|ffn\.lin1)")
    lora = peft.get_peft_model(base_model, config)
    randomise(lora.eval())
    rows = batch()
    with torch.no_grad():
        before = lora(**rows).logits
        change(lora, monkeypatch)
        expected = lora(**rows).logits
        assert not torch.allclose(expected, before)
        assert fused_lora.fuse_lora(lora, bias_as_rank=True) == 0
        assert torch.equal(lora(**rows).logits, expected)


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_a_hook_on_a_part_of_a_fused_lora_layer_is_called(part, model_dir):
    lora = build(model_dir)
    layer = next(layer for layer in lora.modules() if type(layer) is LoraLinear)
    assert "forward" in vars(layer)
    module = layer.base_layer if part == "base_layer" else getattr(layer, part)["default"]
    calls = []
    module.register_forward_hook(lambda *_: calls.append(part))
    lora(**batch())
    assert calls == [part]


def test_a_base_layer_of_a_fused_lora_layer_can_be_trained(model_dir):
    lora = build(model_dir)
    layer = next(layer for layer in lora.modules() if type(layer) is LoraLinear)
    layer.base_layer.requires_grad_(True)
    lora(**batch()).logits.square().sum().backward()
    assert layer.base_layer.weight.grad.any() and layer.base_layer.bias.grad.any()


NOT_PLAIN = [dict(lora_bias=True), dict(use_dora=True), dict(lora_dropout=0.5), dict(bias="lora_only")]


@pytest.mark.parametrize("settings", NOT_PLAIN, ids=str)
def test_a_lora_layer_with_more_than_the_plain_update_is_not_fused(settings, model_dir):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=r".*\.q_lin", **settings)
    assert fused_lora.fuse_lora(peft.get_peft_model(build_base(model_dir), config), bias_as_rank=True) == 0


def test_a_frozen_head_computes_in_float32_beside_weights_in_bf16(model_dir):
    lora = build(model_dir)
    for module in lora.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.requires_grad_(False)
    speed.store_frozen_in_bf16(lora)
    logits = lora(**batch()).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def test_plain_lora_layers_are_fused(model_dir):
    lora = build(model_dir)
    assert sum("forward" in vars(layer) for layer in lora.modules() if isinstance(layer, LoraLinear)) == 12


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: b""),
        ("model.safetensors", lambda content: content[:-100]),
        ("model.safetensors", lambda content: b"\x80\x02" + content),
        ("config.json", lambda content: content.replace(b'"n_heads": 4', b'"n_heads": "x"')),
        ("config.json", lambda content: content.replace(b'"n_heads": 4', b'"n_heads": 3')),
        ("tokenizer.json", lambda content: content.replace(b'"film": ', b'"film": -')),
        ("tokenizer_config.json", lambda content: content.replace(b'"[PAD]"', b"[]")),
    ],
    ids=["empty weights", "cut weights", "a pickle", "a word for a number", "odd heads", "a negative token", "a list for a token"],
)
def test_a_damaged_file_of_the_base_model_is_one_line(name, change, call, tiny_flags, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "base")
    content = (tmp_path / "base" / name).read_bytes()
    (tmp_path / "base" / name).write_bytes(change(content))
    assert (tmp_path / "base" / name).read_bytes() != content
    result = call("fine_tune.py", *tiny_flags, "--model_name", tmp_path / "base")
    assert result.code == 2 and len(result.err.splitlines()) == 1 and "model_name: " in result.err, result.err


@pytest.mark.parametrize("model_type", ["distilbert", "bert", "gpt2", "t5"])
def test_missing_and_mismatched_weights_are_refused_unless_they_are_of_the_head(model_type, tmp_path):
    """Without a check, transformers would give these weights random values."""
    folder = make_model(tmp_path / "base", model_type)
    task = Translation() if model_type == "t5" else TASK
    file, pooler = folder / "model.safetensors", "pooler.dense.weight"

    def load_without(*names: str, **replaced: torch.Tensor):
        save_file({name: tensor for name, tensor in weights.items() if name not in names} | replaced, file, {"format": "pt"})
        return base.build_base(task, find_model(str(folder)), [] if model_type == "t5" else ["neg", "pos"], CONFIG)

    weights = load_file(file)
    load_without()
    layer = next(name for name in weights if ".1." in name or name.startswith("h.1."))
    with pytest.raises(UserError, match=f"{re.escape(layer)} is missing or has another size"):
        load_without(layer)
    with pytest.raises(UserError, match="another size"):
        load_without(**{layer: torch.zeros(3)})
    if pooler in weights:
        load_without(pooler)
    if model_type != "t5":
        head = {"distilbert": "classifier.weight", "bert": "classifier.weight", "gpt2": "score.weight"}[model_type]
        assert load_without(**{head: torch.zeros(5, 32)}).config.num_labels == 2, "the head of another task is replaced"
