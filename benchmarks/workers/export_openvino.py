"""Worker: quantizes an ONNX export with NNCF, calibrated on real texts. The job has ``model``, ``texts`` and ``output``."""

from __future__ import annotations

import nncf
import numpy as np
import openvino as ov

from benchmarks.worker import read_job, report

SAMPLES = 100


def main() -> None:
    """Write the quantized model."""
    job = read_job()
    model = ov.Core().read_model(job["model"])
    wanted = {name for item in model.inputs for name in item.get_names()}
    data = np.load(job["texts"])

    def sample(row: int) -> dict[str, np.ndarray]:
        width = int(data["attention_mask"][row].sum())
        ids = data["input_ids"][row : row + 1, :width]
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: array for name, array in inputs.items() if name in wanted}

    dataset = nncf.Dataset(range(min(SAMPLES, len(data["input_ids"]))), sample)
    quantized = nncf.quantize(model, dataset, subset_size=SAMPLES, model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantized, job["output"], compress_to_fp16=False)
    report({})


if __name__ == "__main__":
    main()
