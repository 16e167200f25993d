"""Lowering a float32 graph to fp16 or int8 (no torch).

fp16 halves every weight; inputs and outputs keep their types. int8 is dynamic: weights are quantised per
output channel once, activations per run, and what follows a product stays float. The head stays float32: it
has few weights and its rounding would go straight into the logits. Weights take 7 of the 8 bits, because x86
processors without VNNI add pairs of 8-bit products in 16 bits, which overflow: with all 8 a tiny ViT was right on
one machine and far off on another (docs/export.md).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from converters.graph.attention import open_attention
from converters.graph.file import save_model
from rmlora.errors import ConfigError, require

__all__ = ["PRECISIONS", "Precision", "lower_precision"]

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_QUANTISED = ["MatMul", "Gemm", "Gather"]
"""Gather is the embedding table, half of a small model's bytes."""


def lower_precision(source: Path, target: Path, precision: Precision, *, output: str) -> None:
    """Write the graph at ``source`` to ``target`` in ``precision``.

    Args:
        source: float32 model.
        target: file to write; large weights go to ``<target>.data`` beside it.
        precision: ``fp16`` or ``int8``.
        output: name of the graph's output; the products that only it depends on stay float32.

    Raises:
        ConfigError: the precision is unknown.
    """
    require("onnxruntime", "cpu")
    if precision == "fp16":
        lowered = _to_fp16(source)
    elif precision == "int8":
        lowered = _to_int8(source, output)
    else:
        raise ConfigError(f"'{precision}' is no lower precision: choose fp16 or int8.")
    save_model(lowered, target)


def _to_fp16(source: Path) -> ir.Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Its shape inference would serialise the model, which fails past 2 GB; the exporter has left shapes already.
    lowered = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=True)
    return ir.serde.deserialize_model(lowered)


def _to_int8(source: Path, output: str) -> ir.Model:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = ir.load(source)
    open_attention(model)
    opened, quantised = source.with_suffix(".opened.onnx"), source.with_suffix(".int8.onnx")
    save_model(model, opened)
    logging.disable(logging.WARNING)  # it advises a pre-processing that the graph has had
    try:
        quantize_dynamic(
            opened,
            quantised,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            nodes_to_exclude=_head_nodes(onnx.load(opened, load_external_data=False).graph, output),
            use_external_data_format=True,  # it cannot hold more than 2 GB otherwise
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
    return ir.load(quantised)


def _head_nodes(graph: Any, output: str) -> list[str]:
    """Return the names of the last weighted products before the output."""
    producers = {name: node for node in graph.node for name in node.output}
    weights = {item.name for item in graph.initializer}
    found: list[str] = []
    queue = [output]
    while queue:
        node = producers.get(queue.pop())
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm") and any(name in weights for name in node.input):
            found += [node.name, f"{node.name}_MatMul"]  # the quantiser rewrites Gemm to a MatMul of this name
        else:
            queue.extend(node.input)
    return found
