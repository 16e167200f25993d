"""Writing benchmark results, with the environment that makes them comparable."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rmlora.storage import write_json
from rmlora_deploy.bench.machine import gpu_names, processor_name, usable_cores

__all__ = ["RESULTS", "environment", "write_result"]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "onnxscript", "numpy",
)  # fmt: skip


def write_result(name: str, value: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Write ``<name>.json``, by default into ``benchmarks/results``, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    write_json(path, value)
    return path


def environment() -> dict[str, Any]:
    """Return the command, processor, number of cores, GPUs and package versions of this run."""
    packages: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    module = sys.modules["__main__"].__spec__
    command = f"python -m {module.name}" if module else os.path.basename(sys.argv[0])
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "processor": processor_name(),
        "cores": len(usable_cores()),
        "gpus": gpu_names(),
        "python": platform.python_version(),
        "packages": packages,
    }
