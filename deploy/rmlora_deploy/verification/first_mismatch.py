"""Finding the first layer at which a graph differs from PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.inputs import Arrays
from rmlora_deploy.bundles.manifest import Layer
from rmlora_deploy.bundles.report import LayerMismatch
from rmlora_deploy.verification.layers import layer_errors, opened_layers, torch_layers

__all__ = ["first_mismatch"]


def first_mismatch(
    graph: Path, layers: Sequence[Layer], torch_model: Any, batch: Arrays, *, tolerance: float, provider: str = "cpu"
) -> LayerMismatch | None:
    """Return the first of ``layers`` whose tensor differs from the module's output by more than ``tolerance``.

    Layers whose tensor a lower precision has removed from the graph are skipped.

    Args:
        graph: ONNX file.
        layers: module and tensor pairs in the order of execution.
        torch_model: the merged PyTorch model.
        batch: one batch of inputs.
        tolerance: relative difference that is still accepted.
        provider: execution provider to run on.

    Returns:
        the layer, with error None if it is not finite; None if no layer differs.
    """
    with opened_layers(graph, layers, provider) as run:
        got = run(batch)
    present = [layer for layer in layers if layer.tensor in got]
    for layer, error in zip(present, layer_errors(present, got, torch_layers(torch_model, batch)), strict=True):
        if error > tolerance:
            return LayerMismatch(
                module=layer.module, tensor=layer.tensor, relative_error=error if math.isfinite(error) else None
            )
    return None
