"""Worker: converts a checkpoint to CTranslate2. The job has ``checkpoint``, ``output`` and ``head``, which gets the classifier."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np
from safetensors.numpy import load_file

from benchmarks.worker import read_job, report


def main() -> None:
    """Write the converted encoder and the classifier's weight and bias."""
    job = read_job()
    ctranslate2.converters.TransformersConverter(job["checkpoint"]).convert(job["output"], force=True)
    tensors = load_file(Path(job["checkpoint"]) / "model.safetensors")
    np.savez(job["head"], weight=tensors["classifier.weight"], bias=tensors["classifier.bias"])
    report({})


if __name__ == "__main__":
    main()
