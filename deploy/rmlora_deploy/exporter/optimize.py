"""Fusing a graph for ONNX Runtime, and keeping the fusions only if the outputs stay the same.

``optimize_for_ort`` halves the nodes of an encoder (Attention, BiasGelu); its layer-norm fusion is undone, because it is
slower. Both graphs are run, and if fusing failed or changed the outputs, the unfused graph is kept. Products of constants with
parameters stay in the graph, because adapters may change the parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import RMLoRAError
from rmlora.inputs import Arrays
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.open_layer_norm import open_layer_norms
from rmlora_deploy.exporter.quiet import quiet_libraries
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import create_session

__all__ = ["EXACT", "Optimized", "optimize", "run_model"]

EXACT = 1e-4
"""Largest difference, relative to the largest output, that reordering float32 sums may cause."""

_HIDDEN = "rmlora.hidden"
"""Domain that hides operators from the optimizer."""


@dataclass(frozen=True)
class Optimized:
    """The graph that is kept, and how far it was optimized."""

    model: ir.Model
    level: str
    """``ort-fusions``, or ``folded`` (constants only) if the fusions were not kept."""
    reason: str | None = None
    """Why the fusions were not kept; None if they were."""


def optimize(model: ir.Model, batches: Sequence[Arrays], scratch: Path) -> Optimized:
    """Return ``model`` with constants folded and operators fused for ONNX Runtime.

    Args:
        model: straight from the exporter; changed in place.
        batches: inputs of several shapes, on which the outputs must stay the same.
        scratch: directory for temporary files.
    """
    import onnxscript.optimizer

    expected = run_model(model, batches, scratch / "unoptimized.onnx")
    with quiet_libraries(), _weights_kept(model):
        onnxscript.optimizer.optimize(model)
    save_model(model, scratch / "folded.onnx")  # fusing changes the model in place
    try:
        fused = _fuse(model)
        worst = _worst(expected, run_model(fused, batches, scratch / "fused.onnx"))
    except (RMLoRAError, ValueError, KeyError, AssertionError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].replace(f"{scratch}{os.sep}", "") or type(error).__name__
        return Optimized(_reload(scratch / "folded.onnx"), "folded", f"fusion failed: {reason}")
    if not worst <= EXACT:
        return Optimized(
            _reload(scratch / "folded.onnx"), "folded", f"the outputs of the fused graph differed by {worst:.1e}"
        )
    return Optimized(fused, "ort-fusions")


def _fuse(model: ir.Model) -> ir.Model:
    """Apply onnxscript's fusions, and join the query, key and value weights that these pack into one tensor."""
    import onnxscript.optimizer
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with quiet_libraries(), _weights_kept(model):
        fused, _ = optimize_for_ort(model)
        onnxscript.optimizer.fold_constants(fused, should_fold=_joins_weights)
    open_layer_norms(fused)
    RemoveUnusedNodesPass()(fused)
    return fused


@contextmanager
def _weights_kept(model: ir.Model) -> Iterator[None]:
    """Hide from the optimizer what it would compute with weights: products and lookups of nothing but constants, and batch norms.

    A batch norm is folded into the weights of the convolution before it. ONNX Runtime does that too when it loads the graph.
    """
    known = set(model.graph.initializers.values())
    hidden: list[ir.Node] = []
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            hidden.append(node)
        elif all(value is None or value in known for value in node.inputs):
            known.update(node.outputs)
            if node.op_type in ("MatMul", "Gemm", "Gather") and not node.domain and _reads_matrix(node):
                hidden.append(node)
    for node in hidden:
        node.domain = _HIDDEN
    model.graph.opset_imports[_HIDDEN] = 1
    try:
        yield
    finally:
        for node in hidden:
            node.domain = ""
        model.graph.opset_imports.pop(_HIDDEN, None)


def _reads_matrix(node: ir.Node) -> bool:
    """Return True if ``node`` computes in floating point with a matrix, or with the transpose of one."""
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Transpose":
        value = producer.inputs[0]  # the exporter gives the transpose of a parameter neither type nor shape
    return (
        value is not None and value.dtype == ir.DataType.FLOAT and value.shape is not None and value.shape.rank() == 2
    )


def _joins_weights(node: ir.Node) -> bool | None:
    """Return True for a Concat of constants of any size; None leaves every other node to the folder's own limits."""
    joins = node.op_type == "Concat" and all(value and value.const_value is not None for value in node.inputs)
    return True if joins else None


def _reload(path: Path) -> ir.Model:
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def run_model(model: ir.Model, batches: Sequence[Arrays], path: Path) -> list[np.ndarray]:
    """Save ``model`` to ``path``, run it on the CPU and return the first output for every batch.

    Raises:
        InputError: ONNX Runtime cannot load the graph, or cannot run it on these inputs.
    """
    save_model(model, path)
    outputs = graph_logits(create_session(path))
    return [outputs(batch) for batch in batches]


def _worst(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, got, strict=True))
