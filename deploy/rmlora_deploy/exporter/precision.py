"""Lowering a float32 graph to fp16, int8 or int4 (no torch).

fp16 halves every weight; inputs and outputs keep their types, and pooling stays float32.

int8 here is for graphs with side-branches: inputs of products are rounded to the range of every batch, because adapters change
them. The head and the side-branches stay float32. :mod:`rmlora_deploy.exporter.int8` makes the int8 of merged graphs.

int4 stores the weights of products in 4 bits, with a scale and an offset for every 32 of them, and embedding tables in 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from rmlora.errors import ConfigError, require
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.passes.open_attention import open_attention, open_attention_per_projection
from rmlora_converters.graph.passes.pooling import POOLING_SCOPE
from rmlora_converters.graph.passes.quantize_products import FloatArray
from rmlora_deploy.bundles.manifest import Precision, WeightBits
from rmlora_deploy.exporter.float_parts import kept_in_float
from rmlora_deploy.exporter.graph_precision import check_lowered
from rmlora_deploy.exporter.int8 import round_by_batch
from rmlora_deploy.exporter.quiet import quiet_libraries

__all__ = ["lower_precision", "save_in_precision"]

_BLOCK = 32
"""Weights that share a 4-bit scale."""


def save_in_precision(
    model: ir.Model,
    target: Path,
    precision: Precision,
    *,
    scratch: Path,
    bits: WeightBits = 8,
    balances: Mapping[str, FloatArray] | None = None,
) -> None:
    """Save a float32 graph to ``target`` in ``precision``.

    Args:
        model: float32 graph.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        precision: any; fp32 saves the graph as it is.
        scratch: directory for temporary files.
        bits: of int8's weights.
        balances: of int8's products, from :attr:`~rmlora_deploy.exporter.calibration.Calibration.balances`.
    """
    if precision == "fp32":
        save_model(model, target)
        return
    full = scratch / f"{target.stem}.fp32.onnx"
    save_model(model, full)
    lower_precision(full, target, precision, bits=bits, balances=balances)


def lower_precision(
    source: Path,
    target: Path,
    precision: Precision,
    *,
    bits: WeightBits = 8,
    balances: Mapping[str, FloatArray] | None = None,
) -> None:
    """Write the graph at ``source`` to ``target`` in ``precision``.

    Args:
        source: float32 model.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        precision: ``fp16``, ``int8`` or ``int4``; with the last two, the head and side-branches stay float32.
        bits: of int8's weights.
        balances: as for :func:`save_in_precision`.

    Raises:
        ConfigError: any other precision, or the graph has nothing to round.
    """
    require("onnxruntime", "cpu")
    if precision == "fp16":
        lowered = _to_fp16(source)
    elif precision == "int8":
        lowered = load_model(source)
        open_attention_per_projection(lowered)
        round_by_batch(lowered, balances or {}, bits=bits)
    elif precision == "int4":
        lowered = _to_int4(_round_tables(_open(source)))
    else:
        raise ConfigError(f"'{precision}' is not a lower precision: choose fp16, int8 or int4.")
    check_lowered(lowered, precision)
    save_model(lowered, target)


def _to_fp16(source: Path) -> ir.Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    pooling = [node.name for node in model.graph.node if node.name.startswith(f"{POOLING_SCOPE}/")]
    # Its shape inference serializes the model, which fails past 2 GB, and the exporter has written shapes already.
    lowered = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True, node_block_list=pooling)
    return ir.serde.deserialize_model(lowered)


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


def _round_tables(source: Path) -> Path:
    """Write the graph, with embedding tables in int8, to the directory of ``source``; return the file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = source.with_suffix(".int8.onnx")
    with quiet_libraries():
        quantize_dynamic(
            source,
            quantized,
            op_types_to_quantize=["Gather"],  # reads the embedding table, which is half of a small model's bytes
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept_in_float(ir.load(source).graph),
            use_external_data_format=True,  # one file cannot hold more than 2 GB
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
