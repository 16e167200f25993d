"""Starting the application from the command line: on this machine, or in a cluster that runs already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.serving.scaling.application import Application, Scale
from rmlora_deploy.serving.scaling.coordinator import open_coordinator
from rmlora_deploy.serving.scaling.ray_app import build_application

__all__ = ["APPLICATION", "run_on_ray"]

APPLICATION = "rmlora"
"""Its name in Ray Serve."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves this machine unless somebody wants it
    "RAY_AUTH_MODE": "token",  # Ray listens on every interface: nobody without the token of this start may talk to it
    "RAY_SERVE_LOG_TO_STDERR": "0",  # Ray's own log stays in its files
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # nothing of ours blocks for long, and a hop costs more
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""What a Ray started here is told, unless the environment says something else."""


def run_on_ray(
    application: Application,
    scale: Scale,
    *,
    host: str,
    port: int,
    address: str | None,
    on_progress: Callable[[str], None],
) -> None:
    """Serve until somebody stops it; what was accepted is answered before it ends.

    Args:
        application: what to serve.
        scale: in which size.
        host: address that Ray's proxy listens on; in a cluster whose proxies run, theirs counts.
        port: its port; 0 takes a free one.
        address: of the cluster to join; None starts Ray on this machine.
        on_progress: called with lines for the person who started it.

    Raises:
        ConfigError: the cluster cannot be joined, the machine is too small, the port is taken, or the replicas do not start.
    """
    if address is None:
        for name, value in _ENVIRONMENT.items():  # before Ray is imported, which reads them once
            os.environ.setdefault(name, value)
    import ray
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    port = port if address is not None else _free_port(host, port)
    on_progress("starting Ray" if address is None else f"joining the cluster at {address}")
    _connect(address)
    try:
        if address is None:
            _check_size(scale, application.settings.threads or 1)
        serve.start(http_options={"host": host, "port": port})
        on_progress(f"starting {scale.replicas or scale.min_replicas} replicas")
        try:
            serve.run(build_application(application, scale), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise ConfigError(_reason(error)) from None
        shown = f"[{host}]" if ":" in host else host
        on_progress(f"{len(application.bundles)} bundles on http://{shown}:{port}  (Ctrl-C stops)")
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
            raise ConfigError(f"The cluster at {address} cannot be joined: {_reason(error)}") from None
        return
    ray.init("local", include_dashboard=False, **common)


def _check_size(scale: Scale, threads: int) -> None:
    """A replica that finds no place waits for ever, which looks like a slow start."""
    import ray

    wanted, there = (scale.replicas or scale.max_replicas) * threads, ray.cluster_resources().get("CPU", 0)
    if wanted > there:
        raise ConfigError(
            f"{wanted // threads} replicas of {threads} threads need {wanted} CPUs, and this machine has {there:g}: take "
            "fewer --replicas or --threads."
        )


def _free_port(host: str, port: int) -> int:
    """Return a port that can be listened on: Ray itself says little when it cannot."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port."
        ) from None


def _stop(application: Application) -> None:
    """Take the application down; replicas answer first what they have accepted."""
    import ray
    from ray import serve
    from ray.exceptions import RayError

    try:
        serve.delete(APPLICATION)
        ray.kill(open_coordinator(application.shared_dir))
    except (RayError, RuntimeError) as error:  # the cluster has gone before us
        logging.getLogger("rmlora.serve").warning("stopping: %s", _reason(error))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
