"""The requests that are fuzzed: bodies of every route, sent to the server's application in this process."""

from __future__ import annotations

import asyncio
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz.mutations import change_json, change_text
from rmlora_deploy.serving.app import create_app
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["ROUTES", "change_request", "send"]

ROUTES = ("classify", "v1+embeddings", "v1+load_lora_adapter", "v1+unload_lora_adapter", "v2+models+one+infer")
"""Seeds of bodies; a plus stands for a slash."""

_TYPES = (b"application/json",) * 8 + (b"text/plain", b"application/json; charset=utf-16", b"\xff", b"")


class ServerFailedError(Exception):
    """The server answered with a status that says it failed."""


def change_request(rng: random.Random, content: bytes) -> bytes:
    """Change a request's body."""
    return (change_json if rng.random() < 0.8 else change_text)(rng, content)


@cache
def _application(directory: Path) -> tuple[Any, asyncio.AbstractEventLoop]:
    metrics = Metrics()
    settings = ServeSettings(
        threads=1, adapter_dirs=(directory,), max_body=1 << 20, max_characters=5000, timeout=8, max_queue=256
    )
    registry = Registry(settings, metrics.batch)
    for name in ("bundle", "vectors"):
        registry.open(directory / name, name=name)
    return create_app(registry, metrics), asyncio.new_event_loop()


def send(directory: Path, file: str, rng: random.Random) -> None:
    """Send the changed body to its route and check that the answer is one that clients can use."""
    path = directory / file
    if not path.is_file() or path.stat().st_size > 4 << 20:
        return
    application, loop = _application(directory)
    route = "/" + path.stem.replace("+", "/")
    status, body = loop.run_until_complete(_post(application, route, path.read_bytes(), rng))
    if status >= 500:
        raise ServerFailedError(f"{route} answered {status}: {body[:200]!r}")
    if route.startswith("/v1/") and route.endswith("adapter") and status == 200:
        return
    json.loads(body)
    if b"Traceback" in body or b'File "' in body:
        raise ServerFailedError(f"{route} answered with a traceback: {body[:200]!r}")


async def _post(application: Any, path: str, body: bytes, rng: random.Random) -> tuple[int, bytes]:
    """Return status and body of the application's answer; exceptions in it are raised here."""
    kind, declared = rng.choice(_TYPES), rng.choice((len(body),) * 9 + (0, 10**6, 10**30))
    headers = [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", str(declared).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop(0)
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def respond(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, respond)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])
