"""Running a plain session on a batch: inputs by name in, one output out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["check_output", "graph_logits"]


def graph_logits(session: ort.InferenceSession, output: str | None = None) -> Callable[[Arrays], np.ndarray]:
    """Return a function that maps a batch to the output of ``session`` with that name, else to its first one.

    The function ignores arrays that the graph does not take, makes ids int32 where it wants them so, and raises
    :class:`InputError` if the run fails.
    """
    types = {item.name: item.type for item in session.get_inputs()}
    asked = [output or session.get_outputs()[0].name]

    def logits(batch: Arrays) -> np.ndarray:
        feeds = {
            name: array.astype(np.int32) if types[name] == "tensor(int32)" else array
            for name, array in batch.items()
            if name in types
        }
        try:
            found = np.asarray(session.run(asked, feeds)[0])
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The graph does not run on the model's own inputs") from None
        return check_output(found, len(next(iter(feeds.values()), ())))

    return logits


def check_output(output: np.ndarray, rows: int) -> np.ndarray:
    """Return an output of a graph if it has a row of numbers for every row of the input.

    Raises:
        InputError: it has not: the graph is damaged, or not for one of the tasks.
    """
    if output.ndim < 2 or len(output) != rows or output.shape[-1] == 0 or output.dtype.kind not in "fV":
        raise InputError(
            f"The graph answers {rows} rows with {output.dtype} of the shape {list(output.shape)}, not with numbers for each "
            "row: export it again."
        )
    return output
