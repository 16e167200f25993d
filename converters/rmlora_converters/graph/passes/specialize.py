"""Turns a graph with branches into one for a single adapter, merged into the weights, or for the base alone.

A server does this for an adapter that most requests use, because the resulting graph has no branches to compute.
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
from rmlora_converters.graph.locate.block_quantized import BlockQuantized
from rmlora_converters.graph.locate.contents import FLOATING_TYPES
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE, BRANCH_SUM
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.rounding import checked_cast

__all__ = ["specialize"]

AnyArray = npt.NDArray[Any]

_FEWEST_BITS = 8
"""Bits of a quantized weight that an update can be merged into."""


def specialize(model: ir.Model, lora_inputs: LoraInputs, arrays: Mapping[str, AnyArray]) -> None:
    """Remove the branches of ``model`` in place, and merge the adapter in ``arrays`` into its weights.

    Args:
        model: a graph with branches. Its weights are merged when it is saved.
        lora_inputs: the LoRA inputs of the graph.
        arrays: LoRA input → array with ``rows`` = 1, from
            :func:`~rmlora_converters.graph.contract.adapter_arrays.adapter_arrays`; empty for the base.

    Raises:
        ConfigError: a weight that would change is quantized.
        AdapterError: the merged weight overflows its type.
    """
    graph = model.graph
    for branch in lora_inputs.modules:
        if branch.lora_A in arrays:
            _merge(graph, branch, arrays[branch.lora_A][0], arrays[branch.lora_B][0])
    for node in list(graph):
        if (node.name or "").startswith(f"{BRANCH_SCOPE}/") and (node.name or "").endswith(f"/out/{BRANCH_SUM}"):
            total, output = node.outputs[0], node.inputs[0]
            assert output is not None  # noqa: S101 - an addition has two inputs
            replace_uses(graph, total, output, name=f"{total.name}/bypassed")
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


def _merge(graph: ir.Graph, branch: BranchInputs, A: AnyArray, B: AnyArray) -> None:  # noqa: N803 - the paper's symbols
    """Merge the update ``A B`` into the weight of a module; A is ``[in, rank]`` and B ``[rank, out]``."""
    value = graph.initializers.get(branch.weight)
    blocks = BlockQuantized.of(value) if value is not None else None
    if value is None or value.const_value is None or (blocks is None and value.const_value.dtype not in FLOATING_TYPES):
        raise ConfigError(f"The weight of '{branch.module}' is quantized, so no adapter can be merged into it.")
    update = A.astype(np.float32) @ B.astype(np.float32)  # [in, out]
    if blocks is not None:
        if blocks.bits < _FEWEST_BITS:
            raise ConfigError(
                f"The weight of '{branch.module}' has {blocks.bits} bits, and rounding to them would lose a merged update: keep the "
                "adapter in its branch, or export the bundle with --precision int8."
            )
        blocks.merge(slice(branch.start, branch.start + branch.fan_out), update.T)
        return
    if branch.kind == "conv" or (branch.kind == "linear" and not branch.transposed):
        update = update.T

    def merge(weight: AnyArray) -> None:
        index = branch.location.slices(weight.ndim)
        part = weight[index].astype(np.float32)
        weight[index] = checked_cast(part + update.reshape(part.shape), weight.dtype, branch.module)

    lazy_transform(value, merge)
