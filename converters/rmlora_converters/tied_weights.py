"""Untying weights that a model shares, where an adapter changes only one of them.

PEFT adds an update to one module alone, so a merged checkpoint that computes the same function must store the weights apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmlora.adapter import Adapter
from rmlora.checkpoint import EMBEDDING_NAMES
from rmlora.errors import AdapterError
from rmlora.stored_weights import StoredWeights
from rmlora.weight_parts import Part

__all__ = ["Untying", "untie"]

_WITHOUT_OUTPUT = ("Model", "Classification", "QuestionAnswering", "MultipleChoice")
"""Endings of class names whose models have no output layer over the vocabulary."""


@dataclass(frozen=True)
class Untying:
    """Which parameters get a tensor of their own, and what the configuration says then."""

    layer: str | None = None
    """Path of the output layer, or of the first other module, that no longer shares its weight; None if nothing is untied."""
    own: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """Parameter without a tensor of its own → where the weight that it shared is stored."""
    keeps_flag: bool = False
    """True if the configuration must go on saying that weights are tied, because the model computes with that."""

    def set_in(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``config`` with every ``tie_word_embeddings`` set to False, and what follows from it kept as it was."""
        result = {
            key: self.set_in(value) if isinstance(value, dict) and key.endswith("_config") else value
            for key, value in config.items()
        }
        if not self.keeps_flag and ("tie_word_embeddings" in config or "model_type" in config):
            result["tie_word_embeddings"] = False
        return result


def untie(weights: StoredWeights, adapter: Adapter) -> Untying:
    """Return what must be stored apart so that ``adapter`` can be merged.

    Raises:
        AdapterError: it is not known whether the changed weight is shared.
    """
    changed = {module.parameter for module in adapter.modules.values()} | set(adapter.modules_to_save)
    if weights.layout is None and not weights.recorded_ties:
        return _untie_by_name(weights, adapter, changed)
    apart = [name for name in sorted(changed) if _is_apart(weights, adapter, name)]
    if not apart:
        return Untying()
    own = {
        name: parts
        for target, source in weights.tied.items()
        for name in (source, target)
        if not weights.find(name) and (parts := weights.find_shared(name))
    }
    targets = [name for name in weights.tied if name in apart or any(o in apart for o in weights.shares_with(name))]
    named = next((name for name in targets if name.endswith(".weight")), apart[0])
    layer = next((name for name in targets if _is_output(name)), named)
    keeps = weights.layout is not None and weights.layout.reads_tie
    return Untying(layer.rpartition(".")[0], own, keeps)


def _is_apart(weights: StoredWeights, adapter: Adapter, name: str) -> bool:
    """Return True if a changed parameter no longer equals those that it is tied to."""
    others = weights.shares_with(name)
    if not others:
        return False
    updated = {module.parameter for module in adapter.modules.values()}
    saved = adapter.modules_to_save
    same = name not in updated and all(
        other not in updated and other in saved and np.array_equal(saved[other], saved[name]) for other in others
    )
    return not same


def _is_output(name: str) -> bool:
    return any(part in name for part in ("lm_head", "decoder.weight", "vocab_projector", "embed_out", "lm_predictions"))


def _untie_by_name(weights: StoredWeights, adapter: Adapter, changed: set[str]) -> Untying:
    """Untie what can be recognized without transformers: the output layer of a causal language model.

    Raises:
        AdapterError: the model has another output layer, which may share the changed weight.
    """
    checkpoint = weights.checkpoint
    embeddings = {name for name in changed if name.endswith(EMBEDDING_NAMES)}
    tie = checkpoint.tied_output
    outputs = {name for name in changed if tie and name == f"{tie.layer}.weight"}
    if not embeddings and not outputs:
        return Untying()
    task = adapter.peft_config.get("task_type")
    architecture = str(
        adapter.metadata.get("architecture") or next(iter(checkpoint.config.get("architectures") or []), "")
    )
    if task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION") or (
        task is None and architecture.endswith(_WITHOUT_OUTPUT)
    ):
        return Untying()
    if tie is None and not checkpoint.config.get("tie_word_embeddings", True):
        return Untying()
    if task == "CAUSAL_LM" or architecture.endswith(("ForCausalLM", "LMHeadModel")):
        if tie is None:
            return Untying()
        name = f"{tie.layer}.weight"
        own = {} if name in checkpoint.tensors else {name: (Part(tie.embedding),)}
        return Untying(tie.layer, own)
    raise AdapterError(
        f"The adapter changes '{min(embeddings | outputs)}', which {architecture or 'the model'} may share with another layer, "
        "and only transformers knows with which: merge on a machine with torch and transformers."
    )
