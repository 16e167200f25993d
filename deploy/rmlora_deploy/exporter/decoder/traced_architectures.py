"""Which language models are traced with torch.onnx: those that were tried here."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXPERTS", "NOT_EXPORTED", "TRACED"]

EXPERTS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
"""Those of them with experts, whose weights are not rounded to 8 or 4 bits."""

TRACED = (
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "BioGptForCausalLM",
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma3ForCausalLM",
    "Glm4ForCausalLM",
    "GlmForCausalLM",
    "HeliumForCausalLM",
    "MinistralForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "PersimmonForCausalLM",
    "SeedOssForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    *EXPERTS,
)
"""Model classes that are traced, beside those that the builder builds, which are traced where it is not installed. Each is tried,
tiny and random, by ``tests/deploy/exporter/test_traced_matrix.py``."""

_STATE = "part of its layers keep {} instead of keys and values"
_SIZES = "its keys and values have different sizes, which ONNX Runtime's attention with a cache does not take"
_OWN = "its layers compute their attention themselves, in a way that torch.onnx was not given another form of"
_ROUTER = "its router chooses experts in a way that was not tried, and the builder makes its graph for CUDA only"

NOT_EXPORTED: Mapping[str, str] = {
    "DeepseekV2ForCausalLM": _SIZES,
    "DeepseekV3ForCausalLM": _SIZES,
    "FalconMambaForCausalLM": "its layers keep a recurrent state instead of keys and values",
    "GptOssForCausalLM": "its experts have biases and a limit and its attention a sink, which were not tried, and the builder quantizes "
    "only OpenAI's own MXFP4 files",
    "GraniteMoeHybridForCausalLM": _STATE.format("a recurrent state"),
    "JambaForCausalLM": _STATE.format("a recurrent state"),
    "Lfm2ForCausalLM": _STATE.format("the state of a convolution"),
    "Mamba2ForCausalLM": "its layers keep a recurrent state instead of keys and values",
    "MambaForCausalLM": "its layers keep a recurrent state instead of keys and values",
    "MptForCausalLM": _OWN,
    "PhiMoEForCausalLM": _ROUTER,
    "PhimoeForCausalLM": _ROUTER,
    "Qwen3NextForCausalLM": _STATE.format("a recurrent state"),
    "RecurrentGemmaForCausalLM": _STATE.format("a recurrent state"),
    "RwkvForCausalLM": "its layers keep a recurrent state instead of keys and values",
    "XGLMForCausalLM": _OWN,
}  # fmt: skip
"""Model classes that might be expected to be exported → why they are not."""
