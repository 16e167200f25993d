"""Plans what a merged checkpoint contains before any byte of it is written.

Every tensor of the base becomes one tensor of the result, in the same shard and with the same type. Some have an update
added, some are replaced by a tensor of the adapter's modules_to_save; new heads go to the last shard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rmlora.adapter import Adapter, Array, LoraModule
from rmlora.checkpoint import EMBEDDING_NAMES, Checkpoint, TiedOutput
from rmlora.errors import AdapterError
from rmlora.naming import find_tensor, find_tensors, infer_prefix
from rmlora.outputs import problem_type_of
from rmlora.tasks import TASKS
from rmlora.tensors import DTYPES, FLOATING
from rmlora_converters.delta import stores_transposed
from rmlora_converters.shards import ShardEntry

__all__ = ["ArraySource", "MergePlan", "PlannedTensor", "Source", "make_plan", "set_labels"]


class Source(Protocol):
    """Where the rows of a tensor come from: a file of the base or the adapter."""

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""


@dataclass(frozen=True)
class ArraySource:
    """A tensor held in memory, such as a trained head."""

    array: Array

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""
        return self.array[start:stop] if self.array.ndim else self.array


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result: its header entry, its source, and the update to add, if any."""

    entry: ShardEntry
    source: Source
    update: LoraModule | None = None


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

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return sum(item.entry.nbytes for items in self.shards.values() for item in items)


def make_plan(checkpoint: Checkpoint, adapter: Adapter) -> MergePlan:
    """Match every tensor of ``adapter`` with the base, and decide names, tied weights and configuration.

    Raises:
        AdapterError: the base lacks a module, its weight has another shape, or its weight is quantized.
    """
    names = checkpoint.tensors.keys()
    tie = checkpoint.tied_output if _has_output_layer(checkpoint, adapter) else None
    modules = dict(adapter.modules)
    # An output layer whose weight is only stored as the embedding gets its update when the two are untied.
    output_update = modules.pop(tie.layer, None) if tie and f"{tie.layer}.weight" not in names else None
    targets = find_tensors([f"{path}.weight" for path in modules], names, where=f"the base at {checkpoint.path}")
    updates = {targets[f"{path}.weight"]: module for path, module in modules.items()}
    base_names = {parameter: find_tensor(parameter, names) for parameter in adapter.modules_to_save}
    replacements = {name: adapter.modules_to_save[parameter] for parameter, name in base_names.items() if name}
    new = {parameter: adapter.modules_to_save[parameter] for parameter, name in base_names.items() if not name}
    prefix = infer_prefix(targets) if new else ""
    new_dtype = checkpoint.tensors[next(iter(updates))].dtype if updates else "F32"

    shards = _plan_shards(checkpoint, updates, replacements)
    untied = _untie(tie, shards, {*updates, *replacements}, output_update) if tie else None
    for items in shards.values():
        items[:] = [replace(item, entry=replace(item.entry, name=prefix + item.entry.name)) for item in items]
    shards[next(reversed(shards))] += [
        PlannedTensor(ShardEntry(name, new_dtype, array.shape), ArraySource(array)) for name, array in new.items()
    ]
    for items in shards.values():  # widest element types first, see write_shard
        items.sort(key=lambda item: -DTYPES[item.entry.dtype].itemsize if item.entry.dtype in DTYPES else 0)
    config = _new_config(checkpoint, adapter, replacements, untied=untied is not None)
    return MergePlan(shards, config, tuple(sorted(replacements)), tuple(sorted(new)), untied)


def _plan_shards(
    checkpoint: Checkpoint, updates: Mapping[str, LoraModule], replacements: Mapping[str, Array]
) -> dict[str, list[PlannedTensor]]:
    """Return the tensors of every shard of the base, updated or replaced; both mappings go by the base's names."""
    shards: dict[str, list[PlannedTensor]] = {}
    for file_name, shard in checkpoint.shards.items():
        planned = []
        for name, info in shard.infos.items():
            source: Source = info
            entry = ShardEntry(name, info.dtype, info.shape)
            if name in replacements:
                source = ArraySource(replacements[name])
                entry = replace(entry, shape=replacements[name].shape)
            planned.append(_checked(PlannedTensor(entry, source, updates.get(name))))
        shards[file_name] = planned
    return shards


def _untie(
    tie: TiedOutput,
    shards: dict[str, list[PlannedTensor]],
    changed: Collection[str],
    output_update: LoraModule | None,
) -> str | None:
    """Give a tied output layer its own tensor if either side changed; return its module path, or None if neither did.

    PEFT adds an update to the embedding or to the output layer alone, so a merged checkpoint that computes the same
    function must store the two separately.
    """
    name = f"{tie.layer}.weight"
    if output_update is None and not {tie.embedding, name} & set(changed):
        return None
    planned = {item.entry.name: item for items in shards.values() for item in items}
    if name not in planned:
        embedding = planned[tie.embedding]
        own = replace(embedding, entry=replace(embedding.entry, name=name), update=output_update)
        shards[next(reversed(shards))].append(_checked(own))
    return tie.layer


def _has_output_layer(checkpoint: Checkpoint, adapter: Adapter) -> bool:
    task = adapter.peft_config.get("task_type")
    if task is not None:
        return task in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
    architecture = adapter.metadata.get("architecture") or next(iter(checkpoint.config.get("architectures") or []), "")
    return str(architecture).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM"))


def _checked(item: PlannedTensor) -> PlannedTensor:
    if item.update is not None:
        if item.entry.dtype not in FLOATING:
            raise AdapterError(
                f"The base stores '{item.entry.name}' as {item.entry.dtype} (quantized): an update cannot be merged into "
                "that; merge into the unquantized base and quantize the result."
            )
        stores_transposed(item.update, item.entry.shape)
    return item


def _new_config(
    checkpoint: Checkpoint, adapter: Adapter, replacements: Mapping[str, Array], *, untied: bool
) -> dict[str, Any]:
    config = dict(checkpoint.config)
    if untied:
        config["tie_word_embeddings"] = False
    if architecture := adapter.metadata.get("architecture"):
        config["architectures"] = [architecture]
    set_labels(config, adapter)
    for name, array in replacements.items():
        if name.endswith(EMBEDDING_NAMES) and "vocab_size" in config:
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
        config.pop("num_labels", None)
    if (kind := problem_type_of(adapter, config)) != config.get("problem_type"):
        config["problem_type"] = kind
