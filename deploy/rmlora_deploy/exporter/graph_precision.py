"""The precision of a graph, recognized by what is in it."""

from __future__ import annotations

import onnx_ir as ir

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.manifest import Precision

__all__ = ["check_lowered", "found_precision"]


def found_precision(model: ir.Model) -> Precision:
    """Return the precision of a graph, recognized by its operators and weights."""
    operators = {node.op_type for node in model.graph}
    if operators & {"MatMulNBits", "GatherBlockQuantized"}:
        return "int4"
    if operators & {
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QLinearMatMul",
        "DequantizeLinear",
    }:
        return "int8"
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    largest = max(weights, key=lambda tensor: tensor.size, default=None)
    return "fp16" if largest is not None and largest.dtype == ir.DataType.FLOAT16 else "fp32"


def check_lowered(model: ir.Model, precision: Precision) -> None:
    """Raise :class:`ConfigError` if a graph was to be lowered and holds nothing of ``precision``, such as one of convolutions."""
    if precision != "fp16" and found_precision(model) != precision:
        raise ConfigError(
            f"--precision {precision} rounds the weights of matrix products, and this model has none but its head: choose fp32 or "
            "fp16."
        )
