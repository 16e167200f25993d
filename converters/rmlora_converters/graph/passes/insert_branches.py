"""Adds low-rank branches and replaceable heads to a graph from any exporter, without torch.

The weights are known (:mod:`~rmlora_converters.graph.locate.targets`). For each, the nodes that compute with it are found
(:mod:`~rmlora_converters.graph.locate.consumers`), and every one gets a branch ``y' = y + (x · A) · B`` whose factors are
inputs (:mod:`~rmlora_converters.graph.contract.lora_inputs`). The products of a branch come before the module's own
product, while ``x`` is still in the processor's cache; the sum comes directly after it.

Where ``x`` is the same for all rows (:mod:`~rmlora_converters.graph.locate.batch_values`), ``y'`` is not, because every row may
have another adapter; what follows is rewritten by :mod:`~rmlora_converters.graph.passes.rows_axis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.adapter import LoraModule
from rmlora.errors import AdapterError
from rmlora_converters.graph.contract.lora_inputs import BranchInputs, HeadInputs, LoraInputs
from rmlora_converters.graph.locate.batch_values import BatchValues
from rmlora_converters.graph.locate.consumers import Consumer, find_consumers, head_consumer
from rmlora_converters.graph.locate.contents import FLOATING_TYPES
from rmlora_converters.graph.locate.targets import Targets
from rmlora_converters.graph.locate.weights import WeightLocation, query_of_module
from rmlora_converters.graph.passes.batch_axis import BatchAxis
from rmlora_converters.graph.passes.branch_nodes import Part, convolution, head, joined, lookup, product
from rmlora_converters.graph.passes.optional_input import add_optional_input
from rmlora_converters.graph.passes.rewire import producer_of, replace_uses
from rmlora_converters.graph.passes.rows_axis import RowsAxis
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["BRANCH_SCOPE", "BRANCH_SUM", "check_lora_inputs", "insert_branches"]

BRANCH_SCOPE = "rmlora"
"""Names of the added nodes begin with this and a slash."""

BRANCH_SUM = "sum"
"""Name, in the scope ``…/out``, of the node that adds a branch to the output of its module."""


def insert_branches(model: ir.Model, targets: Targets, *, base_weights: Mapping[str, str]) -> LoraInputs:
    """Add a branch for every module of ``targets`` and inputs for every head, in place; return all LoRA inputs.

    Args:
        model: the graph in which the targets were found, or a copy in lower precision with the same initializers.
        targets: from :func:`~rmlora_converters.graph.locate.targets.find_targets`.
        base_weights: module path → digest, to record in the graph.

    Raises:
        AdapterError: a module or head cannot be adapted in this graph.
    """
    batch = _Batch.of(model.graph)
    branches = {
        location.module: _branch_inputs(targets.modules[location.module], location) for location in targets.weights
    }
    by_weight = sorted(targets.weights, key=lambda location: (location.initializer, location.start))
    for _, group in groupby(by_weight, key=lambda location: location.initializer):
        _add_branches(model.graph, list(group), branches, batch)
    batch.rows.spread()
    order = {node: number for number, node in enumerate(model.graph)}
    heads = sorted(
        ((head_consumer(model.graph, location), location, in_base) for location, in_base in targets.heads),
        key=lambda item: order[item[0].node],
    )
    head_inputs = [_add_head(model.graph, consumer, location, in_base=in_base) for consumer, location, in_base in heads]
    RemoveUnusedNodesPass()(model)
    lora_inputs = LoraInputs(
        tuple(branches.values()), tuple(head_inputs), dict(base_weights), (*targets.ineffective, *targets.absent)
    )
    model.metadata_props.update(lora_inputs.to_props())
    check_lora_inputs(model, lora_inputs)
    return lora_inputs


@dataclass(frozen=True)
class _Batch:
    """Where the batch is in the graph."""

    axis: BatchAxis
    values: BatchValues
    rows: RowsAxis
    """The values that are the same for all rows without an adapter."""

    @classmethod
    def of(cls, graph: ir.Graph) -> _Batch:
        values = BatchValues(graph)
        return cls(BatchAxis(graph), values, RowsAxis(graph, values, BRANCH_SCOPE))


def _branch_inputs(module: LoraModule, location: WeightLocation) -> BranchInputs:
    shape = query_of_module(module).shape
    fan_in, fan_out = (shape[0], shape[1]) if module.kind == "embedding" else (int(np.prod(shape[1:])), shape[0])
    return BranchInputs(
        module.path, module.kind, fan_in, fan_out, location.initializer, location.transposed, location.start
    )


def _add_branches(
    graph: ir.Graph, locations: Sequence[WeightLocation], branches: Mapping[str, BranchInputs], batch: _Batch
) -> None:
    """Add the branches of all modules whose weights are in one initializer."""
    packed = [branches[location.module] for location in locations]
    width = _width(graph.initializers[locations[0].initializer], locations[0])
    for number in range(len(_own_consumers(graph, locations[0], packed[0]))):
        # Found again each time, because the last branch may have replaced the input of this consumer.
        consumer = _own_consumers(graph, locations[0], packed[0])[number]
        before = Tape(graph, f"{BRANCH_SCOPE}/{packed[0].module}" + (f"/call_{number}" if number else ""))
        dtype = _dtype(consumer)
        factors = [_factors(graph, branch, dtype) for branch in packed]
        parts = list(zip(((location.start, location.stop) for location in locations), factors, strict=True))
        if not batch.values.carries(consumer.x):
            _add_same_for_all(graph, consumer, parts, before, batch.rows, branch=packed[0], width=width)
            continue
        if consumer.how == "convolution":
            update = convolution(before, consumer, *factors[0], batch=batch.axis)
        else:
            x = _batch_first(before, consumer, batch.values)
            if consumer.how == "lookup":
                update = lookup(before, x, *factors[0], tokens=packed[0].fan_in)
            else:
                update = product(before, x, parts, width=width, fan_in=packed[0].fan_in, batch=batch.axis)
        _add_update(graph, consumer, update, before, batch)


def _own_consumers(graph: ir.Graph, location: WeightLocation, branch: BranchInputs) -> list[Consumer]:
    """Return the consumers that belong to a module: a tied weight is the embedding's and the output layer's, and is used by both.

    Raises:
        AdapterError: as :func:`find_consumers`.
    """
    looks_up = branch.kind == "embedding"
    return [item for item in find_consumers(graph, location) if (item.how == "lookup") == looks_up]


def _batch_first(nodes: Tape, consumer: Consumer, values: BatchValues) -> ir.Value:
    """Return the input of a module with the batch as its first axis.

    Raises:
        AdapterError: the number of axes is not known.
    """
    x, axis = consumer.x, values.axis(consumer.x)
    if axis == 0:
        return x
    if x.shape is None or consumer.y.shape is None:
        raise AdapterError(
            f"The batch is not the first axis of '{x.name}', and the graph does not say how many axes it has: export it with "
            "shapes (torch.onnx.export with dynamo=True)."
        )
    order = [axis, *(number for number in range(x.shape.rank()) if number != axis)]
    moved = nodes.op("Transpose", x, attributes={"perm": order})
    moved.type, moved.shape = x.type, ir.Shape([x.shape[number] for number in order])
    return moved


def _add_same_for_all(
    graph: ir.Graph, consumer: Consumer, parts: Sequence[Part], before: Tape, rows: RowsAxis, *, branch: BranchInputs,
    width: int,
) -> None:  # fmt: skip
    """Add the branch of a module whose input is the same for all rows: written for one row, and then spread over the rows."""
    module = branch.module
    if consumer.how == "convolution" or consumer.y.shape is None:
        raise rows.refusal(consumer.node, module)
    for _, factors in parts:
        for factor in factors:
            rows.start(factor, 2, module)
    if consumer.how == "lookup":
        A, B = parts[0][1]  # noqa: N806 - the paper's symbols
        update = before.op("MatMul", before.op("Gather", A, consumer.x, attributes={"axis": 0}), B)
    else:
        update = joined(before, consumer.x, parts, width=width, fan_in=branch.fan_in)
    uses = list(consumer.y.uses())
    after = Tape(graph, f"{before.scope}/out")
    y = rows.lift(after, consumer.y, consumer.y.shape.rank(), module)  # without the sum this is left, and has rows too
    total = after.op("Add", y, update, name=BRANCH_SUM)
    total.type, total.shape = consumer.y.type, consumer.y.shape
    graph.insert_before(consumer.node, before.nodes)
    graph.insert_after(producer_of(consumer.y), after.nodes)
    replace_uses(graph, consumer.y, total, name=f"{before.scope}/base", uses=uses)


def _width(weight: ir.Value, location: WeightLocation) -> int:
    """Return the number of outputs of a whole weight, of which ``location`` may be a slice."""
    shape = weight.const_value.shape.numpy() if weight.const_value is not None else ()
    return int(shape[1] if location.transposed and len(shape) == 2 else shape[0])


def _dtype(consumer: Consumer) -> ir.DataType:
    """Return the floating-point type that a consumer computes in, float32 if it is unknown."""
    for value in (consumer.y, consumer.x):
        if value.dtype in FLOATING_TYPES:
            return value.dtype
    weight = consumer.node.inputs[0 if consumer.how == "lookup" else 1]
    stored = weight.const_value.dtype if weight is not None and weight.const_value is not None else None
    return stored if stored in FLOATING_TYPES else ir.DataType.FLOAT


def _factors(graph: ir.Graph, branch: BranchInputs, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Return the inputs for both factors; a module that is called twice has only one pair."""
    if branch.lora_A in graph.initializers:
        return graph.initializers[branch.lora_A], graph.initializers[branch.lora_B]
    empty_A = np.zeros((1, branch.fan_in, 0), dtype.numpy())  # noqa: N806 - the paper's symbols
    empty_B = np.zeros((1, 0, branch.fan_out), dtype.numpy())  # noqa: N806
    rank = (
        f"{branch.module}.rank"  # of each module its own: ONNX Runtime uses memory again for shapes of the same names
    )
    return (
        add_optional_input(graph, branch.lora_A, ["rows", branch.fan_in, rank], empty_A),
        add_optional_input(graph, branch.lora_B, ["rows", rank, branch.fan_out], empty_B),
    )


def _add_update(graph: ir.Graph, consumer: Consumer, update: ir.Value, before: Tape, batch: _Batch) -> None:
    """Insert the nodes of a branch, and add ``update`` to the output of the module."""
    y = consumer.y
    uses = [use for use in y.uses() if use.node not in before.nodes]
    after = Tape(graph, f"{before.scope}/out")
    axis = batch.values.axis(consumer.x)
    if axis and y.shape is not None:
        order = [axis, *(number for number in range(y.shape.rank()) if number != axis)]
        shape = after.op("Gather", after.op("Shape", y), after.constant("order", order))
        back = [order.index(number) for number in range(len(order))]
        update = after.op("Transpose", after.op("Reshape", update, shape), attributes={"perm": back})
    elif consumer.how == "convolution" or (consumer.how == "product" and not batch.axis.leads(y)):
        update = after.op("Reshape", update, after.op("Shape", y))
    total = after.op("Add", y, update, name=BRANCH_SUM)
    total.type, total.shape = y.type, y.shape
    batch.values.add(total, like=y)
    batch.rows.leave([*before.nodes, *after.nodes])
    producer = producer_of(y)
    if consumer.how == "convolution":  # its branch needs the shape of the module's output
        graph.insert_after(producer, [*before.nodes, *after.nodes])
    else:
        graph.insert_before(consumer.node, before.nodes)
        graph.insert_after(producer, after.nodes)
    replace_uses(graph, y, total, name=f"{before.scope}/base", uses=uses)


def _add_head(graph: ir.Graph, consumer: Consumer, location: WeightLocation, *, in_base: bool) -> HeadInputs:
    """Add a head whose weight and bias are inputs; when they are fed, its output replaces that of the base's head."""
    path = location.module
    value = graph.initializers[location.initializer]
    shape = value.const_value.shape.numpy() if value.const_value is not None else ()
    labels, fan_in = shape[:: -1 if location.transposed else 1]
    inputs = HeadInputs(path, fan_in, in_base)
    _free_names(graph, {inputs.weight, inputs.bias})
    y, dtype = consumer.y, _dtype(consumer).numpy()
    nodes = Tape(graph, f"{BRANCH_SCOPE}/{path}")
    uses = list(y.uses())
    new = head(
        nodes,
        consumer.x,
        y,
        add_optional_input(graph, inputs.weight, ["rows", fan_in, f"{path}.labels"], np.zeros((1, fan_in, 0), dtype)),
        add_optional_input(graph, inputs.bias, ["rows", f"{path}.labels"], np.zeros((1, 0), dtype)),
        labels=labels,
    )
    new.type = y.type
    if y.shape is not None:
        new.shape = ir.Shape([*list(y.shape)[:-1], f"{path}.labels"])
    graph.insert_after(producer_of(y), nodes.nodes)
    replace_uses(graph, y, new, name=f"{BRANCH_SCOPE}/{path}/base", uses=uses)
    return inputs


def _free_names(graph: ir.Graph, needed: set[str]) -> None:
    """Rename the values that have names which are needed for inputs."""
    computed = [value for node in graph for value in node.outputs if value.name in needed]
    for value in [graph.initializers.pop(name) for name in needed & graph.initializers.keys()]:
        value.name = f"{BRANCH_SCOPE}/{value.name}/base"
        graph.register_initializer(value)
    for value in computed:  # from weights that are stored in another type
        value.name = f"{BRANCH_SCOPE}/{value.name}/cast"


def check_lora_inputs(model: ir.Model, lora_inputs: LoraInputs) -> None:
    """Raise :class:`AdapterError` unless every LoRA input is an optional input of ``model`` and is used."""
    inputs = {value.name: value for value in model.graph.inputs if value.name in model.graph.initializers}
    missing = [name for name in lora_inputs.names if name not in inputs or not inputs[name].uses()]
    if missing:
        raise AdapterError(f"The graph has lost its LoRA input '{missing[0]}': please report this as a bug.")
