"""Tiny random models of many architectures, adapters for them by PEFT, and a merge compared with PEFT unmerged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rmlora.package import load_package
from rmlora_converters.checkpoint_merge import MergeReport, merge_checkpoint

T: Any = transformers  # the signatures of configurations do not show the arguments that all of them take
VOCABULARY = 120
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 1,
}
"""Settings that most text models share."""
IMAGE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
"""Settings that most image models share."""


@dataclass(frozen=True)
class Case:
    """A base, the class it is loaded with, and the settings of an adapter."""

    name: str
    build: Callable[[], Any]
    """Returns the model to save as the base."""
    lora: dict[str, Any]
    """Arguments of PEFT's ``LoraConfig``."""
    model_class: Any = None
    """Class that base and result are loaded with; None takes the base's own."""
    load: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``from_pretrained``."""
    save: dict[str, Any] = field(default_factory=dict)
    """Arguments with which PEFT saves the adapter."""


def save_noisy(model: Any, directory: Path) -> Path:
    """Save ``model`` with noise on every weight, so that no two of them are equal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def save_adapter_for(model: Any, directory: Path, save: dict[str, Any] | None = None, **lora: Any) -> Path:
    """Save an adapter of random factors for ``model``; modules to save and biases are random too."""
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(str(directory), **(save or {}))
    return directory


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write a safetensors file again with other tensors."""
    tensors = {name: value.contiguous() for name, value in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def make(case: Case, directory: Path, seed: int = 0) -> tuple[Path, Path, Any]:
    """Save base and adapter of ``case``; return both directories and the class."""
    torch.manual_seed(seed)
    built = case.build()
    model_class = case.model_class or type(built)
    base = save_noisy(built, directory / "base")
    adapter = save_adapter_for(
        model_class.from_pretrained(base, **case.load), directory / "adapter", case.save, **case.lora
    )
    return base, adapter, model_class


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Return random inputs of ``model``: text, or images of 32 × 32 pixels."""
    torch.manual_seed(7)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, getattr(model.config, "num_channels", 3), 32, 32)}
    ids = torch.randint(3, VOCABULARY - 3, (2, 9))
    ids[:, 5], ids[1, 6:] = 2, 1  # an end token, as some classifiers want, and padding
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    if "decoder_input_ids" in _arguments(model) and "Classification" not in type(model).__name__:
        inputs["decoder_input_ids"] = ids[:, :5]
    return inputs


def _arguments(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


def outputs_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return logits, or the last hidden state of a model without a head."""
    with torch.inference_mode():
        result = model.eval()(**inputs)
    logits = result.get("logits") if hasattr(result, "get") else result[0]
    tensor: torch.Tensor = logits if logits is not None else result[0]
    return tensor


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return ``max |got − want| / max |want|``."""
    return float((got - want).abs().max() / want.abs().max())


def load_complete(model_class: Any, path: Path) -> Any:
    """Load a checkpoint, in which nothing may be missing, left over, or of another shape."""
    model, info = model_class.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    return model


def merge_error(case_class: Any, base: Path, adapter: Path, output: Path, **load: Any) -> tuple[float, MergeReport]:
    """Merge, load the result, and return how far its outputs are from PEFT's."""
    report = merge_checkpoint(base, load_package(adapter), output)
    reference = PeftModel.from_pretrained(case_class.from_pretrained(base, **load), str(adapter))
    inputs = inputs_of(reference.get_base_model())
    want = outputs_of(reference, inputs)
    plain = outputs_of(case_class.from_pretrained(base, **load), inputs)
    assert error(plain, want) > 1e-4, "the adapter does nothing"
    return error(outputs_of(load_complete(case_class, output), inputs), want), report


_SEQ = T.AutoModelForSequenceClassification
_SEQ_LORA: dict[str, Any] = {"task_type": "SEQ_CLS"}
_VIT_LORA: dict[str, Any] = {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}


def _bart() -> Any:
    size = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": VOCABULARY}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return T.BartConfig(**size, **heads, encoder_layers=1, decoder_layers=1, num_labels=3)


def _segformer() -> Any:
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    shape = {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    return T.SegformerConfig(**stages, **shape, decoder_hidden_size=16, num_labels=3)


def _pvt() -> Any:
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "sequence_reduction_ratios": [2, 1], "hidden_sizes": [8, 16]}
    shape = {"patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    return T.PvtConfig(image_size=32, **stages, **shape, num_labels=3)


def _tied(name: str, model_class: Any, config: Any, targets: list[str], **lora: Any) -> Case:
    """Return a case whose adapter is saved without a copy of the embeddings."""
    return Case(
        name,
        lambda: model_class(config),
        {"target_modules": targets, **lora},
        save={"save_embedding_layers": False},
    )


MLM = [
    _tied("bert-mlm", T.BertForMaskedLM, T.BertConfig(**TINY), ["word_embeddings", "query"]),
    _tied("roberta-mlm", T.RobertaForMaskedLM, T.RobertaConfig(**TINY), ["word_embeddings"]),
    _tied("distilbert-mlm", T.DistilBertForMaskedLM, T.DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=2, pad_token_id=1), ["word_embeddings"]),
    _tied("electra-mlm", T.ElectraForMaskedLM, T.ElectraConfig(**TINY, embedding_size=16), ["word_embeddings", "key"]),
    _tied("deberta-v2-mlm", T.DebertaV2ForMaskedLM, T.DebertaV2Config(**{**TINY, "pad_token_id": 0}), ["word_embeddings"]),
    _tied("albert-mlm", T.AlbertForMaskedLM, T.AlbertConfig(**TINY, embedding_size=16), ["word_embeddings"]),
    _tied("bert-mlm-decoder", T.BertForMaskedLM, T.BertConfig(**TINY), ["decoder"]),
    _tied("xlm-roberta-mlm", T.XLMRobertaForMaskedLM, T.XLMRobertaConfig(**TINY), ["decoder", "value"]),
    _tied("modernbert-mlm", T.ModernBertForMaskedLM, T.ModernBertConfig(**TINY), ["decoder", "Wqkv"]),
]  # fmt: skip

_GPT2 = T.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2)
CAUSAL = [
    _tied("gpt2-tied", T.GPT2LMHeadModel, _GPT2, ["wte", "c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True),
    _tied("gpt2-head", T.GPT2LMHeadModel, _GPT2, ["lm_head"], task_type="CAUSAL_LM"),
    _tied("gpt2-linear-head", T.GPT2LMHeadModel, _GPT2, ["c_proj", "lm_head"], task_type="CAUSAL_LM"),
    _tied("bert-causal", T.BertLMHeadModel, T.BertConfig(**TINY, is_decoder=True), ["word_embeddings"], task_type="CAUSAL_LM"),
    _tied("flaubert", T.FlaubertWithLMHeadModel, T.FlaubertConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=2, pad_index=1), ["embeddings"]),
    _tied("llama-tied", T.LlamaForCausalLM, T.LlamaConfig(**TINY, tie_word_embeddings=True), ["embed_tokens"], task_type="CAUSAL_LM"),
    _tied("llama-saved", T.LlamaForCausalLM, T.LlamaConfig(**TINY, tie_word_embeddings=True), ["q_proj"], task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    _tied("gemma2", T.Gemma2ForCausalLM, T.Gemma2Config(**TINY, head_dim=16, num_key_value_heads=1), ["lm_head", "o_proj"], task_type="CAUSAL_LM"),
    _tied("opt", T.OPTForCausalLM, T.OPTConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32), ["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
    _tied("gpt-neox", T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**TINY), ["query_key_value", "lm_head"], task_type="CAUSAL_LM"),
    _tied("gpt-neox-tied", T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**TINY, tie_word_embeddings=True), ["lm_head"], task_type="CAUSAL_LM"),
    _tied("mixtral", T.MixtralForCausalLM, T.MixtralConfig(**TINY, num_local_experts=3, num_key_value_heads=1), ["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    _tied("qwen2-moe", T.Qwen2MoeForCausalLM, T.Qwen2MoeConfig(**TINY, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_key_value_heads=1), ["q_proj", "shared_expert.up_proj"], task_type="CAUSAL_LM"),
    _tied("phi3", T.Phi3ForCausalLM, T.Phi3Config(**TINY, bos_token_id=2, eos_token_id=2), ["qkv_proj", "gate_up_proj"], task_type="CAUSAL_LM"),
    _tied("bloom", T.BloomForCausalLM, T.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2), ["query_key_value", "word_embeddings"], task_type="CAUSAL_LM"),
    _tied("falcon", T.FalconForCausalLM, T.FalconConfig(**TINY), ["query_key_value", "dense"], task_type="CAUSAL_LM"),
    _tied("mamba", T.MambaForCausalLM, T.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8), ["in_proj", "embeddings"], task_type="CAUSAL_LM"),
]  # fmt: skip


def _encoder_decoder() -> Any:
    decoder = T.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True)
    return T.EncoderDecoderConfig.from_encoder_decoder_configs(T.BertConfig(**TINY), decoder)


SEQ2SEQ = [
    Case("linear-and-transposed", lambda: T.EncoderDecoderModel(_encoder_decoder()), {"target_modules": ["query", "c_proj"]}),
    Case("encoder-decoder-embeddings", lambda: T.EncoderDecoderModel(_encoder_decoder()), {"target_modules": ["query", "wte"]}, save={"save_embedding_layers": False}),
    Case("bart", lambda: T.BartForConditionalGeneration(_bart()), {"target_modules": ["q_proj", "lm_head"]}, save={"save_embedding_layers": False}),
    Case("bart-encoder-embedding", lambda: T.BartForConditionalGeneration(_bart()), {"target_modules": ["encoder.embed_tokens"]}, save={"save_embedding_layers": False}),
    Case("t5", lambda: T.T5ForConditionalGeneration(T.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)), {"target_modules": ["q", "lm_head"], "task_type": "SEQ_2_SEQ_LM"}),
    Case("mt5", lambda: T.MT5ForConditionalGeneration(T.MT5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)), {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}),
    Case("umt5-head", lambda: T.UMT5ForConditionalGeneration(T.UMT5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, tie_word_embeddings=True)), {"target_modules": ["lm_head"]}),
    Case("marian", lambda: T.MarianMTModel(T.MarianConfig(vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=1, decoder_start_token_id=1, eos_token_id=2)), {"target_modules": ["k_proj", "lm_head"]}),
]  # fmt: skip

CLASSIFIERS = [
    Case("bert-bias-all", lambda: T.BertForSequenceClassification(T.BertConfig(**TINY, num_labels=3)), {**_SEQ_LORA, "target_modules": ["query"], "bias": "all"}, _SEQ),
    Case("bert-all-linear", lambda: T.BertForSequenceClassification(T.BertConfig(**TINY, num_labels=3)), {**_SEQ_LORA, "target_modules": "all-linear", "modules_to_save": ["LayerNorm"]}, _SEQ),
    Case("distilbert", lambda: T.DistilBertModel(T.DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=2)), {**_SEQ_LORA, "target_modules": ["q_lin"], "modules_to_save": ["pre_classifier", "classifier"]}, _SEQ),
    Case("roberta-headless", lambda: T.RobertaModel(T.RobertaConfig(**TINY)), {**_SEQ_LORA, "target_modules": ["query"]}, _SEQ),
    Case("deberta-v2", lambda: T.DebertaV2ForSequenceClassification(T.DebertaV2Config(**{**TINY, "pad_token_id": 0}, num_labels=3, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_buckets=16)), {**_SEQ_LORA, "target_modules": "all-linear"}, _SEQ),
    Case("llama-headless", lambda: T.LlamaForCausalLM(T.LlamaConfig(**TINY)), {**_SEQ_LORA, "target_modules": ["q_proj", "v_proj"]}, _SEQ),
    Case("modernbert-headless", lambda: T.ModernBertModel(T.ModernBertConfig(**TINY)), {**_SEQ_LORA, "target_modules": ["Wqkv"], "modules_to_save": ["head", "classifier"]}, _SEQ),
    Case("xlnet-headless", lambda: T.XLNetModel(T.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=2, d_inner=48, pad_token_id=1)), {**_SEQ_LORA, "target_modules": ["layer_1"], "modules_to_save": ["sequence_summary", "logits_proj"]}, _SEQ),
    Case("esm", lambda: T.EsmForSequenceClassification(T.EsmConfig(**TINY, num_labels=3, position_embedding_type="rotary", mask_token_id=4)), {**_SEQ_LORA, "target_modules": ["query", "key"], "bias": "all"}, _SEQ),
    Case("deberta-position-table", lambda: T.DebertaForSequenceClassification(T.DebertaConfig(**{**TINY, "pad_token_id": 0}, num_labels=3, relative_attention=True, pos_att_type=["p2c", "c2p"])), {**_SEQ_LORA, "target_modules": ["in_proj", "rel_embeddings"]}, _SEQ),
    Case("bart-embeddings", lambda: T.BartForSequenceClassification(_bart()), {**_SEQ_LORA, "target_modules": ["shared", "q_proj"]}, _SEQ, save={"save_embedding_layers": False}),
    Case("t5-tokens", lambda: T.T5EncoderModel(T.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)), {"task_type": "TOKEN_CLS", "target_modules": ["q"]}, T.T5ForTokenClassification, {"num_labels": 4}),
    Case("bart-classifier", lambda: T.BartForSequenceClassification(_bart()), {**_SEQ_LORA, "target_modules": ["q_proj"], "modules_to_save": ["classification_head"]}, _SEQ),
    Case("mpnet-tokens", lambda: T.MPNetForTokenClassification(T.MPNetConfig(**TINY, num_labels=5)), {"task_type": "TOKEN_CLS", "target_modules": ["q", "v"]}),
    Case("nystromformer", lambda: T.NystromformerForSequenceClassification(T.NystromformerConfig(**TINY, num_labels=3, segment_means_seq_len=9, num_landmarks=9)), {**_SEQ_LORA, "target_modules": ["query"], "bias": "lora_only"}, _SEQ),
    Case("rembert-qa", lambda: T.RemBertForQuestionAnswering(T.RemBertConfig(**TINY, input_embedding_size=16)), {"task_type": "QUESTION_ANS", "target_modules": ["query"]}),
]  # fmt: skip

IMAGES = [
    Case("swin", lambda: T.SwinForImageClassification(T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3)), {"target_modules": ["q_proj"]}),
    Case("swin-headless", lambda: T.SwinModel(T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)), {"target_modules": ["q_proj", "fc2"], "modules_to_save": ["classifier", "layernorm_after"]}, T.SwinForImageClassification, {"num_labels": 5}),
    Case("segformer", lambda: T.SegformerForImageClassification(_segformer()), {"target_modules": ["q_proj", "fc1"], "bias": "all"}),
    Case("segformer-headless", lambda: T.SegformerModel(_segformer()), {"target_modules": ["o_proj"], "modules_to_save": ["decode_head"]}, T.SegformerForSemanticSegmentation),
    Case("vit", lambda: T.ViTForImageClassification(T.ViTConfig(**IMAGE, num_labels=3)), {**_VIT_LORA, "modules_to_save": ["layernorm_before", "classifier"]}),
    Case("vit-headless", lambda: T.ViTModel(T.ViTConfig(**IMAGE)), {**_VIT_LORA, "bias": "all"}, T.ViTForImageClassification, {"num_labels": 7}),
    Case("dinov2-swiglu", lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**{**IMAGE, "mlp_ratio": 2}, use_swiglu_ffn=True, num_labels=3)), {"target_modules": ["gate_proj", "up_proj", "q_proj"], "bias": "all", "modules_to_save": ["classifier"]}),
    Case("deit", lambda: T.DeiTForImageClassification(T.DeiTConfig(**IMAGE, num_labels=3)), {"target_modules": ["k_proj", "projection"]}),
    Case("beit", lambda: T.BeitForImageClassification(T.BeitConfig(**IMAGE, num_labels=3, use_relative_position_bias=True)), {"target_modules": ["q_proj", "fc1"], "bias": "all"}),
    Case("convnext", lambda: T.ConvNextForImageClassification(T.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32, num_labels=3)), {"target_modules": ["pwconv1", "pwconv2"], "modules_to_save": ["classifier"]}),
    Case("resnet", lambda: T.ResNetForImageClassification(T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)), {"target_modules": ["convolution"], "modules_to_save": ["classifier.1", "normalization"]}),
    Case("siglip", lambda: T.SiglipVisionModel(T.SiglipVisionConfig(**IMAGE)), {"target_modules": ["q_proj", "fc1"]}),
    Case("clip-vision", lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**IMAGE)), {"target_modules": ["q_proj", "fc2"], "bias": "all"}),
    Case("mobilevit", lambda: T.MobileViTForImageClassification(T.MobileViTConfig(image_size=32, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2, num_labels=3)), {"target_modules": ["query", "classifier"]}),
    Case("pvt", lambda: T.PvtForImageClassification(_pvt()), {"target_modules": ["query", "sequence_reduction"]}),
    Case("levit", lambda: T.LevitForImageClassification(T.LevitConfig(image_size=32, hidden_sizes=[16, 32, 32], num_attention_heads=[2, 2, 2], key_dim=[8, 8, 8], depths=[1, 1, 1], num_labels=3)), {"target_modules": ["linear"]}),
]  # fmt: skip
