"""Finds a weight of the base among weights that are quantized in blocks (``MatMulNBits``), by comparing numbers.

The operator holds ``[out, blocks, bytes]``: every ``block_size`` inputs of an output have one scale and one zero point. The
weights of several modules may be packed into one, so a weight is looked for at every output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora_converters.second_order_rounding import round_to_grids

__all__ = ["BlockQuantized", "find_in_blocks"]

AnyArray = npt.NDArray[Any]

_MOST_ERROR = {4: 0.3, 8: 0.05}
"""Bits → largest error of a quantized weight, relative to its size. 4 bits have about 0.1, 8 bits 0.01, another weight 1.4."""
_PROBE = 2.0
"""A single block may be this much worse than a whole weight."""
_LAYER = re.compile(r"\.(\d+)\.")
_NEAR_ZERO = 1e-12


@dataclass(frozen=True)
class BlockQuantized:
    """A weight ``[out, in]`` quantized in blocks of inputs."""

    name: str
    """Of the initializer."""
    node: ir.Node
    """The ``MatMulNBits`` that uses it."""

    @classmethod
    def of(cls, value: ir.Value) -> BlockQuantized | None:
        """Return the weight that an initializer holds; None if it is not quantized in this way."""
        for use in value.uses():
            if (
                use.node.op_type == "MatMulNBits"
                and use.idx == 1
                and use.node.attributes.get_int("bits", 4) in _MOST_ERROR
            ):
                return cls(str(value.name), use.node)
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.node.attributes["N"].as_int(), self.node.attributes["K"].as_int()

    @property
    def bits(self) -> int:
        """Bits of a number, 4 or 8."""
        return self.node.attributes.get_int("bits", 4)

    def restored(self, outputs: slice, inputs: int | None = None) -> npt.NDArray[np.float32]:
        """Return part of the weight in float32.

        Args:
            outputs: which of the outputs.
            inputs: how many of the inputs, rounded up to whole blocks; None for all.
        """
        count, fan_in, size, blocks = self._layout
        wanted = blocks if inputs is None else min(blocks, -(-inputs // size))
        stored = self._input(1).reshape(count, blocks, -1)[outputs, :wanted]
        scales = self._input(2).reshape(count, blocks)[outputs, :wanted].astype(np.float32)
        numbers = _unpacked(stored, self.bits).astype(np.float32)
        zeros = self._zero_points(count, blocks)[outputs, :wanted].astype(np.float32)
        restored = (numbers - zeros[..., None]) * scales[..., None]
        return restored.reshape(len(restored), -1)[:, :fan_in]

    def merge(self, outputs: slice, update: AnyArray) -> None:
        """Add ``update [outputs, inputs]`` to part of a weight of 8 bits, and round its blocks again, in place.

        The scheme stays what it is: with zero points a block covers its smallest and largest number, without it is symmetric.
        """
        count, fan_in, size, blocks = self._layout
        weight = np.zeros((len(update), blocks * size), np.float32)
        weight[:, :fan_in] = self.restored(outputs) + update
        scales, zeros = self._input(2).reshape(count, blocks).copy(), self._zero_points(count, blocks).copy()
        numbers, scales[outputs], zeros[outputs] = _rounded(
            weight.reshape(len(update), blocks, size), symmetric=not self._has_zero_points
        )
        stored = self._input(1).copy()
        stored.reshape(count, blocks, size)[outputs] = numbers
        self._replace(1, stored)
        self._replace(2, scales.reshape(self._input(2).shape))
        if self._has_zero_points:
            self._replace(3, zeros.reshape(self._input(3).shape))

    def round_again(self, outputs: slice, weight: npt.NDArray[np.float32], moments: npt.NDArray[np.float32]) -> None:
        """Round part of a weight again, in place, to the grids that its blocks have (:mod:`rmlora_converters.second_order_rounding`).

        Args:
            outputs: which of the outputs.
            weight: what they are in float32, ``[outputs, inputs]``.
            moments: sum of ``x xᵀ`` over the inputs of the product, ``[inputs, inputs]``.
        """
        count, fan_in, size, blocks = self._layout
        scales, zeros = (
            np.repeat(grid.astype(np.float32).reshape(count, blocks)[outputs], size, axis=1)[:, :fan_in]
            for grid in (self._input(2), self._zero_points(count, blocks))
        )
        stored = self._input(1).copy()
        part = stored.reshape(count, blocks, -1)[outputs]
        numbers = _unpacked(part, self.bits)
        flat = numbers.reshape(len(numbers), -1)
        flat[:, :fan_in] = round_to_grids(weight, scales, zeros, moments, highest=(1 << self.bits) - 1)
        stored.reshape(count, blocks, -1)[outputs] = _packed(flat.reshape(numbers.shape), self.bits)
        self._replace(1, stored)

    @property
    def _layout(self) -> tuple[int, int, int, int]:
        """Outputs, inputs, inputs of a block, and blocks of an output."""
        count, fan_in = self.shape
        size = self.node.attributes.get_int("block_size", 32)
        return count, fan_in, size, -(-fan_in // size)

    @property
    def _has_zero_points(self) -> bool:
        return len(self.node.inputs) > 3 and self.node.inputs[3] is not None

    def _replace(self, index: int, array: AnyArray) -> None:
        value = self.node.inputs[index]
        assert value is not None  # noqa: S101 - the operator takes constants only
        value.const_value = ir.tensor(array, name=value.name)

    def _zero_points(self, count: int, blocks: int) -> AnyArray:
        if not self._has_zero_points:
            return np.full((count, blocks), 1 << (self.bits - 1), np.uint8)
        zeros = self._input(3)
        return (
            _unpacked(zeros.reshape(count, -1), self.bits)[:, :blocks]
            if zeros.dtype == np.uint8
            else zeros.reshape(count, blocks)
        )

    def _input(self, index: int) -> AnyArray:
        value = self.node.inputs[index]
        assert value is not None and value.const_value is not None  # noqa: S101 - the operator takes constants only
        return np.asarray(value.const_value.numpy())

    def starts_of(self, expected: AnyArray) -> Iterator[int]:
        """Yield every output at which ``expected [out, in]`` begins."""
        count, fan_in, size, _ = self._layout
        if expected.shape[1] != fan_in or expected.shape[0] > count:
            return
        first = self.restored(slice(0, count - expected.shape[0] + 1), size)
        probe = expected[0, : first.shape[1]].astype(np.float32)
        errors = np.linalg.norm(first - probe, axis=1) / max(float(np.linalg.norm(probe)), _NEAR_ZERO)
        limit = _MOST_ERROR[self.bits]
        for start in np.flatnonzero(errors <= _PROBE * limit):
            part = self.restored(slice(int(start), int(start) + len(expected)))
            error = np.linalg.norm(part - expected) / max(float(np.linalg.norm(expected)), _NEAR_ZERO)
            if error <= limit:
                yield int(start)


def find_in_blocks(parameter: str, expected: AnyArray, weights: Mapping[str, ir.Value]) -> list[tuple[str, int]]:
    """Return (initializer, first output) of every place that holds a weight of the base.

    Args:
        parameter: name of the weight; initializers of the same layer are tried first, and others only if none of those fits.
        expected: the base's weight ``[out, in]``.
        weights: the graph's initializers.
    """
    known = [found for value in weights.values() if (found := BlockQuantized.of(value)) is not None]
    layer = _layer(parameter)
    near = [item for item in known if _layer(item.name) == layer]
    return _places(near, expected) or _places([item for item in known if item not in near], expected)


def _places(known: Iterable[BlockQuantized], expected: AnyArray) -> list[tuple[str, int]]:
    return [(item.name, start) for item in known for start in item.starts_of(expected)]


def _layer(name: str) -> str | None:
    """Return the number of a layer in a name; None if there is none."""
    found = _LAYER.search(name)
    return found[1] if found is not None else None


def _unpacked(stored: AnyArray, bits: int) -> AnyArray:
    """Return the numbers in the last axis of ``stored``: a byte holds one, or two of 4 bits, the lower first."""
    if bits == 8:
        return stored
    return np.stack([stored & 0xF, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1)


def _packed(numbers: AnyArray, bits: int) -> AnyArray:
    """Return the bytes that hold ``numbers``, the other way round than :func:`_unpacked`."""
    return numbers if bits == 8 else numbers[..., ::2] | (numbers[..., 1::2] << 4)


def _rounded(blocks: npt.NDArray[np.float32], *, symmetric: bool) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Return numbers of 8 bits ``[out, blocks, size]``, and the scales and zero points ``[out, blocks]`` of blocks."""
    if symmetric:
        scales = np.abs(blocks).max(-1) / 127.0
        zeros = np.full(scales.shape, 128.0, np.float32)
    else:
        low, high = np.minimum(blocks.min(-1), 0.0), np.maximum(blocks.max(-1), 0.0)
        scales = (high - low) / 255.0
        zeros = np.round(-low / np.where(scales > 0, scales, 1.0))
    divisors = np.where(scales > 0, scales, 1.0)[..., None]
    numbers = np.clip(np.round(blocks / divisors) + zeros[..., None], 0, 255)
    return numbers.astype(np.uint8), scales, zeros
