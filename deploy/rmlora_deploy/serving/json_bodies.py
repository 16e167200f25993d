"""Parses the JSON bodies of requests: small ones at once, large ones in another process, so that nothing waits for them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from rmlora_deploy.serving.supervised import run_in_background

__all__ = ["JsonBodies", "JsonRoute"]

_SMALL = 64 * 1024
"""Bytes of a body that takes at most a few milliseconds, whatever is in it."""
_MEDIUM, _VALUES = 1 << 20, 10_000
"""Bytes and values of a body that does not take longer, because most of it is text."""
_LONG = 1000
"""Items that are kept of a long list of other things than numbers or texts, unless requests may have more inputs."""
_SECONDS = 10.0
"""Time after which parsing is given up."""
_NICENESS = 10
"""How much lower the priority of the process is: it reads and writes a lot of memory, which slows other work down."""
_log = logging.getLogger("rmlora.serve")


class JsonBodies:
    """Parses bodies; the process is started when it is first needed.

    Args:
        most: inputs of a request; what is left out of a long list lies behind more than these.
    """

    def __init__(self, most: int) -> None:
        self._longest = max(_LONG, most + 1)
        self._thread = ThreadPoolExecutor(1, "json")
        self._process: subprocess.Popen[bytes] | None = None

    async def parse(self, body: bytes) -> Any:
        """Return the value that ``body`` holds; long lists of numbers are numpy arrays.

        Raises:
            json.JSONDecodeError: it is not valid JSON, not UTF-8, nested too deep, or has a number that is too long.
            HTTPException: parsing takes too long or too much memory, or the server cannot start the process.
        """
        if is_quick(body):
            try:
                return json.loads(body)
            except json.JSONDecodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise json.JSONDecodeError(type(error).__name__, "", 0) from None
        try:
            kind, *values = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, body)
        except HTTPException:
            raise
        except Exception as error:  # noqa: BLE001 - FastAPI would take it for an invalid body
            _log.error("large bodies cannot be parsed", exc_info=error)
            raise HTTPException(503, "The server cannot read large bodies at the moment: its log says why.") from None
        if kind == "memory":
            raise _too_large()
        if kind == "error":
            raise json.JSONDecodeError(values[0], "", values[1])
        return _with_numpy(values[0])

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.kill()

    def _ask(self, body: bytes) -> Any:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        limit = threading.Timer(_SECONDS, process.kill)
        limit.start()
        try:
            process.stdin.write(struct.pack("<Q", len(body)))
            process.stdin.write(body)
            process.stdin.flush()
            (size,) = struct.unpack("<Q", process.stdout.read(8))
            return pickle.loads(process.stdout.read(size))  # noqa: S301 - from our own process
        except (OSError, struct.error, EOFError, pickle.UnpicklingError):
            process.kill()
            raise _too_large() from None
        finally:
            limit.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, started anew if it has ended."""
        if self._process is None or self._process.poll() is not None:
            script = Path(__file__).parent / "json_child.py"
            # Interrupts of a terminal are not for it. In a session of its own Linux would give it half of a core whatever its
            # niceness is, which counts within a session only (sched_autogroup).
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(script), str(self._longest)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                process_group=0 if os.name == "posix" else None,
            )  # fmt: skip
            run_in_background(_NICENESS, self._process.pid)
        return self._process


class JsonRoute(APIRoute):
    """A route whose body is parsed by the application's :class:`JsonBodies` (``app.state.service.json``)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler with another way to parse the body."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        bodies: JsonBodies = self.app.state.service.json
        return await bodies.parse(await self.body())


def _too_large() -> HTTPException:
    return HTTPException(413, "The body takes too long or too much memory to parse: send fewer values at once.")


def is_quick(body: bytes) -> bool:
    """Return True if ``body`` can be parsed in the event loop."""
    if len(body) <= _SMALL:
        return True
    return len(body) <= _MEDIUM and sum(map(body.count, (b",", b"[", b"{"))) <= _VALUES


def _with_numpy(value: Any) -> Any:
    """Return ``value`` with its arrays as numpy arrays."""
    if isinstance(value, array):
        return np.frombuffer(value, {"b": "bool", "q": "int64", "d": "float64"}[value.typecode])
    if isinstance(value, dict):
        return {key: _with_numpy(item) for key, item in value.items()}
    return [_with_numpy(item) for item in value] if isinstance(value, list) else value
