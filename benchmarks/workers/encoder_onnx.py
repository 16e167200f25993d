"""Worker: an ONNX file in the onnxruntime of a peer's environment. The job has ``model``."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from benchmarks.worker import Inputs, Model, run_encoder


def open_model(job: dict[str, Any]) -> Model:
    """Open the file with all of onnxruntime's optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}

    def run(inputs: Inputs) -> Any:
        return session.run(None, {name: array for name, array in inputs.items() if name in wanted})[0]

    return run


if __name__ == "__main__":
    run_encoder(open_model, "onnxruntime", "optimum", "optimum-onnx", "transformers")
