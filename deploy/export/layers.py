"""Which tensor of a graph is the output of which module, so that a departure can be named.

torch's exporter writes the module path of every node into its metadata, and fusions keep it on the node they
make. That is a claim; :func:`confirmed_layers` keeps the pairs whose values agree with PyTorch.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from deploy.export.optimise import save_model
from deploy.preprocess import Arrays
from deploy.providers import create_session

__all__ = ["Layer", "claimed_layers", "confirmed_layers", "run_layers", "torch_layers"]

Layer = dict[str, str]
"""``{"module": path, "tensor": name}``."""

_SCOPES = "pkg.torch.onnx.name_scopes"
AGREEMENT = 1e-3
"""Relative difference up to which a tensor counts as a module's output."""


def claimed_layers(model: ir.Model) -> list[Layer]:
    """Return the last tensor of every module scope, in the order of execution."""
    last: dict[str, str] = {}
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        if not scopes or not node.outputs or not node.outputs[0].name:
            continue
        for module in reversed(ast.literal_eval(scopes)[1:-1]):  # the innermost comes first
            last.pop(module, None)  # reinsert: a dict keeps the order of the last write
            last[module] = node.outputs[0].name
    return [{"module": module, "tensor": tensor} for module, tensor in last.items()]


def confirmed_layers(model: ir.Model, torch_model: Any, case: Arrays, scratch: Path) -> list[Layer]:
    """Return the claimed layers whose tensor equals the module's output in PyTorch.

    Args:
        model: float32 graph.
        torch_model: the PyTorch model it was made of.
        case: one batch of inputs.
        scratch: directory for a temporary model.
    """
    claims = claimed_layers(model)
    path = scratch / "layers.onnx"
    save_model(model, path)
    got = run_layers(path, claims, case)
    expected = torch_layers(torch_model, case)
    return [
        layer
        for layer in claims
        if layer["tensor"] in got
        and relative_difference(got[layer["tensor"]], expected.get(layer["module"])) <= AGREEMENT
    ]


def run_layers(model: Path, layers: Sequence[Layer], case: Arrays, provider: str = "cpu") -> Mapping[str, np.ndarray]:
    """Return the tensors of ``layers`` that exist in the graph at ``model``, for one batch of inputs."""
    graph = ir.load(model)
    produced = {value.name: value for node in graph.graph for value in node.outputs}
    there = {value.name for value in graph.graph.outputs}
    wanted = [name for name in dict.fromkeys(layer["tensor"] for layer in layers) if name in produced]
    for name in wanted:
        value = produced[name]
        if name not in there:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            graph.graph.outputs.append(value)
    opened = model.with_name(f"{model.stem}.layers.onnx")  # beside the original, whose external data it shares
    try:
        ir.save(graph, opened)
        session = create_session(opened, provider)
        return dict(zip(wanted, session.run(wanted, dict(case)), strict=True))
    finally:
        opened.unlink(missing_ok=True)


def torch_layers(model: Any, case: Arrays) -> dict[str, np.ndarray]:
    """Return the output of every module of a PyTorch model (its first tensor) for one batch of inputs."""
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
            model(**{name: torch.from_numpy(np.array(value)) for name, value in case.items()})
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def relative_difference(got: np.ndarray, expected: np.ndarray | None) -> float:
    """Return ``max |got − expected| / max |expected|``; infinite where the shapes differ or nothing is expected."""
    if expected is None or got.shape != expected.shape or got.size == 0:
        return float("inf")
    scale = float(np.abs(expected).max())
    return float(np.abs(got.astype(np.float32) - expected).max()) / (scale or 1.0)
