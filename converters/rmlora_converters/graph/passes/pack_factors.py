"""Lets the branches of modules that are packed into one product, such as q, k and v, share two products.

An exported graph has two products for each module, because its LoRA inputs are those of modules. A step of a language model
is so short that the number of nodes decides, so a program that opens the graph puts the first factors side by side, and the
second ones on the diagonal of a matrix that is zero elsewhere. Where these zeros would be more bytes than the saved nodes are
worth, the modules keep their own products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.optional_input import add_optional_input
from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["PackedFactors", "pack_factors", "packed_arrays"]

AnyArray = npt.NDArray[Any]

_MOST_ZEROS = 50_000
"""Zeros of a packed second factor up to which packing is faster: measured on SmolLM2-135M with the ranks 8, 16, 32 and 64."""


@dataclass(frozen=True)
class PackedFactors:
    """The two LoRA inputs that replace those of several modules."""

    lora_A: str  # noqa: N815 - PEFT's name
    """Name of the input for all first factors, ``[rows, in, ranks]``."""
    lora_B: str  # noqa: N815
    """Name of the input for all second factors, ``[rows, ranks, width]``."""
    fan_in: int
    width: int
    """Outputs of the packed product."""
    parts: tuple[tuple[str, str, int], ...]
    """For each module the names of its two factors, and its first output in the packed product."""

    @property
    def names(self) -> set[str]:
        """LoRA inputs that are replaced."""
        return {name for A, B, _ in self.parts for name in (A, B)}

    def pack(self, arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Return both inputs for an adapter, or nothing if it changes none of the modules."""
        present = [(arrays[A][0], arrays[B][0], start) for A, B, start in self.parts if A in arrays]
        if not present:
            return {}
        first = np.concatenate([A for A, _, _ in present], axis=1)
        second = np.zeros((first.shape[1], self.width), first.dtype)
        done = 0
        for _, B, start in present:  # noqa: N806
            second[done : done + B.shape[0], start : start + B.shape[1]] = B
            done += B.shape[0]
        return {self.lora_A: first[None], self.lora_B: second[None]}


def pack_factors(model: ir.Model, lora_inputs: LoraInputs, *, rank: int = 8) -> list[PackedFactors]:
    """Pack the branches of ``model`` where that is faster, in place; return the inputs that replace others.

    Args:
        model: graph with branches.
        lora_inputs: of the graph.
        rank: of the adapters that are expected; every other one works too.
    """
    graph = model.graph
    names = set(lora_inputs.names)
    made = []
    for node in list(graph):
        if node.op_type == "Concat" and (node.name or "").startswith(f"{BRANCH_SCOPE}/"):
            found = _recognize(node, names, rank)
            if found is not None:
                made.append(_pack(graph, node, *found))
    if not made:
        return []
    RemoveUnusedNodesPass()(model)
    for name in {name for packed in made for name in packed.names}:
        graph.inputs.remove(graph.initializers.pop(name))
    return made


def packed_arrays(groups: Sequence[PackedFactors], arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Return LoRA input → array of a packed graph, from those of the graph on disk."""
    packed = dict(arrays)
    for group in groups:
        packed.update(group.pack(arrays))
        for name in group.names:
            packed.pop(name, None)
    return packed


def _recognize(concat: ir.Node, names: set[str], rank: int) -> tuple[ir.Value, PackedFactors] | None:
    """Return the common input of the branches that ``concat`` joins, and how to pack them; None if they stay as they are."""
    parts: list[tuple[str, str, int]] = []
    xs: set[ir.Value] = set()
    width = fan_in = 0
    for update in concat.inputs:
        found = _factors(update)
        if found is None:
            return None
        x, A, B = found  # noqa: N806 - the paper's symbols
        if str(A.name) in names and len(A.uses()) == len(B.uses()) == 1:
            parts.append((str(A.name), str(B.name), width))
            fan_in = _size(A, 1)
        elif A.is_graph_input():
            return None
        xs.add(x)
        width += _size(B, -1)
    zeros = rank * width * (len(parts) - 1)
    if len(xs) != 1 or len(parts) < 2 or zeros > _MOST_ZEROS:
        return None
    scope = f"{concat.name}/packed"
    return xs.pop(), PackedFactors(f"{scope}.lora_A", f"{scope}.lora_B", fan_in, width, tuple(parts))


def _factors(update: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return x, A and B if ``update`` is their product."""
    second = update.producer() if update is not None else None
    inner = second.inputs[0] if second is not None and second.op_type == "MatMul" else None
    first = inner.producer() if inner is not None else None
    if first is None or first.op_type != "MatMul" or second is None:
        return None
    x, A, B = first.inputs[0], first.inputs[1], second.inputs[1]  # noqa: N806
    return None if x is None or A is None or B is None else (x, A, B)


def _size(value: ir.Value, axis: int) -> int:
    shape = value.const_value.shape.numpy() if value.const_value is not None else ()
    return int(shape[axis])


def _pack(graph: ir.Graph, concat: ir.Node, x: ir.Value, packed: PackedFactors) -> PackedFactors:
    dtype = (graph.initializers[packed.parts[0][0]].dtype or ir.DataType.FLOAT).numpy()
    none_A, none_B = np.zeros((1, packed.fan_in, 0), dtype), np.zeros((1, 0, packed.width), dtype)  # noqa: N806
    rank = f"{concat.name}/packed.rank"
    A = add_optional_input(graph, packed.lora_A, ["rows", packed.fan_in, rank], none_A)  # noqa: N806
    B = add_optional_input(graph, packed.lora_B, ["rows", rank, packed.width], none_B)  # noqa: N806
    tape = Tape(graph, f"{concat.name}/packed")
    replace_node(graph, concat, tape, tape.op("MatMul", tape.op("MatMul", x, A), B))
    return packed
