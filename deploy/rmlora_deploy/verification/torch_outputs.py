"""What each side of a comparison answers: a graph in ONNX Runtime, a model in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmlora.errors import InputError
from rmlora.pooling import Pooling
from rmlora_deploy.runtime.outputs import Arrays
from rmlora_deploy.verification.torch_pooling import pool

__all__ = ["finite_logits", "torch_logits"]


def torch_logits(model: Any, batch: Arrays, pooling: Pooling | None = None) -> np.ndarray:
    """Return a PyTorch model's logits for one batch; with ``pooling``, the vectors it makes of the tokens'."""
    import torch

    with torch.inference_mode():
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        output = model(**inputs)
        if pooling is None:
            return np.asarray(output.logits.float().numpy())
        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.int64))
        return np.asarray(pool(hidden, mask, pooling).numpy())


def finite_logits(
    model: Any, batches: Sequence[Arrays], adapter: str, pooling: Pooling | None = None
) -> list[np.ndarray]:
    """Return what a PyTorch model with an adapter answers to every batch.

    Raises:
        InputError: with NaN or infinity, so there is nothing to compare with.
    """
    answers = [torch_logits(model, batch, pooling) for batch in batches]
    if not all(np.isfinite(logits).all() for logits in answers):
        raise InputError(
            f"PyTorch itself answers with NaN or infinity with {adapter}: base or adapter is damaged, train or "
            "fetch it again."
        )
    return answers
