"""Untying weights that a model shares, where an adapter changes only one of them.

PEFT adds an update to one module alone, so a merged checkpoint that computes the same function must store the weights apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmlora.adapter import Adapter
from rmlora.architecture import architecture_candidates
from rmlora.checkpoint import EMBEDDING_NAMES, Checkpoint, values_of
from rmlora.errors import AdapterError
from rmlora.stored_weights import StoredWeights
from rmlora.weight_parts import Part

__all__ = ["OTHER_OUTPUT_LAYERS", "Untying", "untie"]

_WITHOUT_OUTPUT = ("Model", "Classification", "QuestionAnswering", "MultipleChoice")
"""Endings of class names whose models have no output layer over the vocabulary, unless the name ends with one of these:"""

_WITH_OUTPUT = ("HeadModel", "HeadsModel", "MTModel", "DecoderModel")

_TASKS_WITHOUT_OUTPUT = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's task types whose models have no such layer."""

OTHER_OUTPUT_LAYERS = frozenset(
    [
        "bert",
        "bert-generation",
        "big_bird",
        "bigbird_pegasus",
        "biogpt",
        "blt",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "git",
        "gpt_neox_japanese",
        "megatron-bert",
        "modernbert-decoder",
        "prophetnet",
        "reformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "rwkv",
        "trocr",
        "whisper",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xlnet",
        "xmod",
        "flaubert",
    ]
)
"""Model types whose language models call their output layer otherwise than ``lm_head``, or share more than one pair."""


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
    if weights.layout is None and not weights.recorded_ties:
        return _untie_by_name(weights, adapter)
    changed = {module.parameter for module in adapter.modules.values()} | set(adapter.modules_to_save)
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


def _untie_by_name(weights: StoredWeights, adapter: Adapter) -> Untying:
    """Untie what can be recognized without transformers: the output layer of a causal language model.

    Raises:
        AdapterError: a changed weight has one row per token, and it is not known with which other layers the model shares it.
    """
    config = weights.checkpoint.config
    words = _word_weights(adapter, config)
    if not words:
        return Untying()
    task = adapter.peft_config.get("task_type")
    named = [name for name in architecture_candidates(config, adapter) if not name.startswith("Auto")]
    architecture = next(iter(named), "")
    if not _has_two_halves(config, architecture, words):
        if task in _TASKS_WITHOUT_OUTPUT or (task is None and _has_no_output(architecture)):
            return Untying()
        if task == "CAUSAL_LM" or architecture.endswith(("ForCausalLM", "LMHeadModel")):
            if not _says_tied(weights.checkpoint):
                return Untying()
            tie = weights.checkpoint.tied_output
            if tie is not None and config.get("model_type") not in OTHER_OUTPUT_LAYERS:
                name = f"{tie.layer}.weight"
                own = {} if name in weights.checkpoint.tensors else {name: (Part(tie.embedding),)}
                return Untying(tie.layer, own)
    raise AdapterError(
        f"The adapter changes '{min(words)}', which {architecture or 'the model'} may share with another layer, "
        "and only transformers knows with which: merge on a machine with torch and transformers."
    )


def _has_no_output(architecture: str) -> bool:
    return architecture.endswith(_WITHOUT_OUTPUT) and not architecture.endswith(_WITH_OUTPUT)


def _word_weights(adapter: Adapter, config: Mapping[str, Any]) -> set[str]:
    """Return the changed parameters that have one row per token: input embeddings and output layers."""
    sizes = set(values_of("vocab_size", config))
    updated = {
        module.parameter: module.lora_A.shape[1] if module.kind == "embedding" else module.lora_B.shape[0]
        for module in adapter.modules.values()
        if module.kind != "conv"
    }
    saved = {name: array.shape[0] for name, array in adapter.modules_to_save.items() if array.ndim == 2}
    return {name for name, rows in (updated | saved).items() if rows in sizes or name.endswith(EMBEDDING_NAMES)}


def _has_two_halves(config: Mapping[str, Any], architecture: str, words: Collection[str]) -> bool:
    """Return True if encoder and decoder may share their embeddings, in models of any task."""
    named = any(name.endswith(("shared.weight", "encoder.embed_tokens.weight")) for name in words)
    return named or "EncoderDecoder" in architecture or any(values_of("is_encoder_decoder", config))


def _says_tied(checkpoint: Checkpoint) -> bool:
    """Return True if a causal language model may share its embedding with its output layer."""
    said = list(values_of("tie_word_embeddings", checkpoint.config))
    return any(said) if said else "lm_head.weight" not in checkpoint.tensors
