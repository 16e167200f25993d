"""Finds everything that a set of adapters changes in a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor
from rmlora.stored_weights import stored_weights
from rmlora_converters.graph.locate.weights import WeightLocation, find_weights, query_of_module, query_of_parameter

__all__ = ["Targets", "check_adapters", "check_nothing_computed", "find_targets", "head_shape"]


@dataclass(frozen=True)
class Targets:
    """The modules and heads that adapters change, and where their weights are in the graph."""

    modules: Mapping[str, LoraModule]
    """Module path → the update of one adapter, for kind and sizes."""
    weights: tuple[WeightLocation, ...]
    """Locations of the weights of ``modules``."""
    heads: tuple[tuple[WeightLocation, bool], ...]
    """Location of the weight of each head, and True if the base has trained weights for it."""
    absent: tuple[str, ...] = ()
    """Parameters of adapted modules that the graph does not have; mostly because no output depends on them."""
    ineffective: tuple[str, ...] = ()
    """Parameters of adapted modules whose update has no effect in PyTorch."""


def check_adapters(adapters: Sequence[Adapter]) -> None:
    """Raise :class:`AdapterError` if ``adapters`` do not go together in one graph, or one replaces something other than a head."""
    _modules(adapters)
    _heads(adapters)


def find_targets(
    model: ir.Model,
    adapters: Sequence[Adapter],
    base: Checkpoint | None,
    new_weights: Mapping[str, np.ndarray] | None = None,
) -> Targets:
    """Find what ``adapters`` change in ``model``.

    Args:
        model: an export of the base, with its fused attention already opened.
        adapters: supply modules, shapes and heads; their values do not matter.
        base: the checkpoint that the graph was exported from; without it weights are found by name only.
        new_weights: parameter → weight of heads that the graph has and ``base`` does not.

    Raises:
        AdapterError: a module or head is not in the graph, has different sizes in two adapters, or an adapter replaces
            something other than a head.
    """
    modules, heads = _modules(adapters), _heads(adapters)
    absent: list[str] = []
    unread = stored_weights(base).ineffective(modules) if base is not None else []
    wanted = [query_of_module(module) for path, module in modules.items() if path not in unread]
    weights = find_weights(model, wanted, base, quantized=True, absent=absent)
    new = {name: value for name, value in (new_weights or {}).items() if value.ndim == 2}
    queries = [
        query_of_parameter(
            name, new[name].shape if name in new else head_shape(path, weight.shape, model, base), new.get(name)
        )
        for path, weight in heads.items()
        for name in [f"{path}.weight"]
    ]
    found = find_weights(model, queries, base, quantized=True, absent=absent) if queries else {}
    in_base = {name: base is None or bool(stored_weights(base).find(name)) for name in found}
    return Targets(
        {path: module for path, module in modules.items() if module.parameter in weights},
        tuple(weights.values()),
        tuple((location, in_base[name]) for name, location in found.items()),
        tuple(absent),
        tuple(modules[path].parameter for path in unread),
    )


def check_nothing_computed(targets: Targets, needed: Collection[str]) -> None:
    """Raise :class:`AdapterError` if the graph lacks a parameter that is ``needed``: the exporter computed with it already."""
    if computed := [name for name in targets.absent if name in needed]:
        raise AdapterError(
            f"The exporter replaced '{computed[0]}' by a constant result, so no adapter can change it in the graph: merge the "
            "adapters (--mode merged), and please report this as a bug."
        )


def _modules(adapters: Sequence[Adapter]) -> dict[str, LoraModule]:
    """Return module path → the update of the first adapter that has it."""
    union: dict[str, LoraModule] = {}
    for adapter in adapters:
        for path, module in adapter.modules.items():
            known = union.setdefault(path, module)
            if query_of_module(known).shape != query_of_module(module).shape or known.kind != module.kind:
                raise AdapterError(
                    f"'{path}' does not have the same sizes in {adapter.source} as in another adapter: they were made for different bases."
                )
    return union


def _heads(adapters: Sequence[Adapter]) -> dict[str, np.ndarray]:
    """Return module path → weight ``[labels, in]`` for every linear module that an adapter saved in full.

    Raises:
        AdapterError: an adapter saved another kind of module in full.
    """
    union: dict[str, np.ndarray] = {}
    for adapter in adapters:
        for parameter, value in adapter.modules_to_save.items():
            path, _, leaf = parameter.rpartition(".")
            if leaf == "weight" and value.ndim == 2:
                known = union.setdefault(path, value)
                if known.shape[1] != value.shape[1]:
                    raise AdapterError(
                        f"'{parameter}' has {value.shape[1]} inputs in {adapter.source} and {known.shape[1]} in another adapter: "
                        "they were made for different bases."
                    )
            elif (
                leaf != "bias"
                or f"{path}.weight" not in adapter.modules_to_save
                or adapter.modules_to_save[f"{path}.weight"].ndim != 2
            ):
                raise AdapterError(
                    f"{adapter.source} saved '{parameter}' in full (modules_to_save), and only linear modules can be switched: "
                    "merge this adapter (--mode merged)."
                )
    return union


def head_shape(path: str, shape: tuple[int, ...], model: ir.Model, base: Checkpoint | None) -> tuple[int, ...]:
    """Return the shape ``[labels, in]`` of the head in the graph, whose number of labels may differ from ``shape``, the adapter's."""
    parameter = f"{path}.weight"
    stored = {
        name: value.const_value.shape.numpy() for name, value in model.graph.initializers.items() if value.const_value
    }
    name = find_tensor(parameter, stored)
    if name is None and base is not None:
        parts = stored_weights(base).find(parameter)
        name = parts[0].tensor if len(parts) == 1 and parts[0].is_whole else None
        stored = {name: info.shape for name, info in base.tensors.items()}
    own = tuple(int(size) for size in stored[name]) if name is not None else ()
    if len(own) != 2 or shape[1] not in own:
        return shape
    return own if own[1] == shape[1] else own[::-1]
