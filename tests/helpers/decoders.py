"""Tiny random language models of the architectures that are exported, a tokenizer of single bytes, and adapters for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.helpers.models import save_base

__all__ = ["DECODERS", "byte_tokenizer", "decoder_adapter", "decoder_base"]

_SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
_VOCABULARY = 256 + len(_SPECIAL)
_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_COMMON: dict[str, Any] = {
    "vocab_size": _VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    "phi": ("PhiConfig", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 256}),
    "smollm3": ("SmolLM3Config", {}),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25, "logits_scaling": 2.0},
    ),
    "olmo": ("OlmoConfig", {}),
    "nemotron": ("NemotronConfig", {"head_dim": 32}),
    "ernie": ("Ernie4_5Config", {"head_dim": 16}),
    "hunyuan": ("HunYuanDenseV1Config", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("MambaConfig", {}),
    "deepseek": (
        "DeepseekV3Config",
        {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
        },
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neo": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "gptj": ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256}),
    "codegen": ("CodeGenConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4, "seq_length": 256}),
    "falcon": ("FalconConfig", {"multi_query": True, "new_decoder_architecture": False, "alibi": False}),
    "falcon40": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "falcon_alibi": (
        "FalconConfig",
        {"multi_query": False, "new_decoder_architecture": False, "alibi": True, "bias": True},
    ),
    "stablelm": ("StableLmConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 16}),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "glm": ("GlmConfig", {"head_dim": 16}),
    "glm4": ("Glm4Config", {"head_dim": 16}),
    "helium": ("HeliumConfig", {"head_dim": 16}),
    "exaone4": ("Exaone4Config", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "arcee": ("ArceeConfig", {}),
    "apertus": ("ApertusConfig", {}),
    "seed_oss": ("SeedOssConfig", {"head_dim": 16}),
    "persimmon": ("PersimmonConfig", {}),
    "biogpt": ("BioGptConfig", {}),
    "gpt_bigcode": ("GPTBigCodeConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "ministral": ("MinistralConfig", {"head_dim": 16, "sliding_window": 16}),
    "xglm": ("XGLMConfig", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
"""Name → configuration class and its settings."""


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for every byte, with or without a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = {token: number for number, token in enumerate([*_SPECIAL, *alphabet])}
    made = Tokenizer(BPE(vocab=entries, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(_SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    if chat:
        fast.chat_template = _CHAT
    return fast


def decoder_base(name: str, directory: Path, *, seed: int = 0, chat: bool = True, **settings: Any) -> Path:
    """Save a tiny random model with its tokenizer."""
    kind, own = DECODERS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**_COMMON, **own, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(
                scale * torch.randn_like(parameter)
                if parameter.ndim > 1
                else parameter + scale * torch.randn_like(parameter)
            )
    save_base(model.eval(), directory)
    byte_tokenizer(chat=chat).save_pretrained(directory)
    return directory


def decoder_adapter(base: Path, directory: Path, *, seed: int = 1, size: float = 0.1, **lora: Any) -> Path:
    """Save an adapter of random factors for the model in ``base``, as PEFT saves it."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **lora}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.copy_(size * torch.randn_like(parameter))
    adapted.save_pretrained(str(directory))
    return directory
