"""Starting a worker: one contestant's job, done in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rmlora_deploy.bench.bench_plan import Engine, Use

__all__ = ["Job", "run_job"]


@dataclass(frozen=True)
class Job:
    """What a worker is told, as JSON on its stdin."""

    bundle: str
    engine: Engine
    provider: str
    threads: int
    cores: tuple[int, ...]
    """Cores to stay on; empty if the system cannot pin."""
    shapes: tuple[tuple[int, int | None], ...]
    """Pairs of rows and tokens (None for images)."""
    seconds: float
    warmup: int
    seed: int
    base: str | None
    adapter: str | None
    use: Use | None = None
    trust_remote_code: bool = False


def run_job(job: Job) -> dict[str, Any]:
    """Run ``job`` in a new process and return its result, or ``{"error": …}`` if anything goes wrong in it.

    Raises:
        KeyboardInterrupt: the worker was interrupted.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    process = subprocess.run(
        # -P: the user's working directory is not searched for modules, where a numpy.py would replace NumPy.
        [sys.executable, "-P", "-m", "rmlora_deploy.bench.worker"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if (
        process.returncode == -signal.SIGINT
    ):  # Ctrl-C goes to both processes, and ours may have been lost in a destructor
        raise KeyboardInterrupt
    if process.returncode:
        return {"error": f"its process died: {_last_words(process)}"}
    result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])  # libraries may have printed before it
    return result


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:
        return f"signal {signal.Signals(-process.returncode).name}"
    lines = process.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {process.returncode}"
