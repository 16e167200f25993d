"""The ingress: reads which adapter a request is for and forwards it to a replica that has used this adapter lately."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.shedding import INFERENCE_PATHS, model_hint
from rmlora_deploy.serving.middleware.stack import wrap
from rmlora_deploy.serving.scaling.application import REPLICA, Application
from rmlora_deploy.serving.scaling.asgi import Call, Reply, read_call, send_reply
from rmlora_deploy.serving.scaling.coordinator import open_coordinator
from rmlora_deploy.serving.scaling.metrics_aggregation import merge_metrics, merge_stats
from rmlora_deploy.serving.schemas import error_body

__all__ = ["Forward", "Ingress", "named_adapter"]

_ATTEMPTS = 6
"""How often a request is sent; one that changes something is sent only once. That a replica stops is known here only after a
moment, on a busy machine after seconds."""
_UNAVAILABLE = 2
"""How often a request for an unavailable model is sent: another replica may still have the adapter in memory."""
_PAUSE = 0.1
"""Seconds before the second attempt; doubled before each further one."""
_REPORTS_TIMEOUT = 5.0
"""Seconds within which the coordinator must return the replicas' figures."""
_PARSED = 64 * 1024
"""Bytes of a body that is parsed to find the adapter; in larger ones it is only searched for."""
_MAX_NAME = 100
"""Characters of an adapter's name."""
_log = logging.getLogger("rmlora.serve")


class Ingress:
    """ASGI application; Ray Serve copies it into every ingress process, where the first message sets it up."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            settings = self._application.with_key()
            self._app = wrap(Forward(_replicas(), self._application, settings.timeout), settings, Metrics())
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        else:
            await self._app(scope, receive, send)


class Forward:
    """Forwards requests to the replicas; runs behind the middleware.

    Args:
        replicas: Ray Serve's handle on them.
        application: what they serve.
        timeout: seconds for an answer.
    """

    def __init__(self, replicas: Any, application: Application, timeout: float) -> None:
        self._answer = replicas.answer
        self._application, self._timeout = application, timeout
        self._coordinator: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = await read_call(scope, receive)
        except HTTPException as error:  # the body is too large or too slow
            await send_reply(_refuse(scope["path"], error.status_code, str(error.detail)), send)
            return
        call.headers.append((b"x-request-id", scope["state"]["request_id"].encode()))
        if call.method == "GET" and call.path in ("/metrics", "/stats"):
            reply = await self._aggregate(call.path)
        else:
            reply = await self._ask(call)
        await send_reply(reply, send)

    async def _ask(self, call: Call) -> Reply:
        """Return a replica's reply; if a replica dies or is stopping, another one is asked, and in the end it is a 503."""
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError
        from ray.serve.exceptions import BackPressureError, RayServeException

        adapter = named_adapter(call, self._application.bundles)
        end = time.monotonic() + self._timeout
        refusal: Reply | None = None
        attempts = 1 if call.path.endswith("_lora_adapter") else _ATTEMPTS
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1))
            # Later attempts go anywhere: with the adapter's name they would go to the same replica again.
            named = adapter is not None and attempt == 0
            method = self._answer.options(multiplexed_model_id=adapter) if named else self._answer
            try:
                reply: Reply = await asyncio.wait_for(method.remote(call), max(0.0, end - time.monotonic()))
            except TimeoutError:
                return _refuse(call.path, 504, f"There was no answer within {self._timeout:g} s: try again later.")
            except BackPressureError:
                return _refuse(call.path, 429, "Too many requests are waiting: try again in 1 s.")
            except (RayTaskError, TaskCancelledError) as error:
                _log.error("a replica failed on a request to %s: %s", call.path, error)
                return _refuse(call.path, 500, "The server failed on this request; the replica's log says why.")
            except (RayError, RayServeException) as error:
                _log.warning("attempt %d of %s: %s", attempt + 1, call.path, type(error).__name__)
                continue
            if reply.status != 503:
                return reply
            refusal = reply
            if not _is_passing(reply) and attempt + 1 >= _UNAVAILABLE:
                break
        return refusal or _refuse(call.path, 503, "No replica could answer: try again in 1 s.")

    async def _aggregate(self, path: str) -> Reply:
        """Return the metrics or stats of all replicas together."""
        from ray.exceptions import RayError

        try:
            if self._coordinator is None:
                self._coordinator = await asyncio.to_thread(open_coordinator, self._application.shared_dir)
            reports = await asyncio.wait_for(self._coordinator.reports.remote(), _REPORTS_TIMEOUT)
        except (TimeoutError, RayError):
            self._coordinator = None
            return _refuse(path, 503, "The replicas' figures are not available at the moment: try again in 1 s.")
        if not reports:
            return _refuse(path, 503, "No replica has reported its figures yet: try again in 1 s.")
        if path == "/metrics":
            texts = {replica: report["metrics"].decode() for replica, report in reports.items()}
            content = await asyncio.to_thread(merge_metrics, texts)
            return Reply(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], content)
        stats = merge_stats([json.loads(report["stats"]) for report in reports.values()])
        return Reply(200, [(b"content-type", b"application/json")], json.dumps(stats).encode())


def named_adapter(call: Call, bundles: Collection[str]) -> str | None:
    """Return the adapter that a request is for; None if any replica may answer it."""
    if call.method != "POST":
        return None
    parts = call.path.split("/")
    if call.path in INFERENCE_PATHS:
        try:
            name = json.loads(call.body)["model"] if len(call.body) <= _PARSED else model_hint(call.body)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None  # the replica says what is wrong
    elif parts[:3] == ["", "v2", "models"] and parts[-1] == "infer":
        name = unquote(parts[3])
    elif parts[:2] == ["", "models"] and len(parts) == 3:
        name = unquote(parts[2])
    else:
        return None
    return name if isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name not in bundles else None


def _is_passing(reply: Reply) -> bool:
    """Return True if a replica refused because it stops or has lost contact, so that another one will answer."""
    return any(name.lower() == b"retry-after" for name, _ in reply.headers)


def _replicas() -> Any:
    from ray import serve

    return serve.get_deployment_handle(REPLICA, serve.get_replica_context().app_name)


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """Acknowledge startup and shutdown, which need no work."""
    message: Message = {"type": ""}
    while message["type"] != "lifespan.shutdown":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


def _refuse(path: str, status: int, message: str) -> Reply:
    headers = [(b"content-type", b"application/json")]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    return Reply(status, headers, json.dumps(error_body(path, status, message)).encode())
