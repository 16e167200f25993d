"""Measures the inputs of a graph's products on sample inputs, and decides from that how they are rounded to 8 bits (no torch).

Every sample runs alone, without padding, through the float32 graph. Per input of products, the smallest and largest number of
every channel and a few tokens of every sample are kept. For every input several ways to balance its channels are tried on
these tokens, and the one whose products come closest to the float32 ones is taken. Products that stay far off stay in
floating point, the worst first and at most one input in :data:`_KEPT_SHARE`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.inputs import Arrays
from rmlora.outputs import Outputs
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.locate.products import Product, find_products
from rmlora_converters.graph.passes.quantize_products import InputScale, round_weight
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.providers import create_session, run_error

__all__ = ["MOST_SAMPLES", "Calibration", "CalibrationData", "calibrate"]

MOST_SAMPLES = 256
"""Inputs that are run, evenly spaced in the data."""
_HELD_OUT = 4
"""One input in this many is held out."""
_ROWS = 8
"""Inputs in a batch of those held out."""
_TOKENS = 8
"""Tokens kept of every sample, evenly spaced, the first and the last among them: these often hold the outliers."""
_MOST_TOKENS = 1024
_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
"""Channels are balanced down to one of these quantiles of the channels' largest numbers."""
_WORTH = 0.8
"""Balancing costs a multiplication, so it must bring the error below this share of what it is without."""
_FAR_OFF = 0.05
"""Relative rms error of a product from which it stays in floating point."""
_KEPT_SHARE = 8
"""At most one input of products in this many stays in floating point."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CalibrationData:
    """Inputs to calibrate on."""

    source: str
    """Where they come from."""
    count: int
    """Inputs in ``batches`` and ``held_out``."""
    batches: Sequence[Arrays]
    """Batches of one input to measure ranges on."""
    held_out: Sequence[Arrays]
    """Batches of several other inputs, on which the result is compared with float32."""
    outputs: Outputs
    """Kind of output of the task."""

    @classmethod
    def of(cls, source: str, preprocessor: Preprocessor, inputs: Sequence[Any], outputs: Outputs) -> CalibrationData:
        """Take at most :data:`MOST_SAMPLES` of ``inputs``, evenly spaced, and hold out every fourth.

        Raises:
            InputError: an input cannot be used.
        """
        count = min(MOST_SAMPLES, len(inputs))
        taken = [inputs[row] for row in np.linspace(0, len(inputs) - 1, count).round().astype(int)]
        held_out = taken[_HELD_OUT - 1 :: _HELD_OUT]
        rest = [value for number, value in enumerate(taken) if number % _HELD_OUT != _HELD_OUT - 1]
        chunks = [held_out[start : start + _ROWS] for start in range(0, len(held_out), _ROWS)]
        batches, compared = [preprocessor([value]) for value in rest], [preprocessor(chunk) for chunk in chunks]
        return cls(source, count, batches, compared, outputs)


@dataclass(frozen=True)
class Calibration:
    """How the inputs of products are rounded."""

    scales: dict[str, InputScale]
    """Input of products → its grid; inputs that are not here stay in floating point."""
    kept: tuple[str, ...]
    """Names of the products that stay in floating point because they were far off, the worst first."""
    samples: int
    """Inputs that were run."""
    balances: dict[str, FloatArray]
    """Weight → what the channels of its products' input are divided by; weights that are not here have no such input."""

    @property
    def balanced_inputs(self) -> int:
        """Number of inputs of products whose channels are balanced."""
        return sum(scale.balance is not None for scale in self.scales.values())


def calibrate(
    model: ir.Model, batches: Sequence[Arrays], scratch: Path, *, skip: Collection[str] = (), bits: int = 8
) -> Calibration:
    """Return how to round the inputs of the products of ``model``.

    Args:
        model: float32 graph, with its fused attention opened; unchanged when this returns.
        batches: inputs to run, one by one.
        scratch: directory for temporary files.
        skip: names of products that stay in floating point in any case.
        bits: of the weights.

    Raises:
        InputError: ONNX Runtime cannot load the graph, or cannot run it on these inputs.
    """
    groups: dict[str, list[Product]] = {}
    for product in find_products(model.graph, skip):
        groups.setdefault(str(product.x.name), []).append(product)
    if not groups:
        return Calibration({}, (), 0, {})
    observed = _observe(model, [group[0].x for group in groups.values()], batches, scratch)
    inputs_of = _inputs_of_weights(groups)
    chosen: dict[str, _Choice] = {}
    for name, group in groups.items():
        own = all(len(inputs_of[product.weight]) == 1 for product in group)
        chosen[name] = _choose(observed[name], group, bits, may_balance=own and not _is_average(group[0].x))
    off = sorted(
        (name for name, choice in chosen.items() if not choice.error <= _FAR_OFF), key=lambda n: -chosen[n].error
    )
    kept = off[: len(groups) // _KEPT_SHARE] + [name for name in off if chosen[name].scale is None]
    scales = {name: c.scale for name, c in chosen.items() if c.scale is not None and name not in kept}
    names = dict.fromkeys(str(product.node.name) for name in kept for product in groups[name])
    balances = {
        str(product.weight.name): scale.balance
        for name, scale in scales.items()
        if scale.balance is not None
        for product in groups[name]
    }
    return Calibration(scales, tuple(names), len(batches), balances)


def _is_average(value: ir.Value) -> bool:
    """Return True for what attention makes: averages of values have no outliers, and balancing them changed no result."""
    producer = value.producer()
    return producer is not None and producer.op_type in ("Attention", "MultiHeadAttention")


@dataclass
class _Observed:
    """What was seen of an input of products."""

    low: FloatArray | None = None
    high: FloatArray | None = None
    """Smallest and largest number of every channel."""
    tokens: list[FloatArray] = field(default_factory=list)

    def add(self, values: FloatArray) -> None:
        rows = values.reshape(-1, values.shape[-1])
        if not len(rows):
            return
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        picked = np.linspace(0, len(rows) - 1, min(_TOKENS, len(rows))).round().astype(int)
        self.tokens.append(rows[picked])


def _observe(
    model: ir.Model, values: Sequence[ir.Value], batches: Sequence[Arrays], scratch: Path
) -> dict[str, _Observed]:
    """Run ``batches`` and return name → what was seen of each of ``values``."""
    observed = {str(value.name): _Observed() for value in values}
    session = _session_with_outputs(model, values, scratch)
    taken = {item.name: np.int32 if item.type == "tensor(int32)" else None for item in session.get_inputs()}
    for batch in batches:
        feeds = {
            name: array if taken[name] is None else array.astype(np.int32)
            for name, array in batch.items()
            if name in taken
        }
        try:
            outputs = session.run(list(observed), feeds)
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The graph does not run on the inputs it is calibrated with") from None
        for seen, output in zip(observed.values(), outputs, strict=True):
            seen.add(np.asarray(output, np.float32))
    return observed


def _session_with_outputs(model: ir.Model, values: Sequence[ir.Value], scratch: Path) -> Any:
    """Return a session of ``model`` that also returns ``values``."""
    outputs = model.graph.outputs
    own, untyped = len(outputs), [value for value in values if value.type is None]
    for value in untyped:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    outputs.extend(value for value in values if not value.is_graph_output())
    try:
        save_model(model, scratch / "calibrated.onnx")
    finally:
        del outputs[own:]
    return create_session(scratch / "calibrated.onnx")


def _inputs_of_weights(groups: dict[str, list[Product]]) -> dict[ir.Value, set[str]]:
    """Return weight → the inputs that are multiplied by it: layers that share a weight cannot be balanced differently."""
    found: dict[ir.Value, set[str]] = {}
    for name, group in groups.items():
        for product in group:
            found.setdefault(product.weight, set()).add(name)
    return found


@dataclass(frozen=True)
class _Choice:
    scale: InputScale | None
    """None if the input cannot be rounded, because it was never seen or is not finite."""
    error: float
    """Rms error of the products, relative to their rms."""


def _choose(observed: _Observed, group: Sequence[Product], bits: int, *, may_balance: bool) -> _Choice:
    """Return the grid with which the products of ``group`` come closest to the float32 ones."""
    low, high = observed.low, observed.high
    if low is None or high is None or not np.isfinite(low).all() or not np.isfinite(high).all():
        return _Choice(None, float("inf"))
    tokens = np.concatenate(observed.tokens)
    tokens = tokens[np.linspace(0, len(tokens) - 1, min(_MOST_TOKENS, len(tokens))).round().astype(int)]
    weight = np.concatenate([product.matrix() for product in group], axis=1)
    exact = tokens @ weight
    plain = InputScale(float(low.min()), float(high.max()))
    best = unbalanced = _Choice(plain, _error(plain, tokens, weight, exact, bits))
    for quantile in _QUANTILES if may_balance else ():
        scale = _balanced(low, high, quantile)
        error = _error(scale, tokens, weight, exact, bits)
        if error < min(best.error, _WORTH * unbalanced.error):
            best = _Choice(scale, error)
    return best


def _balanced(low: FloatArray, high: FloatArray, quantile: float) -> InputScale:
    """Return the grid of an input whose channels are divided so that none exceeds this quantile of the channels' largest."""
    largest = np.maximum(np.abs(low), np.abs(high))
    aim = max(float(np.quantile(largest, quantile)), float(largest.max()) * 1e-3, np.finfo(np.float32).tiny)
    balance = np.maximum(1, largest / aim).astype(np.float32)
    return InputScale(float((low / balance).min()), float((high / balance).max()), balance)


def _error(scale: InputScale, tokens: FloatArray, weight: FloatArray, exact: FloatArray, bits: int) -> float:
    """Return the rms error of the product in 8 bits, relative to the rms of the exact one."""
    rounded, channel = round_weight(weight if scale.balance is None else weight * scale.balance[:, None], bits)
    difference = scale.rounded(tokens) @ (rounded * channel) - exact
    size = float(np.sqrt(np.mean(np.square(exact))))
    return float(np.sqrt(np.mean(np.square(difference)))) / size if size else 0.0
