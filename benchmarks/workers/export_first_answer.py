"""Worker: merges an adapter with PEFT, exports the result with Optimum and classifies a text, in Optimum's environment.

The job has ``base``, ``adapters`` and ``text``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from benchmarks.worker import read_job, report, versions


def main() -> None:
    """Merge, export, open and run."""
    job = read_job()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        base = AutoModelForSequenceClassification.from_pretrained(job["base"], num_labels=2)
        merged = PeftModel.from_pretrained(base, job["adapters"][0]).merge_and_unload()
        merged.save_pretrained(Path(scratch) / "merged")
        model = ORTModelForSequenceClassification.from_pretrained(Path(scratch) / "merged", export=True)
        tokenizer = AutoTokenizer.from_pretrained(job["base"])
        model(**tokenizer([job["text"]], return_tensors="pt"))
    report({}, versions=versions("optimum", "optimum-onnx", "onnxruntime", "peft", "transformers", "torch"))


if __name__ == "__main__":
    main()
