"""Checks that an adapter's arrays fit the LoRA inputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.files.onnx_adapter import AdapterArrays, Layout
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName

__all__ = ["ArrayCheck"]

AnyArray = npt.NDArray[Any]


class ArrayCheck:
    """Checks names, types and shapes of an adapter's arrays.

    Files of one layout differ only in the numbers, so each layout is checked once.

    Args:
        lora_inputs: what the graph takes.
        defaults: LoRA input → the base model's values, ``[1, …]``.
    """

    def __init__(self, lora_inputs: LoraInputs, defaults: Mapping[str, AnyArray]) -> None:
        self._defaults = defaults
        self._required = {name: _required(name, default) for name, default in defaults.items()}
        self._pairs = [((module.lora_A, 2), (module.lora_B, 1)) for module in lora_inputs.modules]
        self._pairs += [((head.weight, -1), (head.bias, -1)) for head in lora_inputs.heads]
        """LoRA inputs that come together, and the axis of each that must agree: a module's rank, a head's labels."""
        self._good_layouts: WeakSet[Layout] = WeakSet()

    def __call__(self, name: AdapterName, arrays: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        """Return ``arrays`` if they fit.

        Raises:
            InputError: they were made for another graph, or are incomplete.
        """
        layout = arrays.layout if isinstance(arrays, AdapterArrays) else None
        if layout is not None and layout in self._good_layouts:
            return arrays
        self._check_shapes(name, arrays)
        self._check_pairs(name, arrays)
        if layout is not None:
            self._good_layouts.add(layout)
        return arrays

    def _check_shapes(self, adapter: AdapterName, arrays: Mapping[str, AnyArray]) -> None:
        unknown = sorted(set(arrays) - set(self._defaults))
        if unknown:
            raise InputError(
                f"Adapter '{adapter}' has '{unknown[0]}', for which the graph has no LoRA input: it was made for another "
                "graph."
            )
        for name, array in arrays.items():
            dtype, axes, axis, size = self._required[name]
            sizes_fit = array.ndim == axes and array.shape[0] == 1 and (axis is None or array.shape[axis] == size)
            if array.dtype != dtype or not sizes_fit:
                default = self._defaults[name]
                raise InputError(
                    f"Adapter '{adapter}' has '{name}' as {array.dtype} {list(array.shape)}, but the graph takes "
                    f"{default.dtype} {list(default.shape)} (ranks and labels may differ): it was made for another graph."
                )

    def _check_pairs(self, adapter: AdapterName, arrays: Mapping[str, AnyArray]) -> None:
        for pair in self._pairs:
            sizes = {arrays[name].shape[axis] if name in arrays else None for name, axis in pair}
            if len(sizes) > 1:
                (first, _), (second, _) = pair
                raise InputError(
                    f"Adapter '{adapter}' has '{first}' and '{second}' that do not belong together, or only one of them: "
                    "add it again."
                )


def _required(name: str, default: AnyArray) -> tuple[np.dtype[Any], int, int | None, int]:
    """Return what an array must have: its type, the number of axes, and the axis of fixed size, if any, with that size."""
    axis = {"lora_A": 1, "lora_B": 2, "weight": 1}.get(name.rpartition(".")[2])
    return default.dtype, default.ndim, axis, default.shape[axis] if axis is not None else 0
