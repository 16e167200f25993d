"""Which language models the GenAI builder builds: those that it knows and that were tried here."""

from __future__ import annotations

from collections.abc import Iterable

from rmlora.errors import AdapterError
from rmlora.stored_weights import StoredWeights

__all__ = ["BUILT", "check_shared", "check_split"]

BUILT = (
    "Ernie4_5ForCausalLM",
    "Gemma2ForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "NemotronForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Model classes that are built. Each is tried, tiny and random, by ``tests/deploy/exporter/test_decoder_matrix.py``."""

_SPLIT = {"Phi3ForCausalLM": ("gate_up_proj",)}
"""Model class → modules whose weight the builder splits into several products."""


def check_split(architecture: str, modules: Iterable[str], name: str) -> None:
    """Raise :class:`AdapterError` if an adapter changes a module that has no product of its own in the builder's graph.

    Args:
        architecture: model class.
        modules: paths of the modules that the adapter changes.
        name: of the adapter.
    """
    split = next((path for path in modules if path.rpartition(".")[2] in _SPLIT.get(architecture, ())), None)
    if split is not None:
        raise AdapterError(
            f"'{name}' changes '{split}', which the GenAI builder splits into two products, so it has no branch: merge the adapter "
            "(--mode merged), or leave that module out of its target_modules."
        )


def check_shared(modules: Iterable[str], weights: StoredWeights, name: str) -> None:
    """Raise :class:`AdapterError` if an adapter changes a module whose rounded weight the builder's int4 graph shares.

    In int4, and in no other precision, the embedding is looked up in the rounded weight of a tied output layer.

    Args:
        modules: paths of the modules that the adapter changes, without embeddings.
        weights: of the base.
        name: of the adapter.
    """
    shared = next((path for path in modules if weights.shares_with(f"{path}.weight")), None)
    if shared is not None:
        raise AdapterError(
            f"'{name}' changes '{shared}', whose weight the base ties to its embedding: the GenAI builder's int4 graph holds both "
            "as one rounded table, which gets no branch. Choose --precision int8, merge the adapter (--mode merged), or leave that "
            "module out of its target_modules."
        )
