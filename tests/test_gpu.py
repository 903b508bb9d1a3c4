"""What only a GPU shows. These tests are skipped without one; benchmarks/gpu.sh runs them with the others that a GPU matters to."""

import json

import pytest
import torch
from conftest import as_flags, make_model
from peft.utils import load_peft_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_graphs_train_the_weights_that_plain_steps_train(call, tiny_flags, tmp_path):
    """Then evaluate.py and a second training run in this process: no graph may be left that its forked processes would delete."""
    flags = [*tiny_flags, "--precision", "float32", "--learning_rate", 1e-3, "--num_train_epochs", 2]
    for name, recorded in (("recorded", True), ("plain", False)):
        run = call("fine_tune.py", *flags, "--cuda_graphs", recorded, "--run_name", name)
        assert run.code == 0, run.err
        assert ("recorded as CUDA graphs" in run.out) == recorded
        evaluated = call("evaluate.py", f"outputs/{name}")
        assert evaluated.code == 0, evaluated.err
    weights = {name: load_peft_weights(tmp_path / "outputs" / name / "adapter", device="cpu") for name in ("recorded", "plain")}
    for name, values in weights["plain"].items():
        torch.testing.assert_close(weights["recorded"][name], values, rtol=1e-3, atol=1e-4)


def test_a_run_computes_in_bf16_and_says_so(call, tiny_flags, tmp_path):
    run = call("fine_tune.py", *tiny_flags)
    assert run.code == 0 and "bf16" in run.out, run.err
    record = json.loads((tmp_path / "outputs/run/config.json").read_text())
    assert torch.cuda.get_device_name() in record["environment"]["hardware"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_decoder_with_a_head_is_recorded(model_type, call, tiny_flags, tmp_path):
    model = make_model(tmp_path / model_type, model_type)
    run = call("fine_tune.py", *tiny_flags, *as_flags(dict(model_name=model)))
    assert run.code == 0 and "recorded as CUDA graphs" in run.out, run.out + run.err
