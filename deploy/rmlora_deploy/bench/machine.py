"""The machine that is measured on: cores, memory, processor and versions."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rmlora_deploy.runtime.processor_name import processor_name

__all__ = [
    "OthersWatch",
    "describe_machine",
    "gpu_names",
    "peak_mb",
    "pin",
    "processor_name",
    "resident_mb",
    "usable_cores",
]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers", "peft", "numpy")


def usable_cores() -> tuple[int, ...]:
    """Return the cores this process may run on (``taskset`` and containers restrict them)."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def pin(cores: Sequence[int]) -> bool:
    """Keep this process on ``cores``; return whether the system can do that (Linux can)."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, cores)
    return True


def resident_mb() -> float | None:
    """Return the memory this process occupies now, in MiB; None if the system does not report it."""
    return _status("VmRSS")


def peak_mb() -> float | None:
    """Return the most memory this process has occupied, in MiB; None if the system does not report it.

    ``getrusage`` would be portable, but a process inherits its figure from the parent across ``exec``.
    """
    return _status("VmHWM")


class OthersWatch:
    """Measures how much other programs have used this process's cores since the object was made."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores
        self._wall, self._own, self._busy = time.monotonic(), time.process_time(), _busy_seconds(cores)

    def share(self) -> float | None:
        """Return their share of the cores' time, 0 to 1; None if the system does not report it."""
        busy, before = _busy_seconds(self._cores), self._busy
        wall = (time.monotonic() - self._wall) * len(self._cores)
        if busy is None or before is None or wall <= 0:
            return None
        return min(1.0, max(0.0, (busy - before - (time.process_time() - self._own)) / wall))


def describe_machine() -> dict[str, Any]:
    """Return the processor, the number of cores, the GPUs, the system, and versions."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "cores": len(usable_cores()),
        "gpus": gpu_names(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
    }


def gpu_names() -> list[str]:
    """Return NVIDIA's GPUs of this machine, each with its memory and the driver's version; empty if there are none."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [", driver ".join(line.rsplit(", ", 1)) for line in found.splitlines() if line.strip()]


def _busy_seconds(cores: Sequence[int]) -> float | None:
    """Return how long ``cores`` have been busy since the machine started, in seconds."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in cores}
    counters = [[int(field) for field in line.split()[1:9]] for line in lines if line.split()[0] in names]
    ticks = sum(user + nice + system + irq + soft + steal for user, nice, system, _, _, irq, soft, steal in counters)
    return ticks / float(os.sysconf("SC_CLK_TCK")) if counters else None


def _status(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)
