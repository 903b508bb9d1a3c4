"""The Hugging Face Hub: whether it answers, downloads that end with one clear message, and checks of the files in its cache.

All requests of its clients, huggingface_hub and datasets, pass through one `Watch`.
"""

import functools
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import _detect_agent, parse_ratelimit_headers, validate_repo_id
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.sha import git_hash
from tqdm import tqdm

from finetuning.data.cache import MOVE_CACHE
from finetuning.disk import room_in, sha256
from finetuning.errors import UserError
from finetuning.processes import by_first

_detect_agent._registry = {}  # else the client downloads a list of agents and keeps it for a day, even if it is a proxy's error page
ANSWER_TIMEOUT = 2.5  # seconds; without it, the Hub's clients retry for 25 to 49 s
PATIENCE = 60  # seconds that a download waits if the Hub asks for it
RETRIED = (429, 500, 502, 503, 504)  # HTTP status of an answer that may be another one soon
NOT_ON_HUB = (httpx2.HTTPError, ConnectionError, FileNotFoundError)  # the clients raise these or subclasses
LOGIN = "log in with a token that has access (hf auth login, or HF_TOKEN)"
REFUSALS = {  # HTTP status -> what is wrong, and the remedy
    401: f"the Hub does not have it, or gives it only after a login (error 401): check the name, or {LOGIN}",
    403: f"the Hub gives it only to users with access (error 403): ask for access on its page, and {LOGIN}",
    404: "the Hub does not have it (error 404): check the name, or give the path of a local copy",
    429: f"the Hub has too many requests from this address (error 429): try again later, or {LOGIN}, which allows more",
}


@functools.cache
def hub_answers() -> bool:
    """Return whether the Hub answers. The first call asks, in under 3 seconds, for all processes of the run.

    With `HF_HUB_OFFLINE=1` nothing is asked. If the Hub does not answer, its clients only use their caches from then on.
    """
    answers = _ask_hub()
    if not answers:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return answers


@by_first
def _ask_hub() -> bool:
    """Return whether the Hub answers within `ANSWER_TIMEOUT`."""
    answers = []

    def ask() -> None:
        try:
            answer = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT)
        except Exception:  # any error means that it does not answer
            return
        if answer.status_code in RETRIED:
            problem = f"the Hugging Face Hub answers with error {answer.status_code}"
            print(f"note: {problem}, so this run does without it; try again later to use it", file=sys.stderr)
            return
        answers.append(True)

    if not huggingface_hub.is_offline_mode():
        thread = threading.Thread(target=ask, daemon=True)  # a thread, because looking up the host has no timeout
        thread.start()
        thread.join(ANSWER_TIMEOUT)
    return bool(answers)


class Watch:
    """Watches the Hub's answers during the download of `name`, and ends it if the Hub asks to wait for long."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refusal: httpx2.Response | None = None  # the last answer with an error
        self.notes: set[str] = set()

    def client(self) -> httpx2.Client:
        """Return a client whose requests and answers are watched."""
        client = default_client_factory()
        client.event_hooks["request"].append(self.before_request)
        client.event_hooks["response"].append(self.after_answer)
        return client

    def before_request(self, request: httpx2.Request) -> None:
        request.extensions["timeout"] = httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()  # some requests have none

    def after_answer(self, answer: httpx2.Response) -> None:
        is_optional = self.name not in answer.url.path or answer.headers.get("X-Error-Code") == "EntryNotFound"
        if answer.is_error and not is_optional:
            self.refusal = answer
        if answer.status_code in RETRIED:
            limit = parse_ratelimit_headers(answer.headers)
            is_used_up = limit is not None and limit.remaining == 0
            wait = str(limit.reset_in_seconds if is_used_up else answer.headers.get("Retry-After", "0"))
            if wait.isdigit() and int(wait) > PATIENCE:
                raise UserError(f"{self.problem()} (it asks to wait for {wait} s)")
            self.note(f"the Hugging Face Hub answers with error {answer.status_code}; trying again")
        if answer.is_success and answer.request.method == "GET" and "/resolve/" in answer.url.path:
            self.note(f"downloading {self.name} from {constants.ENDPOINT}")

    def problem(self, error: Exception | None = None) -> str:
        """Return what is wrong with the Hub, and the remedy."""
        refusal = getattr(error, "response", None) or self.refusal
        if refusal is None and isinstance(error, datasets.exceptions.FileNotFoundDatasetsError):
            return " ".join(str(error).split())  # a repository without files that can be read
        if refusal is None:
            return "the connection to the Hub breaks off or is too slow: try again later, or give the path of a local copy"
        status = refusal.status_code
        out_of_order = f"the Hub is out of order (error {status}): try again later, or give the path of a local copy"
        return REFUSALS.get(403 if refusal.headers.get("X-Error-Code") == "GatedRepo" else status, out_of_order)

    def note(self, text: str) -> None:
        """Print a note once."""
        if text not in self.notes:
            self.notes.add(text)
            tqdm.write(f"note: {text}", file=sys.stderr)


@contextmanager
def watched(setting: str, name: str) -> Iterator[None]:
    """Raise `UserError`, which names the setting and a remedy, if the Hub does not give what is requested in the `with` block."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{setting}={name}: there is no such local path, and the Hub can't have this name: check it") from error
    watch = Watch(name)
    huggingface_hub.set_client_factory(watch.client)
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}={name}: {error}") from error
    except NOT_ON_HUB as error:
        if not hub_answers():
            raise
        raise UserError(f"{setting}={name}: there is no such local path, and {watch.problem(error)}") from error
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:  # of the clients, for an answer in another form
        problem = f"the answer of the Hub can't be read, perhaps because a proxy answers for it ({error})"
        raise UserError(f"{setting}={name}: {problem}: check the network, or give the path of a local copy") from error
    finally:
        huggingface_hub.set_client_factory(default_client_factory)


def download(setting: str, name: str, patterns: Iterable[str], **options) -> Path:
    """Return the folder with those files of a model or a data set that match `patterns`, from the Hub or its cache.

    A damaged file is deleted from the cache and downloaded again. Raise `UserError` if that is not possible, and one of
    `NOT_ON_HUB` if the Hub does not answer and its cache lacks the files.
    """
    for _ in range(2):
        with room_in(constants.HF_HUB_CACHE, MOVE_CACHE), watched(setting, name):
            folder = Path(
                huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=not hub_answers(), **options)
            )
        files = [file for pattern in patterns for file in folder.glob(pattern)]
        damaged = [file for file in files if not _is_intact(file.resolve())]
        if not damaged:
            return folder
        for file in damaged:
            file.resolve().unlink(missing_ok=True)  # several names may stand for one content
            file.unlink(missing_ok=True)
        names = ", ".join(str(file.relative_to(folder)) for file in damaged)
        problem = f"{names} of {name} was damaged in the cache of the Hugging Face Hub, so it was deleted"
        if not hub_answers():
            break
        print(f"note: {problem}; downloading it again", file=sys.stderr)
    raise UserError(f"{setting}={name}: {problem}: try again with a connection to the Hub, or give the path of a local copy")


def _is_intact(file: Path) -> bool:
    """Return whether a file of the cache has the content that its name says. Names are SHA-256, or git's hash of small files."""
    if re.fullmatch("[0-9a-f]{64}", file.name):
        return sha256(file) == file.name
    if re.fullmatch("[0-9a-f]{40}", file.name):
        content = file.read_bytes()
        return file.name in (git_hash(content), hashlib.sha1(content).hexdigest())  # some mirrors do without git
    return True
