"""Start the page of app.py in a process of its own, and ask it as a browser does."""

import http.client
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import forked


class Lines:
    """Prepares a forked script: the file with what it prints has each line at once."""

    def prepare(self) -> None:
        sys.stdout.reconfigure(line_buffering=True)


@contextmanager
def serving(run: str | Path, folder: Path) -> Iterator[str]:
    """Yield the address of the page of a run. The file app.out in `folder` has what its process prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # Gradio takes a later one if it is no longer free
    environment = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    output = folder / "app.out"
    output.write_text("")
    process = forked.fork("app.py", [str(run)], folder, environment, Lines(), output)
    try:
        while not (line := re.search(r"Running on local URL: +(\S+)\n", output.read_text())):
            assert process.is_alive(), output.read_text()
            time.sleep(0.1)
        yield line[1]
    finally:
        process.kill()
        process.join()


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
