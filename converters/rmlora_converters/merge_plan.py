"""Plans what a merged checkpoint contains before any byte of it is written.

Every tensor of the base becomes one tensor of the result, in the same shard and with the same type. Some have updates added,
some are replaced by a tensor of the adapter's modules_to_save; new heads go to the last shard. Which stored tensor a parameter
is, :mod:`rmlora.stored_weights` says; :mod:`rmlora_converters.complete_checkpoint` checks the plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rmlora.adapter import Adapter, Array, LoraModule
from rmlora.checkpoint import EMBEDDING_NAMES, Checkpoint
from rmlora.naming import infer_prefix
from rmlora.outputs import problem_type_of
from rmlora.renamed_modules import in_memory_names
from rmlora.stored_weights import StoredWeights, quantization_method, stored_weights
from rmlora.tasks import TASKS
from rmlora.weight_parts import Part
from rmlora_converters.complete_checkpoint import check_complete
from rmlora_converters.planned_tensors import (
    ArraySource,
    PartsSource,
    PatchedSource,
    PlannedTensor,
    RowUpdate,
    Source,
    check_update,
    replacement_rows,
    update_of_part,
)
from rmlora_converters.shards import ShardEntry
from rmlora_converters.tied_weights import Untying, untie

__all__ = ["MergePlan", "make_plan", "set_labels"]


@dataclass(frozen=True)
class MergePlan:
    """The tensors of every shard, the new ``config.json``, and the decisions behind them."""

    shards: Mapping[str, list[PlannedTensor]]
    config: dict[str, Any]
    replaced: tuple[str, ...]
    """Tensors of the base that the adapter's modules_to_save replace."""
    added: tuple[str, ...]
    """Tensors that the base does not have."""
    untied: str | None
    """Output layer that no longer shares the embedding's weight, if the update forced them apart."""
    modules: tuple[str, ...]
    """Modules whose update is merged."""
    dropped: tuple[str, ...]
    """Adapted modules on which no output depends, so that their update was left out."""

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return sum(item.entry.nbytes for items in self.shards.values() for item in items)


def make_plan(checkpoint: Checkpoint, adapter: Adapter) -> MergePlan:
    """Match every tensor of ``adapter`` with the base, and decide names, tied weights and configuration.

    Raises:
        AdapterError: the base lacks a module, its weight has another shape or is quantized, or the merged checkpoint would
            lack something that the model needs.
    """
    weights = stored_weights(checkpoint, adapter)
    adapter = in_memory_names(adapter, weights)
    dropped = weights.ineffective(adapter.modules)
    modules = {path: module for path, module in adapter.modules.items() if path not in dropped}
    untying = untie(weights, adapter)
    changes = _changes(weights, modules, adapter.modules_to_save, untying)
    new = {
        name: adapter.modules_to_save[name]
        for name in adapter.modules_to_save
        if name not in untying.own and not weights.find(name)
    }
    shards = _plan_shards(checkpoint, changes)
    last = shards[next(reversed(shards))]
    last += [_own_tensor(weights, name, parts, adapter) for name, parts in untying.own.items()]
    dtype = _dtype_of_new(checkpoint, changes)
    last += [PlannedTensor(ShardEntry(weights.new_name(n), dtype, a.shape), ArraySource(a)) for n, a in new.items()]
    if new:
        _add_prefix(shards, weights, {weights.new_name(name) for name in (*new, *untying.own)}, modules)
    for items in shards.values():  # widest element types first, see ShardWriter
        items.sort(key=lambda item: -item.entry.element_bits)
    replaced = {part.tensor for name in adapter.modules_to_save if name not in new for part in weights.find(name)}
    config = _new_config(weights, adapter, untying)
    tensors = {item.entry.name: item.entry.shape for items in shards.values() for item in items}
    config = check_complete(weights, adapter, config, tensors, new)
    return MergePlan(
        shards, config, tuple(sorted(replaced)), tuple(sorted(new)), untying.layer, tuple(modules), tuple(dropped)
    )


@dataclass
class _Change:
    """What happens to one stored tensor."""

    updates: list[RowUpdate]
    replacements: list[tuple[Part, Array]]


def _changes(
    weights: StoredWeights,
    modules: Mapping[str, LoraModule],
    saved: Mapping[str, Array],
    untying: Untying,
) -> dict[str, _Change]:
    """Return stored tensor → its changes; parameters that get a tensor of their own are left out."""
    changes: dict[str, _Change] = defaultdict(lambda: _Change([], []))
    tensors = weights.checkpoint.tensors
    stored = {module.parameter: module for module in modules.values() if module.parameter not in untying.own}
    for parameter, parts in weights.require(stored).items():
        for part in parts:
            update = update_of_part(stored[parameter], part, tensors[part.tensor].shape)
            changes[part.tensor].updates.append(update)
    for parameter, value in saved.items():
        for part in weights.find(parameter) if parameter not in untying.own else ():
            changes[part.tensor].replacements.append((part, value))
    return dict(changes)


def _plan_shards(checkpoint: Checkpoint, changes: Mapping[str, _Change]) -> dict[str, list[PlannedTensor]]:
    """Return the tensors of every shard of the base, updated or replaced."""
    method = quantization_method(checkpoint.config)
    shards: dict[str, list[PlannedTensor]] = {}
    for file_name, shard in checkpoint.shards.items():
        planned = []
        for name, info in shard.infos.items():
            source: Source = info
            entry = ShardEntry(name, info.dtype, info.shape)
            change = changes.get(name, _Change([], []))
            if change.replacements:
                if any(value.dtype.kind not in "iub" for _, value in change.replacements):
                    check_update(entry, change.replacements, method)
                part, value = change.replacements[0]
                if part.is_whole:
                    source, entry = ArraySource(value), replace(entry, shape=value.shape)
                else:
                    rows = (replacement_rows(value, part, info.shape) for part, value in change.replacements)
                    source = PatchedSource(info, tuple(rows))
            check_update(entry, change.updates, method)
            planned.append(PlannedTensor(entry, source, tuple(change.updates)))
        shards[file_name] = planned
    return shards


def _own_tensor(weights: StoredWeights, name: str, parts: tuple[Part, ...], adapter: Adapter) -> PlannedTensor:
    """Return the tensor of a parameter that shared another's weight: a copy of it, with the parameter's own change."""
    tensors = weights.checkpoint.tensors
    saved = adapter.modules_to_save.get(name)
    source: Source = PartsSource(parts, tensors) if saved is None else ArraySource(saved)
    shape = saved.shape if saved is not None else tensors[parts[0].tensor].shape
    entry = ShardEntry(weights.new_name(name), tensors[parts[0].tensor].dtype, shape)
    module = next((module for module in adapter.modules.values() if module.parameter == name), None)
    updates = (update_of_part(module, Part(parts[0].tensor), shape),) if module is not None else ()
    check_update(entry, updates, quantization_method(weights.checkpoint.config))
    return PlannedTensor(entry, source, updates)


def _dtype_of_new(checkpoint: Checkpoint, changes: Mapping[str, _Change]) -> str:
    """Return the element type of tensors that the base lacks: that of the first weight with an update."""
    return next((checkpoint.tensors[name].dtype for name, change in changes.items() if change.updates), "F32")


def _add_prefix(
    shards: Mapping[str, list[PlannedTensor]],
    weights: StoredWeights,
    new: Collection[str],
    modules: Mapping[str, LoraModule],
) -> None:
    """Put the task model's prefix before every tensor of a base that was saved without it."""
    prefix = weights.prefix
    if weights.layout is None:
        whole = {m.parameter: weights.find(m.parameter) for m in modules.values()}
        prefix = infer_prefix({name: parts[0].tensor for name, parts in whole.items() if parts and parts[0].is_whole})
    if prefix and weights.keeps_places(prefix):
        for items in shards.values():
            items[:] = [
                item
                if item.entry.name in new
                else replace(item, entry=replace(item.entry, name=prefix + item.entry.name))
                for item in items
            ]


def _new_config(weights: StoredWeights, adapter: Adapter, untying: Untying) -> dict[str, Any]:
    config = dict(weights.checkpoint.config)
    if untying.layer:
        config = untying.set_in(config)
    if architecture := adapter.metadata.get("architecture") or (weights.layout and weights.layout.architecture):
        config["architectures"] = [architecture]
    set_labels(config, adapter)
    for name, array in adapter.modules_to_save.items():
        if name.endswith(EMBEDDING_NAMES) and "vocab_size" in config and array.ndim == 2:
            config["vocab_size"] = array.shape[0]
    return config


def set_labels(config: dict[str, Any], adapter: Adapter) -> None:
    """Write labels and kind of answer of ``adapter`` to its base's configuration; other adapters leave it as it is."""
    task = TASKS.get(adapter.task or "")
    labels = adapter.labels or []
    if not labels and task is not None and task.outputs.count(adapter, config) is not None:
        labels = task.outputs.labels_of(adapter, config)
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
        if "num_labels" in config:  # some classes have a default of their own, which would count if this were removed
            config["num_labels"] = len(labels)
    if (kind := problem_type_of(adapter, config)) != config.get("problem_type"):
        config["problem_type"] = kind
