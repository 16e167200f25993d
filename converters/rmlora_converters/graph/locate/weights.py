"""Finding a module's weight among the initializers of an ONNX graph.

Exporters keep torch's names, or fold and transpose the weights under names of their own (``onnx::MatMul_740``,
``val_83``), or pack the ones that read the same input (query, key and value). So a weight is found by name, else by
content: it is compared with the base checkpoint's in both orientations, and with every slice of wider weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.adapter import LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor
from rmlora_converters.graph.locate.uses import stored_transposed, uses_of

__all__ = ["WeightLocation", "WeightQuery", "find_weights", "query_of_module", "query_of_parameter"]

AnyArray = npt.NDArray[Any]
Kind = Literal["linear", "embedding", "conv", "vector"]

_FLOATING = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_QUANTIZED = ("_Transposed_quantized", "_quantized", "_Q4", "_Q8", "_Q4G32")
"""What quantizers put behind the name of a weight."""
_PROBE = 8
"""Elements compared first: enough to rule out nearly every wrong place."""


@dataclass(frozen=True)
class WeightQuery:
    """A parameter to be found: its path, what it is, and its shape with the outputs first."""

    parameter: str
    kind: Kind
    shape: tuple[int, ...]
    fan_in_fan_out: bool = False
    """The base stores it ``[in, out]``; decides only where the shape leaves it open (square)."""


def query_of_module(module: LoraModule) -> WeightQuery:
    """Return the weight that ``module`` updates."""
    fan_in, fan_out = math.prod(module.lora_A.shape[1:]), module.lora_B.shape[0]
    shape = (fan_in, fan_out) if module.kind == "embedding" else (fan_out, *module.lora_A.shape[1:])
    return WeightQuery(f"{module.path}.weight", module.kind, shape, module.fan_in_fan_out)


def query_of_parameter(parameter: str, shape: tuple[int, ...]) -> WeightQuery:
    """Return a parameter that an adapter saved whole."""
    return WeightQuery(parameter, "linear" if len(shape) == 2 else "vector", shape)


@dataclass(frozen=True)
class WeightLocation:
    """Where a parameter lies in the graph."""

    parameter: str
    initializer: str
    transposed: bool
    """A linear weight stored ``[in, out]``."""
    start: int
    stop: int
    """Its part of the outputs' axis; all of it unless weights are packed."""
    found_by: Literal["name", "content"]

    def slices(self, rank: int) -> tuple[slice, ...]:
        """Return the index of this part in an initializer of ``rank`` axes."""
        part = slice(self.start, self.stop)
        return (slice(None), part) if self.transposed and rank == 2 else (part, *[slice(None)] * (rank - 1))


def find_weights(
    model: ir.Model, wanted: Collection[WeightQuery], base: Checkpoint | None, *, quantized: bool = False
) -> dict[str, WeightLocation]:
    """Return parameter → place for every one of ``wanted``.

    Args:
        model: the graph; its initializers are only read.
        wanted: parameters by torch's paths.
        base: the checkpoint the graph was exported from; without it only names are used.
        quantized: accept quantized weights, by the names that their quantizer keeps.

    Raises:
        AdapterError: a parameter is not there, lies in several places, or shares one with another; the message
            lists candidates.
    """
    weights = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.uses()
    }
    spelled = _spelled(weights)
    locations: dict[str, WeightLocation] = {}
    for item in wanted:
        location = _by_name(item, weights, spelled)
        if base is not None and (location is None or not _holds(location, item, weights, base)):
            location = _by_content(item, weights, base)
        if location is None and quantized:
            location = _by_quantized_name(item, weights)
        if location is None:
            raise AdapterError(_missing(item, weights, base))
        other = next((p for p in locations.values() if _overlap(p, location)), None)
        if other is not None:
            raise AdapterError(
                f"'{item.parameter}' and '{other.parameter}' lead to the same weight '{location.initializer}' of the graph: "
                "the graph shares it between modules, so an update of one would change the other."
            )
        locations[item.parameter] = location
    return locations


def _by_name(item: WeightQuery, weights: Mapping[str, ir.Value], spelled: Mapping[str, str]) -> WeightLocation | None:
    found = find_tensor(item.parameter, spelled)
    if found is None:
        return None
    name = spelled[found]
    shape = _shape(weights[name])
    transposed = item.kind == "linear" and shape != item.shape
    if item.kind == "linear" and _is_square(item):
        orientation = stored_transposed(weights[name])
        if orientation is None:
            return None
        transposed = orientation
    if shape != (item.shape[::-1] if transposed else item.shape):
        return None
    return WeightLocation(item.parameter, name, transposed, 0, item.shape[0], "name")


def _spelled(weights: Mapping[str, ir.Value]) -> dict[str, str]:
    """Return names as torch would spell them → names in the graph; the GenAI builder has a spelling of its own."""
    return {name.replace(".MatMul.weight", ".weight").replace(".attn.", ".self_attn."): name for name in weights} | {
        name: name for name in weights
    }


def _by_quantized_name(item: WeightQuery, weights: Mapping[str, ir.Value]) -> WeightLocation | None:
    for suffix in _QUANTIZED:
        spelled = _spelled(
            {name.removesuffix(suffix): value for name, value in weights.items() if name.endswith(suffix)}
        )
        found = find_tensor(item.parameter, spelled)
        if found is None:
            continue
        name = spelled[found] + suffix
        shape = _shape(weights[name])
        packed = len(shape) == 3  # MatMulNBits: [out, blocks, bytes]
        transposed = item.kind == "linear" and not packed and stored_transposed(weights[name]) is not False
        if (packed and shape[0] == item.shape[0]) or shape == (item.shape[::-1] if transposed else item.shape):
            return WeightLocation(item.parameter, name, transposed, 0, item.shape[0], "name")
    return None


def _holds(location: WeightLocation, item: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint) -> bool:
    """Whether a place found by name holds what the base has (a base may lack a head that the graph has)."""
    expected = _base_weight(item, base, _tensor(weights[location.initializer]).dtype.numpy())
    if expected is None:
        return True
    stored = _tensor(weights[location.initializer]).numpy()
    return bool(np.array_equal(stored.T if location.transposed else stored, expected))


def _by_content(item: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint) -> WeightLocation | None:
    found = []
    expected: dict[np.dtype[Any], AnyArray | None] = {}
    for name, value in weights.items():
        if _tensor(value).dtype not in _FLOATING or not _reads_as(item.kind, value):
            continue
        dtype = _tensor(value).dtype.numpy()
        if dtype not in expected:
            expected[dtype] = _base_weight(item, base, dtype)
        weight = expected[dtype]
        if weight is not None:
            for transposed, start in _matches(item.kind, _tensor(value).numpy(), weight):
                found.append(WeightLocation(item.parameter, name, transposed, start, start + item.shape[0], "content"))
    if len(found) > 1:
        listed = ", ".join(f"'{location.initializer}'" for location in found[:4])
        raise AdapterError(
            f"The weight of '{item.parameter}' is in the graph {len(found)} times ({listed}), so which of them is meant "
            "is open: export the graph with torch's names kept."
        )
    return found[0] if found else None


def _matches(kind: Kind, stored: AnyArray, expected: AnyArray) -> Iterator[tuple[bool, int]]:
    """Yield (transposed, first output) of every place of ``expected`` in ``stored``."""
    if kind != "linear":
        if stored.shape == expected.shape and np.array_equal(stored, expected):
            yield False, 0
        return
    if stored.ndim != 2:
        return
    fan_out, fan_in = expected.shape
    for transposed, view in ((False, stored), (True, stored.T)):  # rows are outputs
        if view.shape[1] != fan_in or view.shape[0] < fan_out:
            continue
        starts = np.flatnonzero(view[: view.shape[0] - fan_out + 1, 0] == expected[0, 0])
        for start in starts:
            part = view[start : start + fan_out]
            if np.array_equal(part[0, :_PROBE], expected[0, :_PROBE]) and np.array_equal(part, expected):
                yield transposed, int(start)
                if part.size == stored.size:
                    return  # a symmetric matrix is the same the other way


def _base_weight(item: WeightQuery, base: Checkpoint, dtype: np.dtype[Any]) -> AnyArray | None:
    """Return the base's parameter as the graph would hold it (``[out, in]``), or None if the base lacks it."""
    name = find_tensor(item.parameter, base.tensors)
    if name is None:
        return None
    values = base.tensors[name].read()
    if item.kind == "linear" and (values.shape != item.shape or (_is_square(item) and item.fan_in_fan_out)):
        values = values.T
    return values.astype(dtype) if values.shape == item.shape else None


def _is_square(item: WeightQuery) -> bool:
    return len(item.shape) == 2 and item.shape[0] == item.shape[1]


def _reads_as(kind: Kind, value: ir.Value) -> bool:
    """Whether what reads ``value`` is of this kind: a tied embedding is looked up in one place, multiplied in another."""
    operators = {node.op_type for node, _ in uses_of(value)}
    return ("Gather" in operators) == (kind == "embedding") if kind in ("embedding", "linear") else True


def _overlap(left: WeightLocation, right: WeightLocation) -> bool:
    return left.initializer == right.initializer and left.start < right.stop and right.start < left.stop


def _missing(item: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint | None) -> str:
    size = int(np.prod(item.shape))
    fitting = [n for n, v in weights.items() if _tensor(v).dtype in _FLOATING and int(np.prod(_shape(v))) == size]
    quantized = [n for n in weights if n.endswith(_QUANTIZED) and item.parameter.rpartition(".")[0] in n]
    if quantized:
        return f"'{item.parameter}' is quantized in the graph ('{quantized[0]}'): merge into the floating-point graph first."
    if base is not None and item.kind == "vector" and _is_zero(item, base):
        return (
            f"The graph has no '{item.parameter}': it is zero in the base, so the exporter left it out. Export the graph with "
            "a head of its own (rmlora-deploy export), or keep the adapter's head outside."
        )
    seen = f" Of its shape are {', '.join(sorted(fitting)[:6])}." if fitting else " No weight there has its size."
    advice = (
        "pass --base with the checkpoint it was exported from, so that weights are found by content"
        if base is None
        else "the graph was exported from another base, or its weights were changed (quantized, scaled)"
    )
    return f"The graph has no weight named like '{item.parameter}' (shape {list(item.shape)}): {advice}.{seen}"


def _is_zero(item: WeightQuery, base: Checkpoint) -> bool:
    values = _base_weight(item, base, np.dtype(np.float32))
    return values is not None and not values.any()


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")
    return value.const_value


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(_tensor(value).shape.numpy())
