"""Runs the application on a Ray cluster, one started on this machine or one that is running already."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from rmlora.errors import ConfigError
from rmlora.wording import counted
from rmlora_deploy.serving.address import http_url, listen
from rmlora_deploy.serving.scaling.application import APPLICATION, Application, Scale
from rmlora_deploy.serving.scaling.coordinator import open_coordinator
from rmlora_deploy.serving.scaling.deployments import build_application

__all__ = ["run_on_ray"]

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics leave this machine unless somebody turns them on
    "RAY_AUTH_MODE": "token",  # Ray listens on every interface: only processes with this token may talk to it
    "RAY_SERVE_LOG_TO_STDERR": "0",  # Ray's own log goes to its files only
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # our code never blocks for long, and another thread costs more
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Settings for a Ray started here, unless the environment has others."""


def run_on_ray(
    application: Application,
    scale: Scale,
    *,
    host: str,
    port: int,
    address: str | None,
    on_progress: Callable[[str], None],
) -> None:
    """Serve until stopped by a signal; requests that were accepted are answered before it returns.

    Args:
        application: what to serve.
        scale: how many processes.
        host: address that Ray's proxy listens on; has no effect in a cluster whose proxies are running already.
        port: port of the proxy; 0 takes a free one.
        address: cluster to join; None starts Ray on this machine.
        on_progress: called with lines for the person who started it.

    Raises:
        ConfigError: the cluster cannot be joined, the machine is too small, the port is taken, or no replica starts.
    """
    if address is None:
        for name, value in _ENVIRONMENT.items():  # before Ray is imported, which reads them only once
            os.environ.setdefault(name, value)
    import ray
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: on_progress("SIGHUP changes nothing on Ray: deploy a new release."))
    if address is None:
        with listen(host, port) as listener:  # Ray's own error says little if the port is taken
            port = listener.getsockname()[1]
    on_progress("starting Ray" if address is None else f"joining the cluster at {address}")
    _connect(address)
    try:
        if address is None:
            _check_size(scale, application.settings.threads or 1)
        serve.start(http_options={"host": host, "port": port})
        on_progress(f"starting {counted(scale.replicas or scale.min_replicas, 'replica')}")
        try:
            serve.run(build_application(application, scale), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise ConfigError(_reason(error)) from None
        on_progress(f"{counted(len(application.bundles), 'bundle')} on {http_url(host, port)}  (Ctrl-C stops)")
        while not stop.wait(1):
            pass
    finally:
        _stop(application)
        ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    common: dict[str, Any] = {"logging_level": logging.WARNING, "namespace": APPLICATION}
    if address is not None:
        try:
            ray.init(address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"Cannot join the cluster at {address}: {_reason(error)}") from None
        return
    ray.init("local", include_dashboard=False, **common)


def _check_size(scale: Scale, threads: int) -> None:
    """Raise if the machine has too few CPUs: Ray would wait for ever, which looks like a slow start."""
    import ray

    needed, available = (scale.replicas or scale.max_replicas) * threads, ray.cluster_resources().get("CPU", 0)
    if needed > available:
        raise ConfigError(
            f"{needed // threads} replicas of {threads} threads need {needed} CPUs, and this machine has {available:g}: "
            "reduce --replicas (--max-replicas) or --threads."
        )


def _stop(application: Application) -> None:
    """Delete the application; replicas first answer the requests they have accepted."""
    import ray
    from ray import serve
    from ray.exceptions import RayError

    try:
        serve.delete(APPLICATION)
        ray.kill(open_coordinator(application.shared_dir))
    except (RayError, RuntimeError) as error:  # the cluster stopped first
        logging.getLogger("rmlora.serve").warning("stopping: %s", _reason(error))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
