"""OpenVINO in PyTorch's place: the same answers, chosen by itself where it pays, refused where it can't be had."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRANSLATORS, make_model, make_rows
from datasets import Dataset

from config import Config
from finetuning.data.sources import find_model
from finetuning.model import lora as model
from finetuning.results import run_folder
from finetuning.speed import fast
from finetuning.speed import openvino as engine
from finetuning.use import predicting as labelling

pytest.importorskip("openvino")
LABELLERS = [name for name in model.ARCHITECTURES if name not in TRANSLATORS]


@pytest.mark.parametrize("model_type", LABELLERS)
def test_it_computes_what_pytorch_does_whatever_the_length_and_the_batch(model_type, tmp_path):
    config = Config(precision="float32", max_length=64)
    lora = model.add_lora(
        model.build_base(find_model(str(make_model(tmp_path / model_type, model_type))), ["neg", "pos"], config), config
    )
    torch.manual_seed(1)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    merged = lora.eval().merge_and_unload()
    batches = []
    for rows, tokens in ((3, 20), (1, 9), (7, 64)):
        ids = torch.randint(5, 60, (rows, tokens))
        mask = (torch.arange(tokens) < torch.randint(4, tokens + 1, (rows, 1))).long()
        mask[0] = 1
        batches.append({"input_ids": ids.where(mask == 1, merged.config.pad_token_id), "attention_mask": mask})
    with torch.no_grad():
        expected = [merged(**batch).logits.clone() for batch in batches]
    ours = engine.OpenVino(merged, "float32")
    for batch, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(ours(**batch)["logits"], logits, rtol=1e-3, atol=1e-4)
    assert np.ptp(torch.cat(expected).numpy()) > 0.1


@pytest.fixture
def run(call, tiny_flags, tmp_path):
    trained = call("fine_tune.py", *tiny_flags)
    assert trained.code == 0, trained.err
    return tmp_path / "outputs" / "run"


def test_a_file_is_labelled_alike_by_each_engine(run, call, tmp_path):
    make_rows(engine.PAYS)[["review"]].to_csv("in.csv", index=False)
    answers = {}
    for name in ("torch", "openvino", "auto", "int8"):
        said = call("predict.py", "--file", "in.csv", "--out", f"{name}.csv", "--engine", name)
        assert said.code == 0, said.err
        assert ("engine" in said.err) == (name != "torch")
        answers[name] = pd.read_csv(f"{name}.csv")
    assert answers["auto"].equals(answers["openvino"]), "so many texts are worth it"
    assert (answers["openvino"].prediction == answers["torch"].prediction).mean() > 0.99
    assert abs(answers["openvino"].probability - answers["torch"].probability).max() < 0.05
    assert (answers["int8"].prediction == answers["torch"].prediction).mean() > 0.9
    lines = call("predict.py", "--engine", "int8", "--json", "a fine film", "a dull film").out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a fine film", "a dull film"], "nothing else is printed"
    few = call("predict.py", "a fine film")
    assert few.code == 0 and "engine" not in few.err
    explained = call("predict.py", "--explain", "--json", "a fine film with a warm heart")
    assert json.loads(explained.out)["words"]


def test_entities_too(call, entity_flags, tmp_path):
    assert call("fine_tune.py", *entity_flags).code == 0
    opened = run_folder.open_run(tmp_path / "outputs" / "run")
    rows = Dataset.from_dict({"text": ["Anna Berg saw Rome in May .", "the film"]})
    plain, fast_one = (
        labelling.Labeller(opened, using).answer(rows, {"text": "text"})["entities"] for using in ("torch", "openvino")
    )
    assert [[one["text"] for one in row] for row in plain] == [[one["text"] for one in row] for row in fast_one]


def test_what_cannot_be_had_is_refused(run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    opened = run_folder.open_run(run)
    assert engine.pick("auto", opened, 10**6) == "torch"
    with pytest.raises(engine.UserError, match="nncf missing: pip install -r requirements-extras.txt"):
        engine.pick("int8", opened, 10)
    monkeypatch.setattr(fast, "on_cpu", lambda: False)
    with pytest.raises(engine.UserError, match="--engine openvino: only for labels and entities, on a CPU"):
        engine.pick("openvino", opened, 10)
