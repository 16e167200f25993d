"""Worker: exports a checkpoint with Optimum, optimizes it to level O3 and quantizes it, in Optimum's environment.

The job has ``checkpoint``, ``output`` and ``instructions``: avx512_vnni, avx512, avx2 or arm64.
"""

from __future__ import annotations

from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer, ORTQuantizer
from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

from benchmarks.worker import read_job, report


def main() -> None:
    """Write the plain export, its O3 and its dynamically quantized version."""
    job = read_job()
    output = Path(job["output"])
    model = ORTModelForSequenceClassification.from_pretrained(job["checkpoint"], export=True)
    model.save_pretrained(output / "plain")
    ORTOptimizer.from_pretrained(model).optimize(
        save_dir=output / "o3", optimization_config=AutoOptimizationConfig.O3()
    )
    preset = getattr(AutoQuantizationConfig, job["instructions"])(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(model).quantize(save_dir=output / "int8", quantization_config=preset)
    report({})


if __name__ == "__main__":
    main()
