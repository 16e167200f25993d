"""Lowering a float32 graph to fp16, int8 or int4 (no torch).

fp16 halves every weight; inputs and outputs keep their types, and pooling stays float32. int8 is dynamic: weights are quantized per
output channel once, activations per run, and what follows a product stays float. The head stays float32: it
has few weights and its rounding would go straight into the logits; so do side-branches, whose values are not known
yet. Weights take 7 of the 8 bits, because x86 processors without VNNI add pairs of 8-bit products in 16 bits, which
overflow: with all 8 a tiny ViT was right on one machine and far off on another (docs/export.md). int4 holds the
weights of products in 4 bits with a scale and an offset for every 32 of them, and embedding tables in 8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from rmlora.errors import ConfigError, require
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.open_attention import open_attention
from rmlora_converters.graph.passes.pooling import EMBEDDING_NAME, POOLING_SCOPE

__all__ = ["PRECISIONS", "Precision", "found_precision", "lower_precision"]

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PRODUCTS = ["MatMul", "Gemm"]
_TABLES = ["Gather"]
"""The embedding table, half of a small model's bytes."""

_BLOCK = 32
"""Weights that share a 4-bit scale."""


def lower_precision(source: Path, target: Path, precision: Precision) -> None:
    """Write the graph at ``source`` to ``target`` in ``precision``.

    Args:
        source: float32 model.
        target: file to write; large weights go to ``<target>.data`` beside it.
        precision: ``fp16``, ``int8`` or ``int4``; with the last two, products that only the outputs depend on and
            side-branches stay float32.

    Raises:
        ConfigError: the precision is unknown.
    """
    require("onnxruntime", "cpu")
    if precision == "fp16":
        lowered = _to_fp16(source)
    elif precision == "int8":
        lowered = ir.load(_quantize_dynamically(_open(source), [*_PRODUCTS, *_TABLES]))
    elif precision == "int4":
        lowered = _to_int4(_quantize_dynamically(_open(source), _TABLES))
    else:
        raise ConfigError(f"'{precision}' is no lower precision: choose fp16, int8 or int4.")
    save_model(lowered, target)


def _to_fp16(source: Path) -> ir.Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    pooling = [node.name for node in model.graph.node if node.name.startswith(f"{POOLING_SCOPE}/")]
    # Its shape inference would serialize the model, which fails past 2 GB; the exporter has left shapes already.
    lowered = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True, node_block_list=pooling)
    return ir.serde.deserialize_model(lowered)


def found_precision(model: ir.Model) -> Precision:
    """Return the precision that a graph has, told by its operators and weights."""
    operators = {node.op_type for node in model.graph}
    if operators & {"MatMulNBits", "GatherBlockQuantized"}:
        return "int4"
    if operators & {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "DequantizeLinear"}:
        return "int8"
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    largest = max(weights, key=lambda tensor: tensor.size, default=None)
    return "fp16" if largest is not None and largest.dtype == ir.DataType.FLOAT16 else "fp32"


def _open(source: Path) -> Path:
    """Write the graph with its fused attention opened beside ``source``."""
    model = ir.load(source)
    open_attention(model)
    opened = source.with_suffix(".opened.onnx")
    save_model(model, opened)
    return opened


def _quantize_dynamically(source: Path, operators: list[str]) -> Path:
    """Write the graph with the weights of ``operators`` in 8 bits beside ``source``."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = source.with_suffix(".int8.onnx")
    with _quiet():
        quantize_dynamic(
            source,
            quantized,
            op_types_to_quantize=operators,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            nodes_to_exclude=_kept_in_float(onnx.load(source, load_external_data=False).graph),
            use_external_data_format=True,  # it cannot hold more than 2 GB otherwise
            extra_options={"MatMulConstBOnly": True},
        )
    return quantized


def _to_int4(source: Path) -> ir.Model:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            model,
            block_size=_BLOCK,
            is_symmetric=False,
            accuracy_level=4,  # activations in 8 bits, as fast as it gets
            nodes_to_exclude=_kept_in_float(model.graph),
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the quantizers' advice on a pre-processing that the graph has had."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _kept_in_float(graph: Any) -> list[str]:
    branches = [node.name for node in graph.node if node.name.startswith(f"{BRANCH_SCOPE}/")]
    outputs = [output.name for output in graph.output if output.name != EMBEDDING_NAME]  # that one comes from no head
    return branches + [name for output in outputs for name in _head_nodes(graph, output)]


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
            found += [node.name, f"{node.name}_MatMul"]  # the quantizer rewrites Gemm to a MatMul of this name
        else:
            queue.extend(node.input)
    return found
