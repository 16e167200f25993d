"""Worker: an OpenVINO or ONNX file in OpenVINO. The job has ``model`` and ``precision`` (f32 or bf16)."""

from __future__ import annotations

from typing import Any

import openvino as ov

from benchmarks.worker import Inputs, Model, run_encoder


def open_model(job: dict[str, Any]) -> Model:
    """Compile the file for latency with the precision that the job names."""
    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": job["precision"],
        "INFERENCE_NUM_THREADS": str(job["threads"]),
        "NUM_STREAMS": "1",
    }
    compiled = core.compile_model(core.read_model(job["model"]), "CPU", settings)
    request = compiled.create_infer_request()
    wanted = {name for item in compiled.inputs for name in item.get_names()}

    def run(inputs: Inputs) -> Any:
        request.infer({name: array for name, array in inputs.items() if name in wanted}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


if __name__ == "__main__":
    run_encoder(open_model, "openvino", "nncf")
