"""A finished run is used only if no file that decides its numbers has changed since."""

import json
import shutil
from pathlib import Path

import forked
import pytest
from filelock import FileLock
from forked import Kill

from finetuning import tasks
from finetuning.errors import UserError
from finetuning.results import run_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder for the run and the base model of this module."""
    return tmp_path_factory.mktemp("fingerprints")


@pytest.fixture
def run(trained, call, tiny_flags, model_dir) -> Path:
    """Return the evaluated run of this module; the first test that needs it trains it. Its base model is a private copy."""
    folder = trained / "outputs" / "run"
    if not folder.exists():
        shutil.copytree(model_dir, trained / "base")
        flags = ["--model_name", trained / "base", "--output_dir", trained / "outputs", "--num_train_epochs", 2]
        assert call("fine_tune.py", *tiny_flags, *flags).code == 0
        evaluated = call("evaluate.py", folder)
        assert evaluated.code == 0, evaluated.err
    return folder


@pytest.fixture
def changed(run):
    """Return a function that changes a file until the end of the test: `change` maps its original bytes to the new ones."""
    before = {}

    def change_file(file: Path, change) -> None:
        content = before.setdefault(file, file.read_bytes())
        file.write_bytes(change(content))

    yield change_file
    for file, content in before.items():
        file.write_bytes(content)


def edit(**entries):
    """Return a function that replaces entries of a JSON file, at any depth."""

    def change(content: bytes) -> bytes:
        replaced = []

        def replace(value: dict) -> dict:
            names = entries.keys() & value.keys()
            replaced.extend(names)
            return value | {name: entries[name] for name in names}

        content = json.loads(content, object_hook=replace)
        assert replaced
        return (json.dumps(content, indent=1) + "\n").encode()

    return change


def test_one_wrong_byte_in_any_file_of_a_run_is_found(run, changed):
    names = ["training.json", *json.loads((run / "training.json").read_text())["files"]]
    assert {"config.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/tokenizer.json"} < {*names}
    run_folder.open_run(run, tasks.pick)
    for name in names:
        size = (run / name).stat().st_size
        for position in range(0, size, size // 20):
            changed(run / name, lambda old, at=position: old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :])
            with pytest.raises(UserError, match=Path(name).name):
                run_folder.open_run(run, tasks.pick)
        changed(run / name, lambda old: old[:-10])
        with pytest.raises(UserError, match=Path(name).name):
            run_folder.open_run(run, tasks.pick)
        changed(run / name, lambda old: b"[" * 100_000)
        with pytest.raises(UserError, match=Path(name).name):
            run_folder.open_run(run, tasks.pick)
        changed(run / name, lambda old: old)
    run_folder.open_run(run, tasks.pick)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("training.json", edit(temperature=-1)),
        ("config.json", edit(label_names=["good", "bad"])),
        ("adapter/adapter_config.json", edit(lora_alpha=1)),
    ],
    ids=["temperature", "label_names", "lora_alpha"],
)
def test_changed_settings_are_refused(name, change, run, changed, call):
    changed(run / name, change)
    for script, *arguments in (("evaluate.py", run), ("predict.py", "--run", run, "a fine film"), ("export.py", run)):
        result = call(script, *arguments)
        assert result.code == 2 and name in result.err and "restore it, or train again" in result.err
        assert not result.out and len(result.err.splitlines()) == 1


def test_a_changed_tokenizer_or_config_of_the_base_model_is_refused(run, changed, call):
    base = run.parent.parent / "base"
    predict = ("predict.py", "--run", run, "a fine film")
    assert call(*predict).code == 0

    def swap(old: bytes) -> bytes:
        return old.replace(b'"fine"', b'"_"').replace(b'"dull"', b'"fine"').replace(b'"_"', b'"dull"')

    def refused(name: str) -> None:
        result = call(*predict)
        assert result.code == 2 and name in result.err and not result.out and len(result.err.splitlines()) == 1

    changed(base / "tokenizer.json", swap)
    refused("tokenizer.json")
    changed(base / "tokenizer.json", lambda old: old + b" ")
    refused("tokenizer.json")
    shutil.copy(run / "adapter" / "tokenizer.json", base / "tokenizer.json")
    changed(base / "config.json", edit(n_heads=2))
    refused("config.json")


@pytest.mark.parametrize("name", ["added_tokens.json", "chat_template.jinja"])
def test_a_new_tokenizer_file_of_the_base_model_is_refused(name, run, call):
    file = run.parent.parent / "base" / name
    file.write_text('{"fine": 5}')
    result = call("evaluate.py", run)
    file.unlink()
    assert result.code == 2 and name in result.err and "new" in result.err


# --- the evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predictions.parquet", "statistics.parquet", "metrics.json"])
def test_a_changed_evaluation_is_not_compared(name, run, changed, call):
    other = shutil.copytree(run, run.parent / f"other-{name}")
    same = call("evaluate.py", run, other)
    assert same.code == 0, same.err
    changed(run / name, lambda old: old.replace(b'"n": 16', b'"n": 17') if name == "metrics.json" else old[:90] + b"_" + old[91:])
    result = call("evaluate.py", other, run)
    assert result.code == 2 and name in result.err and f"python evaluate.py {run}" in result.err and not result.out


def test_a_killed_evaluation_never_leaves_new_files_beside_old_metrics(run, call, tmp_path):
    """The process is killed after it moved errors.csv, and before it moves metrics.json."""
    folder, other = (shutil.copytree(run, tmp_path / name) for name in ("run", "other"))
    (folder / "errors.csv").write_text("old")
    ((code, output),) = forked.run(tmp_path, "evaluate.py", folder, kill=Kill("finetuning.results.evaluation:move", 7))
    assert code == -9, output
    assert (folder / "errors.csv").read_text() != "old" and not (folder / "metrics.json").exists()
    assert (folder / ".evaluation").exists()
    compared = call("evaluate.py", folder, other)
    assert compared.code == 2 and "no complete evaluation" in compared.err
    again = call("evaluate.py", folder)
    assert again.code == 0, again.err
    assert {file.name for file in folder.iterdir()} == {file.name for file in other.iterdir()}, "nothing of the killed ones is left"
    assert (folder / "errors.csv").read_bytes() == (other / "errors.csv").read_bytes()
    assert call("evaluate.py", folder, other).code == 0


def test_two_evaluations_at_once_do_not_harm_each_other(run, call):
    with FileLock(run / ".evaluation.lock"):
        result = call("evaluate.py", run)
        assert result.code == 2 and "another evaluate.py is writing" in result.err
    assert call("evaluate.py", run).code == 0
