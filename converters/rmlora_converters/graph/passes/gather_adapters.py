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

__all__ = ["ADAPTER_INDICES", "gather_adapters", "require_lora_inputs"]

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
    order = {node: number for number, node in enumerate(graph)}
    embeddings = {branch.lora_A: branch.module for branch in lora_inputs.modules if branch.kind == "embedding"}
    for name in lora_inputs.names:
        table = graph.initializers[name]
        sources = _table_uses(graph, table, embeddings[name]) if name in embeddings else {table: list(table.uses())}
        for number, (source, uses) in enumerate(sources.items()):
            nodes = Tape(graph, f"{BRANCH_SCOPE}/{name}/pick_{number}")
            if not uses:
                raise _unknown(name)
            gathered = nodes.op("Gather", source, indices, attributes={"axis": 0})
            graph.insert_before(min((use.node for use in uses), key=lambda node: order[node]), nodes.nodes)
            replace_uses(graph, source, gathered, name=name, uses=uses)


def require_lora_inputs(model: ir.Model, lora_inputs: LoraInputs) -> None:
    """Make the LoRA inputs ordinary inputs without defaults, in place.

    A provider that compiles the graph may take a default for a constant, and then ignores what is fed.
    """
    for name in lora_inputs.names:
        model.graph.initializers.pop(name).const_value = None


def _table_uses(graph: ir.Graph, table: ir.Value, module: str) -> dict[ir.Value, list[ir._core.Usage]]:
    """Return what to gather for an embedding, and the uses of it.

    A table is as long as the vocabulary, so not the tables are gathered but, once for each lookup, the first row of every
    adapter in the concatenated tables. A lookup that is the same for all rows reads the tables themselves, which are short.
    """
    scope = f"{BRANCH_SCOPE}/{module}/"
    starts = [node.outputs[0] for node in graph if node.op_type == "Range" and (node.name or "").startswith(scope)]
    direct = [use for use in table.uses() if use.node.op_type == "Gather"]
    found = {**{value: list(value.uses()) for value in starts}, **({table: direct} if direct else {})}
    if not found:
        raise _unknown(f"{module}.lora_A")
    return found


def _unknown(name: str) -> InputError:
    return InputError(f"The graph does not use its LoRA input '{name}' as the branch pass made it: export it again.")
