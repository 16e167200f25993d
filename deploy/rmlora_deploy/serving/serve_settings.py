"""What a server may be told; the defaults suit one machine behind nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ConfigError

__all__ = ["ServeSettings"]

_LONGEST = 86_400
"""Seconds of a day: nobody means to wait longer."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits and choices of a server; each has a flag of the same name."""

    provider: str = "cpu"
    threads: int | None = None
    """Threads of one run; None lets ONNX Runtime choose."""
    max_active_adapters: int = 64
    """Adapters kept in memory for each bundle."""
    workers: int = 1
    """Batches computed at the same time."""
    max_batch: int = 16
    """Rows computed at once."""
    max_wait_ms: float = 2.0
    """How long the first row of a batch waits for others while the model is idle."""
    max_queue: int = 1024
    """Rows that may wait; more are refused with 429."""
    max_inputs: int = 256
    """Rows of one request."""
    max_characters: int = 100_000
    """Characters of one text."""
    max_body: int = 8 * 2**20
    """Bytes of a request's body."""
    max_pixels: int = 25_000_000
    """Pixels of one picture."""
    timeout: float = 30.0
    """Seconds until a request that is not answered ends with 504."""
    body_timeout: float = 10.0
    """Seconds in which a request's body must have arrived."""
    drain: float = 20.0
    """Seconds that a server which is stopped gives to what it has accepted."""
    api_key: str | None = None
    """What clients must send as a bearer token; None lets everybody in."""
    adapter_dirs: tuple[Path, ...] = ()
    """Where adapters may be loaded from at run time; with none, loading is off."""

    def __post_init__(self) -> None:
        for name in (
            "max_active_adapters",
            "workers",
            "max_batch",
            "max_queue",
            "max_inputs",
            "max_characters",
            "max_body",
            "max_pixels",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        for name in ("timeout", "body_timeout", "drain"):
            if not 0 < getattr(self, name) <= _LONGEST:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must be more than 0 and at most {_LONGEST} seconds, not "
                    f"{getattr(self, name)}."
                )
        if not 0 <= self.max_wait_ms <= 1000 * _LONGEST:
            raise ConfigError(f"--max-wait-ms must be 0 to {1000 * _LONGEST}, not {self.max_wait_ms}.")
        if self.max_inputs > self.max_queue:
            raise ConfigError(
                f"--max-inputs {self.max_inputs} would never fit into --max-queue {self.max_queue}: make the queue longer."
            )
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The API key is empty: give one, or none at all.")
        for directory in self.adapter_dirs:
            if not directory.is_dir():
                raise ConfigError(f"--adapter-dir {directory} is not a directory.")
