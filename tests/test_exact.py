"""The same steps, and the same end, whatever happens on the way."""

import os
import shutil
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import apart
import numpy as np
import pytest
import torch
from apart import STEP, Death, flags_of, outcome
from conftest import make_model, make_rows
from datasets import Dataset
from transformers import AutoTokenizer

from config import Config
from finetuning import graphs, model, progress, tokenizing, training
from finetuning.batches import Batches, TrainingRows, short_steps, steps_of_epoch
from finetuning.sources import find_model
from finetuning.tasks import text_classification
from finetuning.tokenizing import Tokens

LENGTHS = np.random.default_rng(0).integers(3, 257, size=5003)


def test_an_epochs_steps_hold_every_row_once_and_depend_on_nothing_drawn_before():
    for by_length in (True, False):
        steps = steps_of_epoch(LENGTHS, 32, seed=1, epoch=2, by_length=by_length)
        assert sorted(np.concatenate(steps)) == list(range(5003)) and len(steps) == 157
        assert {len(rows) for rows in steps} == {31, 32}, "no small rest, whose gradient would count as much as a whole step's"
        torch.manual_seed(7), np.random.seed(7)
        again = steps_of_epoch(LENGTHS, 32, seed=1, epoch=2, by_length=by_length)
        assert all(map(np.array_equal, steps, again))
        for other in (dict(seed=2, epoch=2), dict(seed=1, epoch=3)):
            assert not all(map(np.array_equal, steps, steps_of_epoch(LENGTHS, 32, **other, by_length=by_length)))
    spread = [np.ptp(LENGTHS[rows]) for rows in steps_of_epoch(LENGTHS, 32, 1, 2)]
    assert np.mean(spread) < 20, "texts of like length"
    assert LENGTHS[steps_of_epoch(LENGTHS, 32, 1, 2)[0]].max() == LENGTHS.max(), "memory that is too small shows at once"


def test_mixed_steps_are_the_same_ones_in_any_order_with_the_longest_first():
    steps, mixed = (steps_of_epoch(LENGTHS, 32, 1, 2, mixed=mixed) for mixed in (False, True))
    assert {tuple(sorted(rows)) for rows in steps} == {tuple(sorted(rows)) for rows in mixed}
    assert LENGTHS[mixed[0]].max() == LENGTHS.max()
    falls, stays = (np.corrcoef(range(49), [LENGTHS[rows].mean() for rows in one[1:50]])[0, 1] for one in (steps, mixed))
    assert falls < -0.9 and abs(stays) < 0.5


@pytest.mark.parametrize(("passes", "processes"), [(1, 1), (4, 1), (1, 3), (4, 2)])
def test_passes_and_processes_share_a_steps_rows_out(passes, processes):
    shares = []
    for process in range(processes):
        batches = Batches(LENGTHS, 32, 5, True, False, passes, processes, process, lambda: 1)
        shares.append(list(batches))
        assert len(shares[-1]) == len(batches)
    steps = steps_of_epoch(LENGTHS, 32, 5, 1)
    for i, rows in enumerate(steps):
        parts = [share[i * passes + k] for k in range(passes) for share in shares]
        assert [key for part in parts for key in part] == [(len(steps) + i, 1, row) for row in rows.tolist()] and all(parts)


def test_while_lengths_warm_up_texts_are_cut_as_the_run_cuts_them_but_for_the_first_step(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = Config(max_length=256, num_train_epochs=2, length_warmup=0.5, batch_size=8)
    texts = [" ".join(make_rows().review[: 4 + 4 * row]) for row in range(32)]
    whole, lengths = tokenizing.tokenize_texts(texts, tokenizer, config)
    short, _ = tokenizing.tokenize_texts(texts, tokenizer, replace(config, max_length=128))
    tokens = Tokens(Dataset.from_dict({"input_ids": whole}), lengths)
    rows = TrainingRows(tokens, None, text_classification.shorten(tokenizer, config, 128), short_steps(8, config.length_warmup))
    for epoch, step, expected in ((0, 0, whole), (0, 1, short), (0, 3, short), (1, 4, whole), (1, 7, whole)):
        found = rows.__getitems__([(step, epoch, row) for row in range(32)])
        assert [item["input_ids"] for item in found] == expected, f"step {step} of 8"
    assert short != whole


def test_a_run_reads_short_texts_first_and_its_bar_knows(model_dir, tmp_path):
    config = Config(max_length=256, num_train_epochs=2, length_warmup=0.5, batch_size=8)
    source = find_model(str(model_dir))
    tokenizer = model.load_tokenizer(source, config)
    texts = [" ".join(make_rows().review[: 40 + row]) for row in range(32)]
    tokens = Tokens(
        Dataset.from_dict({"input_ids": tokenizing.tokenize_texts(texts, tokenizer, config)[0]}),
        np.full(32, 256),
        np.arange(32) % 2,
    )
    data = SimpleNamespace(train=SimpleNamespace(labels=tokens.labels), validation=None, label_names=["bad", "good"])
    base = model.build_base(source, data.label_names, replace(config, max_length=64))  # its positions
    lora = model.add_lora(base, config)
    trainer = training.build_trainer(lora, tokenizer, tokens, tokens, data, config, tmp_path / "checkpoints")
    sizes = []
    for trainer.state.global_step in (0, 4):
        sizes += [batch["input_ids"].shape for batch in trainer.get_train_dataloader()]
    assert sizes == [(8, 256)] + [(8, 128)] * 3 + [(8, 256)] * 4
    (bar,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, progress.Training))
    assert bar.work_of_steps().tolist() == [rows * progress.work(width) for rows, width in sizes]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "gpt2"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_recorded_steps_learn_what_others_learn(task, model_type, tmp_path, monkeypatch):
    """With the recording itself replaced, which needs a GPU."""
    source = find_model(str(make_model(tmp_path / model_type, model_type)))
    config = Config(task=task, max_length=64, batch_size=8, precision="float32", eval_strategy="epoch")
    tokenizer = model.load_tokenizer(source, config)
    lengths = np.arange(13) * 4 + 3
    columns = {"input_ids": [list(range(5, 5 + length)) for length in lengths]}
    labels = np.arange(13) % 2
    if task == "token-classification":
        columns["labels"], labels = [[0, 1, 0] * (length // 3) + [-100] * (length % 3) for length in lengths], None
    tokens = Tokens(Dataset.from_dict(columns), lengths, labels)
    data = SimpleNamespace(train=SimpleNamespace(labels=labels), validation=None, label_names=["O", "B-x"])
    ran, alive = [], weakref.WeakSet()

    def record(module, inputs, pool):
        def run(*given):
            ran.append(inputs[0].shape)
            assert all(a.shape == b.shape for a, b in zip(inputs, given, strict=True))
            mask = given[module.names.index("attention_mask")]
            assert mask.any(dim=1).all(), "a row that attends to nothing gives no number, on a GPU"
            return module(*given)

        run.itself = run  # as a graph's functions hold each other
        alive.add(run)
        return run

    def train(name):
        torch.manual_seed(0)
        lora = model.add_lora(model.build_base(source, data.label_names, config), config)
        trainer = training.build_trainer(lora, tokenizer, tokens, tokens, data, config, tmp_path / name / "checkpoints")
        # AdamW would blow up what is rounded in gradients of nearly 0
        trainer.optimizer = torch.optim.SGD(lora.parameters(), lr=0.5)
        monkeypatch.setattr(trainer, "compute_metrics", lambda found: {"accuracy": 0.5, "f1": 0.5})
        training.train(trainer)
        assert "forward" not in vars(lora)
        return {name: p.detach() for name, p in lora.named_parameters() if p.requires_grad}

    plain = train("plain")
    monkeypatch.setattr(graphs, "apply_to", lambda config: True)
    monkeypatch.setattr(graphs, "LENGTHS", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    for name, weights in train("recorded").items():
        torch.testing.assert_close(weights, plain[name], rtol=1e-3, atol=1e-5)
    assert ran == [(7, 56), (7, 32)]
    assert not alive, "a process that loads batches fails when it deletes a graph that it was forked with"


def test_a_model_that_can_not_be_recorded_trains_without_graphs(call, tiny_flags, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    monkeypatch.setattr(graphs, "apply_to", lambda config: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    run = call("fine_tune.py", *tiny_flags)
    said = "cuda_graphs: this model can't be recorded, and trains without (operation not permitted when stream is capturing)"
    assert run.code == 0 and said in run.out.splitlines()


# --- interrupted runs ---------------------------------------------------------------------------------------------------


@dataclass
class Case:
    flags: dict = field(default_factory=dict)
    deaths: tuple[Death, ...] = ()
    processes: int = 1


EVALUATION = "transformers:Trainer.prediction_step"
CASES = {
    "before the first checkpoint": Case(deaths=(Death(STEP, 3),)),
    "in the second epoch": Case(deaths=(Death(STEP, 11),)),
    "at the end of an epoch, then twice more": Case(dict(eval_strategy="epoch"), (Death(STEP, 15), Death(STEP, 4), Death(STEP, 1))),
    "in an evaluation, with dropout": Case(dict(dropout=0.1, lora_dropout=0.1), (Death(EVALUATION, 3),)),
    "while a checkpoint is written": Case(deaths=(Death("torch:save", 7, half=True),)),
    "while its state is written": Case(deaths=(Death("transformers.trainer:TrainerState.save_to_json", 3, half=True),)),
    "before it is marked as whole": Case(deaths=(Death("finetuning.checkpoints:write_json", 3),)),
    "while an older one is deleted": Case(deaths=(Death("shutil:rmtree", half=True),)),
    "after the last step": Case(deaths=(Death("finetuning.metrics:fit_temperature"),)),
    "after early stopping": Case(
        dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-5, metric_for_best_model="accuracy"),
        (Death("finetuning.metrics:fit_temperature"),),
    ),
    "while early stopping waits": Case(
        dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-5, metric_for_best_model="accuracy"),
        (Death(STEP, 10),),
    ),
    "with augmentation": Case(dict(augmentation="token-dropout"), (Death(STEP, 13),)),
    "with accumulation": Case(dict(batch_size=2, gradient_accumulation_steps=4), (Death(STEP, 4 * 11 + 2),)),
    "on two processes": Case(deaths=(Death(STEP, 11, process=1), Death(STEP, 2)), processes=2),
}
# `--runslow`: every setting at many points.
SETTINGS = {
    "plain": Case(),
    "dropout": Case(dict(dropout=0.1, lora_dropout=0.1)),
    "bf16": Case(dict(precision="auto")),
    "augmentation": Case(dict(augmentation="crop")),
    "accumulation": Case(dict(batch_size=2, gradient_accumulation_steps=4)),
    "full": Case(dict(method="full")),
    "embeddings": Case(dict(train_embeddings=True, precision="auto")),
    "rare checkpoints": Case(dict(eval_steps=2, save_steps=6)),
    "two processes": Case(dict(augmentation="sentence-shuffle", batch_size=4, gradient_accumulation_steps=2), processes=2),
}
SLOW = {
    f"{name}, {death.target.rsplit('.')[-1]} {death.call}": Case(case.flags, (death,), case.processes)
    for name, case in SETTINGS.items()
    for death in [
        *(Death(STEP, passes * case.flags.get("gradient_accumulation_steps", 1)) for passes in (2, 6, 9, 14, 20)),
        Death(EVALUATION, 2),
        Death("finetuning.checkpoints:write_json", 2),
    ]
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    return {"folder": tmp_path_factory.mktemp("undisturbed")}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)], ids=lambda name: name.replace(" ", "-")
)
def test_a_killed_run_ends_bit_for_bit_like_an_undisturbed_one(name, undisturbed, model_dir, data_file, tmp_path):
    case = (CASES | SLOW)[name]
    key = f"{case.flags} {case.processes}"
    if key not in undisturbed:
        run = f"run-{len(undisturbed)}"
        flags = flags_of(case.flags, model_dir, data_file, run)
        found = apart.run(undisturbed["folder"], "fine_tune.py", *flags, processes=case.processes)
        assert {code for code, _ in found} == {0}, found
        undisturbed[key] = outcome(undisturbed["folder"] / "outputs" / run)
    flags, folder = flags_of(case.flags, model_dir, data_file, "run"), tmp_path
    for death in case.deaths:
        found = apart.run(folder, "fine_tune.py", *flags, processes=case.processes, death=death)
        assert found.pop(death.process)[0] == -9, found
        assert all(code == 1 and f"--resume {Path('outputs/run')} goes on" in said for code, said in found), "the others say why"
        moved = tmp_path / f"{folder.name}-moved"  # another working directory, and another place
        shutil.move(folder / "outputs", moved / "outputs") if moved.mkdir() is None else None
        folder, flags = moved, ["--resume", "outputs/run"]
    found = apart.run(folder, "fine_tune.py", *flags, processes=case.processes)
    assert {code for code, _ in found} == {0}, found
    expected, ended = undisturbed[key], outcome(folder / "outputs" / "run")
    assert expected["adapter"].keys() == ended["adapter"].keys()
    assert all(torch.equal(tensor, ended["adapter"][name]) for name, tensor in expected["adapter"].items())
    assert ended | {"adapter": None} == expected | {"adapter": None}
    assert {file.name for file in (folder / "outputs").iterdir()} == {"run"} and not os.path.exists(
        folder / "outputs/run/checkpoints"
    )


def test_a_run_killed_while_tokenising_starts_that_step_again(model_dir, tmp_path):
    make_rows(3000).to_csv(tmp_path / "rows.csv", index=False)
    flags = flags_of(dict(num_train_epochs=0.1), model_dir, tmp_path / "rows.csv", "run")
    ((code, _),) = apart.run(tmp_path, "fine_tune.py", *flags, death=Death("finetuning.tasks.text_classification:tokenize", 2))
    assert code == -9 and not (tmp_path / "outputs" / "run").exists()
    ((code, said),) = apart.run(tmp_path, "fine_tune.py", *flags)
    assert code == 0, said


# --- accumulation and several processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        (dict(batch_size=8, gradient_accumulation_steps=4), 1),
        (dict(batch_size=32), 2),
        (dict(batch_size=16, gradient_accumulation_steps=2), 2),
        (dict(batch_size=32, label_smoothing_factor=0.1), 2),
    ],
    ids=str,
)
def test_accumulation_and_processes_change_nothing_but_the_rounding(
    settings, processes, undisturbed, model_dir, data_file, tmp_path
):
    common = dict(num_train_epochs=6, learning_rate=1e-3)
    smoothing = {k: v for k, v in settings.items() if k == "label_smoothing_factor"}
    found = []
    for name, flags, several in (("whole", dict(batch_size=32) | smoothing, 1), ("shared", settings, processes)):
        flags = flags_of(common | flags, model_dir, data_file, name)
        codes = apart.run(tmp_path, "fine_tune.py", *flags, processes=several)
        assert {code for code, _ in codes} == {0}, codes
        found.append(outcome(tmp_path / "outputs" / name))
    whole, shared = found
    assert len(whole["log"]) == len(shared["log"]) > 10
    for a, b in zip(whole["log"], shared["log"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    for name, tensor in whole["adapter"].items():
        torch.testing.assert_close(shared["adapter"][name], tensor, rtol=1e-3, atol=1e-5)
