"""Lowering a float32 graph to fp16, int8 or int4 (no torch).

fp16 halves every weight; inputs and outputs keep their types, and pooling stays float32.

int8 here is for graphs with side-branches, and dynamic: weights are quantized once per output channel, activations in every
run, because adapters change them, and the results of products are float. The head and the side-branches stay float32.
:mod:`rmlora_deploy.exporter.int8` makes the int8 of merged graphs.

int4 stores the weights of products in 4 bits, with a scale and an offset for every 32 of them, and embedding tables in 8.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from rmlora.errors import ConfigError, require
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.open_attention import open_attention
from rmlora_converters.graph.passes.pooling import EMBEDDING_NAME, POOLING_SCOPE
from rmlora_deploy.bundles.manifest import Precision, WeightBits
from rmlora_deploy.exporter.quiet import quiet_libraries

__all__ = ["check_lowered", "found_precision", "kept_in_float", "lower_precision", "save_in_precision"]

_PRODUCTS = ["MatMul", "Gemm"]
_TABLES = ["Gather"]
"""Reads the embedding table, which is half of a small model's bytes."""

_BLOCK = 32
"""Weights that share a 4-bit scale."""


def save_in_precision(
    model: ir.Model, target: Path, precision: Precision, *, scratch: Path, bits: WeightBits = 8
) -> None:
    """Save a float32 graph to ``target`` in ``precision``.

    Args:
        model: float32 graph.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        precision: any; fp32 saves the graph as it is.
        scratch: directory for temporary files.
        bits: of int8's weights.
    """
    if precision == "fp32":
        save_model(model, target)
        return
    full = scratch / f"{target.stem}.fp32.onnx"
    save_model(model, full)
    lower_precision(full, target, precision, bits=bits)


def lower_precision(source: Path, target: Path, precision: Precision, *, bits: WeightBits = 8) -> None:
    """Write the graph at ``source`` to ``target`` in ``precision``.

    Args:
        source: float32 model.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        precision: ``fp16``, ``int8`` or ``int4``; with the last two, the head and side-branches stay float32.
        bits: of int8's weights.

    Raises:
        ConfigError: any other precision, or the graph has nothing to round.
    """
    require("onnxruntime", "cpu")
    if precision == "fp16":
        lowered = _to_fp16(source)
    elif precision == "int8":
        lowered = ir.load(_quantize_dynamically(_open(source), [*_PRODUCTS, *_TABLES], bits=bits))
    elif precision == "int4":
        lowered = _to_int4(_quantize_dynamically(_open(source), _TABLES))
    else:
        raise ConfigError(f"'{precision}' is not a lower precision: choose fp16, int8 or int4.")
    check_lowered(lowered, precision)
    save_model(lowered, target)


def check_lowered(model: ir.Model, precision: Precision) -> None:
    """Raise :class:`ConfigError` if a graph was to be lowered and holds nothing of ``precision``, such as one of convolutions."""
    if precision != "fp16" and found_precision(model) != precision:
        raise ConfigError(
            f"--precision {precision} rounds the weights of matrix products, and this model has none but its head: choose fp32 or "
            "fp16."
        )


def _to_fp16(source: Path) -> ir.Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    pooling = [node.name for node in model.graph.node if node.name.startswith(f"{POOLING_SCOPE}/")]
    # Its shape inference serializes the model, which fails past 2 GB, and the exporter has written shapes already.
    lowered = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True, node_block_list=pooling)
    return ir.serde.deserialize_model(lowered)


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


def _open(source: Path) -> Path:
    """Write the graph, with fused attention split into its products, to the directory of ``source``; return the file.

    The shapes that it repeats for its weights are left out: quantizers before onnxruntime 1.32 transpose a head's weight and
    then fail on the shape it had.
    """
    model = ir.load(source)
    open_attention(model)
    opened = source.with_suffix(".opened.onnx")
    save_model(model, opened)
    proto = onnx.load(opened, load_external_data=False)
    weights = {item.name for item in proto.graph.initializer}
    others = [item for item in proto.graph.value_info if item.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(others)
    onnx.save(proto, opened)
    return opened


def _quantize_dynamically(source: Path, operators: list[str], *, bits: WeightBits = 8) -> Path:
    """Write the graph, with the weights of ``operators`` in int8, to the directory of ``source``; return the file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = source.with_suffix(".int8.onnx")
    with quiet_libraries():
        quantize_dynamic(
            source,
            quantized,
            op_types_to_quantize=operators,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=bits == 7,
            nodes_to_exclude=kept_in_float(ir.load(source).graph),
            use_external_data_format=True,  # one file cannot hold more than 2 GB
            extra_options={"MatMulConstBOnly": True},
        )
    return quantized


def _to_int4(source: Path) -> ir.Model:
    model = onnx.load(source)
    with quiet_libraries():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            model,
            block_size=_BLOCK,
            is_symmetric=False,
            accuracy_level=4,  # activations in 8 bits, the fastest level
            nodes_to_exclude=kept_in_float(ir.load(source).graph),
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)


def kept_in_float(graph: ir.Graph) -> list[str]:
    """Return the names of the nodes of side-branches and heads."""
    branches = [str(node.name) for node in graph if str(node.name).startswith(f"{BRANCH_SCOPE}/")]
    outputs = [output for output in graph.outputs if output.name != EMBEDDING_NAME]  # which has no head
    return branches + [name for output in outputs for name in _head_nodes(output)]


def _head_nodes(output: ir.Value) -> list[str]:
    """Return the names of the last products with a weight before the output."""
    found: list[str] = []
    seen: set[ir.Node] = set()
    queue: list[ir.Value | None] = [output]
    while queue:
        value = queue.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in ("MatMul", "Gemm") and any(
            item is not None and item.is_initializer() for item in node.inputs
        ):
            found += [str(node.name), f"{node.name}_MatMul"]  # the quantizer rewrites a Gemm to a MatMul of this name
        else:
            queue.extend(node.inputs)
    return found
