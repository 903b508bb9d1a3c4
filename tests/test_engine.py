"""The OpenVINO engine gives the answers of PyTorch, is chosen for many texts, and is refused where it cannot run."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRANSLATORS, make_model, make_rows
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification

from config import Config
from finetuning import tasks
from finetuning.data.sources import find_model
from finetuning.errors import UserError
from finetuning.model.architectures import TESTED
from finetuning.model.base import build_base
from finetuning.model.lora import add_lora
from finetuning.results import run_folder
from finetuning.speed.openvino import OpenVino
from finetuning.tasks.classification import SingleLabel
from finetuning.use import predicting
from finetuning.use.predicting import Answers, pick_engine

pytest.importorskip("openvino")

# These architectures compute attention or positions in ways of their own. The others are like one of them, or like DistilBERT.
OWN_CODE = ("mpnet", "deberta-v2", "modernbert", "gpt2", "opt", "llama", "gemma2", "gemma3_text")
LIKE_THEM = [name for name in TESTED if name not in (*OWN_CODE, *TRANSLATORS)]


@pytest.mark.parametrize("model_type", [*OWN_CODE, *(pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM)])
def test_openvino_gives_the_logits_of_pytorch_for_any_length_and_batch_size(model_type, tmp_path):
    config = Config(precision="float32", max_length=64)
    task, source = tasks.pick(config), find_model(str(make_model(tmp_path / model_type, model_type)))
    lora = add_lora(task, build_base(task, source, ["neg", "pos"], config), config)
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
    openvino = OpenVino(merged, "float32")
    for batch, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(openvino(**batch)["logits"], logits, rtol=1e-3, atol=1e-4)
    assert np.ptp(torch.cat(expected).numpy()) > 0.1


@pytest.mark.parametrize(
    ("model_type", "problem"), [("flaubert", "can't compute this model ("), ("longformer", "does not agree with PyTorch")]
)
def test_pytorch_predicts_where_openvino_cannot(model_type, problem, capsys):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, attention_window=8)
    model_config = AutoConfig.for_model(model_type, vocab_size=100, **sizes)
    model = AutoModelForSequenceClassification.from_config(model_config).eval()
    batch = {"input_ids": torch.randint(5, 100, (3, 16)), "attention_mask": torch.ones(3, 16, dtype=torch.long)}
    expected = model(**batch).logits
    openvino = OpenVino(model, "float32")
    for _ in range(2):
        torch.testing.assert_close(openvino(**batch)["logits"], expected)
    assert capsys.readouterr().err.count(f"note: OpenVINO {problem}") == 1


@pytest.fixture
def run(call, tiny_flags, tmp_path):
    trained = call("fine_tune.py", *tiny_flags)
    assert trained.code == 0, trained.err
    return tmp_path / "outputs" / "run"


def test_all_engines_give_the_rows_of_a_file_the_same_labels(run, call, monkeypatch):
    monkeypatch.setattr(predicting, "ROWS_FOR_OPENVINO", 300)
    rows = make_rows(300)[["review"]]
    rows.to_csv("in.csv", index=False)
    answers = {}
    for name in ("torch", "openvino", "auto"):
        result = call("predict.py", "--file", "in.csv", "--out", f"{name}.csv", "--engine", name)
        assert result.code == 0, result.err
        assert ("engine" in result.err) == (name != "torch")
        answers[name] = pd.read_csv(f"{name}.csv")
    assert answers["auto"].equals(answers["openvino"]), "auto chooses OpenVINO for so many texts"
    assert (answers["openvino"].prediction == answers["torch"].prediction).mean() > 0.99
    assert abs(answers["openvino"].probability - answers["torch"].probability).max() < 0.05
    printed = call("predict.py", "--file", "in.csv", "--engine", "int8", "--json").out
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["text"] for line in lines] == rows.review.tolist(), "nothing else is printed"
    assert ([line["label"] for line in lines] == answers["torch"].prediction).mean() > 0.9
    few = call("predict.py", "a fine film")
    assert few.code == 0 and "engine" not in few.err
    explained = call("predict.py", "--explain", "--json", "a fine film with a warm heart")
    assert json.loads(explained.out)["words"]


def test_all_engines_find_the_same_entities(call, entity_flags, tmp_path):
    assert call("fine_tune.py", *entity_flags).code == 0
    opened = run_folder.open_run(tmp_path / "outputs" / "run", tasks.pick)
    rows = Dataset.from_dict({"text": ["a film 12 we 31", "the film", "fine 5 clever"]})
    texts = [
        [[entity["text"] for entity in entities] for entities in Answers(opened, engine).add_to(rows, {"text": "text"})["entities"]]
        for engine in ("torch", "openvino")
    ]
    assert texts[0] == texts[1] and any(texts[0])


def test_an_engine_that_cannot_run_is_refused(monkeypatch):
    opened = SimpleNamespace(task=SingleLabel(), config=Config(quantization="4bit"))
    assert pick_engine("auto", opened, 10**6) == "torch", "merged into 4-bit weights, the adapter would lose a part of its update"
    with pytest.raises(UserError, match="--engine openvino is only for .*, without 4 bits"):
        pick_engine("openvino", opened, 10)
    opened = SimpleNamespace(task=SingleLabel(), config=Config())
    monkeypatch.setattr(predicting.importlib.util, "find_spec", lambda name: None)
    assert pick_engine("auto", opened, 10**6) == "torch"
    with pytest.raises(UserError, match="--engine int8 needs openvino and nncf: pip install -r requirements-extras.txt"):
        pick_engine("int8", opened, 10)
    monkeypatch.setattr(predicting, "on_cpu", lambda: False)
    with pytest.raises(UserError, match="--engine openvino is only for labels, numbers and entities, on a CPU"):
        pick_engine("openvino", opened, 10)
