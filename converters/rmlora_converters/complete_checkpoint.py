"""Checks, before anything is written, that a merged checkpoint holds what its model needs.

Where transformers is installed, names and shapes are compared with those of the model class, after the same renames as in a
load. Otherwise with the base's own index: every tensor of the base is there, and new ones can only be a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rmlora.adapter import Adapter, Array
from rmlora.errors import AdapterError, CheckpointError
from rmlora.stored_weights import StoredWeights
from rmlora.tasks import TASKS
from rmlora.transformers_layout import ModelLayout, model_layout

__all__ = ["check_complete"]

Shape = tuple[int, ...]

_IN_A_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h|stages)\.\d+\.")
"""Part of a path that leads into a repeated layer, where no head is."""


def check_complete(
    weights: StoredWeights,
    adapter: Adapter,
    config: dict[str, Any],
    tensors: Mapping[str, Shape],
    new: Mapping[str, Array],
) -> dict[str, Any]:
    """Check a planned checkpoint and return its configuration.

    Args:
        weights: where the parameters are in the base.
        adapter: to be merged.
        config: of the result; the number of labels is corrected if the adapter's head has another.
        tensors: name → shape of every tensor of the result.
        new: parameters that the adapter saved whole and the base lacks.

    Raises:
        AdapterError: a tensor is missing, has another shape than the model, or belongs to nothing in it.
        CheckpointError: transformers cannot say what the result needs, although it could for the base.
    """
    if weights.layout is None:
        _check_by_index(weights, adapter, new)
        return _with_labels_of_tokens(config, adapter)
    layout = _layout(weights.layout.architecture, config, tensors, weights)
    if mismatched := _mismatched(layout, tensors):
        config = _with_labels_of_head(config, layout, mismatched, tensors)
        layout = _layout(weights.layout.architecture, config, tensors, weights)
    _check_missing(layout, weights, adapter)
    _check_places(layout, weights, adapter, new)
    for name, (needed, got) in _mismatched(layout, tensors).items():
        raise AdapterError(
            f"The merged '{name}' would have shape {list(got)}, but {layout.architecture} needs {list(needed)}: the adapter was "
            "made for another base, or for a model with another configuration."
        )
    return config


def _layout(
    architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Shape], weights: StoredWeights
) -> ModelLayout:
    layout = model_layout(config, architecture, tensors)
    if layout is None:
        raise CheckpointError(
            f"transformers cannot build {architecture} from {weights.checkpoint.path}/config.json with the labels and the "
            "vocabulary of the adapter: the merged checkpoint could not be loaded."
        )
    return layout


def _check_missing(layout: ModelLayout, weights: StoredWeights, adapter: Adapter) -> None:
    task = TASKS.get(adapter.task or "")
    missing = [name for name in layout.missing if task is None or task.outputs.depends_on(name.rpartition(".")[0])]
    if not missing:
        return
    modules = sorted({name.rpartition(".")[0] for name in missing})
    more = f" (and of {len(modules) - 1} other modules)" if len(modules) > 1 else ""
    raise AdapterError(
        f"Neither the base at {weights.checkpoint.path} nor {adapter.source} has weights for '{missing[0]}'{more}, which "
        f"{layout.architecture} needs: outputs would be random. Give the base with that head, or train with "
        f"'{modules[0]}' in modules_to_save."
    )


def _check_places(layout: ModelLayout, weights: StoredWeights, adapter: Adapter, new: Mapping[str, Array]) -> None:
    """Check that the model reads every tensor that the adapter brings."""
    for name in new:
        if name not in layout.parts:
            raise AdapterError(
                f"{adapter.source} saved '{name}' whole, but {layout.architecture} has no such parameter: the adapter was made "
                f"for another model than the base at {weights.checkpoint.path}."
            )


def _mismatched(layout: ModelLayout, tensors: Mapping[str, Shape]) -> dict[str, tuple[Shape, Shape]]:
    """Return parameter → (shape in the model, stored shape) where they differ."""
    return {
        name: (layout.shapes[name], tensors[parts[0].tensor])
        for name, parts in layout.parts.items()
        if len(parts) == 1 and parts[0].is_whole and tensors[parts[0].tensor] != layout.shapes[name]
    }


def _with_labels_of_head(
    config: dict[str, Any],
    layout: ModelLayout,
    mismatched: Mapping[str, tuple[Shape, Shape]],
    tensors: Mapping[str, Shape],
) -> dict[str, Any]:
    """Return ``config`` with numbered labels if the only mismatch is the number of a head's outputs."""
    known = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)
    heads = {got[0] for needed, got in mismatched.values() if needed and needed[0] == known and needed[1:] == got[1:]}
    if len(heads) != 1:
        return config
    (count,) = heads
    return _with_numbered_labels(config, count)


def _with_labels_of_tokens(config: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Return ``config`` with as many labels as the head of an adapter that labels tokens; other heads say it themselves."""
    if adapter.peft_config.get("task_type") != "TOKEN_CLS":
        return config
    scores = TASKS["text-classification"].outputs
    count = scores.count(adapter, config)
    return config if count is None or count == len(scores.labels_in(config)) else _with_numbered_labels(config, count)


def _with_numbered_labels(config: dict[str, Any], count: int) -> dict[str, Any]:
    names = [f"LABEL_{index}" for index in range(count)]
    labels = {"id2label": {str(index): name for index, name in enumerate(names)}}
    changed = {**config, **labels, "label2id": {name: index for index, name in enumerate(names)}}
    return {**changed, "num_labels": count} if "num_labels" in changed else changed


def _check_by_index(weights: StoredWeights, adapter: Adapter, new: Mapping[str, Array]) -> None:
    base = {name.rpartition(".")[0].rpartition(".")[0] for name in weights.checkpoint.tensors} - {""}
    for name in new:
        parent = name.rpartition(".")[0].rpartition(".")[0]
        if _IN_A_LAYER.search(name) or parent in base:
            raise AdapterError(
                f"{adapter.source} saved '{name}' whole, but the base at {weights.checkpoint.path} has no tensor of that name, and "
                "only transformers knows how it is called there: merge on a machine with torch and transformers."
            )
    task = TASKS.get(adapter.task or "")
    if task is not None and task.outputs.has_labels and not new and not _has_head(weights, adapter):
        raise AdapterError(
            f"Neither the base at {weights.checkpoint.path} nor {adapter.source} has a head for {task.name}: outputs would be "
            "random. Give the base with its head, or train with the head in modules_to_save."
        )


def _has_head(weights: StoredWeights, adapter: Adapter) -> bool:
    """Return True if the base was saved from a classifier, or the adapter brings a head of its own."""
    architecture = next(iter(weights.checkpoint.config.get("architectures") or []), "")
    return str(architecture).endswith("Classification") or bool(adapter.modules_to_save)
