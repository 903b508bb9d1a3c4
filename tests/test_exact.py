"""Training steps depend on the data and the settings alone, and an interrupted run ends exactly like an uninterrupted one."""

import os
import shutil
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from conftest import make_model, make_rows
from datasets import Dataset
from forked import STEP, Kill, flags_of, outcome
from transformers import AutoTokenizer

from config import Config
from finetuning import tasks
from finetuning.data.sources import find_model
from finetuning.data.tokens import Tokens, tokenize_texts
from finetuning.model.base import build_base, load_tokenizer
from finetuning.model.lora import add_lora
from finetuning.speed import cuda_graphs
from finetuning.task import Metric
from finetuning.tasks.classification import SingleLabel
from finetuning.training import progress, trainer
from finetuning.training.batches import Batches, TrainingRows, steps_of_epoch

LENGTHS = np.random.default_rng(0).integers(3, 257, size=5003)


# --- steps ---------------------------------------------------------------------------------------------------------------


def test_the_steps_of_an_epoch_hold_each_row_once_whatever_the_random_state():
    for by_length in (True, False):
        steps = steps_of_epoch(LENGTHS, 32, seed=1, epoch=2, by_length=by_length)
        assert sorted(np.concatenate(steps)) == list(range(5003)) and len(steps) == 157
        assert {len(rows) for rows in steps} == {31, 32}, "no small last step, whose gradient would count as much as a full step's"
        torch.manual_seed(7), np.random.seed(7)
        repeated = steps_of_epoch(LENGTHS, 32, seed=1, epoch=2, by_length=by_length)
        assert all(map(np.array_equal, steps, repeated))
        for changed in (dict(seed=2, epoch=2), dict(seed=1, epoch=3)):
            assert not all(map(np.array_equal, steps, steps_of_epoch(LENGTHS, 32, **changed, by_length=by_length)))
    spread = [np.ptp(LENGTHS[rows]) for rows in steps_of_epoch(LENGTHS, 32, 1, 2)]
    assert np.mean(spread) < 20, "the texts of a step have similar lengths"
    assert LENGTHS[steps_of_epoch(LENGTHS, 32, 1, 2)[0]].max() == LENGTHS.max(), "too little memory shows in the first step"


def test_shuffled_steps_are_the_same_steps_in_random_order_with_the_longest_first():
    sorted_steps, shuffled = (steps_of_epoch(LENGTHS, 32, 1, 2, shuffle_steps=shuffle) for shuffle in (False, True))
    assert {tuple(sorted(rows)) for rows in sorted_steps} == {tuple(sorted(rows)) for rows in shuffled}
    assert LENGTHS[shuffled[0]].max() == LENGTHS.max()

    def trend_of_lengths(steps: list[np.ndarray]) -> float:
        return np.corrcoef(range(49), [LENGTHS[rows].mean() for rows in steps[1:50]])[0, 1]

    assert trend_of_lengths(sorted_steps) < -0.9 and abs(trend_of_lengths(shuffled)) < 0.5


@pytest.mark.parametrize(("passes", "processes"), [(1, 1), (4, 1), (1, 3), (4, 2)])
def test_forward_passes_and_processes_divide_the_rows_of_a_step(passes, processes):
    batches_of_process = []
    for process in range(processes):
        batches = Batches(LENGTHS, 32, 5, True, False, passes, processes, process, lambda: 1)
        batches_of_process.append(list(batches))
        assert len(batches_of_process[-1]) == len(batches)
    steps = steps_of_epoch(LENGTHS, 32, 5, 1)
    for i, rows in enumerate(steps):
        parts = [batches[i * passes + k] for k in range(passes) for batches in batches_of_process]
        assert [key for part in parts for key in part] == [(len(steps) + i, 1, row) for row in rows.tolist()] and all(parts)


def test_length_warmup_truncates_texts_in_all_its_steps_but_the_first(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = Config(max_length=256, num_train_epochs=2, length_warmup=0.5, batch_size=8)
    texts = [" ".join(make_rows().review[: 4 + 4 * row]) for row in range(32)]
    full, lengths = tokenize_texts(texts, tokenizer, config)
    short, _ = tokenize_texts(texts, tokenizer, replace(config, max_length=128))
    tokens = Tokens(Dataset.from_dict({"input_ids": full}), lengths)
    rows = TrainingRows(tokens, None, SingleLabel().shorten(tokenizer, config, 128), range(1, 4))
    for epoch, step, expected in ((0, 0, full), (0, 1, short), (0, 3, short), (1, 4, full), (1, 7, full)):
        items = rows.__getitems__([(step, epoch, row) for row in range(32)])
        assert [item["input_ids"] for item in items] == expected, f"step {step} of 8"
    assert short != full


def build_trainer(tokens: Tokens, data: SimpleNamespace, folder: Path, model_path: Path, **changes) -> trainer.FineTuner:
    """Return a trainer for a model with LoRA that validates on its training tokens; `changes` are settings of the base model."""
    source, config = find_model(str(model_path)), data.config
    base = build_base(data.task, source, data.label_names, replace(config, **changes))
    tokenizer = load_tokenizer(data.task, source, config)
    splits = {"train": tokens, "validation": tokens}
    return trainer.build_trainer(add_lora(data.task, base, config), tokenizer, splits, data, folder / "checkpoints")


def test_all_words_weigh_the_same_whatever_the_length_of_their_sentence(model_dir, tmp_path):
    """A step is divided by the mean number of words of all steps, and not by its own, which may be 0."""
    config = Config(task="token-classification", max_length=64, batch_size=2)
    lengths = np.array([40, 40, 4, 4])
    columns = {"input_ids": [list(range(5, 5 + n)) for n in lengths], "labels": [[-100] + [0] * (n - 2) + [-100] for n in lengths]}
    tokens = Tokens(Dataset.from_dict(columns), lengths)
    rows = SimpleNamespace(labels=None)
    data = SimpleNamespace(task=tasks.pick(config), config=config, train=rows, validation=rows, label_names=["O", "B-x"])
    fine_tuner = build_trainer(tokens, data, tmp_path, model_dir)
    words, batches = 2 * 38 + 2 * 2, [*fine_tuner.get_train_dataloader()]
    assert sorted(int((batch["labels"] >= 0).sum()) for batch in batches) == [4, 76]
    for batch in batches:
        assert float(fine_tuner._get_num_items_in_batch([batch], torch.device("cpu"))) == words / 2


@pytest.mark.parametrize(
    ("epochs", "rows", "widths"),
    [
        (2, 32, [256] + [128] * 3 + [256] * 4),
        (0.5, 160, [256] + [128] * 4 + [256] * 5),  # half of the ten steps of the run, not half of the twenty of an epoch
    ],
    ids=str,
)
def test_length_warmup_shortens_early_batches_and_the_progress_bar_accounts_for_it(epochs, rows, widths, model_dir, tmp_path):
    config = Config(max_length=256, num_train_epochs=epochs, length_warmup=0.5, batch_size=8)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids, _ = tokenize_texts([" ".join(make_rows().review[: 40 + row % 32]) for row in range(rows)], tokenizer, config)
    tokens = Tokens(Dataset.from_dict({"input_ids": ids}), np.full(rows, 256), np.arange(rows) % 2)
    labels = SimpleNamespace(labels=tokens.labels)
    data = SimpleNamespace(task=SingleLabel(), config=config, train=labels, validation=None, label_names=["bad", "good"])
    fine_tuner = build_trainer(tokens, data, tmp_path, model_dir, max_length=64)  # the model has 64 positions
    shapes, steps_per_epoch = [], rows // 8
    for fine_tuner.state.global_step in range(0, len(widths), steps_per_epoch):
        shapes += [tuple(batch["input_ids"].shape) for batch in fine_tuner.get_train_dataloader()]
    assert shapes[: len(widths)] == [(8, width) for width in widths]
    assert fine_tuner.train_dataset.short == range(1, widths.index(256, 1))
    (bar,) = (callback for callback in fine_tuner.callback_handler.callbacks if isinstance(callback, progress.Training))
    work = bar.trainer.work_of_steps()[: len(widths)]
    assert work.tolist() == [8 * progress.work(width) for width in widths]


# --- CUDA graphs ---------------------------------------------------------------------------------------------------------


class Graphs:
    """A replacement for `torch.cuda.make_graphed_callables`, which needs a GPU: its functions call the model itself."""

    def __init__(self) -> None:
        self.shapes, self.alive = [], weakref.WeakSet()

    def record(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], pool) -> Callable:
        def run(*given: torch.Tensor) -> torch.Tensor:
            self.shapes.append(tuple(inputs[0].shape))
            assert all(a.shape == b.shape for a, b in zip(inputs, given, strict=True))
            mask = given[module.input_names.index("attention_mask")]
            assert mask.any(dim=1).all(), "a fully masked row gives NaN on a GPU"
            return module(*given)

        run.itself = run  # a graph's functions refer to each other
        self.alive.add(run)
        return run


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "gpt2"])
@pytest.mark.parametrize("task_name", ["text-classification", "token-classification"])
def test_recorded_steps_train_the_same_weights_as_plain_steps(task_name, model_type, tmp_path, monkeypatch):
    folder = make_model(tmp_path / model_type, model_type)
    config = Config(task=task_name, max_length=64, batch_size=8, precision="float32", eval_strategy="epoch")

    class WithoutMetrics(type(tasks.pick(config))):
        """A task that predicts in each validation and measures nothing."""

        metrics = (Metric("accuracy", lambda sums: 0.5), Metric("loss", lambda sums: 0.5, better="lower"))

        def validate(self, predictor, tokens):
            return list(predictor.outputs(tokens))

        def statistics(self, predictions, split, calibration):
            assert sum(len(positions) for positions, _ in predictions) == 13
            return {"rows": np.ones(13)}

    lengths = np.arange(13) * 4 + 3
    columns = {"input_ids": [list(range(5, 5 + length)) for length in lengths]}
    labels = np.arange(13) % 2
    if task_name == "token-classification":
        columns["labels"], labels = [[0, 1, 0] * (length // 3) + [-100] * (length % 3) for length in lengths], None
    tokens, rows = Tokens(Dataset.from_dict(columns), lengths, labels), SimpleNamespace(labels=labels)
    data = SimpleNamespace(task=WithoutMetrics(), config=config, train=rows, validation=rows, label_names=["O", "B-x"])

    def train(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        fine_tuner = build_trainer(tokens, data, tmp_path / name, folder)
        lora = fine_tuner.model
        # AdamW would magnify the rounding of gradients near 0
        fine_tuner.optimizer = torch.optim.SGD(lora.parameters(), lr=0.5)
        trainer.train(fine_tuner)
        assert "forward" not in vars(lora)
        return {name: p.detach() for name, p in lora.named_parameters() if p.requires_grad}

    plain, graphs = train("plain"), Graphs()
    monkeypatch.setattr(cuda_graphs, "apply_to", lambda task, config: True)
    monkeypatch.setattr(cuda_graphs, "MAX_LENGTHS", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs.record)
    for name, weights in train("recorded").items():
        torch.testing.assert_close(weights, plain[name], rtol=1e-3, atol=1e-5)
    assert graphs.shapes == [(7, 56), (7, 32)]
    assert not graphs.alive, "a forked process that loads batches would fail when it deletes an inherited graph"


def test_a_model_that_cannot_be_recorded_trains_without_graphs(call, tiny_flags, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    monkeypatch.setattr(cuda_graphs, "apply_to", lambda task, config: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    run = call("fine_tune.py", *tiny_flags)
    message = (
        "note: this model can't be recorded, so it trains without CUDA graphs (operation not permitted when stream is capturing)"
    )
    assert run.code == 0 and message in run.out.splitlines(), run.err


# --- interrupted runs ----------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """The settings of a run, and the points at which it is killed one after the other."""

    flags: dict = field(default_factory=dict)
    kills: tuple[Kill, ...] = ()
    processes: int = 1


EVALUATION = "transformers:Trainer.prediction_step"
CASES = {
    "before the first checkpoint": Case(kills=(Kill(STEP, 3),)),
    "in the second epoch": Case(kills=(Kill(STEP, 11),)),
    "at the end of an epoch, then twice more": Case(dict(eval_strategy="epoch"), (Kill(STEP, 15), Kill(STEP, 4), Kill(STEP, 1))),
    "in an evaluation, with dropout and LoRA+": Case(
        dict(dropout=0.1, lora_dropout=0.1, loraplus_lr_ratio=8), (Kill(EVALUATION, 3),)
    ),
    "while a checkpoint is written": Case(kills=(Kill("torch:save", 7, half=True),)),
    "while its state is written": Case(kills=(Kill("transformers.trainer:TrainerState.save_to_json", 3, half=True),)),
    "before it is marked as complete": Case(kills=(Kill("finetuning.training.checkpoints:write_json", 3),)),
    "while an older one is deleted": Case(kills=(Kill("shutil:rmtree", half=True),)),
    "after the last step": Case(kills=(Kill("finetuning.tasks.classification:fit_temperature"),)),
    "after early stopping": Case(
        dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-5, metric_for_best_model="accuracy"),
        (Kill("finetuning.tasks.classification:fit_temperature"),),
    ),
    "while early stopping waits": Case(
        dict(num_train_epochs=9, early_stopping_patience=2, learning_rate=1e-5, metric_for_best_model="accuracy"),
        (Kill(STEP, 10),),
    ),
    "with augmentation and class weights": Case(dict(augmentation="token-dropout", class_weights="balanced"), (Kill(STEP, 13),)),
    "with accumulation": Case(dict(batch_size=2, gradient_accumulation_steps=4), (Kill(STEP, 4 * 11 + 2),)),
    "on two processes": Case(kills=(Kill(STEP, 11, process=1), Kill(STEP, 2)), processes=2),
}
# With `-m slow`: a run with each group of settings is killed at many points.
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
    f"{name}, {kill.target.rsplit('.')[-1]} {kill.call}": Case(case.flags, (kill,), case.processes)
    for name, case in SETTINGS.items()
    for kill in [
        *(Kill(STEP, passes * case.flags.get("gradient_accumulation_steps", 1)) for passes in (2, 6, 9, 14, 20)),
        Kill(EVALUATION, 2),
        Kill("finetuning.training.checkpoints:write_json", 2),
    ]
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    """Return the outcomes of uninterrupted runs by their settings, and the folder of these runs."""
    return {"folder": tmp_path_factory.mktemp("uninterrupted")}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)], ids=lambda name: name.replace(" ", "-")
)
def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(name, uninterrupted, model_dir, data_file, tmp_path):
    """Takes long, because each case runs fine_tune.py two to five times in processes of its own."""
    case = (CASES | SLOW)[name]
    key = f"{case.flags} {case.processes}"
    if key not in uninterrupted:
        run = f"run-{len(uninterrupted)}"
        flags = flags_of(case.flags, model_dir, data_file, run)
        results = forked.run(uninterrupted["folder"], "fine_tune.py", *flags, processes=case.processes)
        assert {code for code, _ in results} == {0}, results
        uninterrupted[key] = outcome(uninterrupted["folder"] / "outputs" / run)
    flags, folder = flags_of(case.flags, model_dir, data_file, "run"), tmp_path
    for kill in case.kills:
        results = forked.run(folder, "fine_tune.py", *flags, processes=case.processes, kill=kill)
        assert results.pop(kill.process)[0] == -9, results
        hint = f"--resume {Path('outputs/run')} continues from the last checkpoint"
        assert all(code == 1 and hint in printed for code, printed in results), "the other processes say why they end"
        moved = tmp_path / f"{folder.name}-moved"  # another working directory with the run folder moved there
        moved.mkdir()
        shutil.move(folder / "outputs", moved / "outputs")
        folder, flags = moved, ["--resume", "outputs/run"]
    results = forked.run(folder, "fine_tune.py", *flags, processes=case.processes)
    assert {code for code, _ in results} == {0}, results
    expected, ended = uninterrupted[key], outcome(folder / "outputs" / "run")
    assert expected["adapter"].keys() == ended["adapter"].keys()
    assert all(torch.equal(tensor, ended["adapter"][name]) for name, tensor in expected["adapter"].items())
    assert ended | {"adapter": None} == expected | {"adapter": None}
    assert {file.name for file in (folder / "outputs").iterdir()} == {"run"}
    assert not os.path.exists(folder / "outputs/run/checkpoints")


def test_a_run_killed_while_tokenizing_can_be_started_again(model_dir, tmp_path):
    never_tokenized = make_rows(3000).assign(review=lambda rows: f"{uuid.uuid4()} " + rows.review)
    never_tokenized.to_csv(tmp_path / "rows.csv", index=False)
    flags = flags_of(dict(num_train_epochs=0.1), model_dir, tmp_path / "rows.csv", "run")
    in_second_batch = Kill("transformers:PreTrainedTokenizerFast.__call__", 5)
    ((code, _),) = forked.run(tmp_path, "fine_tune.py", *flags, kill=in_second_batch)
    assert code == -9 and not (tmp_path / "outputs" / "run").exists()
    ((code, printed),) = forked.run(tmp_path, "fine_tune.py", *flags)
    assert code == 0, printed


# --- accumulation and several processes ----------------------------------------------------------------------------------


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
def test_accumulation_and_processes_change_only_the_rounding(settings, processes, model_dir, data_file, tmp_path):
    common = dict(num_train_epochs=6, learning_rate=1e-3)
    smoothing = {k: v for k, v in settings.items() if k == "label_smoothing_factor"}
    outcomes = []
    for name, flags, n_processes in (("undivided", dict(batch_size=32) | smoothing, 1), ("divided", settings, processes)):
        flags = flags_of(common | flags, model_dir, data_file, name)
        results = forked.run(tmp_path, "fine_tune.py", *flags, processes=n_processes)
        assert {code for code, _ in results} == {0}, results
        outcomes.append(outcome(tmp_path / "outputs" / name))
    undivided, divided = outcomes
    assert len(undivided["log"]) == len(divided["log"]) > 10
    for a, b in zip(undivided["log"], divided["log"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    for name, tensor in undivided["adapter"].items():
        torch.testing.assert_close(divided["adapter"][name], tensor, rtol=1e-3, atol=1e-5)
