"""Checks that a graph that was read is whole, so that everything after it may rely on that.

ONNX's own checker is not used: it refuses graphs that ONNX Runtime optimized, whose operators it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from rmlora.errors import InputError
from rmlora.library_calls import library_call
from rmlora.wording import counted

__all__ = ["check_graph", "tensors_of"]

_MAIN_DOMAIN = ""
_OLDEST_CHECKED = 11
"""Operator sets before this one are refused where the graph is used, in a sentence of its own."""
_ADVICE = "export or download it again"


def check_graph(model: ir.Model, path: Path) -> None:
    """Check operators, connections and weights of ``model``, which was read from ``path``; external content is not read.

    Raises:
        InputError: something is missing, contradicts itself, or is not as ONNX defines the operator.
    """
    if not 0 < model.opset_imports.get(_MAIN_DOMAIN, 0) < 1000:
        raise InputError(f"{path} does not say which ONNX operator set it uses: {_ADVICE}.")
    _check_names(model, path)
    if not model.graph.outputs:
        raise InputError(f"{path} has no outputs: {_ADVICE}.")
    for values in (model.graph.inputs, model.graph.outputs):  # an output may have an input's name: it passes it on
        names = [value.name for value in values]
        if not all(names) or len(set(names)) < len(names):
            raise InputError(f"{path} has inputs or outputs without a name of their own: {_ADVICE}.")
    for tensor in tensors_of(model):
        _check_content(tensor, path)
    opset = model.opset_imports[_MAIN_DOMAIN]
    for node in model.graph if opset >= _OLDEST_CHECKED else ():
        _check_node(node, opset, path)
    _check_connections(model.graph, path)


def _check_names(model: ir.Model, path: Path) -> None:
    """Refuse names that are not UTF-8 text: protobuf gives them as bytes."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        names = (node.name, node.op_type, node.domain, *node.attributes)
        values += [*node.outputs, *(value for value in node.inputs if value is not None)]
        if not all(name is None or isinstance(name, str) for name in names):
            raise InputError(f"{path} has a node whose name is not UTF-8 text: {_ADVICE}.")
    if not all(value.name is None or isinstance(value.name, str) for value in values):
        raise InputError(f"{path} has a value whose name is not UTF-8 text: {_ADVICE}.")


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of ``model``: initializers and attributes, in all its graphs."""
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for attribute in (item for node in graph for item in node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.value
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.value


def _check_content(tensor: ir.TensorProtocol, path: Path) -> None:
    """Refuse a tensor whose declared type and shape do not fit its content."""

    def refuse(reason: str) -> InputError:
        return InputError(f"{path} has a damaged weight '{tensor.name}' ({reason}): {_ADVICE}.")

    with library_call(refuse):
        sizes = list(tensor.shape.numpy())
        dtype = tensor.dtype
        expected = tensor.nbytes if dtype != ir.DataType.STRING else 0
    if min(sizes, default=0) < 0 or dtype == ir.DataType.UNDEFINED:
        raise refuse(f"type {dtype.name}, shape {sizes}")
    if isinstance(tensor, ir.ExternalTensor):
        if min(tensor.offset or 0, tensor.length or 0) < 0 or tensor.length not in (None, expected):
            raise refuse(f"{tensor.length} bytes from byte {tensor.offset} for shape {sizes}")
        return
    proto = getattr(tensor, "raw", None)
    if isinstance(proto, onnx.TensorProto) and proto.HasField("raw_data"):
        if len(proto.raw_data) != expected:
            raise refuse(f"{len(proto.raw_data)} bytes for shape {sizes}")
        if expected:
            return
    if isinstance(proto, onnx.TensorProto) and expected > 16 * max(1, proto.ByteSize()):
        raise refuse(f"{expected} bytes are declared for shape {sizes}")
    with library_call(refuse):
        tensor.numpy()


def _check_node(node: ir.Node, opset: int, path: Path) -> None:
    """Refuse a node of ONNX's own operators that has too few inputs, or attributes of another type."""
    if node.domain != _MAIN_DOMAIN:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, _MAIN_DOMAIN)
    except onnx.defs.SchemaError:  # one of ONNX Runtime's, or newer than the installed onnx
        return
    where = f"{path} has a damaged node '{node.name or node.op_type}'"
    if (
        not schema.min_input <= len(node.inputs) <= schema.max_input
        or not schema.min_output <= len(node.outputs) <= schema.max_output
    ):
        raise InputError(
            f"{where}: {node.op_type} does not take {counted(len(node.inputs), 'input')} and give "
            f"{counted(len(node.outputs), 'output')}; {_ADVICE}."
        )
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if value is None and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise InputError(f"{where}: {node.op_type} needs the input '{formal.name}'; {_ADVICE}.")
    for name, attribute in node.attributes.items():
        declared: Any = schema.attributes.get(name)
        if not attribute.is_ref() and declared is not None and int(declared.type) != int(attribute.type):
            raise InputError(f"{where}: its attribute '{name}' has another type than {node.op_type} takes; {_ADVICE}.")
    missing = next(
        (name for name, item in schema.attributes.items() if item.required and name not in node.attributes), None
    )
    if missing is not None:
        raise InputError(f"{where}: {node.op_type} needs the attribute '{missing}'; {_ADVICE}.")


def _check_connections(graph: ir.Graph, path: Path) -> None:
    """Refuse values that nothing makes, and nodes that wait for each other; put nodes after those whose values they read."""
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise InputError(
                    f"{path} reads '{value.name}' in {node.op_type}, which nothing in the graph makes: {_ADVICE}."
                )
    for value in graph.outputs:
        if value.producer() is None and value not in known:
            raise InputError(f"{path} has the output '{value.name}', which nothing in the graph makes: {_ADVICE}.")
    with library_call(lambda reason: InputError(f"{path} has nodes that wait for each other ({reason}): {_ADVICE}.")):
        graph.sort()
