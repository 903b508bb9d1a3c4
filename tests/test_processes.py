"""Several processes train one run and only the first one prints; a start without torchrun uses one GPU."""

import json
import os
import socket
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import forked
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT, make_rows

from finetuning import processes
from finetuning.errors import UserError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def test_several_processes_write_one_run_and_predict_each_row_once_in_its_order(tiny_flags, tmp_path):
    """Takes long, because it trains on two processes, and evaluates and predicts on one and on two."""
    trained = forked.run(tmp_path, "fine_tune.py", *tiny_flags, "--precision", "float32", processes=2)
    assert [code for code, _ in trained] == [0, 0], trained
    assert trained[0][1].count("run folder") == 1 and not trained[1][1].strip(), "the second process prints nothing"
    (run,) = (tmp_path / "outputs").iterdir()
    assert json.loads((run / "config.json").read_text())["environment"]["hardware"].startswith("2 processes")
    evaluations = []
    for number in (1, 2):
        evaluated = forked.run(tmp_path, "evaluate.py", processes=number)
        assert {code for code, _ in evaluated} == {0}, evaluated
        assert all(not printed.strip() for _, printed in evaluated[1:]), evaluated
        evaluations.append((pd.read_parquet(run / "predictions.parquet"), json.loads((run / "metrics.json").read_text())))
    (alone, metrics_alone), (together, metrics_together) = evaluations
    rounded = ["logits", "probability"]
    assert alone.drop(columns=rounded).equals(together.drop(columns=rounded)) and len(alone) == 16
    np.testing.assert_allclose(np.stack(alone.logits), np.stack(together.logits), rtol=1e-4, atol=1e-5)
    assert metrics_alone["accuracy"] == metrics_together["accuracy"] > 0.9
    make_rows(26).to_csv(tmp_path / "in.csv", index=False)
    for number in (1, 2):
        results = forked.run(tmp_path, "predict.py", "--file", "in.csv", "--out", f"out-{number}.csv", processes=number)
        assert {code for code, _ in results} == {0}, results
    labelled = [pd.read_csv(tmp_path / f"out-{number}.csv") for number in (1, 2)]
    assert labelled[1].review.tolist() == make_rows(26).review.tolist()
    pd.testing.assert_frame_equal(*labelled, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learnin_rate", 1], "did you mean --learning_rate?"),
        (["--dataset_name", "nowhere.csv"], "no such file"),
        (["--run_name", "taken"], "never overwritten"),
        (["--batch_size", 1], "raise batch_size"),
        (["--search", 2], "not with torchrun"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)
def test_a_mistake_on_two_processes_gives_one_message_and_exit_code_2(flags, words, tiny_flags, tmp_path):
    (tmp_path / "outputs" / "taken").mkdir(parents=True)
    (first, message), (second, second_output) = forked.run(tmp_path, "fine_tune.py", *tiny_flags, *flags, processes=2)
    assert (first, second) == (2, 2), message + second_output
    assert message.count("error: ") == 1 and words in message and "Traceback" not in message and not second_output.strip()
    assert not [*(tmp_path / "outputs").glob(".*")], "no name stays reserved"


def test_the_first_process_decides_for_all_and_different_data_are_refused(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from finetuning import processes\n"
        "from finetuning.ending import exit_cleanly\n"
        "from finetuning.errors import UserError\n"
        "@processes.by_first\n"
        "def wrong(): raise UserError('of ' + os.environ['RANK'])\n"
        "@exit_cleanly\n"
        "def main():\n"
        "    processes.start()\n"
        "    open('decided-' + os.environ['RANK'], 'w').write(processes.by_first(lambda: 'by ' + os.environ['RANK'])())\n"
        "    try: wrong()\n"
        "    except UserError as error: assert str(error) == 'of 0'\n"
        "    processes.require_same('weather', 'the same')\n"
        "    processes.require_same('data', os.environ['RANK'])\n"
        "main()\n"
    )
    (first, message), (second, _) = forked.run(tmp_path, tmp_path / "script.py", processes=2)
    assert (first, second) == (2, 2) and "different data" in message
    assert [(tmp_path / f"decided-{rank}").read_text() for rank in (0, 1)] == ["by 0", "by 0"]


def test_a_start_without_torchrun_uses_one_gpu_and_prints_how_to_use_all(monkeypatch, capsys):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--preset", "full"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    processes.start()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    printed = capsys.readouterr()
    assert "torchrun --nproc_per_node 4 fine_tune.py --preset full" in printed.err
    assert printed.out == "", "`predict.py --json` prints nothing but JSON"


@pytest.mark.parametrize("script", ["fine_tune.py", "evaluate.py", "predict.py", "export.py", "app.py"])
def test_each_script_joins_the_processes_before_it_reads_anything(script, call, monkeypatch):
    def stop():
        raise UserError("processes.start was called")

    monkeypatch.setattr(processes, "start", stop)
    gradio = ModuleType("gradio")  # imported by app.py
    gradio.__spec__ = ModuleSpec("gradio", None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    result = call(script)
    assert result.code == 2 and "processes.start was called" in result.err


def test_a_killed_process_ends_the_others_and_the_run_continues_with_another_number_of_processes(tiny_flags, tmp_path):
    """Takes long, because torchrun starts its processes from scratch."""
    flags = [*tiny_flags, "--num_train_epochs", "4000", "--eval_steps", "5", "--max_length", "16"]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", str(ROOT / "fine_tune.py"), *flags]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "outputs" / "run"
    forked.wait_for_checkpoint(started, folder)
    second = next(p for p in psutil.Process(started.pid).children(recursive=True) if p.environ().get("RANK") == "1")
    second.kill()
    messages = started.communicate(timeout=60)[1]
    assert started.returncode == 1 and "--resume outputs/run continues from the last checkpoint" in messages
    forked.end_at_checkpoint(folder)  # the other epochs would take minutes
    ((code, printed),) = forked.run(tmp_path, "fine_tune.py", "--resume", "outputs/run")
    assert code == 0 and json.loads((folder / "training.json").read_text())["validation"]["step"] >= 5, printed


def test_the_processes_of_two_machines_train_one_run(tiny_flags, tmp_path):
    """As on a shared disk: each process is the first one of its machine."""
    flags = [*tiny_flags, "--num_train_epochs", 1]
    (first, printed), (second, nothing) = forked.run(tmp_path, "fine_tune.py", *flags, processes=2, machines=2)
    assert (first, second) == (0, 0), printed + nothing
    assert "run folder" in printed and not nothing.strip()
    assert (tmp_path / "outputs" / "run" / "adapter").is_dir()


@pytest.mark.slow
def test_two_torchrun_commands_train_one_run_on_two_machines(tiny_flags, tmp_path):
    """Takes long, because two torchrun commands and their processes start from scratch at the same time."""
    flags = [*tiny_flags, "--num_train_epochs", "1"]
    with socket.socket() as reserved:  # until both have ended, so that no other test takes the port
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = ["--master_addr", "127.0.0.1", "--master_port", str(reserved.getsockname()[1])]
        agents = [
            subprocess.Popen(
                [*TORCHRUN, "--nnodes", "2", "--node_rank", node, *address, str(ROOT / "fine_tune.py"), *flags],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in "01"
        ]
        printed = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n\n".join(printed)
    assert "run folder" in printed[0] and "run folder" not in printed[1]
    assert (tmp_path / "outputs" / "run" / "adapter").is_dir()
