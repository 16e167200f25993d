"""What is served on Ray, and at which scale, as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.runtime.providers import get_provider
from rmlora_deploy.serving.host_names import LOOPBACK_HOSTS
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["APPLICATION", "INGRESS", "REPLICA", "Application", "Scale"]

APPLICATION = "rmlora"
"""Name of the application in Ray Serve."""
REPLICA, INGRESS = "Replica", "Ingress"
"""Names of its two deployments."""

_KEY_VARIABLE = "RMLORA_API_KEY"


@dataclass(frozen=True)
class Application:
    """What is served. As plain values, it is ``args`` in a config file."""

    bundles: Mapping[str, str]
    """Name → directory, which every node must be able to read."""
    shared_dir: str
    """Directory for adapters loaded at run time, the same one on all nodes."""
    settings: ServeSettings
    """Without the key, because what Ray stores can be read by many; every process takes it from its environment."""
    key_required: bool = False
    """True if a process without a key in its environment must not start."""

    def to_args(self) -> dict[str, Any]:
        """Return it as plain values, with the settings that differ from the defaults."""
        settings = {
            item.name: getattr(self.settings, item.name)
            for item in fields(ServeSettings)
            if getattr(self.settings, item.name) != item.default and item.name != "api_key"
        }
        settings.pop("allowed_hosts", None)
        if self.settings.allowed_hosts != _default_hosts(self.key_required):
            settings["allowed_hosts"] = list(self.settings.allowed_hosts)
        if self.settings.adapter_dirs:
            settings["adapter_dirs"] = [str(path) for path in self.settings.adapter_dirs]
        return {
            "bundles": dict(self.bundles),
            "shared_dir": self.shared_dir,
            "settings": settings,
            "key_required": self.key_required,
        }

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Application:
        """Return the application that :meth:`to_args` described.

        Raises:
            ConfigError: a key is missing or unknown, or a setting is invalid.
        """
        known = {item.name for item in fields(cls)}
        settings = dict(args.get("settings") or {})
        unknown = sorted(set(args) - known) + sorted(set(settings) - {item.name for item in fields(ServeSettings)})
        if unknown or "api_key" in settings:
            raise ConfigError(
                f"'{unknown[0]}' is not a known argument: remove it from 'args'."
                if unknown
                else f"'api_key' does not belong in 'args': set {_KEY_VARIABLE} in the environment of every node."
            )
        if not args.get("bundles") or not args.get("shared_dir"):
            raise ConfigError("'args' needs 'bundles' (name: directory) and 'shared_dir'.")
        settings["adapter_dirs"] = tuple(Path(path) for path in settings.get("adapter_dirs", ()))
        key_required = bool(args.get("key_required", False))
        settings["allowed_hosts"] = tuple(settings.get("allowed_hosts", _default_hosts(key_required)))
        settings.setdefault("threads", 1)
        return cls(
            {str(name): str(path) for name, path in args["bundles"].items()}, str(args["shared_dir"]),
            ServeSettings(**settings), key_required,
        )  # fmt: skip

    def with_key(self) -> ServeSettings:
        """Return the settings with the key from this process's environment.

        Raises:
            ConfigError: the application needs a key and there is none.
        """
        key = os.environ.get(_KEY_VARIABLE) or None
        if key is None and self.key_required:
            raise ConfigError(
                f"{_KEY_VARIABLE} is not set in the environment of this node, and the application needs a key."
            )
        return replace(self.settings, api_key=key)


def _default_hosts(key_required: bool) -> tuple[str, ...]:
    """Return the names that the application answers to if nothing is said of them."""
    return () if key_required else LOOPBACK_HOSTS


@dataclass(frozen=True)
class Scale:
    """How many processes run, and what each may use."""

    replicas: int | None = None
    """A fixed number; None scales with the load."""
    min_replicas: int = 1
    max_replicas: int = 2
    ingress_replicas: int = 2

    def __post_init__(self) -> None:
        for name in ("replicas", "min_replicas", "max_replicas", "ingress_replicas"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"--min-replicas {self.min_replicas} is more than --max-replicas {self.max_replicas}: lower it."
            )

    def options(self, settings: ServeSettings) -> dict[str, dict[str, Any]]:
        """Return Ray Serve's options for each deployment.

        A replica is busy once it has as many requests as its batch has rows. Four times that many may be in progress in
        it; the rest waits outside, from where it can still go to another replica.
        """
        shutdown = {"graceful_shutdown_timeout_s": settings.drain + 5, "graceful_shutdown_wait_loop_s": 0.5}
        health = {"health_check_period_s": 5, "health_check_timeout_s": 15}
        replica: dict[str, Any] = {
            "max_ongoing_requests": 4 * settings.max_batch,
            "max_queued_requests": settings.max_queue,
            "ray_actor_options": {
                "num_cpus": settings.threads or 1,
                "num_gpus": 0 if get_provider(settings.provider).device == "cpu" else 1,
            },
            **shutdown,
            **health,
        }
        if self.replicas is not None:
            replica["num_replicas"] = self.replicas
        else:
            replica["autoscaling_config"] = {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": settings.max_batch,
            }
        ingress: dict[str, Any] = {
            "num_replicas": self.ingress_replicas,
            "max_ongoing_requests": 2 * settings.max_queue,
            "ray_actor_options": {"num_cpus": 0},
            **shutdown,
            **health,
        }
        return {REPLICA: replica, INGRESS: ingress}
