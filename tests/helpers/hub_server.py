"""A server on this machine that takes repositories as the Hugging Face hub does, for ``huggingface_hub`` itself."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["TOKEN", "Hub", "serve_hub"]

TOKEN = "hf_of_the_tests"  # noqa: S105 - of no account


@dataclass
class Hub:
    """What the server has been told."""

    address: str
    private: dict[str, bool] = field(default_factory=dict)
    """Repository → whether its owner alone sees it."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository → file → content."""
    full: bool = False
    """Commits are refused."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server; it takes :data:`TOKEN` only."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            return self._answer(*_post(hub, self.path, body))

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()


def _post(hub: Hub, path: str, body: str) -> tuple[int, dict[str, Any]]:
    """Return status and answer of a request."""
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        status = 409 if name in hub.private else 200
        hub.private.setdefault(name, "private" in (asked.get("visibility"), asked.get("private") and "private"))
        return status, {"url": f"{hub.address}/{name}"}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    name, _, action = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
    if action == "preupload":
        modes = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}
    if hub.full:
        return 507, {"error": "Storage quota exceeded"}
    for line in body.splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            content = base64.b64decode(entry["value"]["content"])
            hub.files.setdefault(name, {})[entry["value"]["path"]] = content
    return 200, {"commitUrl": f"{hub.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
