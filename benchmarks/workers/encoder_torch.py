"""Worker: a checkpoint in PyTorch. The job has ``checkpoint``, ``attention``, ``dtype``, ``compiled`` and ``device``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from benchmarks.worker import Inputs, Model, run_encoder


def open_model(job: dict[str, Any]) -> Model:
    """Load the checkpoint with the fastest settings for inference."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    if torch.get_num_interop_threads() != 1:  # it can be set only once
        torch.set_num_interop_threads(1)
    torch.set_float32_matmul_precision("highest")
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        job["checkpoint"], attn_implementation=job["attention"], dtype=getattr(torch, job["dtype"])
    )
    model = model.eval().to(job["device"])
    if job["compiled"]:
        model = torch.compile(model, dynamic=False)

    def run(inputs: Inputs) -> Any:
        tensors = {name: torch.from_numpy(array).to(job["device"]) for name, array in inputs.items()}
        with torch.inference_mode():
            return model(**tensors).logits.float().cpu().numpy()

    return run


if __name__ == "__main__":
    run_encoder(open_model, "torch", "transformers")
