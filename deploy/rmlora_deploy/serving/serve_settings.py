"""The settings of a server. The defaults suit one machine without a load balancer in front."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ConfigError
from rmlora_deploy.serving.host_names import LOOPBACK_HOSTS, read_host

__all__ = ["ServeSettings"]

_MAX_SECONDS = 86_400
"""One day: a longer time is a mistake."""
_COUNTS = (
    "max_active_adapters", "workers", "max_batch", "max_queue", "max_inputs", "max_characters", "max_request_characters", "max_body",
    "max_pixels", "max_request_pixels",
)  # fmt: skip
"""Settings that must be at least 1."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits and choices of a server; each has a flag of the same name."""

    provider: str = "cpu"
    threads: int | None = None
    """Threads of one run; None lets ONNX Runtime choose."""
    max_active_adapters: int = 64
    """Adapters kept in memory, for each bundle."""
    workers: int = 1
    """Batches computed at the same time."""
    max_batch: int = 16
    """Rows of a batch."""
    max_wait_ms: float = 2.0
    """Maximum time a request waits for others to batch with while the model is idle."""
    max_queue: int = 1024
    """Rows that may wait; more are refused with 429."""
    max_inputs: int = 256
    """Inputs of one request."""
    max_characters: int = 100_000
    """Characters of one text."""
    max_request_characters: int = 1_000_000
    """Characters of all texts of one request."""
    max_body: int = 8 * 2**20
    """Bytes of a request's body."""
    max_pixels: int = 25_000_000
    """Pixels of one image."""
    max_request_pixels: int = 100_000_000
    """Pixels of all images of one request."""
    timeout: float = 30.0
    """Seconds until a request without an answer ends with 504."""
    body_timeout: float = 10.0
    """Seconds within which a request's body must arrive."""
    write_timeout: float = 30.0
    """Seconds within which a client must read what is sent to it."""
    drain: float = 20.0
    """Seconds that a server which is shutting down spends on the requests it has accepted."""
    api_key: str | None = None
    """Key that clients must send as a bearer token; None lets everybody in."""
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    """Names in the header Host that requests are answered for (:mod:`rmlora_deploy.serving.middleware.hosts`); with none given, for all."""
    adapter_dirs: tuple[Path, ...] = ()
    """Directories that adapters may be loaded from at run time; with none, loading is off."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        for name in ("timeout", "body_timeout", "write_timeout", "drain"):
            if not 0 < getattr(self, name) <= _MAX_SECONDS:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must be more than 0 and at most {_MAX_SECONDS} seconds, not "
                    f"{getattr(self, name)}."
                )
        if not 0 <= self.max_wait_ms <= 1000 * _MAX_SECONDS:
            raise ConfigError(f"--max-wait-ms must be between 0 and {1000 * _MAX_SECONDS}, not {self.max_wait_ms}.")
        if self.max_inputs > self.max_queue:
            raise ConfigError(
                f"--max-inputs {self.max_inputs} would never fit into --max-queue {self.max_queue}: make the queue longer."
            )
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The API key is empty: give a key, or leave --api-key out.")
        for host in self.allowed_hosts:
            if read_host(host) is None:
                raise ConfigError(
                    f"--allowed-host '{host}' is not a host: give a name or address, with a port or without, such as "
                    "models.example.com or '[::1]:8000'; '*' allows all."
                )
        for directory in self.adapter_dirs:
            if not directory.is_dir():
                raise ConfigError(f"--adapter-dir {directory} is not a directory.")
