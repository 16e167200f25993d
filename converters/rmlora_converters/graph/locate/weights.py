"""Finds the weight of a module among the initializers of an ONNX graph.

Exporters keep torch's names, or fold and transpose weights and give them new names (``onnx::MatMul_740``, ``val_83``), or
pack weights that have the same input (query, key and value). So a weight is found by name, or else by content: every
initializer, in both orientations and in slices, is compared with the weight in the base checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.adapter import LoraModule
from rmlora.checkpoint import EMBEDDING_NAMES, Checkpoint
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor
from rmlora.stored_weights import stored_weights
from rmlora.tensors import FLOATING, TensorInfo
from rmlora_converters.graph.locate.block_quantized import find_in_blocks
from rmlora_converters.graph.locate.contents import (
    FLOATING_TYPES,
    QUANTIZED_SUFFIXES,
    equals_in_type,
    holds_quantized,
    occurrences,
)
from rmlora_converters.graph.locate.unused_modules import is_absent
from rmlora_converters.graph.locate.uses import stored_transposed, uses_of

__all__ = ["WeightLocation", "WeightQuery", "find_weights", "query_of_module", "query_of_parameter"]

AnyArray = npt.NDArray[Any]
Kind = Literal["linear", "embedding", "conv", "vector"]


@dataclass(frozen=True)
class WeightQuery:
    """A parameter to find: its path, its kind, and its shape with the outputs first."""

    parameter: str
    kind: Kind
    shape: tuple[int, ...]
    fan_in_fan_out: bool = False
    """True if the base stores it ``[in, out]``. Only matters if the weight is square; otherwise the shape decides."""
    whole: bool = False
    """True for what an adapter saved whole: a matrix may then be an embedding's as well as a linear module's."""
    content: AnyArray | None = field(default=None, compare=False)
    """What the graph was exported with, if the base has no weights for it: a new head."""


def query_of_module(module: LoraModule) -> WeightQuery:
    """Return the query for the weight that ``module`` updates."""
    fan_in, fan_out = math.prod(module.lora_A.shape[1:]), module.lora_B.shape[0]
    shape = (fan_in, fan_out) if module.kind == "embedding" else (fan_out, *module.lora_A.shape[1:])
    return WeightQuery(module.parameter, module.kind, shape, module.fan_in_fan_out)


def query_of_parameter(parameter: str, shape: tuple[int, ...], content: AnyArray | None = None) -> WeightQuery:
    """Return the query for a parameter that an adapter saved in full (modules_to_save)."""
    return WeightQuery(parameter, "linear" if len(shape) == 2 else "vector", shape, whole=True, content=content)


@dataclass(frozen=True)
class WeightLocation:
    """Where a parameter is in the graph: an initializer, or a slice of one if weights are packed."""

    parameter: str
    initializer: str
    transposed: bool
    """True for a linear weight stored ``[in, out]``."""
    start: int
    """First output of the parameter in the initializer."""
    stop: int
    """Index after its last output."""
    found_by: Literal["name", "content"]

    @property
    def module(self) -> str:
        """Path of the module that has the parameter as its weight."""
        return self.parameter.removesuffix(".in_proj_weight").removesuffix(".weight")

    def slices(self, rank: int) -> tuple[slice, ...]:
        """Return the index of the parameter in its initializer, which has ``rank`` axes."""
        part = slice(self.start, self.stop)
        return (slice(None), part) if self.transposed and rank == 2 else (part, *[slice(None)] * (rank - 1))


def find_weights(
    model: ir.Model,
    queries: Collection[WeightQuery],
    base: Checkpoint | None,
    *,
    quantized: bool = False,
    absent: list[str] | None = None,
) -> dict[str, WeightLocation]:
    """Return parameter → location for every query.

    Args:
        model: the graph; its initializers are only read.
        queries: the parameters, by torch's paths.
        base: the checkpoint that the graph was exported from; without it only names are used.
        quantized: also accept quantized weights, by the names that quantizers keep.
        absent: receives the parameters that the graph certainly does not have (:mod:`..unused_modules`), which have no
            location; None refuses them.

    Raises:
        AdapterError: a parameter is missing, is in the graph several times, or shares its weight with another. The message
            lists candidates.
    """
    weights = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.uses()
    }
    spellings = _torch_spellings(weights)
    locations: dict[str, WeightLocation] = {}
    for query in queries:
        location = _by_name(query, weights, spellings)
        if base is not None and (location is None or not _holds_base_weight(location, query, weights, base)):
            location = _by_content(query, weights, base)
        if location is None and quantized:
            location = (
                _in_blocks(query, weights, base)
                or _by_quantized_name(query, weights)
                or _by_quantized_content(query, weights, base)
            )
        if location is None and absent is not None and base is not None and _is_absent(query, absent, weights, base):
            absent.append(query.parameter)
            continue
        if location is None:
            raise AdapterError(_explain_missing(query, weights, base))
        other = next((known for known in locations.values() if _overlap(known, location)), None)
        if other is not None:
            raise AdapterError(
                f"'{query.parameter}' and '{other.parameter}' lead to the same weight '{location.initializer}' of the graph: "
                "the graph shares it between modules, so an update of one would change the other."
            )
        if _is_shared(location, query, weights, base):
            raise AdapterError(
                f"'{query.parameter}' leads to the weight '{location.initializer}' of the graph, which modules with equal weights "
                "share there, so an update of one would change the others: merge the checkpoint and export that."
            )
        locations[query.parameter] = location
    return locations


def _is_absent(query: WeightQuery, absent: Collection[str], weights: Mapping[str, ir.Value], base: Checkpoint) -> bool:
    """Return True if the graph certainly lacks the parameter; a bias is absent if its module's weight is."""
    path, _, leaf = query.parameter.rpartition(".")
    if leaf != "weight" and query.kind == "vector":
        return f"{path}.weight" in absent
    return (
        query.kind == "linear"
        and bool(stored_weights(base).find(query.parameter))
        and is_absent(query.shape, weights, base)
    )


def _by_name(
    query: WeightQuery, weights: Mapping[str, ir.Value], spellings: Mapping[str, str]
) -> WeightLocation | None:
    found = find_tensor(query.parameter, spellings)
    if found is None:
        return None
    name = spellings[found]
    looked_up = _is_only_looked_up(weights[name])
    if query.kind == "linear" and looked_up and not query.whole:
        return None  # the embedding's, with which a tied layer shares its name; a quantizer gave its product another
    shape = _shape(weights[name])
    transposed = query.kind == "linear" and shape != query.shape
    if query.kind == "linear" and _is_square(query) and not looked_up:
        orientation = stored_transposed(weights[name])
        if orientation is None:
            return None
        transposed = orientation
    if shape != (query.shape[::-1] if transposed else query.shape):
        return None
    return WeightLocation(query.parameter, name, transposed, 0, query.shape[0], "name")


def _torch_spellings(weights: Mapping[str, ir.Value]) -> dict[str, str]:
    """Return torch's spelling of each name → name in the graph; the GenAI builder spells some names its own way."""
    return {name.replace(".MatMul.weight", ".weight").replace(".attn.", ".self_attn."): name for name in weights} | {
        name: name for name in weights
    }


def _by_quantized_name(query: WeightQuery, weights: Mapping[str, ir.Value]) -> WeightLocation | None:
    for suffix in QUANTIZED_SUFFIXES:
        spellings = _torch_spellings(
            {name.removesuffix(suffix): value for name, value in weights.items() if name.endswith(suffix)}
        )
        found = find_tensor(query.parameter, spellings)
        if found is None:
            continue
        name = spellings[found] + suffix
        shape = _shape(weights[name])
        packed = len(shape) == 3  # MatMulNBits: [out, blocks, bytes]
        transposed = query.kind == "linear" and not packed and stored_transposed(weights[name]) is not False
        if (packed and shape[0] == query.shape[0]) or shape == (query.shape[::-1] if transposed else query.shape):
            return WeightLocation(query.parameter, name, transposed, 0, query.shape[0], "name")
    return None


def _holds_base_weight(
    location: WeightLocation, query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint
) -> bool:
    """Return True if a location found by name holds the base's weight, or if the base lacks it, as it may lack a head."""
    expected = _base_weight(query, base)
    if expected is None:
        return True
    stored = _tensor(weights[location.initializer]).numpy()
    return equals_in_type(stored.T if location.transposed else stored, expected)


def _by_content(query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint) -> WeightLocation | None:
    expected = _base_weight(query, base)
    if expected is None:
        return None
    found = [
        WeightLocation(query.parameter, name, transposed, start, start + query.shape[0], "content")
        for name, value in weights.items()
        if _tensor(value).dtype in FLOATING_TYPES and (query.whole or _is_used_as(query.kind, value))
        for transposed, start in occurrences(query.kind, _tensor(value).numpy(), expected)
    ]
    if query.whole and query.kind == "linear" and len(found) > 1:  # a tied weight may be stored twice
        kind: Kind = "embedding" if query.parameter.endswith(EMBEDDING_NAMES) else "linear"
        found = [location for location in found if _is_used_as(kind, weights[location.initializer])]
    return _only(query, found)


def _only(query: WeightQuery, found: list[WeightLocation]) -> WeightLocation | None:
    """Return the only one of ``found``, None if there is none, and raise :class:`AdapterError` if there are several."""
    if len(found) > 1:
        listed = ", ".join(f"'{location.initializer}'" for location in found[:4])
        raise AdapterError(
            f"The weight of '{query.parameter}' is in the graph {len(found)} times ({listed}), so it is unclear which "
            "one to change: export the graph with torch's names kept."
        )
    return found[0] if found else None


def _in_blocks(query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint | None) -> WeightLocation | None:
    """Return the weight that is quantized in blocks and holds the base's as far as its bits can."""
    expected = _base_weight(query, base) if base is not None and query.kind == "linear" else None
    if expected is None:
        return None
    return _only(
        query,
        [
            WeightLocation(query.parameter, name, False, start, start + query.shape[0], "content")
            for name, start in find_in_blocks(query.parameter, expected, weights)
        ],
    )


def _by_quantized_content(
    query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint | None
) -> WeightLocation | None:
    """Return the only 8-bit weight that holds the base's within a step; exporters that rename weights leave no other way."""
    expected = _base_weight(query, base) if base is not None and query.kind == "linear" else None
    if expected is None:
        return None
    found = [name for name in weights if holds_quantized(name, weights, expected)]
    return WeightLocation(query.parameter, found[0], True, 0, query.shape[0], "content") if len(found) == 1 else None


def _base_weight(query: WeightQuery, base: Checkpoint) -> AnyArray | None:
    """Return the parameter of the base, outputs first, or None if the base lacks it and the query does not know it."""
    values = stored_weights(base).read(query.parameter)
    if values is None:
        values = query.content
    if values is None:
        return None
    if query.kind == "linear" and (values.shape != query.shape or (_is_square(query) and query.fan_in_fan_out)):
        values = values.T
    return values if values.shape == query.shape else None


def _is_square(query: WeightQuery) -> bool:
    return len(query.shape) == 2 and query.shape[0] == query.shape[1]


def _is_used_as(kind: Kind, value: ir.Value) -> bool:
    """Return True if ``value`` is used as this kind of weight: a tied one may be stored twice, for lookups and products."""
    operators = {node.op_type for node, _ in uses_of(value)}
    return ("Gather" in operators) == (kind == "embedding") if kind in ("embedding", "linear") else True


def _is_only_looked_up(value: ir.Value) -> bool:
    return {node.op_type for node, _ in uses_of(value)} == {"Gather"}


def _overlap(left: WeightLocation, right: WeightLocation) -> bool:
    return left.initializer == right.initializer and left.start < right.stop and right.start < left.stop


def _is_shared(
    location: WeightLocation, query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint | None
) -> bool:
    """Return True if the weight is that of several modules: some exporters store equal weights once, such as biases of zeros.

    Layers that share a parameter use it several times, too, but then the base has no other of this content. Without the base,
    only vectors of equal numbers are suspected.
    """
    value = weights[location.initializer]
    lookups = sum(node.op_type == "Gather" for node, _ in uses_of(value))
    others = sum(node.op_type != "Gather" for node, _ in uses_of(value))
    if {"embedding": lookups, "linear": others}.get(query.kind, lookups + others) < 2:
        return False
    whole = _tensor(value).numpy()
    content = whole[location.slices(whole.ndim)]
    if base is None:
        return query.kind == "vector" and bool((content == content.reshape(-1)[:1]).all())
    known = stored_weights(base)
    tied = sum(bool(known.find(name)) for name in known.shares_with(query.parameter))
    in_base = sum(_holds(info, content) for info in base.tensors.values()) - tied
    return in_base > 1 and in_base > sum(
        np.array_equal(_tensor(other).numpy(), whole) for other in weights.values() if _shape(other) == whole.shape
    )


def _holds(info: TensorInfo, content: AnyArray) -> bool:
    """Return True if a tensor of the base is ``content``, in either orientation; mostly its first row shows that it is not."""
    views = [view for view in (content, content.T) if view.shape == info.shape and info.dtype in FLOATING]
    if not views:
        return False
    first = info.read(0, 1)
    return any(equals_in_type(view[:1], first) and equals_in_type(view, info.read()) for view in views)


def _explain_missing(query: WeightQuery, weights: Mapping[str, ir.Value], base: Checkpoint | None) -> str:
    size = int(np.prod(query.shape))
    same_size = [
        name
        for name, value in weights.items()
        if _tensor(value).dtype in FLOATING_TYPES and int(np.prod(_shape(value))) == size
    ]
    path = query.parameter.rpartition(".")[0]
    quantized = [name for name in weights if name.endswith(QUANTIZED_SUFFIXES) and path in name]
    if (by_content := _by_quantized_content(query, weights, base)) is not None:
        quantized.append(by_content.initializer)
    if quantized:
        return (
            f"'{query.parameter}' is quantized in the graph ('{quantized[0]}'): use the floating-point graph, and quantize the "
            "result."
        )
    if base is not None and query.kind == "vector" and _is_zero(query, base):
        return (
            f"The graph has no '{query.parameter}': it is zero in the base, so the exporter left it out. Export the graph "
            "with its own head (rmlora-deploy export), or apply the adapter's head outside the graph."
        )
    candidates = (
        f" Weights of that size are {', '.join(sorted(same_size)[:6])}." if same_size else " No weight has that size."
    )
    if base is None:
        advice = "pass --base with the checkpoint it was exported from, to find weights by content"
    elif _base_weight(query, base) is None:
        advice = (
            f"{base.path} has no such weight either, so it cannot be found by content; export the graph with torch's names kept, "
            "or from a checkpoint with a head"
        )
    else:
        advice = "the graph was exported from another base, or its weights were changed (quantized, scaled)"
    return f"The graph has no weight named like '{query.parameter}' (shape {list(query.shape)}): {advice}.{candidates}"


def _is_zero(query: WeightQuery, base: Checkpoint) -> bool:
    values = _base_weight(query, base)
    return values is not None and not values.any()


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")
    return value.const_value


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(_tensor(value).shape.numpy())
