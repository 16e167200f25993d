"""Which tensor of a graph is the output of which module, so that a mismatch can be located.

torch's exporter writes the module path of every node into its metadata, and fusions keep it on the nodes they create. These
paths may be wrong, so :func:`confirmed_layers` keeps only the pairs whose values agree with PyTorch.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora.inputs import Arrays
from rmlora_converters.graph.files.model_file import save_model, to_bytes
from rmlora_deploy.bundles.manifest import Layer
from rmlora_deploy.runtime.providers import create_session

__all__ = [
    "claimed_layers",
    "confirmed_layers",
    "layer_errors",
    "opened_layers",
    "relative_difference",
    "torch_layers",
]

_SCOPES = "pkg.torch.onnx.name_scopes"
AGREEMENT = 1e-4
"""Relative difference up to which a float32 tensor counts as a module's output."""


def claimed_layers(model: ir.Model) -> list[Layer]:
    """Return every module with the last tensor of its scope, in the order of execution."""
    last: dict[str, str] = {}
    for node in model.graph:
        if not node.outputs or not node.outputs[0].name:
            continue
        for module in reversed(_scopes(node)):  # the innermost comes first
            last.pop(module, None)  # reinsert: a dict keeps the order of the last write
            last[module] = node.outputs[0].name
    return [Layer(module=module, tensor=tensor) for module, tensor in last.items()]


def _scopes(node: ir.Node) -> list[str]:
    """Return the paths of the modules that contain a node, the outermost first.

    torch's exporter records them; the older exporter that Optimum uses names nodes ``/bert/encoder/layer.0/…/MatMul``.
    """
    recorded = node.metadata_props.get(_SCOPES)
    if recorded:
        return [str(scope) for scope in ast.literal_eval(recorded)[1:-1]]
    parts = (node.name or "").split("/")[1:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def confirmed_layers(model: ir.Model, torch_model: Any, batches: Sequence[Arrays], scratch: Path) -> list[Layer]:
    """Return the claimed layers whose tensor equals the module's output in PyTorch on every batch.

    Args:
        model: float32 graph.
        torch_model: the PyTorch model that the graph was exported from.
        batches: sample batches of inputs.
        scratch: directory for a temporary model.
    """
    layers = claimed_layers(model)
    path = scratch / "layers.onnx"
    save_model(model, path)
    with opened_layers(path, layers) as run:
        for batch in batches:
            errors = layer_errors(layers, run(batch), torch_layers(torch_model, batch))
            layers = [layer for layer, error in zip(layers, errors, strict=True) if error <= AGREEMENT]
    return layers


@contextmanager
def opened_layers(
    model: Path, layers: Sequence[Layer], provider: str = "cpu"
) -> Iterator[Callable[[Arrays], dict[str, np.ndarray]]]:
    """Yield a function from a batch of inputs to the tensors of ``layers``, without those that the graph at ``model`` lacks."""
    graph = ir.load(model)
    produced = {value.name: value for node in graph.graph for value in node.outputs}
    existing = {value.name for value in graph.graph.outputs}
    tensors = [name for name in dict.fromkeys(layer.tensor for layer in layers) if name in produced]
    for name in tensors:
        if name not in existing:
            value = produced[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            graph.graph.outputs.append(value)
    # Not through a file: it would have to be next to the external weights, in a bundle that may be read-only.
    session = create_session(to_bytes(graph), provider, made_from=model)
    yield lambda batch: dict(zip(tensors, session.run(tensors, dict(batch)), strict=True))


def layer_errors(
    layers: Sequence[Layer], got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> list[float]:
    """Return ``max |got − expected| / max |expected|`` of every layer; infinite if it cannot be compared."""
    return [relative_difference(got.get(layer.tensor), expected.get(layer.module)) for layer in layers]


def torch_layers(model: Any, batch: Arrays) -> dict[str, np.ndarray]:
    """Return module path → output (its first tensor) of every module of a PyTorch model, for one batch of inputs."""
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            first = output
            while isinstance(first, (tuple, list)) and first:
                first = first[0]
            if isinstance(first, torch.Tensor):
                outputs[name] = first.detach().float().numpy()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            model(**{name: torch.from_numpy(np.array(value)) for name, value in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def relative_difference(got: np.ndarray | None, expected: np.ndarray | None) -> float:
    """Return ``max |got − expected| / max |expected|``; infinite for NaN, different shapes, or a missing array."""
    if got is None or expected is None or got.shape != expected.shape or got.size == 0:
        return float("inf")
    scale = float(np.abs(expected).max())
    error = float(np.abs(got.astype(np.float32) - expected).max()) / (scale or 1.0)
    return error if error == error else float("inf")
