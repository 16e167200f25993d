"""The keys and values that a decoder keeps of every token it has read: memory of fixed size, or arrays that grow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["GrowingKeyValues", "KeyValues", "SharedKeyValues"]

AnyArray = npt.NDArray[Any]


class KeyValues(ABC):
    """Keys and values of all layers for the rows of a batch."""

    @abstractmethod
    def bind(self, binding: ort.IOBinding, rows: slice) -> None:
        """Bind what was kept of ``rows`` as the graph's past, and where its present goes."""

    @abstractmethod
    def store(self, binding: ort.IOBinding) -> None:
        """Take over the present after a run."""

    @abstractmethod
    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""


class SharedKeyValues(KeyValues):
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
        self._bound: list[ort.OrtValue] = []
        """What is bound: ONNX Runtime uses the arrays' memory through these."""

    def bind(self, binding: ort.IOBinding, rows: slice) -> None:
        """Bind the rows of every array as both past and present."""
        import onnxruntime as ort

        self._bound = [ort.OrtValue.ortvalue_from_numpy(array[rows]) for array in self._arrays]
        for past, present, value in zip(self._layout.past, self._layout.present, self._bound, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def store(self, binding: ort.IOBinding) -> None:
        """Do nothing: the present was written into the past."""

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for array in self._arrays:
            array[target] = array[source]


class GrowingKeyValues(KeyValues):
    """The present of a run becomes the past of the next; for graphs that do not append in place, one row at a time.

    Args:
        layout: of the decoder.
        dtype: of keys and values.
    """

    def __init__(self, layout: DecoderLayout, dtype: np.dtype[Any]) -> None:
        import onnxruntime as ort

        self._layout = layout
        empty = np.zeros((1, layout.key_value_heads, 0, layout.head_size), dtype)
        self._values = [ort.OrtValue.ortvalue_from_numpy(empty) for _ in layout.past]

    def bind(self, binding: ort.IOBinding, rows: slice) -> None:
        """Bind the past; the present is allocated by the run."""
        for past, present, value in zip(self._layout.past, self._layout.present, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present)

    def store(self, binding: ort.IOBinding) -> None:
        """Keep the present and bind it as the past of the next run."""
        made = dict(zip([self._layout.logits, *self._layout.present], binding.get_outputs(), strict=True))
        self._values = [made[name] for name in self._layout.present]
        self.bind(binding, slice(0, 1))

    def move(self, source: int, target: int) -> None:
        """Do nothing: there is one row."""
