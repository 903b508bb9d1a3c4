"""Local servers that accept uploads and give downloads as the Hugging Face Hub does."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlparse

import datasets
import huggingface_hub
from huggingface_hub.utils.sha import git_hash

COMMIT = "1" * 40
LARGE = (".safetensors", ".parquet")  # stored by Git LFS, named by their SHA-256


def use_hub(address: str, folder: Path, timeout: float, replace: Callable = setattr) -> None:
    """Let this process use the Hub at `address`, with caches in `folder`."""
    settings = dict(ENDPOINT=address, HUGGINGFACE_CO_URL_TEMPLATE=address + "/{repo_id}/resolve/{revision}/{filename}")
    settings |= dict(HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(folder / "hub"), AGENT_HARNESSES_PATH=str(folder / "agents.json"))
    settings |= dict(HF_HUB_DOWNLOAD_TIMEOUT=timeout, HF_HUB_ETAG_TIMEOUT=timeout)
    for name, value in settings.items():
        replace(huggingface_hub.constants, name, value)
    for name, value in dict(HF_ENDPOINT=address, HF_MODULES_CACHE=folder / "modules", HF_HUB_OFFLINE=False).items():
        replace(datasets.config, name, value)


class Request(BaseHTTPRequestHandler):
    """A request to one of the servers, with the means to read it and to answer."""

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def hub_for_uploads() -> Iterator[tuple[str, list[dict], dict[str, dict[str, bytes]]]]:
    """Accept uploads. Yield the server's address, the requests to create repositories, and the files by repository and path."""
    created, uploaded = [], {}

    class Upload(Request):
        def answer(self, content) -> None:
            self.send(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]  # a repository keeps the visibility with which it was created first
            visibility = next((repository.get("visibility") for repository in created if repository["name"] == name), None)
            self.answer({"id": f"me/{name}", "private": visibility == "private"})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.read_body()
            repo = "/".join(self.path.split("/")[3:5])
            if self.path == "/api/repos/create":
                created.append(json.loads(body))
                name = f"me/{created[-1]['name']}"
                return self.answer({"url": f"{address}/{name}", "id": name})
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            if "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                uploaded.setdefault(repo, {}).update({f["path"]: base64.b64decode(f["content"]) for f in files})
                return self.answer({"commitUrl": f"{address}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})
            self.answer({"errors": [], "warnings": []})  # the check of a model card's header

    with _serve(Upload) as address:
        yield address, created, uploaded


class Download(Request):
    """A request to the server of `hub_for_downloads`."""

    protocol_version = "HTTP/1.1"
    folders: dict[str, Path]
    fault: Callable | None

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.close_connection = False
        if not (self.fault and type(self).fault(self)):
            self.answer()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.paths = parse_qs(self.read_body().decode()).get("paths", [])
        self.do_GET()

    @property
    def file(self) -> Path | None:
        """The file that is asked for, if it is one."""
        folder, rest = self.find()
        return folder / rest.split("/", 2)[2] if folder and rest.startswith("resolve/") else None

    def find(self) -> tuple[Path | None, str]:
        """Return the folder of the repository that is asked for, and the rest of the path."""
        path = unquote(urlparse(self.path).path).removeprefix("/api")
        for name, folder in self.folders.items():
            for prefix in (f"/{name}", f"/{name.removeprefix('models/')}"):
                if path == prefix or path.startswith(f"{prefix}/"):
                    return folder, path.removeprefix(prefix).strip("/")
        return None, ""

    def answer(self) -> None:
        """Answer as the Hub does."""
        folder, rest = self.find()
        if self.path == "/":
            self.send(b"")
        elif folder is None:
            self.refuse(404, "RepoNotFound")
        elif self.file:
            self.send_file() if self.file.is_file() else self.refuse(404, "EntryNotFound")
        elif rest.startswith(("tree/", "paths-info/")):
            if rest.count("/") > 1:  # a folder within the repository
                return self.refuse(404, "EntryNotFound")
            entries = [self.entry(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
            if rest.startswith("paths-info/"):
                entries = [entry for entry in entries if entry["path"] in self.paths]
            self.send(json.dumps(entries).encode())
        elif not rest or rest.startswith("revision/"):
            files = [{"rfilename": str(file.relative_to(folder))} for file in folder.rglob("*") if file.is_file()]
            self.send(json.dumps({"id": "me/name", "sha": COMMIT, "siblings": files, "tags": []}).encode())
        else:
            self.refuse(404, "EntryNotFound")

    @staticmethod
    def entry(folder: Path, file: Path) -> dict:
        size, path = file.stat().st_size, str(file.relative_to(folder))
        large = {"lfs": {"oid": etag(file), "size": size, "pointerSize": 100}} if file.suffix in LARGE else {}
        return {"type": "file", "path": path, "size": size, "oid": git_hash(file.read_bytes())} | large

    def refuse(self, status: int, code: str | None = None, **headers: str) -> bool:
        """Answer with an error. `headers` have underscores for hyphens."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()} | ({"X-Error-Code": code} if code else {})
        self.send(b"", status, headers | {"X-Repo-Commit": COMMIT})
        return True

    def send_file(self, content: bytes | None = None) -> None:
        """Send the file that is asked for, or a part of it; `content` replaces it."""
        content = self.file.read_bytes() if content is None else content
        headers = {"ETag": f'"{etag(self.file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if part := self.headers.get("Range"):
            start = int(part.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(content[start:], 206, headers)
        self.send(content, 200, headers)


def etag(file: Path) -> str:
    """Return the name that the Hub gives to a file's content: SHA-256 of a large file, git's hash of a small one."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix in LARGE else git_hash(file.read_bytes())


@contextmanager
def hub_for_downloads(folders: dict[str, Path]) -> Iterator[tuple[str, type[Download]]]:
    """Serve the files of folders as repositories, models/ME/NAME or datasets/ME/NAME.

    Yield the server's address, and the class of its requests. Its `fault`, a function of a request, answers instead of the server
    if it returns True. Its `requests` are those so far.
    """
    handler = type("Handler", (Download,), dict(folders=folders, fault=None, requests=[]))
    with _serve(handler) as address:
        yield address, handler


@contextmanager
def _serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # a client that has ended the connection
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
