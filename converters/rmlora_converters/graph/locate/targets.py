"""What a set of adapters changes, and where that lies in a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor
from rmlora_converters.graph.locate.weights import WeightLocation, find_weights, query_of_module, query_of_parameter

__all__ = ["Targets", "find_targets", "head_shape"]


@dataclass(frozen=True)
class Targets:
    """Every module that an adapter updates, every head that one brings, and where their weights lie in the graph."""

    modules: Mapping[str, LoraModule]
    """Module path → one of its updates, which shows its kind and sizes."""
    weights: tuple[WeightLocation, ...]
    """The places of the modules' weights."""
    heads: tuple[tuple[WeightLocation, bool], ...]
    """For each head its place, and whether the base has trained weights there."""


def find_targets(model: ir.Model, adapters: Sequence[Adapter], base: Checkpoint | None) -> Targets:
    """Find what ``adapters`` change in ``model``, whose fused attention has been opened before.

    Args:
        model: an export of the base.
        adapters: decide modules, shapes and heads; their values do not matter.
        base: the checkpoint the graph was exported from; without it weights are found by name only.

    Raises:
        AdapterError: a module or head has no place in the graph, or is of different sizes in two adapters.
    """
    modules, heads = _modules(adapters), _heads(adapters)
    weights = find_weights(model, [query_of_module(module) for module in modules.values()], base, quantized=True)
    wanted = [
        query_of_parameter(f"{path}.weight", head_shape(path, weight.shape, model, base))
        for path, weight in heads.items()
    ]
    found = find_weights(model, wanted, base, quantized=True) if wanted else {}
    in_base = {name: base is None or find_tensor(name, base.tensors) is not None for name in found}
    return Targets(
        modules, tuple(weights.values()), tuple((location, in_base[name]) for name, location in found.items())
    )


def _modules(adapters: Sequence[Adapter]) -> dict[str, LoraModule]:
    """Return every module that an adapter updates, with one that shows its sizes."""
    union: dict[str, LoraModule] = {}
    for adapter in adapters:
        for path, module in adapter.modules.items():
            known = union.setdefault(path, module)
            if query_of_module(known).shape != query_of_module(module).shape or known.kind != module.kind:
                raise AdapterError(
                    f"'{path}' has other sizes in {adapter.source} than in {adapters[0].source}: they are of different bases."
                )
    return union


def _heads(adapters: Sequence[Adapter]) -> dict[str, np.ndarray]:
    """Return the path of every linear module an adapter saved whole, with one of its weights.

    Raises:
        AdapterError: something else was saved whole.
    """
    union: dict[str, np.ndarray] = {}
    for adapter in adapters:
        for parameter, value in adapter.modules_to_save.items():
            path, _, leaf = parameter.rpartition(".")
            if leaf == "weight" and value.ndim == 2:
                known = union.setdefault(path, value)
                if known.shape[1] != value.shape[1]:
                    raise AdapterError(
                        f"'{parameter}' of {adapter.source} has {value.shape[1]} inputs, elsewhere {known.shape[1]}."
                    )
            elif (
                leaf != "bias"
                or f"{path}.weight" not in adapter.modules_to_save
                or adapter.modules_to_save[f"{path}.weight"].ndim != 2
            ):
                raise AdapterError(
                    f"{adapter.source} saved '{parameter}' whole, and only linear modules can be switched: merge this adapter "
                    "(--mode merged)."
                )
    return union


def head_shape(path: str, shape: tuple[int, ...], model: ir.Model, base: Checkpoint | None) -> tuple[int, ...]:
    """Return the shape ``[labels, in]`` of the graph's own head, whose labels are not those of an adapter."""
    parameter = f"{path}.weight"
    stored = {
        name: value.const_value.shape.numpy() for name, value in model.graph.initializers.items() if value.const_value
    }
    name = find_tensor(parameter, stored)
    if name is None and base is not None:
        stored = {name: info.shape for name, info in base.tensors.items()}
        name = find_tensor(parameter, stored)
    own = tuple(int(size) for size in stored[name]) if name is not None else ()
    if len(own) != 2 or shape[1] not in own:
        return shape
    return own if own[1] == shape[1] else own[::-1]
