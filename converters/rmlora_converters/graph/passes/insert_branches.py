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
from rmlora_converters.graph.contract.lora_inputs import Head, Slot, Slots
from rmlora_converters.graph.locate.consumers import Site, find_sites, head_site
from rmlora_converters.graph.locate.targets import Places
from rmlora_converters.graph.locate.weights import WeightPlace, wanted_module
from rmlora_converters.graph.passes.batch_axis import Batch
from rmlora_converters.graph.passes.branch_nodes import convolution, head, lookup, product
from rmlora_converters.graph.passes.rewire import producer_of, read_instead
from rmlora_converters.graph.passes.tape import NodeList

__all__ = ["BRANCH_SCOPE", "BRANCH_SUM", "check_slots", "insert_branches"]

BRANCH_SUM = "sum"
"""Name, in the scope ``…/out``, of the node that adds a branch to its module's output."""

BRANCH_SCOPE = "rmlora"
"""Names of the nodes that are inserted begin with this and a slash."""

_FLOATING = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def insert_branches(model: ir.Model, places: Places, *, base_weights: Mapping[str, str]) -> Slots:
    """Give ``model`` a branch for every module and a slot for every head of ``places``, in place.

    Args:
        model: the graph in which the places were found, or a copy of lower precision with the same initializers.
        places: from :func:`rmlora_converters.graph.locate.targets.find_places`.
        base_weights: digests to record in the graph.

    Raises:
        AdapterError: a module or head cannot be adapted where it lies.
    """
    batch = Batch(model.graph)
    slots = {
        place.parameter.removesuffix(".weight"): _slot(places.modules[place.parameter.removesuffix(".weight")], place)
        for place in places.weights
    }
    by_weight = sorted(places.weights, key=lambda place: (place.initializer, place.start))
    for _, group in groupby(by_weight, key=lambda place: place.initializer):
        _adapt(model.graph, list(group), slots, batch)
    order = {node: number for number, node in enumerate(model.graph)}
    heads = sorted(
        ((head_site(model.graph, place), place, in_base) for place, in_base in places.heads),
        key=lambda item: order[item[0].node],
    )
    made = [_replace_head(model.graph, site, place, in_base=in_base) for site, place, in_base in heads]
    RemoveUnusedNodesPass()(model)
    result = Slots(tuple(slots.values()), tuple(made), dict(base_weights))
    model.metadata_props.update(result.to_props())
    check_slots(model, result)
    return result


def _slot(module: LoraModule, place: WeightPlace) -> Slot:
    shape = wanted_module(module).shape
    fan_in, fan_out = (shape[0], shape[1]) if module.kind == "embedding" else (int(np.prod(shape[1:])), shape[0])
    return Slot(module.path, module.kind, fan_in, fan_out, place.initializer, place.transposed, place.start)


def _adapt(graph: ir.Graph, places: Sequence[WeightPlace], slots: Mapping[str, Slot], batch: Batch) -> None:
    """Add the branches of all modules whose weights lie in one initializer."""
    found = [slots[place.parameter.removesuffix(".weight")] for place in places]
    width = _width(graph.initializers[places[0].initializer], places[0])
    for number in range(len(find_sites(graph, places[0]))):
        site = find_sites(graph, places[0])[number]  # again: what it reads may be what the last branch has made
        before = NodeList(graph, f"{BRANCH_SCOPE}/{found[0].module}" + (f"/call_{number}" if number else ""))
        dtype = _dtype(site)
        factors = [_factors(graph, slot, dtype) for slot in found]
        if site.how == "lookup":
            update = lookup(before, site.x, *factors[0], tokens=found[0].fan_in)
        elif site.how == "convolution":
            update = convolution(before, site, *factors[0], batch=batch)
        else:
            parts = list(zip(((place.start, place.stop) for place in places), factors, strict=True))
            update = product(before, site.x, parts, width=width, fan_in=found[0].fan_in, batch=batch)
        _add(graph, site, update, before, batch)


def _width(weight: ir.Value, place: WeightPlace) -> int:
    """Return the outputs of a weight, of which a place may be a part."""
    shape = weight.const_value.shape.numpy() if weight.const_value is not None else ()
    return int(shape[1] if place.transposed and len(shape) == 2 else shape[0])


def _dtype(site: Site) -> ir.DataType:
    for value in (site.y, site.x):
        if value.dtype in _FLOATING:
            return value.dtype
    weight = site.node.inputs[0 if site.how == "lookup" else 1]
    known = weight.const_value.dtype if weight is not None and weight.const_value is not None else None
    return known if known in _FLOATING else ir.DataType.FLOAT


def _factors(graph: ir.Graph, slot: Slot, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
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


def _add(graph: ir.Graph, site: Site, update: ir.Value, before: NodeList, batch: Batch) -> None:
    """Insert the branch's nodes and add ``update`` to the module's output."""
    y = site.y
    uses = [use for use in y.uses() if use.node not in before.nodes]
    behind = NodeList(graph, f"{before.scope}/out")
    if site.how == "convolution" or (site.how == "product" and not batch.leads(y)):
        update = behind.op("Reshape", update, behind.op("Shape", y))
    total = behind.op("Add", y, update, name=BRANCH_SUM)
    total.type, total.shape = y.type, y.shape
    producer = producer_of(y)
    if site.how == "convolution":  # it asks for the shape of what the module gives
        graph.insert_after(producer, [*before.nodes, *behind.nodes])
    else:
        graph.insert_before(site.node, before.nodes)
        graph.insert_after(producer, behind.nodes)
    read_instead(graph, y, total, name=f"{before.scope}/base", uses=uses)


def _replace_head(graph: ir.Graph, site: Site, place: WeightPlace, *, in_base: bool) -> Head:
    """Let a head whose weight and bias are inputs answer in the place of the base's, once it is fed."""
    path = place.parameter.removesuffix(".weight")
    value = graph.initializers[place.initializer]
    shape = value.const_value.shape.numpy() if value.const_value is not None else ()
    labels, fan_in = shape[:: -1 if place.transposed else 1]
    slot = Head(path, fan_in, in_base)
    _free_names(graph, {slot.weight, slot.bias}, value, site.bias)
    y, dtype = site.y, _dtype(site).numpy()
    nodes = NodeList(graph, f"{BRANCH_SCOPE}/{path}")
    uses = list(y.uses())
    new = head(
        nodes,
        site.x,
        y,
        _optional_input(graph, slot.weight, ["rows", fan_in, f"{path}.labels"], np.zeros((1, fan_in, 0), dtype)),
        _optional_input(graph, slot.bias, ["rows", f"{path}.labels"], np.zeros((1, 0), dtype)),
        labels=labels,
    )
    new.type = y.type
    if y.shape is not None:
        new.shape = ir.Shape([*list(y.shape)[:-1], f"{path}.labels"])
    graph.insert_after(producer_of(y), nodes.nodes)
    read_instead(graph, y, new, name=f"{BRANCH_SCOPE}/{path}/base", uses=uses)
    return slot


def _free_names(graph: ir.Graph, taken: set[str], *values: ir.Value | None) -> None:
    """Rename initializers whose names the slots need."""
    for value in values:
        if value is not None and value.name in taken and value.name in graph.initializers:
            graph.initializers.pop(str(value.name))
            value.name = f"{BRANCH_SCOPE}/{value.name}/base"
            graph.register_initializer(value)


def check_slots(model: ir.Model, slots: Slots) -> None:
    """Raise :class:`AdapterError` unless every slot is an optional input of ``model`` that something reads."""
    inputs = {value.name: value for value in model.graph.inputs if value.name in model.graph.initializers}
    missing = [name for name in slots.names if name not in inputs or not inputs[name].uses()]
    if missing:
        raise AdapterError(f"The slot '{missing[0]}' did not survive in the graph: please report this as a bug.")
