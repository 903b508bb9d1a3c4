"""Several processes make one run, with one voice; a plain start uses one GPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import apart
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT, make_rows

from finetuning import processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def test_one_run_folder_one_writer_one_voice_and_every_row_once_in_its_order(tiny_flags, tmp_path):
    trained = apart.run(tmp_path, "fine_tune.py", *tiny_flags, "--precision", "float32", processes=2)
    assert [code for code, _ in trained] == [0, 0], trained
    assert trained[0][1].count("run folder:") == 1 and not trained[1][1].strip(), "the second is not heard"
    (run,) = (tmp_path / "outputs").iterdir()
    assert json.loads((run / "config.json").read_text())["environment"]["hardware"].startswith("2 processes")
    found = {}
    for several in (1, 2):
        evaluated = apart.run(tmp_path, "evaluate.py", processes=several)
        assert {code for code, _ in evaluated} == {0} and all(not said.strip() for _, said in evaluated[1:]), evaluated
        found[several] = pd.read_parquet(run / "predictions.parquet"), json.loads((run / "metrics.json").read_text())
    (one, alone), (two, shared) = found[1], found[2]
    assert one.drop(columns=["logits", "probability"]).equals(two.drop(columns=["logits", "probability"])) and len(one) == 16
    np.testing.assert_allclose(np.stack(one.logits), np.stack(two.logits), rtol=1e-4, atol=1e-5)
    assert alone["accuracy"] == shared["accuracy"] > 0.9
    make_rows(26).to_csv(tmp_path / "in.csv", index=False)
    for several in (1, 2):
        done = apart.run(tmp_path, "predict.py", "--file", "in.csv", "--out", f"out-{several}.csv", processes=several)
        assert {code for code, _ in done} == {0}, done
    labelled = [pd.read_csv(tmp_path / f"out-{several}.csv") for several in (1, 2)]
    assert labelled[1].review.tolist() == make_rows(26).review.tolist()
    pd.testing.assert_frame_equal(*labelled, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learnin_rate", 1], "did you mean --learning_rate?"),
        (["--learning_rate", "fast"], "invalid float value"),
        (["--dataset_name", "nowhere.csv"], "no such file"),
        (["--run_name", "taken"], "never overwritten"),
        (["--batch_size", 1], "raise batch_size"),
        (["--search", 2], "not with torchrun"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)
def test_a_mistake_is_one_message_and_exit_code_2(flags, words, tiny_flags, tmp_path):
    (tmp_path / "outputs" / "taken").mkdir(parents=True)
    (first, said), (second, silence) = apart.run(tmp_path, "fine_tune.py", *tiny_flags, *flags, processes=2)
    assert (first, second) == (2, 2), said + silence
    assert said.count("error: ") == 1 and words in said and "Traceback" not in said and not silence.strip()


def test_the_first_decides_for_all_and_different_files_are_refused(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from finetuning import processes\n"
        "from finetuning.cli import exit_cleanly\n"
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
    (first, said), (second, _) = apart.run(tmp_path, tmp_path / "script.py", processes=2)
    assert (first, second) == (2, 2) and "different data" in said
    assert [(tmp_path / f"decided-{rank}").read_text() for rank in (0, 1)] == ["by 0", "by 0"]


def test_a_plain_start_with_several_gpus_uses_one_and_says_how_to_use_all(monkeypatch, capsys):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--preset", "full"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    processes.start()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "torchrun --nproc_per_node 4 fine_tune.py --preset full" in capsys.readouterr().out


def test_a_killed_rank_ends_the_others_and_the_run_goes_on_with_another_number_of_processes(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--num_train_epochs", "4000", "--eval_steps", "5", "--max_length", "16"]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", str(ROOT / "fine_tune.py"), *flags]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "outputs" / "run"
    for _ in started.stdout:  # a line for each validation: read on until there is a checkpoint
        if list(folder.glob("checkpoints/checkpoint-*/whole.json")):
            break
    second = next(p for p in psutil.Process(started.pid).children(recursive=True) if p.environ().get("RANK") == "1")
    second.kill()
    killed = time.monotonic()
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 1 and time.monotonic() - killed < 60
    assert "--resume outputs/run goes on from the last checkpoint" in said
    config = json.loads((folder / "config.json").read_text())
    config["config"]["num_train_epochs"] = 0.01  # the rest would take minutes; the checkpoint is beyond this already
    (folder / "config.json").write_text(json.dumps(config))
    ((code, said),) = apart.run(tmp_path, "fine_tune.py", "--resume", "outputs/run")
    assert code == 0 and json.loads((folder / "training.json").read_text())["validation"]["step"] >= 5, said


def test_two_machines_are_two_torchruns(tiny_flags, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1])]
    flags = [*tiny_flags, "--num_train_epochs", "1"]
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
    said = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "run folder:" in said[0] and "run folder:" not in said[1] and (tmp_path / "outputs" / "run" / "adapter").is_dir()


def test_sigterm_is_an_interruption_that_can_be_resumed(tiny_flags, tmp_path):
    death = apart.Death("transformers:Trainer.training_step", 10, signal=signal.SIGTERM)
    ((code, said),) = apart.run(tmp_path, "fine_tune.py", *tiny_flags, death=death)
    assert code == 143 and "--resume outputs/run goes on" in said and "Traceback" not in said
