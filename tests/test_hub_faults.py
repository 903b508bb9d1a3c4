"""Downloads from a local Hub that refuses, stalls, breaks off, or sends wrong bytes."""

import resource
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from conftest import change_a_byte, make_rows
from datasets import Dataset
from hub import COMMIT, LARGE, hub_for_downloads, use_hub

from finetuning.data import hub as hub_module
from finetuning.data import sources
from finetuning.disk import sha256
from finetuning.errors import UserError

NAMES = dict(model_name="me/model", dataset_name="me/rows")


@pytest.fixture
def hub(model_dir, tmp_path, monkeypatch):
    """Serve a model and a data set, to clients with empty caches."""
    (tmp_path / "rows").mkdir()
    Dataset.from_pandas(make_rows()).to_parquet(tmp_path / "rows" / "train.parquet")
    with hub_for_downloads({"models/me/model": model_dir, "datasets/me/rows": tmp_path / "rows"}) as (address, requests):
        use_hub(address, tmp_path, 5, monkeypatch.setattr)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub_module.hub_answers.cache_clear()
        yield requests
        hub_module.hub_answers.cache_clear()


def open_source(setting: str, name: str | None = None) -> sources.Source:
    name = name or NAMES[setting]
    return sources.find_model(name) if setting == "model_name" else sources.find_rows(name)[1]


def is_large(request) -> bool:
    """Return whether a request is for the weights or the rows."""
    return request.command == "GET" and request.file is not None and request.file.suffix in LARGE


@pytest.mark.parametrize("setting", NAMES)
def test_a_download_is_announced_once(setting, hub, capsys):
    assert open_source(setting).origin == "hub"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert line.startswith(f"note: downloading {NAMES[setting]} from http://127.0.0.1:")
    hub.requests.clear()
    assert open_source(setting).origin == "hub" and not any(map(is_file, hub.requests)), "from the cache"
    assert "note" not in capsys.readouterr().err


def test_all_files_of_a_model_are_downloaded_but_no_pickles(model_dir, tmp_path, monkeypatch):
    model = shutil.copytree(model_dir, tmp_path / "model")
    for name in ("source.spm", "chat_template.jinja", "pytorch_model.bin"):
        (model / name).write_text("of a model")
    with hub_for_downloads({"models/me/model": model}) as (address, _):
        use_hub(address, tmp_path, 5, monkeypatch.setattr)
        hub_module.hub_answers.cache_clear()
        downloaded = {file.name for file in Path(open_source("model_name").path).iterdir()}
    hub_module.hub_answers.cache_clear()
    assert downloaded == {file.name for file in model.iterdir()} - {"pytorch_model.bin"}


def is_file(request: str) -> bool:
    return request.startswith("GET") and request.endswith(LARGE)


REFUSALS = {
    "401": (lambda request: request.refuse(401), "(error 401): check the name, or log in"),
    "403": (lambda request: request.refuse(403), "(error 403): ask for access"),
    "gated": (lambda request: request.refuse(401, "GatedRepo"), "(error 403): ask for access"),
    "404": (lambda request: request.refuse(404, "RepoNotFound"), "(error 404): check the name"),
    "429": (lambda request: request.refuse(429, Retry_After="300"), "(error 429): try again later, or log in"),
    "limit": (lambda request: request.refuse(429, RateLimit='"api";r=0;t=280'), "it asks to wait for 280 s"),
    "500": (lambda request: request.refuse(500), "is out of order (error 500): try again later"),
    "503": (lambda request: request.refuse(503), "is out of order (error 503): try again later"),
}


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("part", ["all", "file"])
@pytest.mark.parametrize("setting", NAMES)
def test_a_refusal_is_one_message_and_brings_no_stand_in(setting, part, fault, hub, monkeypatch):
    refuse, words = REFUSALS[fault]
    monkeypatch.setitem(sources.STAND_IN_MODEL, "me/model", sources.STAND_IN_MODEL["distilbert-base-uncased"])
    monkeypatch.setitem(sources.STAND_IN_DATA, "me/rows", sources.STAND_IN_DATA["stanfordnlp/imdb"])
    hub.fault = lambda request: request.path != "/" and (part == "all" or is_large(request)) and refuse(request)
    with pytest.raises(UserError) as error:
        open_source(setting)
    message = str(error.value)
    assert message.startswith(f"{setting}={NAMES[setting]}: ") and words in message and "\n" not in message, message


def test_a_refusal_of_the_server_with_the_files_is_named(hub):
    def redirect(request) -> bool:
        if request.path == "/files/1":
            return request.refuse(403)
        if is_large(request):
            request.send(b"", 302, {"Location": "/files/1"})
        return is_large(request)

    hub.fault = redirect
    with pytest.raises(UserError, match=r"model_name=me/model: .*\(error 403\)"):
        open_source("model_name")


def test_a_short_wait_is_kept(hub, capsys):
    """The Hub sends its limit with every answer. Only one that is used up makes its clients wait for a new one."""
    refused = []

    def refuse_once(request) -> bool:
        if not is_large(request) or refused:
            return False
        refused.append(request)
        return request.refuse(429, RateLimit='"api";r=9;t=280', Retry_After="2")

    hub.fault = refuse_once
    assert open_source("model_name").origin == "hub" and len(refused) == 1
    assert "note: the Hugging Face Hub answers with error 429; trying again" in capsys.readouterr().err


def cut(request) -> bool:
    """Send half of the file, and end the connection."""
    content = request.file.read_bytes()
    request.send(content[: len(content) // 2], headers={"Content-Length": str(len(content))})
    request.close_connection = True
    return True


def stall(request) -> bool:
    """Send nothing until the client gives up."""
    request.connection.recv(1)
    request.close_connection = True
    return True


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)


@pytest.mark.parametrize("fault", [cut, stall])
@pytest.mark.parametrize("setting", NAMES)
def test_a_download_that_breaks_off_or_stalls_ends_with_one_message(setting, fault, hub, impatient):
    hub.fault = lambda request: is_large(request) and fault(request)
    with pytest.raises(UserError) as error:
        open_source(setting)
    message = str(error.value)
    assert message.startswith(f"{setting}={NAMES[setting]}: ") and "\n" not in message, message
    assert "breaks off or is too slow: try again later" in message


@pytest.mark.parametrize("setting", NAMES)
def test_a_hub_that_stalls_after_its_first_answer_ends_with_one_message(setting, hub, impatient):
    hub.fault = lambda request: request.path != "/" and stall(request)
    with pytest.raises(UserError, match=f"{setting}=.* breaks off or is too slow"):
        open_source(setting)


def cached(tmp_path: Path) -> list[Path]:
    """Return the files in the Hub's cache that decide a run's numbers."""
    return [file for file in sorted(tmp_path.glob("hub/*/snapshots/*/*")) if file.suffix != ".md"]


@pytest.mark.parametrize("setting", NAMES)
def test_a_damaged_file_of_the_cache_is_downloaded_again(setting, hub, tmp_path, monkeypatch, capsys):
    source = open_source(setting)
    files = cached(tmp_path)
    assert len(files) == (4 if setting == "model_name" else 1)
    for file in files:
        intact = file.read_bytes()
        file.write_bytes(change_a_byte(intact))
        shutil.rmtree(tmp_path / "datasets", ignore_errors=True)  # else its rows are used
        capsys.readouterr()
        assert open_source(setting) == source and file.read_bytes() == intact
        assert f"note: {file.name} of {NAMES[setting]} was damaged" in capsys.readouterr().err
    hashed = []
    for module in (hub_module, sources):
        monkeypatch.setattr(module, "sha256", lambda file: hashed.append(file.name) or sha256(file))
    assert open_source(setting) == source and len(set(hashed)) == len(hashed), "each file is read once"


@pytest.mark.parametrize("setting", NAMES)
def test_a_byte_that_changes_on_the_way_is_noticed(setting, hub, tmp_path, capsys):
    n_answers = []

    def change(request, always: bool) -> bool:
        if not is_large(request) or (n_answers and not always):
            return False
        n_answers.append(1)
        request.send_file(change_a_byte(request.file.read_bytes()))
        return True

    hub.fault = lambda request: change(request, always=True)
    with pytest.raises(UserError, match=f"{setting}={NAMES[setting]}: .* was damaged .* try again") as error:
        open_source(setting)
    assert len(n_answers) == 2 and "\n" not in str(error.value)
    n_answers.clear()
    hub.fault = lambda request: change(request, always=False)
    assert open_source(setting).origin == "hub" and len(n_answers) == 1
    assert "downloading it again" in capsys.readouterr().err


def test_a_damaged_file_is_an_error_without_the_hub(hub, tmp_path, monkeypatch):
    open_source("model_name")
    weights = next(file for file in cached(tmp_path) if file.suffix in LARGE)
    weights.write_bytes(change_a_byte(weights.read_bytes()))
    hub_module.hub_answers.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model_name=me/model: model.safetensors of .* was damaged .* with a connection to the Hub"):
        open_source("model_name")
    with pytest.raises(UserError, match="its cache lacks it"):
        open_source("model_name")
    hub_module.hub_answers.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert open_source("model_name").origin == "hub"


@pytest.mark.parametrize("setting", NAMES)
def test_a_download_without_room_names_the_cache(setting, hub, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=f"^cannot write to {tmp_path}/hub: .* HF_HOME"):
            open_source(setting)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not [file for file in tmp_path.glob("hub/*/blobs/*") if file.stat().st_size == 2000], "no partial file is left"
    assert open_source(setting).origin == "hub"


def test_a_file_that_cannot_be_read_is_one_message(hub, tmp_path):
    (tmp_path / "rows" / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError) as error:
        open_source("dataset_name")
    assert str(error.value).startswith("dataset_name=me/rows: ") and "\n" not in str(error.value), error.value


def test_two_names_of_one_damaged_content_are_downloaded_again(hub, tmp_path, model_dir):
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    shutil.copy(copy / "config.json", copy / "other.json")
    hub.folders["models/me/model"] = copy
    source = open_source("model_name")
    (tmp_path / "hub" / "models--me--model" / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert open_source("model_name") == source and (Path(source.path) / "other.json").read_text() != "{}"
