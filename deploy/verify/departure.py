"""Naming the first layer at which a graph departs from PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.export.layers import Layer, relative_difference, run_layers, torch_layers
from deploy.preprocess import Arrays

__all__ = ["first_departure"]


def first_departure(
    graph: Path, layers: Sequence[Layer], torch_model: Any, case: Arrays, *, tolerance: float, provider: str = "cpu"
) -> dict[str, Any] | None:
    """Return the first of ``layers`` whose tensor differs from the module's output by more than ``tolerance``.

    Args:
        graph: ONNX file.
        layers: module and tensor pairs in the order of execution.
        torch_model: the merged PyTorch model.
        case: one batch of inputs.
        tolerance: relative difference that is still accepted.
        provider: execution provider to run on.

    Returns:
        ``{"module", "tensor", "relative_error"}``, or None if no layer departs.
    """
    got = run_layers(graph, layers, case, provider)
    expected = torch_layers(torch_model, case)
    for layer in layers:
        if layer["tensor"] not in got:
            continue
        error = relative_difference(got[layer["tensor"]], expected.get(layer["module"]))
        if not error <= tolerance:
            return {**layer, "relative_error": error}
    return None
