"""The one place that translates parameters of a model in memory to tensors of a checkpoint.

Names differ for many reasons: a task model puts the encoder under a prefix, transformers renames modules when it loads, splits
tensors that are fused on disk, or fuses split ones, and tied weights are stored once. Three sources say how, the best first:

1. transformers, where it and torch are installed (:mod:`rmlora.transformers_layout`);
2. the package, which records what its adapter needs (``weight_map`` in ``rmlora.json``), for machines without torch;
3. the names themselves (:mod:`rmlora.naming`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from rmlora.adapter import Adapter, Array, LoraModule
from rmlora.architecture import architecture_candidates
from rmlora.checkpoint import Checkpoint, values_of
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor
from rmlora.transformers_layout import ModelLayout, model_layout, transformers_can_tell
from rmlora.weight_parts import Part, parts_from_json, parts_to_json, read_parts
from rmlora.wording import nearest

__all__ = [
    "WEIGHT_MAP_VERSION",
    "StoredWeights",
    "layout_of",
    "quantization_method",
    "recorded_weight_map",
    "stored_weights",
]

WEIGHT_MAP_VERSION = 1
"""Version of ``weight_map`` in ``rmlora.json``; other versions are ignored."""

_QUANTIZED_LEAVES = ("qweight", "weight_packed", "weight_scale", "packed_weight", "weight.absmax", "weight_scale_inv")
"""Last parts of tensor names beside or instead of ``weight`` in GPTQ, AWQ, compressed-tensors, bitsandbytes and fp8 checkpoints."""

_CONV1D_MODELS = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"))
_CONV1D_LEAVES = frozenset(("c_attn", "q_attn", "c_proj", "c_fc"))
"""Model types with ``Conv1D`` modules, and what these modules are called."""

_layouts: WeakKeyDictionary[Checkpoint, dict[str, ModelLayout | None]] = WeakKeyDictionary()
_adapters: WeakKeyDictionary[Checkpoint, list[Adapter]] = WeakKeyDictionary()
"""Adapters that were looked up in a checkpoint before; they say which class the model is when only a path is asked for."""


@dataclass(frozen=True)
class StoredWeights:
    """Where the parameters of a model in memory are in a checkpoint."""

    checkpoint: Checkpoint
    layout: ModelLayout | None
    """What transformers says; None if it is not installed or does not know the class."""
    recorded: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """Parameter → parts, as an adapter package records them; empty if ``layout`` is there."""
    recorded_ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def tied(self) -> Mapping[str, str]:
        """Parameter → the parameter with which it shares its weight."""
        return self.layout.tied if self.layout else self.recorded_ties

    def find(self, parameter: str) -> tuple[Part, ...]:
        """Return where ``parameter`` (a module path plus ``.weight``, …) is stored; empty if the checkpoint lacks it.

        A tied parameter without a tensor of its own is not stored. See :meth:`find_shared`.
        """
        if parameter in self.recorded:
            return self.recorded[parameter]
        if self.layout is not None:
            if parameter in self.layout.shapes:
                return self.layout.parts.get(parameter, ())
            if near := find_tensor(parameter, self.layout.parts):
                return self.layout.parts[near]
        name = find_tensor(parameter, self.checkpoint.tensors)
        return (Part(name),) if name is not None else ()

    def find_shared(self, parameter: str) -> tuple[Part, ...]:
        """As :meth:`find`; for a tied parameter without a tensor of its own, where the shared weight is stored."""
        return self.find(parameter) or next(
            (parts for other in self.shares_with(parameter) if (parts := self.find(other))), ()
        )

    def weight_of(self, module: str) -> str:
        """Return the parameter that an update of ``module`` changes: its weight, or the input projection of an attention."""
        weight, projection = f"{module}.weight", f"{module}.in_proj_weight"
        return projection if not self.find_shared(weight) and self.find_shared(projection) else weight

    def shares_with(self, parameter: str) -> list[str]:
        """Return the other parameters that share the weight of ``parameter``."""
        if self.layout is None and not self.recorded_ties:
            tie = self.checkpoint.tied_output
            return [tie.embedding] if tie and parameter == f"{tie.layer}.weight" else []
        source = self.tied.get(parameter, parameter)
        group = [source, *(target for target, other in self.tied.items() if other == source)]
        return [name for name in group if name != parameter] if parameter in group else []

    def read(self, parameter: str) -> Array | None:
        """Return the weight of ``parameter`` as it is in memory, in the type in which it is stored; None if not stored."""
        parts = self.find_shared(parameter)
        return read_parts(parts, self.checkpoint.tensors) if parts else None

    def ineffective(self, modules: Mapping[str, LoraModule]) -> list[str]:
        """Return the paths of ``modules`` whose update PEFT computes but no output can depend on.

        ``nn.MultiheadAttention`` reads the weight of its ``out_proj`` without calling it, so an update of that module alone has
        no effect; one of the attention itself updates both projections. Some models read weights of modules in the same way.
        """
        found = []
        for path, module in modules.items():
            parent, _, leaf = path.rpartition(".")
            in_attention = leaf == "out_proj" and not module.peft_path and self._is_attention(parent)
            if in_attention or (self.layout is not None and path in self.layout.unread):
                found.append(path)
        return found

    def is_transposed(self, module: LoraModule) -> bool:
        """Return True if the weight of a linear ``module`` is ``[in, out]``.

        PEFT corrects ``fan_in_fan_out`` module by module, so the saved value is that of the module which came last.
        """
        if self.layout is not None and module.parameter in self.layout.shapes:
            return module.path in self.layout.transposed
        if _CONV1D_MODELS.isdisjoint(values_of("model_type", self.checkpoint.config)):
            return module.fan_in_fan_out
        return module.path.rpartition(".")[2] in _CONV1D_LEAVES

    def _is_attention(self, path: str) -> bool:
        if self.layout is not None:
            return path in self.layout.attention
        return bool(self.find(f"{path}.in_proj_weight"))

    @property
    def prefix(self) -> str:
        """What a task model puts before the names of this checkpoint, which was saved without it; mostly empty."""
        return self.layout.prefix if self.layout else ""

    def new_name(self, parameter: str) -> str:
        """Return the name under which a parameter that the checkpoint lacks is stored."""
        return self.layout.new_names.get(parameter, parameter) if self.layout else parameter

    def keeps_places(self, prefix: str) -> bool:
        """Return True if every tensor belongs to the same parameter when ``prefix`` is put before its name."""
        if self.layout is None:
            return True
        shapes = {prefix + name: info.shape for name, info in self.checkpoint.tensors.items()}
        moved = model_layout(self.checkpoint.config, self.layout.architecture, shapes)
        return moved is not None and moved.parts == {
            name: tuple(replace(part, tensor=prefix + part.tensor) for part in parts)
            for name, parts in self.layout.parts.items()
        }

    def require(self, parameters: Iterable[str]) -> dict[str, tuple[Part, ...]]:
        """Map every parameter to its parts.

        Raises:
            AdapterError: one is not stored, or two share a stored tensor; the message names it and the nearest candidates.
        """
        where = f"the base at {self.checkpoint.path}"
        found: dict[str, tuple[Part, ...]] = {}
        owners: dict[Part, str] = {}
        for parameter in parameters:
            parts = self.find_shared(parameter)
            if not parts:
                raise AdapterError(self._explain_missing(parameter, where))
            for part in parts if self.find(parameter) else ():
                key = Part(part.tensor, part.rows)
                if key in owners:
                    raise AdapterError(
                        f"Two modules of the adapter match the same tensor '{part.tensor}' of {where}: '{owners[key]}' and "
                        f"'{parameter}'."
                    )
                owners[key] = parameter
            found[parameter] = parts
        return found

    def _explain_missing(self, parameter: str, where: str) -> str:
        if quantized := self._explain_quantized(parameter):
            return quantized
        if self.layout is not None and parameter in self.layout.shapes:
            return (
                f"The adapter changes '{parameter}', but {where} holds no weights for it: the checkpoint is incomplete."
            )
        last = parameter.split(".")[-2:]
        near = sorted(name for name in self.checkpoint.tensors if name.split(".")[-2:] == last)[:4]
        hint = f"; {nearest(near)}" if near else ""
        if self.layout is None:
            return (
                f"The adapter changes '{parameter}', which {where} does not have under that name{hint}: either this is not the base "
                "it was made for, or transformers stores or shares the weight under another name. Only transformers knows which: "
                "use a machine with torch and transformers."
            )
        return f"The adapter changes '{parameter}', which {where} does not have{hint}: this is not the base it was made for."

    def _explain_quantized(self, parameter: str) -> str | None:
        """Return the sentence that refuses a quantized weight; None if ``parameter`` is not stored quantized."""
        path = parameter.rpartition(".")[0]
        names = (name for leaf in _QUANTIZED_LEAVES if (name := find_tensor(f"{path}.{leaf}", self.checkpoint.tensors)))
        name = next(names, None)
        if name is None:
            return None
        method = quantization_method(self.checkpoint.config) or "a method its config.json does not name"
        return (
            f"The base at {self.checkpoint.path} is quantized with {method} ('{name}'): an update cannot be added to such a "
            "weight; give the unquantized base that it was made from, and quantize the result."
        )


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """Return the name of the method by which the checkpoint says it is quantized."""
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quantization, dict):
        return None
    return str(quantization.get("quant_method") or quantization.get("quant_type") or "an unnamed method")


def stored_weights(checkpoint: Checkpoint, adapter: Adapter | None = None) -> StoredWeights:
    """Return where the parameters of a model in memory are in ``checkpoint``.

    Args:
        checkpoint: the base.
        adapter: says which class the model is. Without it, the adapters decide that were given for this checkpoint before, or
            else the class that the checkpoint was saved from.

    Raises:
        AdapterError: the package's own record is damaged.
    """
    known = _adapters.setdefault(checkpoint, [])
    if adapter is not None and not any(adapter is other for other in known):
        known.append(adapter)
    asked = [adapter] if adapter is not None else known
    layout = layout_of(checkpoint, asked[-1] if asked else None)
    if layout is not None:
        return StoredWeights(checkpoint, layout)
    parts: dict[str, tuple[Part, ...]] = {}
    ties: dict[str, str] = {}
    for item in asked:
        recorded, tied = _read_record(item)
        if all(part.tensor in checkpoint.tensors for found in recorded.values() for part in found):
            parts.update(recorded)  # otherwise it was recorded for a base with other names
            ties.update(tied)
    return StoredWeights(checkpoint, None, parts, ties)


def layout_of(checkpoint: Checkpoint, adapter: Adapter | None = None) -> ModelLayout | None:
    """Return what transformers says of the class that ``adapter`` was trained on; None if it cannot tell.

    Of several classes that an adapter may be for, the first is taken that has all of its modules.
    """
    if not transformers_can_tell():
        return None
    layouts = [
        layout
        for name in architecture_candidates(checkpoint.config, adapter)
        if (layout := _layout(checkpoint, name)) is not None
    ]
    wanted = [module.parameter for module in adapter.modules.values()] if adapter is not None else []
    fitting = (layout for layout in layouts if all(name in layout.shapes for name in wanted))
    return next(fitting, layouts[0] if layouts else None)


def recorded_weight_map(weights: StoredWeights, adapter: Adapter) -> dict[str, Any] | None:
    """Return what a package records, so that a machine without torch can merge ``adapter``; None if nothing is known."""
    if weights.layout is None:
        return None
    changed = {module.parameter for module in adapter.modules.values()} | set(adapter.modules_to_save)
    shared = {name for pair in weights.tied.items() for name in pair}
    needed = changed | shared if changed & shared else changed  # to untie one pair is to untie all
    return {
        "version": WEIGHT_MAP_VERSION,
        "parameters": {name: parts_to_json(parts) for name in sorted(needed) if (parts := weights.find(name))},
        "tied": dict(sorted(weights.tied.items())) if changed & shared else {},
    }


def _read_record(adapter: Adapter) -> tuple[dict[str, tuple[Part, ...]], dict[str, str]]:
    record = adapter.metadata.get("weight_map")
    if not isinstance(record, dict) or record.get("version") != WEIGHT_MAP_VERSION:
        return {}, {}
    try:
        parts = {str(name): parts_from_json(value) for name, value in dict(record["parameters"]).items()}
        return parts, {str(target): str(source) for target, source in dict(record.get("tied") or {}).items()}
    except (ValueError, TypeError, KeyError):
        raise AdapterError(
            f"weight_map in rmlora.json of {adapter.source} is damaged: copy the package again, or delete this key."
        ) from None


def _layout(checkpoint: Checkpoint, architecture: str) -> ModelLayout | None:
    known = _layouts.setdefault(checkpoint, {})
    if architecture not in known:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        known[architecture] = model_layout(checkpoint.config, architecture, shapes)
    return known[architecture]
