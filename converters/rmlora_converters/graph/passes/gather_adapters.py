"""A graph whose slots hold a bank: arrays of many adapters, of which every row names its own by its place.

The file that is exported takes one array a row. For a program that keeps adapters in memory this spares filling such arrays
for every batch: the graph picks each row's factors just before the product that reads them, while they are in the cache.
"""

from __future__ import annotations

import onnx_ir as ir

from rmlora.errors import InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["ADAPTER_INDICES", "gather_adapters"]

ADAPTER_INDICES = f"{BRANCH_SCOPE}.places"
"""Name of the input: the place of every row's adapter, int64 ``[rows]``; of one for all rows ``[1]``."""


def gather_adapters(model: ir.Model, lora_inputs: LoraInputs) -> None:
    """Let slots take ``[places, …]`` instead of ``[rows, …]``, and add the input :data:`ADAPTER_INDICES`, in place.

    While no slot is fed, every row at place 0 is the base, as it was.

    Raises:
        InputError: a slot is not read as the branch pass made it.
    """
    graph = model.graph
    locations = ir.Value(name=ADAPTER_INDICES, shape=ir.Shape(["picked"]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(locations)
    tables = {slot.lora_A: _starts(graph, slot.module) for slot in lora_inputs.modules if slot.kind == "embedding"}
    for name in lora_inputs.names:
        for number, banked in enumerate(tables.get(name, [graph.initializers[name]])):
            nodes = Tape(graph, f"{BRANCH_SCOPE}/{name}/pick_{number}")
            uses = list(banked.uses())
            if not uses:
                raise _unknown(name)
            picked = nodes.op("Gather", banked, locations, attributes={"axis": 0})
            graph.insert_before(uses[0].node, nodes.nodes)
            replace_uses(graph, banked, picked, name=name, uses=uses)


def _starts(graph: ir.Graph, module: str) -> list[ir.Value]:
    """Return where in an embedding's tables each place's begins, once for each lookup.

    A table is as long as the vocabulary, so it stays where it lies.
    """
    scope = f"{BRANCH_SCOPE}/{module}/"
    found = [node.outputs[0] for node in graph if node.op_type == "Range" and (node.name or "").startswith(scope)]
    if not found:
        raise _unknown(f"{module}.lora_A")
    return found


def _unknown(slot: str) -> InputError:
    return InputError(f"The graph does not read its slot '{slot}' as the branch pass made it: export it again.")
