"""Worker: a converted checkpoint in CTranslate2. The job has ``model``, ``head`` (the classifier) and ``compute_type``."""

from __future__ import annotations

from typing import Any

import ctranslate2
import numpy as np

from benchmarks.worker import Inputs, Model, run_encoder


def open_model(job: dict[str, Any]) -> Model:
    """Load the encoder; the classifier, which CTranslate2 does not have, is one product in numpy."""
    encoder = ctranslate2.Encoder(
        job["model"], device="cpu", compute_type=job["compute_type"], intra_threads=job["threads"], inter_threads=1
    )
    head = np.load(job["head"])
    weight, bias = head["weight"].T.copy(), head["bias"]

    def run(inputs: Inputs) -> Any:
        lengths = ctranslate2.StorageView.from_array(inputs["attention_mask"].sum(axis=1).astype(np.int32))
        ids = ctranslate2.StorageView.from_array(inputs["input_ids"].astype(np.int32))
        pooled = np.asarray(encoder.forward_batch(ids, lengths).pooler_output)
        return pooled @ weight + bias

    return run


if __name__ == "__main__":
    run_encoder(open_model, "ctranslate2", "transformers")
