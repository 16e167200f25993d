"""Lowering a float32 graph to fp16 or int8 (no torch).

fp16 halves every weight; inputs and outputs keep their types. int8 is dynamic: weights are quantised per
channel once, activations per run, and what follows a product stays float. The head stays float32: it has few
weights and its rounding would go straight into the logits.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from rmlora.errors import ConfigError, require

__all__ = ["PRECISIONS", "Precision", "lower_precision"]

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_QUANTISED = ["MatMul", "Attention", "Gemm", "Gather"]
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
        _to_fp16(source, target)
    elif precision == "int8":
        _to_int8(source, target, output)
    else:
        raise ConfigError(f"'{precision}' is no lower precision: choose fp16 or int8.")


def _to_fp16(source: Path, target: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    lowered = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    _save(lowered, target)


def _to_int8(source: Path, target: Path, output: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    large = source.with_name(source.name + ".data").exists()
    logging.disable(logging.WARNING)  # it advises a pre-processing that the graph has had
    try:
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head_nodes(model.graph, output),
            use_external_data_format=large,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)


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
            found.append(node.name)
        else:
            queue.extend(node.input)
    return found


def _save(model: onnx.ModelProto, target: Path) -> None:
    large = model.ByteSize() > 1 << 20
    onnx.save(
        model,
        target,
        save_as_external_data=large,
        location=f"{target.name}.data" if large else None,
        size_threshold=1024,
    )
