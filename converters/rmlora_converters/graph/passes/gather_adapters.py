"""Lets every row of a batch name its adapter by an index into arrays of many adapters.

An exported graph takes one array per row. A program that keeps adapters in memory would have to fill such arrays for every
batch. This pass lets the graph gather the factors of each row instead, just before the product that uses them, so they are
still in the processor's cache.
"""

from __future__ import annotations

import onnx_ir as ir

from rmlora.errors import InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["ADAPTER_INDICES", "gather_adapters"]

ADAPTER_INDICES = f"{BRANCH_SCOPE}.adapter_indices"
"""Name of the added input: the adapter index of every row, int64 ``[rows]``, or ``[1]`` for one adapter for all rows."""


def gather_adapters(model: ir.Model, lora_inputs: LoraInputs) -> None:
    """Make LoRA inputs take ``[adapters, …]`` instead of ``[rows, …]``, and add the input :data:`ADAPTER_INDICES`, in place.

    If no LoRA input is fed, index 0 is the base for every row.

    Raises:
        InputError: a LoRA input is not used as the branch pass made it.
    """
    graph = model.graph
    indices = ir.Value(name=ADAPTER_INDICES, shape=ir.Shape(["picked"]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(indices)
    table_starts = {
        branch.lora_A: _table_starts(graph, branch.module)
        for branch in lora_inputs.modules
        if branch.kind == "embedding"
    }
    for name in lora_inputs.names:
        for number, source in enumerate(table_starts.get(name, [graph.initializers[name]])):
            nodes = Tape(graph, f"{BRANCH_SCOPE}/{name}/pick_{number}")
            uses = list(source.uses())
            if not uses:
                raise _unknown(name)
            gathered = nodes.op("Gather", source, indices, attributes={"axis": 0})
            graph.insert_before(uses[0].node, nodes.nodes)
            replace_uses(graph, source, gathered, name=name, uses=uses)


def _table_starts(graph: ir.Graph, module: str) -> list[ir.Value]:
    """Return the first row of every adapter in the concatenated tables of an embedding, once for each lookup.

    A table is as long as the vocabulary, so these offsets are gathered and not the tables.
    """
    scope = f"{BRANCH_SCOPE}/{module}/"
    found = [node.outputs[0] for node in graph if node.op_type == "Range" and (node.name or "").startswith(scope)]
    if not found:
        raise _unknown(f"{module}.lora_A")
    return found


def _unknown(name: str) -> InputError:
    return InputError(f"The graph does not use its LoRA input '{name}' as the branch pass made it: export it again.")
