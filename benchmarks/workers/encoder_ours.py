"""Worker: a merged bundle of ours through ONNX Runtime. The job has ``bundle`` and ``provider``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.worker import Inputs, Model, run_encoder
from rmlora_deploy.bundles.bundle import Bundle


def open_model(job: dict[str, Any]) -> Model:
    """Open the bundle on its provider."""
    session = Bundle.open(Path(job["bundle"]), check_files=False).session(job["provider"], threads=job["threads"])
    wanted = {item.name for item in session.get_inputs()}

    def run(inputs: Inputs) -> Any:
        return session.run(None, {name: array for name, array in inputs.items() if name in wanted})[0]

    return run


if __name__ == "__main__":
    run_encoder(open_model, "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
