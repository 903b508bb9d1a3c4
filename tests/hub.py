"""A local server that accepts uploads as the Hugging Face Hub does."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def hub_for_uploads() -> Iterator[tuple[str, list[dict], dict[str, dict[str, bytes]]]]:
    """Yield the server's address, the requests to create repositories, and the uploaded files by repository and path."""
    created, uploaded = [], {}

    class Hub(BaseHTTPRequestHandler):
        def answer(self, content) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer({})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
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

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address, created, uploaded
    finally:
        server.shutdown()
