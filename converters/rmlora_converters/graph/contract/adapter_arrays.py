"""Makes the arrays that an adapter feeds to the LoRA inputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, some_of
from rmlora.fingerprint import differing_weight, without_copies
from rmlora.naming import former_names
from rmlora_converters.graph.contract.lora_inputs import LoraInputs

__all__ = ["adapter_arrays"]

AnyArray = npt.NDArray[Any]
DTypes = Mapping[str, np.dtype[Any]]


def adapter_arrays(
    adapter: Adapter, lora_inputs: LoraInputs, dtypes: DTypes, *, allow_base_mismatch: bool = False
) -> dict[str, AnyArray]:
    """Return input name → array with ``rows`` = 1, for every LoRA input that ``adapter`` fills; the others keep their defaults.

    The scale is folded into B, and masked directions are left out.

    Args:
        adapter: the adapter to feed.
        lora_inputs: the inputs that the graph takes.
        dtypes: input name → its type in the graph.
        allow_base_mismatch: feed the adapter even if it was made for another base.

    Raises:
        BaseMismatchError: the adapter was made for another base than the graph.
        AdapterError: the graph has no LoRA input for a module or head, has one of another size, or its type cannot hold a
            value; or the adapter has no head and the base has none either.
    """
    adapter = without_copies(adapter, lora_inputs.base_weights)
    other = differing_weight(adapter.base_weights, lora_inputs.base_weights)
    if other and not allow_base_mismatch:
        raise BaseMismatchError(
            f"The adapter {adapter.source} was made for another base than the graph: the weight of '{other}' differs. Use an "
            "adapter of this base, or pass --allow-base-mismatch to use it anyway."
        )
    return {**_factor_arrays(adapter, lora_inputs, dtypes), **_head_arrays(adapter, lora_inputs, dtypes)}


def _factor_arrays(adapter: Adapter, lora_inputs: LoraInputs, dtypes: DTypes) -> dict[str, AnyArray]:
    branches = {branch.module: branch for branch in lora_inputs.modules}
    former = {name: branch for path, branch in branches.items() for name in former_names(path)}
    arrays: dict[str, AnyArray] = {}
    for path, module in adapter.modules.items():
        if module.parameter in lora_inputs.absent:
            continue
        branch = branches.get(path) or former.get(path)
        if branch is None:
            raise AdapterError(
                f"The graph has no branch for '{path}', which {adapter.source} changes (it has {_some(branches)}): export again "
                "with this adapter among --adapter."
            )
        sizes = (module.A.shape[1], module.B.shape[0])
        if sizes != (branch.fan_in, branch.fan_out) or module.kind != branch.kind:
            raise AdapterError(
                f"'{path}' has {sizes[0]} inputs and {sizes[1]} outputs in {adapter.source}, but {branch.fan_in} and "
                f"{branch.fan_out} in the graph: they were made for different bases."
            )
        arrays[branch.lora_A] = _one_row(module.A.T, dtypes[branch.lora_A], path)
        with np.errstate(over="ignore"):  # refused with the other values that the type cannot hold
            scaled = np.float32(module.scale) * module.B.T
        arrays[branch.lora_B] = _one_row(scaled, dtypes[branch.lora_B], path)
    return arrays


def _head_arrays(adapter: Adapter, lora_inputs: LoraInputs, dtypes: DTypes) -> dict[str, AnyArray]:
    unused = {name: value for name, value in adapter.modules_to_save.items() if name not in lora_inputs.absent}
    arrays: dict[str, AnyArray] = {}
    for head in lora_inputs.heads:
        weight, bias = unused.pop(head.weight, None), unused.pop(head.bias, None)
        if weight is None:
            if not head.in_base:
                raise AdapterError(
                    f"{adapter.source} has no '{head.weight}', and neither has the base, so the output would be noise: train it "
                    "with that module in --modules-to-save."
                )
            continue
        if weight.ndim != 2 or weight.shape[1] != head.fan_in:
            raise AdapterError(
                f"The head '{head.module}' of {adapter.source} has shape {list(weight.shape)}, but in the graph it has "
                f"{head.fan_in} inputs: they were made for different bases."
            )
        bias = np.zeros(weight.shape[0]) if bias is None else bias
        arrays[head.weight] = _one_row(weight.T, dtypes[head.weight], head.module)
        arrays[head.bias] = _one_row(bias, dtypes[head.bias], head.module)
    if unused:
        heads = {head.module: head for head in lora_inputs.heads}
        raise AdapterError(
            f"The graph has no LoRA input for '{next(iter(unused))}', which {adapter.source} saved in full (it has "
            f"{_some(heads)}): export again with this adapter among --adapter."
        )
    return arrays


def _one_row(array: npt.NDArray[Any], dtype: np.dtype[Any], path: str) -> AnyArray:
    """Return ``array`` as ``dtype`` with a first axis of one row."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=dtype)[None]
    if not np.isfinite(cast.astype(np.float32)).all():
        raise AdapterError(
            f"'{path}' has values that {dtype} cannot hold (infinity or NaN): the adapter is broken, or too large."
        )
    return cast


def _some(names: Mapping[str, object]) -> str:
    return some_of(names, 3) or "none"
