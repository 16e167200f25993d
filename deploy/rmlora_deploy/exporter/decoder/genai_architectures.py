"""Which language models are exported: those that the GenAI builder knows and that were tried here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rmlora.errors import AdapterError, CheckpointError

__all__ = ["BUILT", "NOT_BUILT", "check_architecture", "check_branches"]

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
"""Model classes that are exported. Each is tried, tiny and random, by ``tests/deploy/exporter/test_decoder_matrix.py``."""

NOT_BUILT: Mapping[str, str] = {
    "Gemma3ForCausalLM": "the builder reads its rotary embedding as transformers 4 stored it, and transformers 5 stores it otherwise",
    "GptOssForCausalLM": "its experts are one fused operator, which no adapter can be compared in, and the builder quantizes only "
    "OpenAI's own MXFP4 files",
    "GraniteMoeHybridForCausalLM": "part of its layers keep a recurrent state instead of keys and values",
    "Lfm2ForCausalLM": "part of its layers keep the state of a convolution instead of keys and values",
    "OlmoForCausalLM": "the builder normalizes by the root mean square where the model also subtracts the mean",
    "PhiMoEForCausalLM": "its experts are one fused operator, which the builder makes for CUDA only",
}  # fmt: skip
"""Model classes that the builder knows or might be expected to → why they are not exported."""


_SPLIT = {"Phi3ForCausalLM": ("gate_up_proj",)}
"""Model class → modules whose weight the builder splits into several products."""


def check_branches(architecture: str, modules: Iterable[str], name: str) -> None:
    """Raise :class:`AdapterError` if an adapter changes a module that has no product of its own in the graph.

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


def check_architecture(config: Mapping[str, Any], source: object) -> str:
    """Return the model class that ``config`` names, if it is exported.

    Args:
        config: of the base (``config.json``).
        source: what the base is called, for the error.

    Raises:
        CheckpointError: it is not, or none is named.
    """
    names = config.get("architectures") or []
    name = str(names[0]) if isinstance(names, list) and names else ""
    if name in BUILT:
        return name
    if not name:
        raise CheckpointError(
            f"{source} does not say of which class its model is: add 'architectures' to its config.json."
        )
    reason = NOT_BUILT.get(name, "ONNX Runtime GenAI's builder does not know it")
    raise CheckpointError(
        f"{source} is a {name}, which is not exported: {reason}. Exported are {', '.join(BUILT)}. Merge the adapter into its "
        "base with  rmlora-deploy merge  and run the result with an engine for language models."
    )
