"""What an adapter feeds to the slots of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, some_of
from rmlora.fingerprint import differing_weight
from rmlora_converters.graph.contract.lora_inputs import LoraInputs

__all__ = ["adapter_arrays"]

AnyArray = npt.NDArray[Any]


def adapter_arrays(
    adapter: Adapter, lora_inputs: LoraInputs, dtypes: Mapping[str, np.dtype[Any]], *, allow_base_mismatch: bool = False
) -> dict[str, AnyArray]:
    """Return input name → array with ``rows`` = 1, for every slot that ``adapter`` fills; the others keep their defaults.

    The scale is folded into B, and masked directions are left out.

    Args:
        adapter: what to feed.
        slots: what the graph takes.
        dtypes: input name → its type in the graph.
        allow_base_mismatch: feed it although it was made for another base.

    Raises:
        BaseMismatchError: the graph was made of another base.
        AdapterError: the graph has no slot for a module or head, or one of another size.
    """
    other = differing_weight(adapter.base_weights, lora_inputs.base_weights)
    if other and not allow_base_mismatch:
        raise BaseMismatchError(
            f"The adapter {adapter.source} was made for another base than the graph: the weight of '{other}' differs. Give the "
            "adapter of this base, or pass --allow-base-mismatch if you know better."
        )
    known = {slot.module: slot for slot in lora_inputs.modules}
    feeds: dict[str, AnyArray] = {}
    for path, module in adapter.modules.items():
        slot = known.get(path)
        if slot is None:
            raise AdapterError(
                f"The graph has no branch for '{path}', which {adapter.source} changes (it has {_some(known)}): export again with "
                "this adapter among --adapter."
            )
        sizes = (module.A.shape[1], module.B.shape[0])
        if sizes != (slot.fan_in, slot.fan_out) or module.kind != slot.kind:
            raise AdapterError(
                f"'{path}' has {sizes[0]} inputs and {sizes[1]} outputs in {adapter.source}, but {slot.fan_in} and "
                f"{slot.fan_out} in the graph: they are of different bases."
            )
        feeds[slot.lora_A] = _fed(module.A.T, dtypes[slot.lora_A], path)
        feeds[slot.lora_B] = _fed(np.float32(module.scale) * module.B.T, dtypes[slot.lora_B], path)
    heads = {head.module: head for head in lora_inputs.heads}
    left = dict(adapter.modules_to_save)
    for path, head in heads.items():
        weight, bias = left.pop(head.weight, None), left.pop(head.bias, None)
        if weight is None:
            if not head.in_base:
                raise AdapterError(
                    f"{adapter.source} brings no '{head.weight}', and the base has none either: its answers would be noise. "
                    "Train it with that module in --modules-to-save."
                )
            continue
        if weight.ndim != 2 or weight.shape[1] != head.fan_in:
            raise AdapterError(
                f"The head '{path}' of {adapter.source} has the shape {list(weight.shape)}, and the graph feeds it "
                f"{head.fan_in} inputs: it is of another base."
            )
        feeds[head.weight] = _fed(weight.T, dtypes[head.weight], path)
        feeds[head.bias] = _fed(np.zeros(weight.shape[0]) if bias is None else bias, dtypes[head.bias], path)
    if left:
        raise AdapterError(
            f"The graph has no slot for '{next(iter(left))}', which {adapter.source} saved whole (it has {_some(heads)}): export "
            "again with this adapter among --adapter."
        )
    return feeds


def _fed(array: npt.NDArray[Any], dtype: np.dtype[Any], path: str) -> AnyArray:
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array, dtype=dtype)[None]
    if not np.isfinite(made.astype(np.float32)).all():
        raise AdapterError(
            f"'{path}' has values that {dtype} cannot hold (infinity or NaN): the adapter is broken, or too large."
        )
    return made


def _some(names: Mapping[str, object]) -> str:
    return some_of(names, 3) or "none"
