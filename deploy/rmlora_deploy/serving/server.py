"""Runs the application with uvicorn until it is stopped."""

from __future__ import annotations

import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from rmlora.wording import counted
from rmlora_deploy.serving.address import http_url, listen
from rmlora_deploy.serving.app import create_app
from rmlora_deploy.serving.connection import connection_class
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.reload import reloaded_by_signal
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.service import Service

__all__ = ["HttpServer", "run_server"]

_NEW_OBJECTS = 20_000
"""Objects made and not freed after which the garbage collector looks for cycles. Requests leave hardly any."""
_IDLE_SECONDS = 30
"""How long a connection may stay open without a request."""


def run_server(
    bundles: Mapping[str, Path], settings: ServeSettings, *, host: str, port: int, on_progress: Callable[[str], None]
) -> None:
    """Serve ``bundles`` (name → path) on ``host`` and ``port``; returns once it was stopped and has answered everything.

    Args:
        bundles: what to serve.
        settings: limits.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        on_progress: called with lines for the person who started it.

    Raises:
        ConfigError: the server cannot listen on the address, or two models have the same name.
        InputError: a bundle is damaged.
        ProviderError: the provider is missing.
    """
    listener = listen(host, port)  # before any bundle is loaded, so that a port in use is reported at once
    metrics = Metrics()
    registry = Registry(settings, metrics.batch)
    try:
        with _ended_by_sigterm(), reloaded_by_signal(registry):
            for name, path in bundles.items():
                on_progress(f"opening {path}")
                registry.open(path, name=name).warm_up()
            if settings.adapter_dirs and registry.merged_only:
                on_progress(f"--adapter-dir has no effect. {registry.no_loading}")
            server = HttpServer(registry, metrics)
            _collect_rarely()
            with _stopped_by_signals(server):
                url = http_url(host, listener.getsockname()[1])
                on_progress(f"{counted(len(registry.models), 'model')} on {url}  (Ctrl-C stops)")
                server.run(sockets=[listener])
    finally:
        listener.close()
    if server.force_exit:
        raise KeyboardInterrupt  # a second signal: do not wait


class HttpServer(uvicorn.Server):
    """Answers HTTP requests for ``registry`` until it is stopped, and then those that it has already accepted."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        app = create_app(registry, metrics)
        self._service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app, http=connection_class(registry.settings.write_timeout), ws="none", proxy_headers=False, log_config=None, access_log=False, server_header=False,
                timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=math.ceil(registry.settings.drain),
            )
        )  # fmt: skip

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; requests in progress have the drain time, counted from now."""
        self._service.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # in this case uvicorn does not shut the application down
            self._service.stop(at_once=True)
            await self.lifespan.shutdown()


def _collect_rarely() -> None:
    """Spare the garbage collector what stays: scanning it again and again would cost up to a tenth of the server's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, with what was begun cleaned up, while no request has been accepted yet."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop ``server`` on Ctrl-C and SIGTERM, and keep uvicorn from ending the process by the same signal afterwards.

    While it runs, uvicorn installs its own handlers; these apply before and after.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
