"""``python -m benchmarks``: every measurement that the documentation states, one after the other (about an hour)."""

from __future__ import annotations

import subprocess
import sys

MEASUREMENTS = (
    "training_step",
    "accuracy",
    "plain_trainer",
    "graphs",
    "int8",
    "merge_memory",
    "merge_speed",
    "branches",
    "soak",
    "kills",
    "serving",
    "shared_machine",
    "overload",
    "hostile_client",
    "provider_speed",
    "serving_ray",
)
"""Modules of this package; each writes benchmarks/results/<name>.json."""

for name in MEASUREMENTS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
