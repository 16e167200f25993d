"""The options of ``rmlora-deploy serve`` for Ray Serve (``--ray``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rmlora.errors import ConfigError

__all__ = ["ray_options", "take_ray_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = {
    "replicas": click.option("--replicas", type=int, help="With --ray: number of replicas.  [default: 2]"),
    "min_replicas": click.option(
        "--min-replicas", type=int, help="With --ray: scale with the load; smallest number of replicas.  [default: 1]"
    ),
    "max_replicas": click.option(
        "--max-replicas", type=int, help="With --ray: scale with the load; largest number of replicas."
    ),
    "ingress_replicas": click.option(
        "--ingress-replicas", type=int, help="With --ray: processes that forward requests.  [default: 2]"
    ),
    "shared_dir": click.option(
        "--shared-dir",
        type=click.Path(path_type=Path),
        help="With --ray: directory that all nodes share, for adapters loaded at run time.  [default: temporary, on one machine]",
    ),
    "ray_address": click.option(
        "--ray-address", help="With --ray: cluster to join.  [default: start Ray on this machine]"
    ),
    "config_file": click.option(
        "--write-config",
        "config_file",
        type=click.Path(path_type=Path),
        help="With --ray: write a config file for  serve deploy  and stop.",
    ),
}
"""Parameter → its option."""


def ray_options(function: _Function) -> _Function:
    """Decorate a command with ``--ray`` and its options."""
    for option in reversed(_OPTIONS.values()):
        function = option(function)
    return click.option("--ray", "on_ray", is_flag=True, help="Run several replicas, on Ray Serve.")(function)


def take_ray_options(given: dict[str, Any], *, on_ray: bool) -> dict[str, Any]:
    """Remove the values of these options from ``given`` and return them.

    Raises:
        ConfigError: one of them was given without ``--ray``.
    """
    taken = {name: given.pop(name) for name in _OPTIONS}
    for name, value in taken.items():
        if value is not None and not on_ray:
            flag = "--write-config" if name == "config_file" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} needs --ray: add it, or leave {flag} out.")
    return taken
