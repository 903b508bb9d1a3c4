"""The real stand-ins, and the road over the Hub, from end to end."""

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

SHARED = ROOT.parent / "shared"


def test_the_plain_commands_say_that_they_use_stand_ins(call, tmp_path):
    trained = call("fine_tune.py", "--preset", "smoke", "--run_name", "smoke")
    assert trained.code == 0, trained.err
    assert "STAND-INS" in trained.out and "all-MiniLM-L6-v2 (stand-in)" in trained.out
    evaluated = call("evaluate.py")
    assert evaluated.code == 0 and "STAND-INS" in evaluated.out
    assert (
        "all-MiniLM-L6-v2 (stand-in) + LoRA" in evaluated.out
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
