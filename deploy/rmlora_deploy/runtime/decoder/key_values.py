"""The keys and values that a decoder keeps of every token it has read, in memory of fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["KeyValues"]

AnyArray = npt.NDArray[Any]


class KeyValues:
    """Past and present in one memory ``[rows, heads, capacity, head size]`` for each layer: a run appends in place.

    Args:
        layout: of the decoder.
        dtype: of keys and values.
        rows: of the batch.
        capacity: tokens of the longest row.
    """

    def __init__(self, layout: DecoderLayout, dtype: np.dtype[Any], rows: int, capacity: int) -> None:
        self._layout = layout
        shape = (rows, layout.key_value_heads, capacity, layout.head_size)
        self._arrays = [np.zeros(shape, dtype) for _ in layout.past]

    def bind(self, binding: ort.IOBinding, rows: slice) -> list[ort.OrtValue]:
        """Bind the memory of ``rows`` as the graph's past and present; return what must stay alive with the binding."""
        import onnxruntime as ort

        values = [ort.OrtValue.ortvalue_from_numpy(array[rows]) for array in self._arrays]
        for past, present, value in zip(self._layout.past, self._layout.present, values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return values

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for array in self._arrays:
            array[target] = array[source]
