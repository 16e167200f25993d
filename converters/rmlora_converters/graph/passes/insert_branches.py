"""Low-rank branches and head slots for a graph, whoever exported it: a pass over the ONNX model, without torch.

The weights are found (:mod:`rmlora_converters.graph.locate.targets`), then the nodes that compute with them
(:mod:`rmlora_converters.graph.locate.consumers`), and every place gets ``y' = y + (x · A) · B`` with factors that are inputs
(:mod:`rmlora_converters.graph.contract.lora_inputs`). The products of the branch come before the module's own, so that ``x`` is still in
the cache, and its sum directly behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.adapter import LoraModule
from rmlora.errors import AdapterError
from rmlora_converters.graph.contract.lora_inputs import BranchInputs, HeadInputs, LoraInputs
from rmlora_converters.graph.locate.consumers import Consumer, find_consumers, head_consumer
from rmlora_converters.graph.locate.targets import Targets
from rmlora_converters.graph.locate.weights import WeightLocation, query_of_module
from rmlora_converters.graph.passes.batch_axis import BatchAxis
from rmlora_converters.graph.passes.branch_nodes import convolution, head, lookup, product
from rmlora_converters.graph.passes.rewire import producer_of, replace_uses
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["BRANCH_SCOPE", "BRANCH_SUM", "check_lora_inputs", "insert_branches"]

BRANCH_SUM = "sum"
"""Name, in the scope ``…/out``, of the node that adds a branch to its module's output."""

BRANCH_SCOPE = "rmlora"
"""Names of the nodes that are inserted begin with this and a slash."""

_FLOATING = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def insert_branches(model: ir.Model, locations: Targets, *, base_weights: Mapping[str, str]) -> LoraInputs:
    """Give ``model`` a branch for every module and a slot for every head of ``places``, in place.

    Args:
        model: the graph in which the places were found, or a copy of lower precision with the same initializers.
        places: from :func:`rmlora_converters.graph.locate.targets.find_targets`.
        base_weights: digests to record in the graph.

    Raises:
        AdapterError: a module or head cannot be adapted where it lies.
    """
    batch = BatchAxis(model.graph)
    lora_inputs = {
        location.parameter.removesuffix(".weight"): _slot(
            locations.modules[location.parameter.removesuffix(".weight")], location
        )
        for location in locations.weights
    }
    by_weight = sorted(locations.weights, key=lambda location: (location.initializer, location.start))
    for _, group in groupby(by_weight, key=lambda location: location.initializer):
        _adapt(model.graph, list(group), lora_inputs, batch)
    order = {node: number for number, node in enumerate(model.graph)}
    heads = sorted(
        ((head_consumer(model.graph, location), location, in_base) for location, in_base in locations.heads),
        key=lambda item: order[item[0].node],
    )
    made = [_replace_head(model.graph, consumer, location, in_base=in_base) for consumer, location, in_base in heads]
    RemoveUnusedNodesPass()(model)
    result = LoraInputs(tuple(lora_inputs.values()), tuple(made), dict(base_weights))
    model.metadata_props.update(result.to_props())
    check_lora_inputs(model, result)
    return result


def _slot(module: LoraModule, location: WeightLocation) -> BranchInputs:
    shape = query_of_module(module).shape
    fan_in, fan_out = (shape[0], shape[1]) if module.kind == "embedding" else (int(np.prod(shape[1:])), shape[0])
    return BranchInputs(
        module.path, module.kind, fan_in, fan_out, location.initializer, location.transposed, location.start
    )


def _adapt(
    graph: ir.Graph, locations: Sequence[WeightLocation], lora_inputs: Mapping[str, BranchInputs], batch: BatchAxis
) -> None:
    """Add the branches of all modules whose weights lie in one initializer."""
    found = [lora_inputs[location.parameter.removesuffix(".weight")] for location in locations]
    width = _width(graph.initializers[locations[0].initializer], locations[0])
    for number in range(len(find_consumers(graph, locations[0]))):
        consumer = find_consumers(graph, locations[0])[
            number
        ]  # again: what it reads may be what the last branch has made
        before = Tape(graph, f"{BRANCH_SCOPE}/{found[0].module}" + (f"/call_{number}" if number else ""))
        dtype = _dtype(consumer)
        factors = [_factors(graph, slot, dtype) for slot in found]
        if consumer.how == "lookup":
            update = lookup(before, consumer.x, *factors[0], tokens=found[0].fan_in)
        elif consumer.how == "convolution":
            update = convolution(before, consumer, *factors[0], batch=batch)
        else:
            parts = list(zip(((location.start, location.stop) for location in locations), factors, strict=True))
            update = product(before, consumer.x, parts, width=width, fan_in=found[0].fan_in, batch=batch)
        _add(graph, consumer, update, before, batch)


def _width(weight: ir.Value, location: WeightLocation) -> int:
    """Return the outputs of a weight, of which a place may be a part."""
    shape = weight.const_value.shape.numpy() if weight.const_value is not None else ()
    return int(shape[1] if location.transposed and len(shape) == 2 else shape[0])


def _dtype(consumer: Consumer) -> ir.DataType:
    for value in (consumer.y, consumer.x):
        if value.dtype in _FLOATING:
            return value.dtype
    weight = consumer.node.inputs[0 if consumer.how == "lookup" else 1]
    known = weight.const_value.dtype if weight is not None and weight.const_value is not None else None
    return known if known in _FLOATING else ir.DataType.FLOAT


def _factors(graph: ir.Graph, slot: BranchInputs, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    if slot.lora_A in graph.initializers:  # a module that is called twice has one slot
        return graph.initializers[slot.lora_A], graph.initializers[slot.lora_B]
    empty = np.zeros((1, slot.fan_in, 0), dtype.numpy()), np.zeros((1, 0, slot.fan_out), dtype.numpy())
    return (
        _optional_input(graph, slot.lora_A, ["rows", slot.fan_in, "rank"], empty[0]),
        _optional_input(graph, slot.lora_B, ["rows", "rank", slot.fan_out], empty[1]),
    )


def _optional_input(graph: ir.Graph, name: str, shape: Sequence[int | str], default: np.ndarray) -> ir.Value:
    """Add an input with a default value, which a caller may leave out."""
    tensor = ir.tensor(default, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value


def _add(graph: ir.Graph, consumer: Consumer, update: ir.Value, before: Tape, batch: BatchAxis) -> None:
    """Insert the branch's nodes and add ``update`` to the module's output."""
    y = consumer.y
    uses = [use for use in y.uses() if use.node not in before.nodes]
    behind = Tape(graph, f"{before.scope}/out")
    if consumer.how == "convolution" or (consumer.how == "product" and not batch.leads(y)):
        update = behind.op("Reshape", update, behind.op("Shape", y))
    total = behind.op("Add", y, update, name=BRANCH_SUM)
    total.type, total.shape = y.type, y.shape
    producer = producer_of(y)
    if consumer.how == "convolution":  # it asks for the shape of what the module gives
        graph.insert_after(producer, [*before.nodes, *behind.nodes])
    else:
        graph.insert_before(consumer.node, before.nodes)
        graph.insert_after(producer, behind.nodes)
    replace_uses(graph, y, total, name=f"{before.scope}/base", uses=uses)


def _replace_head(graph: ir.Graph, consumer: Consumer, location: WeightLocation, *, in_base: bool) -> HeadInputs:
    """Let a head whose weight and bias are inputs answer in the place of the base's, once it is fed."""
    path = location.parameter.removesuffix(".weight")
    value = graph.initializers[location.initializer]
    shape = value.const_value.shape.numpy() if value.const_value is not None else ()
    labels, fan_in = shape[:: -1 if location.transposed else 1]
    slot = HeadInputs(path, fan_in, in_base)
    _free_names(graph, {slot.weight, slot.bias}, value, consumer.bias)
    y, dtype = consumer.y, _dtype(consumer).numpy()
    nodes = Tape(graph, f"{BRANCH_SCOPE}/{path}")
    uses = list(y.uses())
    new = head(
        nodes,
        consumer.x,
        y,
        _optional_input(graph, slot.weight, ["rows", fan_in, f"{path}.labels"], np.zeros((1, fan_in, 0), dtype)),
        _optional_input(graph, slot.bias, ["rows", f"{path}.labels"], np.zeros((1, 0), dtype)),
        labels=labels,
    )
    new.type = y.type
    if y.shape is not None:
        new.shape = ir.Shape([*list(y.shape)[:-1], f"{path}.labels"])
    graph.insert_after(producer_of(y), nodes.nodes)
    replace_uses(graph, y, new, name=f"{BRANCH_SCOPE}/{path}/base", uses=uses)
    return slot


def _free_names(graph: ir.Graph, taken: set[str], *values: ir.Value | None) -> None:
    """Rename initializers whose names the slots need."""
    for value in values:
        if value is not None and value.name in taken and value.name in graph.initializers:
            graph.initializers.pop(str(value.name))
            value.name = f"{BRANCH_SCOPE}/{value.name}/base"
            graph.register_initializer(value)


def check_lora_inputs(model: ir.Model, lora_inputs: LoraInputs) -> None:
    """Raise :class:`AdapterError` unless every slot is an optional input of ``model`` that something reads."""
    inputs = {value.name: value for value in model.graph.inputs if value.name in model.graph.initializers}
    missing = [name for name in lora_inputs.names if name not in inputs or not inputs[name].uses()]
    if missing:
        raise AdapterError(f"The slot '{missing[0]}' did not survive in the graph: please report this as a bug.")
