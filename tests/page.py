"""Start the page of app.py in a process of its own, and ask it as a browser does."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from conftest import ROOT


@contextmanager
def serving(run: str | Path, folder: Path) -> Iterator[str]:
    """Yield the address of the page of a run. The file app.err in `folder` has what its process prints on the standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # Gradio takes a later one if it is no longer free
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "app.py"), str(run)]
    with (folder / "app.err").open("w") as errors:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield next(line for line in process.stdout if "Running on local URL" in line).split()[-1]
    finally:
        process.kill()
        process.communicate()


def request(address: str, path: str, body, kind: str = "application/json") -> tuple[int, str]:
    """Send a request to the page's API; return the status and the content of the answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    body = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection.request("GET" if body is None else "POST", f"/gradio_api/{path}", body, {"Content-Type": kind})
    response = connection.getresponse()
    return response.status, response.read().decode()


def answer(address: str, *data) -> str:
    """Return the events with which the page answers a text."""
    event = json.loads(request(address, "call/answer", {"data": data})[1])["event_id"]
    return request(address, f"call/answer/{event}", None)[1]
