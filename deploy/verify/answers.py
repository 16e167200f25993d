"""What each side of a comparison answers: a graph in ONNX Runtime, a model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.preprocess import Arrays
from deploy.providers import run_error
from deploy.verify.pooling import pool
from rmlora.errors import InputError
from rmlora.pooling import Pooling

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["finite_logits", "graph_logits", "torch_logits"]


def graph_logits(session: ort.InferenceSession) -> Callable[[Arrays], np.ndarray]:
    """Return a function from a batch to the first output of ``session``, which raises :class:`InputError` if it fails.

    What the graph does not take is left out of a batch.
    """
    names = {item.name for item in session.get_inputs()}

    def logits(case: Arrays) -> np.ndarray:
        try:
            return np.asarray(session.run(None, {name: array for name, array in case.items() if name in names})[0])
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The graph does not run on the model's own inputs") from None

    return logits


def torch_logits(model: Any, case: Arrays, pooling: Pooling | None = None) -> np.ndarray:
    """Return a PyTorch model's logits for one batch; with ``pooling``, the vectors it makes of the tokens'."""
    import torch

    with torch.inference_mode():
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in case.items()}
        output = model(**inputs)
        if pooling is None:
            return np.asarray(output.logits.float().numpy())
        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.int64))
        return np.asarray(pool(hidden, mask, pooling).numpy())


def finite_logits(
    model: Any, cases: Sequence[Arrays], adapter: str, pooling: Pooling | None = None
) -> list[np.ndarray]:
    """Return what a PyTorch model with an adapter answers to every batch.

    Raises:
        InputError: with NaN or infinity, so there is nothing to compare with.
    """
    answers = [torch_logits(model, case, pooling) for case in cases]
    if not all(np.isfinite(logits).all() for logits in answers):
        raise InputError(
            f"PyTorch itself answers with NaN or infinity with {adapter}: base or adapter is damaged, train or "
            "fetch it again."
        )
    return answers
