"""Outputs of PyTorch models, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.library_calls import library_call
from rmlora.outputs import Outputs
from rmlora.pooling import Pooling

__all__ = ["finite_outputs", "torch_output"]


def torch_output(model: Any, batch: Arrays, outputs: Outputs, pooling: Pooling | None = None) -> np.ndarray:
    """Return the output of a PyTorch model for one batch: ``[rows, labels]`` or ``[rows, width]``.

    Raises:
        InputError: the model cannot compute it, for example because a text is too long.
    """
    import torch

    with torch.inference_mode():
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        with library_call(_refused):
            computed = model(**inputs)
        return np.asarray(outputs.of_model(computed, inputs, pooling).numpy())


def _refused(reason: str) -> InputError:
    return InputError(
        f"PyTorch cannot compute the inputs ({reason}): the base may be another one, or a text longer than it reads."
    )


def finite_outputs(
    model: Any, batches: Sequence[Arrays], outputs: Outputs, pooling: Pooling | None = None, *, what: str
) -> list[np.ndarray]:
    """Return the outputs of a PyTorch model with an adapter, for every batch.

    Args:
        model: with PEFT's layers.
        batches: inputs.
        outputs: of the task.
        pooling: how token vectors become one; None for tasks that do not pool.
        what: the adapter, for the error message.

    Raises:
        InputError: the outputs hold NaN or infinity, so nothing can be compared with them.
    """
    found = [torch_output(model, batch, outputs, pooling) for batch in batches]
    if not all(np.isfinite(array).all() for array in found):
        raise InputError(
            f"PyTorch itself gives NaN or infinity with {what}: the base or the adapter is damaged, train or download it "
            "again."
        )
    return found
