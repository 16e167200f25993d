"""Tiny classifiers of every kind of answer, adapters for them as PEFT writes them, and what transformers' pipeline says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from tests.helpers.cli import tokenizer
from tests.helpers.models import TOKENS, adapt, lora_config, save_adapter, save_base

__all__ = ["KINDS", "TEXTS", "make_adapter", "make_base", "pipeline_answers"]

TEXTS = ["w1 w5 w3", "w2", "w9 w9 w4 w1 w7 w8 w2", "w3 w6"]

KINDS: dict[str, tuple[str | None, list[str]]] = {
    "one label": (None, ["red", "green", "blue"]),
    "said to be one label": ("single_label_classification", ["red", "green", "blue"]),
    "several labels": ("multi_label_classification", ["toxic", "threat", "insult"]),
    "one score": (None, ["relevant"]),
    "one number": ("regression", ["stars"]),
    "two numbers": ("regression", ["length", "width"]),
}
"""Kind of answer → problem type and label names in the base's configuration."""


def make_base(directory: Path, kind: str, **config: Any) -> Path:
    """Save a tiny base with a head for a kind of answer; ``config`` adds settings."""
    problem, labels = KINDS[kind]
    settings = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40, "problem_type": problem, "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)}, **TOKENS, **config,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    base = save_base(model.eval(), directory)
    tokenizer().save_pretrained(base)
    return base


def make_adapter(base: Path, directory: Path, *, seed: int = 1, **config: Any) -> Path:
    """Save a random adapter with a head for ``base``, as PEFT saves it: without ``rmlora.json``."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    return save_adapter(adapt(model, lora_config("bert", **config), size=0.4, seed=seed), directory)


def pipeline_answers(base: Path, adapter: Path, texts: Sequence[str] = TEXTS, **config: Any) -> list[dict[str, float]]:
    """Return label → score for every text, from transformers' pipeline on the model with the adapter merged."""
    model = AutoModelForSequenceClassification.from_pretrained(base, **config)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    asked = pipeline("text-classification", model=merged.eval(), tokenizer=AutoTokenizer.from_pretrained(base))
    return [{item["label"]: item["score"] for item in asked(text, top_k=None)} for text in texts]
