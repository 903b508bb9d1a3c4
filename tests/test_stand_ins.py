"""The scripts from end to end with the stand-ins that are installed, and with downloads from a local Hub."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, as_flags

from config import PRESETS, Config
from finetuning import tasks
from finetuning.data.splits import Data, Split, load_data
from finetuning.data.tokens import encode
from finetuning.results import run_folder

SHARED = ROOT.parent / "shared"


def test_the_scripts_print_that_they_use_stand_ins(call, tmp_path):
    trained = call("fine_tune.py", "--preset", "smoke", "--run_name", "smoke")
    assert trained.code == 0, trained.err
    assert "STAND-IN" in trained.out and "all-MiniLM-L6-v2 (stand-in)" in trained.out
    evaluated = call("evaluate.py")
    assert evaluated.code == 0 and "STAND-IN" in evaluated.out
    assert (
        "all-MiniLM-L6-v2 (stand-in), LoRA" in evaluated.out
        and "IMDb train reviews (stand-in), held out from train" in evaluated.out
    )
    metrics = json.loads((tmp_path / "outputs" / "smoke" / "metrics.json").read_text())
    assert "a stand-in replaced the model, the data or both" in (tmp_path / "outputs/smoke/adapter/README.md").read_text()
    assert metrics["stand_in"] is True and metrics["split"] == "held out from train"
    assert metrics["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert metrics["label_names"] == ["neg", "pos"]


def test_the_held_out_rows_are_those_of_the_published_records():
    """The records in results/ name rows by number, so the numbers must never change, in the stand-in and in the official data."""

    def load(**settings) -> Data:
        config = Config(**settings)
        return load_data(tasks.pick(config), config)

    def rows_of(split: Split) -> tuple[int, list[int], str]:
        return len(split), split.rows[:5].tolist(), hashlib.sha256(split.rows.tobytes()).hexdigest()[:16]

    full = load(**PRESETS["full"], seed=5)
    laptop = load()
    assert (
        full.sha256 == laptop.sha256 == json.loads((ROOT / "results" / "run-laptop.json").read_text())["run"]["dataset"]["sha256"]
    )
    assert rows_of(full.train) == (17466, [0, 1, 2, 4, 5], "bbb47111ae807059"), "25,000 less the held-out rows and their copies"
    assert rows_of(full.validation) == (2500, [10, 13, 16, 28, 41], "72947484bd3c66c0")
    assert rows_of(full.test) == rows_of(laptop.test) == (5000, [3, 6, 8, 9, 14], "3d4950a0a49eff19")
    assert rows_of(laptop.train) == (12500, [0, 1, 2, 4, 7], "e501fcb083d18b97")
    assert rows_of(laptop.validation) == (1000, [10, 28, 41, 43, 65], "20ed6e95405c60ab")
    assert not set(full.train.hashes) & set(full.test.hashes) and set(laptop.train.rows) < set(full.train.rows)
    if (SHARED / "data" / "imdb").exists():
        official = load(**PRESETS["full"], dataset_name=str(SHARED / "data" / "imdb"))
        record = ROOT / "results" / "quality" / "comparison" / "full-fine-tuning-0.json"
        assert official.sha256 == json.loads(record.read_text())["dataset"]["sha256"]
        assert rows_of(official.train) == (22488, [0, 1, 2, 3, 4], "4fffa404b6910e7b")
        assert rows_of(official.validation) == (2500, [14, 19, 20, 34, 46], "28ae632c37cde382")
        assert official.test.rows.tolist() == list(range(25000))


def test_real_reviews_get_the_labels_of_plain_transformers_and_peft(call, tmp_path):
    settings = dict(train_samples=320, max_length=32, learning_rate=0.003, batch_size=16, run_name="run")
    settings |= dict(early_stopping_patience=0, eval_steps=0.5)
    trained = call("fine_tune.py", "--preset", "smoke", *as_flags(settings))
    assert trained.code == 0, trained.err
    run = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    config = replace(run.config, max_length=512)
    reviews = load_data(run.task, replace(config, test_samples=0)).test
    by_length = np.argsort([len(text) for text in reviews.columns()["text"]])[[*range(0, len(reviews), 240), -1]]
    source = run_folder.find_base_model(run)
    predictor = run_folder.load_predictor(replace(run, config=config), source)
    tokens = encode(run.task, reviews.select(np.random.default_rng(0).permutation(by_length)), predictor.tokenizer, config)
    assert min(tokens.lengths) < 30 and max(tokens.lengths) > 1000, "very different lengths, some of them truncated"
    logits = run.task.predict(predictor, tokens)

    # Plain transformers and peft, in float32, one review at a time.
    plain = replace(run, config=replace(config, precision="float32", speedups=False))
    plain_model = run_folder.load_predictor(plain, source).model
    assert plain_model.config._attn_implementation == "sdpa" and {p.dtype for p in plain_model.parameters()} == {torch.float32}
    with torch.no_grad():
        alone = torch.cat(
            [plain_model(input_ids=torch.tensor([row["input_ids"]])).logits for row in tokens.__getitems__(range(len(tokens)))]
        ).numpy()
    margin = abs(alone[:, 0] - alone[:, 1])
    assert abs(logits - alone).max() < 0.1 and (margin > 0.1).mean() > 0.8
    clear = margin > 0.1
    assert (logits.argmax(axis=1) == alone.argmax(axis=1))[clear].all()


@pytest.mark.skipif(not (SHARED / "tools" / "hub_stand_in.py").exists(), reason="needs a Hub on loopback")
def test_the_defaults_are_downloaded_if_the_hub_answers(call, monkeypatch, tmp_path):
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
    try:
        wait_for(port, hub)
        command = [sys.executable, str(ROOT / "fine_tune.py"), "--preset", "smoke", "--run_name", "hub"]
        trained = subprocess.run(command, cwd=tmp_path, env=online, capture_output=True, text=True)
        assert trained.returncode == 0, trained.stderr
        assert "distilbert-base-uncased (hub)" in trained.stdout and "stanfordnlp/imdb (hub)" in trained.stdout
    finally:
        hub.kill()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    evaluated = call("evaluate.py")  # from the cache
    assert evaluated.code == 0, evaluated.err
    metrics = json.loads((tmp_path / "outputs" / "hub" / "metrics.json").read_text())
    assert (metrics["stand_in"], metrics["split"], metrics["model"]) == (False, "official test", "distilbert-base-uncased")
    rows = pd.read_parquet(tmp_path / "outputs" / "hub" / "predictions.parquet").row
    official = pd.read_parquet(SHARED / "data" / "imdb" / "test.parquet")
    labels = pd.read_parquet(tmp_path / "outputs" / "hub" / "predictions.parquet").label
    assert official.label.loc[rows].map({0: "neg", 1: "pos"}).tolist() == labels.tolist()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    lost = call("evaluate.py")
    assert lost.code == 2 and "its cache lacks it" in lost.err, "a run with data of the Hub is never evaluated on a stand-in"


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Wait until the server answers on its port."""
    with socket.socket() as client:
        while client.connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "the server ended"
