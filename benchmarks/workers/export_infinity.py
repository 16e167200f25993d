"""Worker: exports a checkpoint for infinity's Optimum engine, plain or quantized, in Optimum's environment.

The job has ``checkpoint``, ``output``, ``task`` and ``kind`` (plain or int8).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

from benchmarks.worker import read_job, report

MODELS = {"feature-extraction": ORTModelForFeatureExtraction, "text-classification": ORTModelForSequenceClassification}
SIDE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def main() -> None:
    """Write the graph and the files of the checkpoint that a server reads."""
    job = read_job()
    output, checkpoint = Path(job["output"]), Path(job["checkpoint"])
    output.mkdir(parents=True)
    model = MODELS[job["task"]].from_pretrained(checkpoint, export=True)
    with tempfile.TemporaryDirectory() as scratch:
        if job["kind"] == "int8":
            config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
            ORTQuantizer.from_pretrained(model).quantize(save_dir=scratch, quantization_config=config)
        else:
            model.save_pretrained(scratch)
        for file in Path(scratch).glob("*.onnx*"):
            shutil.copy(file, output / file.name)
    for name in SIDE_FILES:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, output / name)
    report({})


if __name__ == "__main__":
    main()
