"""A tiny base that tells the two texts of a pair apart, and pairs for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.helpers.cli import WORDS, tokenizer
from tests.helpers.models import build, encoder_of, save_base

__all__ = ["pair_base", "pair_data", "pair_tokenizer"]


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a separator between two texts, and types that tell them apart."""
    made = tokenizer()
    end = made.convert_tokens_to_ids("<eos>")
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=32, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def pair_base(directory: Path) -> Path:
    """Save the encoder of a tiny BERT with that tokenizer."""
    save_base(encoder_of(build("bert")), directory)
    pair_tokenizer().save_pretrained(directory)
    return directory


def pair_data(path: Path, rows: int = 48, seed: int = 0) -> Path:
    """Write pairs of which the second text has a word that decides the label."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        first, second = (" ".join(rng.choice(WORDS[3:], size=rng.integers(2, 7))) for _ in range(2))
        label = number % 2
        lines.append(
            json.dumps({"premise": first, "hypothesis": f"{WORDS[label]} {second}", "label": ("no", "yes")[label]})
        )
    path.write_text("\n".join(lines) + "\n")
    return path
