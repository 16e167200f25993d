"""Worker: a merged model of ours through ONNX Runtime. The job has ``provider``, and ``bundle`` or ``model``, an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.worker import Inputs, Model, run_encoder
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.providers import create_session


def open_model(job: dict[str, Any]) -> Model:
    """Open the bundle or the file on its provider."""
    file = job.get("model") or Bundle.open(Path(job["bundle"]), check_files=False).model_path
    session = create_session(Path(file), job["provider"], threads=job["threads"])
    wanted = {item.name for item in session.get_inputs()}

    def run(inputs: Inputs) -> Any:
        return session.run(None, {name: array for name, array in inputs.items() if name in wanted})[0]

    return run


if __name__ == "__main__":
    run_encoder(open_model, "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
