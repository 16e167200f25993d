"""Running a plain session on a batch: inputs by name in, the first output out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rmlora.inputs import Arrays
from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["graph_logits"]


def graph_logits(session: ort.InferenceSession) -> Callable[[Arrays], np.ndarray]:
    """Return a function that maps a batch to the first output of ``session``.

    The function ignores arrays that the graph does not take, and raises :class:`InputError` if the run fails.
    """
    names = {item.name for item in session.get_inputs()}

    def logits(batch: Arrays) -> np.ndarray:
        try:
            return np.asarray(session.run(None, {name: array for name, array in batch.items() if name in names})[0])
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The graph does not run on the model's own inputs") from None

    return logits
