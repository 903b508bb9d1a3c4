"""The real stand-ins, and the road over the Hub, from end to end."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import ROOT

from finetuning import data, fast, report, training

SHARED = ROOT.parent / "shared"


def test_the_plain_commands_say_that_they_use_stand_ins(call, tmp_path):
    trained = call("fine_tune.py", "--preset", "smoke", "--run_name", "smoke")
    assert trained.code == 0, trained.err
    assert "STAND-INS" in trained.out and "all-MiniLM-L6-v2 (stand-in)" in trained.out
    evaluated = call("evaluate.py")
    assert evaluated.code == 0 and "STAND-INS" in evaluated.out
    assert (
        "all-MiniLM-L6-v2 (stand-in), LoRA" in evaluated.out
        and "IMDb train reviews (stand-in), held out from train" in evaluated.out
    )
    metrics = json.loads((tmp_path / "outputs" / "smoke" / "metrics.json").read_text())
    assert metrics["stand_in"] is True and metrics["split"] == "held out from train"
    assert metrics["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert metrics["label_names"] == ["neg", "pos"]


def test_the_stand_in_data_are_the_25000_train_reviews_with_fixed_parts(monkeypatch):
    from config import PRESETS, Config
    from finetuning.data import load_data

    full = load_data(Config(**PRESETS["full"], seed=5))
    assert (len(full.test), len(full.validation)) == (5000, 2500)
    assert 17_300 < len(full.train) <= 17_500, "25,000 less what is held out and the copies of it"
    assert not set(full.train.text) & set(full.test.text)
    laptop = load_data(Config())
    assert laptop.sha256 == full.sha256 and laptop.test.equals(full.test)
    assert set(laptop.validation.index) < set(full.validation.index) and set(laptop.train.index) < set(full.train.index)


def test_labels_of_real_reviews_are_those_of_the_libraries_own_code(call, tmp_path, monkeypatch):
    flags = dict(train_samples=640, max_length=64, batch_size=16, early_stopping_patience=0, eval_steps=0.5, run_name="run")
    trained = call("fine_tune.py", "--preset", "smoke", *[part for name, value in flags.items() for part in (f"--{name}", value)])
    assert trained.code == 0, trained.err
    run = report.open_run(tmp_path / "outputs" / "run")
    config = replace(run.config, max_length=512)
    reviews = data.load_data(replace(config, test_samples=0)).test.text
    chosen = reviews.loc[reviews.str.len().sort_values().index[::120]].sample(frac=1, random_state=0)
    lora, tokenizer, _ = report.load_model(run)
    ids, lengths = data.tokenize(chosen, tokenizer, config)
    assert min(lengths) < 30 and max(lengths) > 1000, "very different lengths, some of them cut"
    logits = training.predict(lora, tokenizer, ids, config)

    monkeypatch.setattr(fast, "on_cpu", lambda: False)  # the libraries' own code, in float32, one review at a time
    stock, _, _ = report.load_model(replace(run, config=replace(config, precision="float32")))
    assert stock.config._attn_implementation == "sdpa" and {p.dtype for p in stock.parameters()} == {torch.float32}
    with torch.no_grad():
        alone = torch.cat([stock(input_ids=torch.tensor([row])).logits for row in ids]).numpy()
    margin = abs(alone[:, 0] - alone[:, 1])
    assert abs(logits - alone).max() < 0.1 and (margin > 0.1).mean() > 0.8
    clear = margin > 0.1
    assert (logits.argmax(axis=1) == alone.argmax(axis=1))[clear].all()


@pytest.mark.skipif(not (SHARED / "tools" / "hub_stand_in.py").exists(), reason="needs a Hub on loopback")
def test_the_defaults_come_through_the_hubs_clients_where_it_answers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = [
        f"models/distilbert-base-uncased={SHARED}/models/minilm-as-distilbert",
        f"datasets/stanfordnlp/imdb={SHARED}/data/imdb",
    ]
    hub = subprocess.Popen(
        [sys.executable, str(SHARED / "tools" / "hub_stand_in.py"), str(port), *served], stderr=subprocess.PIPE, text=True
    )
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    online |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hf")}
    offline = online | {"HF_HUB_OFFLINE": "1"}

    def script(name, *flags, env=online):
        return subprocess.run([sys.executable, str(ROOT / name), *flags], cwd=tmp_path, env=env, capture_output=True, text=True)

    try:
        wait_for(port)
        trained = script("fine_tune.py", "--preset", "smoke", "--run_name", "hub")
        assert trained.returncode == 0, trained.stderr
        assert "distilbert-base-uncased (hub)" in trained.stdout and "stanfordnlp/imdb (hub)" in trained.stdout
        unknown = script("fine_tune.py", "--model_name", "nobody/nothing")
        assert unknown.returncode == 2 and "the Hub does not have it" in unknown.stderr
    finally:
        hub.kill()
    evaluated = script("evaluate.py", env=offline)  # from the cache
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((tmp_path / "outputs" / "hub" / "metrics.json").read_text())
    assert (metrics["stand_in"], metrics["split"], metrics["model"]) == (False, "official test", "distilbert-base-uncased")
    rows = pd.read_parquet(tmp_path / "outputs" / "hub" / "predictions.parquet").row
    official = pd.read_parquet(SHARED / "data" / "imdb" / "test.parquet")
    labels = pd.read_parquet(tmp_path / "outputs" / "hub" / "predictions.parquet").label
    assert official.label.loc[rows].map({0: "neg", 1: "pos"}).tolist() == labels.tolist()
    lost = script("evaluate.py", env=offline | {"HF_HOME": str(tmp_path / "empty")})
    assert lost.returncode == 2 and "its cache lacks it" in lost.stderr, "a run that came by the Hub never goes on with a stand-in"


def wait_for(port: int) -> None:
    while socket.socket().connect_ex(("127.0.0.1", port)):
        pass
