"""Worker: a contestant of ``benchmarks.branches``, in the frame. The job has ``contestant`` and ``bundles``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.branches import CONTESTANTS
from benchmarks.worker import Model, run_encoder


def open_model(job: dict[str, Any]) -> Model:
    """Open what the contestant runs on."""
    return CONTESTANTS[job["contestant"]](Path(job["bundles"]))


if __name__ == "__main__":
    run_encoder(open_model, "onnxruntime", "onnxruntime-gpu", "torch", "peft", "transformers")
