"""Brings a graph that somebody else exported into the form that the other passes expect.

Weights become initializers, whether the exporter wrote them as such, as ``Constant`` nodes, or listed them among the inputs;
every node has a name of its own; the inputs take int64; and only the output with the answers is kept. What the graph computes
stays the same.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
)

from rmlora.errors import InputError
from rmlora.wording import counted
from rmlora_converters.graph.contract.lora_inputs import has_lora_inputs
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.graph.passes.tape import OLDEST_OPSET, Tape

__all__ = ["adopt_graph", "keep_named_output", "keep_output", "score_output", "weights_to_initializers"]

_SCOPE = "adopted"
_ANSWER_NAMES = ("logits", "scores", "output")
"""Names that exporters give to the scores of a classifier, most usual first."""
_AFTER_SCORES = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
"""Operators that turn scores into probabilities or choices."""
_OLDEST_IR = 4
"""The first IR version in which an initializer need not be an input, so that inputs can have defaults."""


def adopt_graph(model: ir.Model, *, source: str) -> None:
    """Normalize ``model`` in place.

    Args:
        model: a graph from any exporter.
        source: the file it was read from, for error messages.

    Raises:
        InputError: the operator set is older than :data:`~rmlora_converters.graph.passes.tape.OLDEST_OPSET`, the graph has
            no inputs, its batch axis is fixed, or it has branches.
    """
    version = model.graph.opset_imports.get("", 0)
    if version < OLDEST_OPSET:
        raise InputError(
            f"{source} has opset {version}, and opset {OLDEST_OPSET} is the oldest that can be adapted: export it again, or "
            "raise it with onnx.version_converter.convert_version."
        )
    if has_lora_inputs(model.metadata_props):
        raise InputError(
            f"{source} has branches already: give the graph of the base alone, or add the adapter to its bundle with  rmlora-deploy "
            "adapter add."
        )
    NameFixPass()(model)  # new nodes and values are named after those that they replace
    weights_to_initializers(model)
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    if not model.graph.inputs:
        raise InputError(f"{source} takes no inputs: it is not the graph of a model.")
    _check_axes(model.graph, source)
    for value in list(model.graph.inputs):
        if value.dtype == ir.DataType.INT32:
            _widen(model.graph, value)


def weights_to_initializers(model: ir.Model) -> None:
    """Make the content of every ``Constant`` node an initializer, and that of every vector that is passed on, in place.

    Those of subgraphs become initializers of the graph itself, where weights are looked for.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    for node in list(model.graph):
        if node.op_type == "Identity" and node.inputs[0] is not None and _is_vector(node.inputs[0]):
            _store(model.graph, node, node.inputs[0])


def _is_vector(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.shape.rank() == 1 and value.is_initializer() and not value.is_graph_input()


def _store(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Make the output of an ``Identity`` an initializer: torch's older exporter stores equal biases and norms of modules once."""
    output, tensor = node.outputs[0], source.const_value
    if output.is_graph_output() or tensor is None:
        return
    name = str(output.name)
    copy = ir.Value(
        name=name,
        type=source.type,
        shape=source.shape,
        const_value=ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name),
    )
    output.replace_all_uses_with(copy)
    graph.remove(node, safe=True)
    graph.register_initializer(copy)


def keep_output(model: ir.Model, *, name: str | None, labels: int | None, source: str, axes: int = 2) -> None:
    """Drop all outputs of ``model`` but the one with the scores ``[rows, labels]``, in place.

    This is the output called ``name``, else the one that :func:`score_output` finds.

    Args:
        model: the graph of a classifier.
        name: of the output; None chooses.
        labels: number of the base's labels; None or 0 if it is not known.
        source: the file it was read from, for error messages.
        axes: of the scores: 3 for those of tokens, ``[rows, tokens, labels]``.

    Raises:
        InputError: there is no such output, or it is not clear which one it is.
    """
    if name is not None:
        keep_named_output(model, name, source=source)
    chosen = score_output(model, labels, axes=axes)
    listed = _listed(model)
    if chosen is None:
        raise InputError(
            f"It is not clear which output of {source} holds the scores: choose one of {listed} with --output-name."
        )
    if chosen.shape is not None and chosen.shape.rank() != axes:
        unit = "input" if axes == 2 else "token"
        raise InputError(
            f"The output {chosen.name} {_shown(chosen)} of {source} does not hold one row of scores per {unit}: choose another "
            f"of {listed} with --output-name, or export the model with its classification head."
        )
    producer = chosen.producer()
    if producer is not None and producer.op_type in _AFTER_SCORES:
        raise InputError(
            f"The output {chosen.name} of {source} is a {producer.op_type} of the scores, but adapters need the scores "
            "themselves: choose another output with --output-name, or export the model without that last step."
        )
    model.graph.outputs[:] = [chosen]
    RemoveUnusedNodesPass()(model)


def keep_named_output(model: ir.Model, name: str, *, source: str) -> None:
    """Drop all outputs of ``model`` but the one called ``name``, in place.

    Raises:
        InputError: there is none.
    """
    kept = [value for value in model.graph.outputs if value.name == name]
    if not kept:
        raise InputError(f"{source} has no output called '{name}': its outputs are {_listed(model)}.")
    model.graph.outputs[:] = kept
    RemoveUnusedNodesPass()(model)


def score_output(model: ir.Model, labels: int | None, *, axes: int = 2) -> ir.Value | None:
    """Return the output with a classifier's scores, which have so many axes, or None if it is not clear which one it is.

    It is the only one there is, else the one called ``logits``, ``scores`` or ``output``, else the only one of the right
    shape.
    """
    outputs = list(model.graph.outputs)
    if len(outputs) == 1:
        return outputs[0]
    for known in _ANSWER_NAMES:
        found = [value for value in outputs if value.name == known]
        if found:
            return found[0]
    fitting = [value for value in outputs if value.shape is None or value.shape.rank() == axes]
    exact = [value for value in fitting if value.shape is not None and labels and value.shape[-1] == labels]
    return next((values[0] for values in (exact, fitting) if len(values) == 1), None)


def _listed(model: ir.Model) -> str:
    return ", ".join(f"{value.name} {_shown(value)}" for value in model.graph.outputs)


def _shown(value: ir.Value) -> str:
    return f"[{', '.join(map(str, value.shape))}]" if value.shape is not None else "[?]"


def _check_axes(graph: ir.Graph, source: str) -> None:
    """Raise :class:`InputError` if the graph takes only one number of rows, or of tokens."""
    for value in graph.inputs:
        shape = list(value.shape or ())
        of_tokens = len(shape) == 2 and value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        for size, what, axis in zip(
            shape[: 2 if of_tokens else 1], ("row", "token"), ("batch", "sequence"), strict=False
        ):
            if isinstance(size, int):
                raise InputError(
                    f"The input '{value.name}' of {source} has the shape {_shown(value)}, so it takes {counted(size, what)} and no "
                    f"other number: export it with a variable {axis} axis (dynamic_axes, or Optimum without --{axis}"
                    f"{'_size' if axis == 'batch' else '_length'})."
                )


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """Make an int32 input int64, as everything that feeds a graph makes it, and cast it back in the graph."""
    uses = list(value.uses())
    nodes = Tape(graph, f"{_SCOPE}/{value.name}")
    narrow = nodes.op("Cast", value, attributes={"to": ir.DataType.INT32})
    narrow.type, narrow.shape = value.type, value.shape
    value.type = ir.TensorType(ir.DataType.INT64)
    graph.insert_before(graph[0], nodes.nodes)
    replace_uses(graph, value, narrow, name=f"{_SCOPE}/{value.name}/int32", uses=uses)
