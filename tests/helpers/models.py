"""Tiny models with random weights, one per architecture family, and adapters for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 97
LABELS = 3
TRANSFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": LABELS,
}
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 1}
"""Settings that most of the models share."""
CLASSES: dict[str, Any] = {"num_labels": LABELS}
"""An argument of every configuration, which the signatures of some do not show."""


@dataclass(frozen=True)
class Architecture:
    """One tiny model: how to build it, which modules LoRA targets, and which module is its head."""

    name: str
    build: Callable[[], PreTrainedModel]
    targets: tuple[str, ...]
    head: str | None
    task: str | None
    fan_in_fan_out: bool = False

    def inputs(self, batch: int = 3, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return random inputs; the last row of a text batch is padded."""
        generator = torch.Generator().manual_seed(seed)
        if self.task == "image-classification":
            return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}
        ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if batch > 1 and length > 2:
            ids[-1, length // 2 :], mask[-1, length // 2 :] = 1, 0
        return {"input_ids": ids, "attention_mask": mask}


def _bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(**TRANSFORMER, **TOKENS, max_position_embeddings=40, intermediate_size=24)
    )


def _roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(
        RobertaConfig(**TRANSFORMER, **TOKENS, max_position_embeddings=44, intermediate_size=24)
    )


def _gpt2() -> PreTrainedModel:
    return GPT2ForSequenceClassification(
        GPT2Config(**TOKENS, **CLASSES, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    )


def _llama() -> PreTrainedModel:
    return LlamaForSequenceClassification(
        LlamaConfig(
            **TOKENS,
            **CLASSES,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=40,
        )
    )


def _t5_encoder() -> PreTrainedModel:
    return T5EncoderModel(T5Config(**TOKENS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))


def _vit() -> PreTrainedModel:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=4,
            **CLASSES,
        )
    )


def _albert() -> PreTrainedModel:
    return AlbertForSequenceClassification(
        AlbertConfig(**TRANSFORMER, **TOKENS, embedding_size=8, max_position_embeddings=40, intermediate_size=24)
    )


def _distilbert() -> PreTrainedModel:
    return DistilBertForSequenceClassification(
        DistilBertConfig(**TOKENS, **CLASSES, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=40)
    )


def _dinov2() -> PreTrainedModel:
    return Dinov2ForImageClassification(Dinov2Config(**TRANSFORMER, mlp_ratio=2, image_size=16, patch_size=4))


ARCHITECTURES: dict[str, Architecture] = {
    item.name: item
    for item in (
        Architecture(
            "bert", _bert, ("query", "key", "value", "intermediate.dense"), "classifier", "text-classification"
        ),
        Architecture("roberta", _roberta, ("query", "value", "output.dense"), "classifier", "text-classification"),
        Architecture("gpt2", _gpt2, ("c_attn", "c_proj", "c_fc"), "score", "text-classification", fan_in_fan_out=True),
        Architecture("llama", _llama, ("q_proj", "k_proj", "o_proj", "down_proj"), "score", "text-classification"),
        Architecture("t5-encoder", _t5_encoder, ("q", "v", "wi", "wo"), None, None),
        Architecture("vit", _vit, ("q_proj", "v_proj", "fc1", "fc2"), "classifier", "image-classification"),
        Architecture("albert", _albert, ("query", "value", "ffn"), "classifier", "text-classification"),
        Architecture("distilbert", _distilbert, ("q_lin", "v_lin", "lin1"), "classifier", "text-classification"),
        Architecture("dinov2", _dinov2, ("q_proj", "v_proj", "fc1", "fc2"), "classifier", "image-classification"),
    )
}


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Return the tiny model ``name`` with weights drawn from ``seed``, in evaluation mode."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name].build()
    model.eval()
    return model


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder inside ``model``, without its head."""
    assert isinstance(model.base_model, PreTrainedModel)
    return model.base_model


def save_base(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    """Save ``model`` as a safetensors checkpoint and return the directory."""
    model.save_pretrained(directory, **options)
    return directory


def save_adapter(model: PeftModel, directory: Path) -> Path:
    """Save the adapter of ``model`` and return the directory."""
    model.save_pretrained(str(directory))
    return directory


def lora_config(name: str, **changes: Any) -> LoraConfig:
    """Return a LoRA configuration for the architecture's targets and head, with ``changes``."""
    architecture = ARCHITECTURES[name]
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": list(architecture.targets),
        "modules_to_save": [architecture.head] if architecture.head else None,
        "fan_in_fan_out": architecture.fan_in_fan_out,
        "task_type": "SEQ_CLS" if architecture.task == "text-classification" else None,
        **changes,
    }
    return LoraConfig(**settings)


def adapt(model: PreTrainedModel, config: LoraConfig, *, seed: int = 1, size: float = 0.2) -> PeftModel:
    """Wrap ``model`` (in place) with an adapter of random factors, including B; modules to save are random too."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def save_adapter_with_head(
    model: PreTrainedModel, directory: Path, *, head: str, task_type: str, rank: int, seed: int
) -> Path:
    """Save a random adapter of a tiny BERT as plain PEFT does: the head whole, and no ``rmlora.json``."""
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=["query", "value", "dense"], task_type=task_type)
    adapted = adapt(model, config, size=0.15, seed=seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if head in name and parameter.requires_grad:  # so that tokens differ in their scores
                parameter.copy_(torch.randn_like(parameter) if parameter.ndim > 1 else torch.zeros_like(parameter))
    return save_adapter(adapted, directory)


def output(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits, or the last hidden state of an encoder without a head."""
    with torch.inference_mode():
        result = model(**inputs)
    tensor: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return tensor


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return ``max |got − want| / max |want|``."""
    return float((got - want).abs().max() / want.abs().max())
