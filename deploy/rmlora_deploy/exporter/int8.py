"""Lowering a float32 graph to int8, a merged one calibrated on the user's data (no torch).

Weights are rounded per output channel. The inputs of products are rounded either to fixed grids, measured on calibration inputs
(:mod:`rmlora_deploy.exporter.calibration`), so that the answer for a row does not depend on the rows around it; or to the range
of every batch. Either way channels that are much larger than others are divided by a factor first, which the weight is
multiplied by. A quarter of the calibration inputs is held out and decides: fixed grids are taken if they come about as close to
float32 or closer. Attention between the projections, GELU, softmax and norms stay float32, and so does the head, which has few
weights and whose rounding would go straight into the logits.

Fused attention is opened per projection, into ONNX's ``Attention``: on CPUs it is faster than
``MultiHeadAttention``, and the query, key and value products share one rounding of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import require
from rmlora.inputs import Arrays
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_converters.graph.passes.quantize_products import FloatArray, quantize_products, quantize_tables
from rmlora_deploy.bundles.manifest import Activations, QuantizationEntry, WeightBits
from rmlora_deploy.exporter.calibration import Calibration, CalibrationData, calibrate
from rmlora_deploy.exporter.float_parts import kept_in_float
from rmlora_deploy.exporter.graph_precision import check_lowered
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import create_session

__all__ = ["round_by_batch", "save_in_int8"]

_FEWEST = 24
"""Inputs to calibrate on; with fewer, ranges are too narrow for what comes."""
_AS_GOOD = 1.5
"""Fixed grids may have this many times the error of ranges of a batch, because their answers do not depend on the batch."""


def save_in_int8(
    model: ir.Model,
    target: Path,
    data: CalibrationData | None,
    *,
    samples: Sequence[Arrays] = (),
    scratch: Path,
    bits: WeightBits = 8,
) -> QuantizationEntry:
    """Save a merged float32 graph to ``target`` in int8.

    Args:
        model: float32 graph; changed in place.
        target: file to write; large weights go to ``<target>.data`` in the same directory.
        data: what to calibrate on; None rounds to the range of every batch.
        samples: single inputs, without padding, on which channels are balanced where there is no data, or too little.
        scratch: directory for temporary files.
        bits: of the weights.

    Returns:
        how the products are rounded, for the manifest.

    Raises:
        ConfigError: the graph has no products to round.
        InputError: the graph cannot be run on these inputs.
    """
    require("onnxruntime", "cpu")
    open_attention_per_projection(model)
    RemoveUnusedNodesPass()(model)  # opening attention leaves its packed weights behind
    save_model(model, opened := scratch / "opened.onnx")
    skip = kept_in_float(model.graph)
    enough = data is not None and data.count >= _FEWEST
    seen = data.batches if data is not None and enough else samples
    found = calibrate(load_model(opened), seen, scratch, skip=skip, bits=bits)
    lowered = load_model(opened)
    entry = _dynamic(round_by_batch(lowered, found.balances, bits=bits), found, bits)
    check_lowered(lowered, "int8")
    if data is not None and not enough:
        entry.reason = f"{data.count} inputs are too few to measure ranges on, which takes {_FEWEST}"
    elif data is not None:
        static, static_entry = _static(load_model(opened), data, found, skip, bits)
        both: dict[Activations, ir.Model] = {"dynamic": lowered, "static": static}
        measured = _errors(opened, both, data, scratch)
        entry.held_out_error = static_entry.held_out_error = measured
        if measured["static"] <= _AS_GOOD * measured["dynamic"]:
            lowered, entry = static, static_entry
        else:
            entry.reason = (
                f"with ranges measured on {Path(data.source).name}, inputs that were held out came out less exact "
                f"({measured['static']:.2g} against {measured['dynamic']:.2g})"
            )
    save_model(lowered, target)
    return entry


def round_by_batch(model: ir.Model, balances: Mapping[str, FloatArray], *, bits: WeightBits = 8) -> int:
    """Round the inputs of products to the range of every batch, and lookup tables by row, in place; return the number of products.

    Args:
        model: float32 graph, with its fused attention opened; the head and side-branches stay as they are.
        balances: from :attr:`Calibration.balances`.
        bits: of the weights.
    """
    products = quantize_products(model, balances=balances, skip=kept_in_float(model.graph), bits=bits)
    quantize_tables(model)
    return products


def _dynamic(products: int, found: Calibration, bits: WeightBits) -> QuantizationEntry:
    return QuantizationEntry(weight_bits=bits, activations="dynamic", products=products, balanced=found.balanced_inputs)


def _static(
    model: ir.Model, data: CalibrationData, found: Calibration, skip: Collection[str], bits: WeightBits
) -> tuple[ir.Model, QuantizationEntry]:
    products = quantize_products(model, found.scales, skip=skip, bits=bits)
    quantize_tables(model)
    return model, QuantizationEntry(
        weight_bits=bits,
        activations="static",
        calibrated_on=Path(data.source).name,
        samples=found.samples,
        products=products,
        balanced=found.balanced_inputs,
        kept_in_float=list(found.kept),
    )


def _errors(
    exact: Path, lowered: Mapping[Activations, ir.Model], data: CalibrationData, scratch: Path
) -> dict[Activations, float]:
    """Return name → mean error of its output on the inputs that are held out, relative to the mean size of the float32 graph's.

    Mean, because the rms depends on the few rows that are worst, and other inputs have others.
    """
    expected = _outputs(graph_logits(create_session(exact)), data)
    errors: dict[Activations, float] = {}
    for name, model in lowered.items():
        save_model(model, path := scratch / f"{name}.onnx")
        difference = _outputs(graph_logits(create_session(path)), data) - expected
        errors[name] = round(float(np.mean(np.abs(difference)) / np.mean(np.abs(expected))), 6)
    return errors


def _outputs(run: Callable[[Arrays], np.ndarray], data: CalibrationData) -> np.ndarray:
    counted = [data.outputs.without_padding(run(batch), batch) for batch in data.held_out]
    return np.concatenate([output.ravel().astype(np.float64) for output in counted])
