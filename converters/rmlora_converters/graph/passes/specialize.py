"""A graph with branches turned into one for a single adapter, its update in the weights, or for the base alone.

What a server does for an adapter that most requests want: such a graph has no branches left to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import ConfigError
from rmlora_converters.graph.contract.lora_inputs import BranchInputs, LoraInputs
from rmlora_converters.graph.files.lazy_tensor import lazy_transform
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE, BRANCH_SUM
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.rounding import checked_cast

__all__ = ["specialize"]

AnyArray = npt.NDArray[Any]


def specialize(model: ir.Model, lora_inputs: LoraInputs, arrays: Mapping[str, AnyArray]) -> None:
    """Remove the branches of ``model`` in place, and add what ``arrays`` feed them to its weights.

    Args:
        model: a graph with branches; its weights are read when it is saved.
        slots: of the graph.
        arrays: slot → array with ``rows`` = 1 (:func:`rmlora_converters.graph.contract.adapter_arrays.adapter_arrays`); none for the base.

    Raises:
        ConfigError: a weight that would change is quantized.
        AdapterError: the merged weight overflows its type.
    """
    graph = model.graph
    for slot in lora_inputs.modules:
        if slot.lora_A in arrays:
            _merge(graph, slot, arrays[slot.lora_A][0], arrays[slot.lora_B][0])
    for node in list(graph):
        if (node.name or "").startswith(f"{BRANCH_SCOPE}/") and (node.name or "").endswith(f"/out/{BRANCH_SUM}"):
            total, own = node.outputs[0], node.inputs[0]
            assert own is not None  # noqa: S101 - an addition has two
            replace_uses(graph, total, own, name=f"{total.name}/bypassed")
    for name in lora_inputs.names:
        value = graph.initializers[name]
        graph.inputs.remove(value)
        if name in arrays:
            value.const_value = ir.tensor(arrays[name], name=name)
            value.shape = ir.Shape(arrays[name].shape)
    RemoveUnusedNodesPass()(model)
    for name in [
        name for name in lora_inputs.names if name in graph.initializers and not graph.initializers[name].uses()
    ]:
        graph.initializers.pop(name)


def _merge(graph: ir.Graph, slot: BranchInputs, first: AnyArray, second: AnyArray) -> None:
    value = graph.initializers.get(slot.weight)
    if value is None or value.const_value is None:
        raise ConfigError(f"The weight of '{slot.module}' is quantized, so no adapter can be merged into it.")
    update = first.astype(np.float32) @ second.astype(np.float32)  # [in, out]
    if slot.kind == "conv" or (slot.kind == "linear" and not slot.transposed):
        update = update.T

    def merge(whole: AnyArray) -> None:
        index = slot.location.slices(whole.ndim)
        part = whole[index].astype(np.float32)
        whole[index] = checked_cast(part + update.reshape(part.shape), whole.dtype, slot.module)

    lazy_transform(value, merge)
