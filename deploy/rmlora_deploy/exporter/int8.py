"""Lowering a merged float32 graph to int8, calibrated on the user's data (no torch).

Weights are rounded per output channel. With calibration inputs, the inputs of products are rounded to fixed grids
(:mod:`rmlora_deploy.exporter.calibration`), so the answer for a row does not depend on the rows around it; without, to the range
of every batch. Attention between the projections, GELU, softmax and norms stay float32, and so does the head, which has few
weights and whose rounding would go straight into the logits.

Fused attention is opened per projection, into ONNX's ``Attention``: on CPUs it takes 0.5 to 0.65 of the time of
``MultiHeadAttention``, and the query, key and value products share one rounding of their input.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import require
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_converters.graph.passes.quantize_products import quantize_products, quantize_tables
from rmlora_deploy.bundles.manifest import QuantizationEntry, WeightBits
from rmlora_deploy.exporter.calibration import CalibrationData, calibrate
from rmlora_deploy.exporter.precision import kept_in_float

__all__ = ["save_in_int8"]


def save_in_int8(
    model: ir.Model, target: Path, data: CalibrationData | None, *, scratch: Path, bits: WeightBits = 8
) -> QuantizationEntry:
    """Save a merged float32 graph to ``target`` in int8.

    Args:
        model: float32 graph; changed in place.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        data: what to calibrate on; None rounds to the range of every batch.
        scratch: directory for temporary files.
        bits: of the weights.

    Returns:
        how the products are rounded, for the manifest.

    Raises:
        InputError: the graph cannot be run on these inputs.
    """
    require("onnxruntime", "cpu")
    open_attention_per_projection(model)
    skip = kept_in_float(model.graph)
    if data is None:
        products = quantize_products(model, skip=skip, bits=bits)
        entry = QuantizationEntry(weight_bits=bits, activations="dynamic", products=products)
    else:
        found = calibrate(model, data.batches, scratch, skip=skip, bits=bits)
        products = quantize_products(model, found.scales, skip=skip, bits=bits)
        entry = QuantizationEntry(
            weight_bits=bits,
            activations="static",
            calibrated_on=Path(data.source).name,
            samples=found.samples,
            products=products,
            balanced=sum(scale.balance is not None for scale in found.scales.values()),
            kept_in_float=list(found.kept),
        )
    quantize_tables(model)
    RemoveUnusedNodesPass()(model)  # opening attention leaves its packed weights behind
    save_model(model, target)
    return entry
