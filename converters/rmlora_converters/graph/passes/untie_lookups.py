"""Stores a weight twice that an embedding and an output layer share, where an adapter changes only one of them.

PEFT adds an update to one module alone. Exporters keep one initializer for both, and what is merged into it would change the other
module, too. (:mod:`~rmlora_converters.tied_weights` does this for checkpoints.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from rmlora.checkpoint import EMBEDDING_NAMES
from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.uses import uses_of

__all__ = ["untie_lookups"]


def untie_lookups(model: ir.Model, shapes: Collection[tuple[int, ...]]) -> None:
    """Give lookups and products initializers of their own where they share one, in place.

    The lookups keep the name if it is that of an embedding, else the products do.

    Args:
        model: a graph.
        shapes: of the matrices that an adapter changes; others stay shared.

    Raises:
        AdapterError: lookups and products read a weight through the same cast.
    """
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not {tuple(tensor.shape.numpy()), tuple(tensor.shape.numpy()[::-1])} & set(shapes):
            continue
        looks_up = {use: _operators(use.node, use.idx) for use in value.uses()}
        if len(set().union(*looks_up.values())) < 2:
            continue
        if any(len(kinds) > 1 for kinds in looks_up.values()):
            raise AdapterError(
                f"'{name}' is looked up and multiplied by after the same operator, and the adapter changes only one of the two: "
                "merge the checkpoint and export that."
            )
        _copy_for(
            model.graph, value, [use for use, kinds in looks_up.items() if kinds != {name.endswith(EMBEDDING_NAMES)}]
        )


def _operators(node: ir.Node, index: int) -> set[bool]:
    """Return True for lookups, and False for everything else, that a use of a weight leads to."""
    if node.op_type == "Gather":
        return {index == 0}
    passed_on = [user.op_type == "Gather" for user, _ in uses_of(node.outputs[0])] if _passes_on(node) else [False]
    return set(passed_on)


def _passes_on(node: ir.Node) -> bool:
    return node.op_type in ("Cast", "Identity")


def _copy_for(graph: ir.Graph, value: ir.Value, uses: Sequence[ir._core.Usage]) -> None:
    """Let ``uses`` of an initializer read a copy of it."""
    source, name = value.const_value, f"{value.name}/untied"
    assert source is not None  # noqa: S101 - checked by untie_lookups
    tensor = ir.LazyTensor(
        lambda: ir.tensor(source.numpy(), dtype=source.dtype, name=name),
        dtype=source.dtype,
        shape=ir.Shape(source.shape.numpy()),
        name=name,
    )
    copy = ir.Value(name=name, type=value.type, shape=value.shape, const_value=tensor)
    graph.register_initializer(copy)
    for use in uses:
        use.node.replace_input_with(use.idx, copy)
