"""Tiny models that label tokens, adapters for them as PEFT writes them, tagged data, and a tokenizer that splits words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from tests.helpers.models import save_adapter_with_head, save_base

__all__ = [
    "ROOMS",
    "SLOTS",
    "TEXTS",
    "make_tag_adapter",
    "make_tag_base",
    "pipeline_entities",
    "tag_rows",
    "word_pieces",
    "write_rows",
]

SLOTS = ["O", "B-thing", "I-thing", "B-room", "I-room"]
ROOMS = ["O", "B-room", "I-room"]
"""Labels of two adapters for one base."""
_PIECES = ["lamp", "kitchen", "garden", "turn", "on", "off", "the", "in", "desk", "and", ".", ",", "!", "'", "s"]
_ENDINGS = ["##s", "##er", "##ing", "##et", "##te"]
TEXTS = [
    "turn on the lamps in the kitchen",
    "Off!",
    "the gardens, the desk lampet and the kitchenette.",
    "on unknownish turner",
]


def word_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits words as BERT's does: ``lamps`` into ``lamp`` and ``##s``."""
    entries = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_PIECES, *_ENDINGS])}
    made = Tokenizer(WordPiece(entries, unk_token="[UNK]", continuing_subword_prefix="##"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.model_input_names = ["input_ids", "attention_mask"]
    fast.model_max_length = 32
    return fast


def make_tag_base(directory: Path, labels: Sequence[str] | None = None) -> Path:
    """Save a tiny BERT, with a head if there are ``labels``, and its tokenizer."""
    torch.manual_seed(0)
    named = dict(enumerate(labels or ["O", "X"]))
    model: Any = BertForTokenClassification(
        BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40,
            max_position_embeddings=40, pad_token_id=0, initializer_range=0.4,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label=named,
            label2id={v: k for k, v in named.items()},
        )
    )  # fmt: skip
    save_base(model if labels else model.bert, directory)
    word_pieces().save_pretrained(directory)
    return directory


def make_tag_adapter(base: Path, directory: Path, labels: Sequence[str], *, rank: int = 4, seed: int = 1) -> Path:
    """Save a random adapter as plain PEFT does with TOKEN_CLS: the classifier whole, and no ``rmlora.json``."""
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(labels), ignore_mismatched_sizes=True)
    return save_adapter_with_head(model, directory, head="classifier", task_type="TOKEN_CLS", rank=rank, seed=seed)


def pipeline_entities(
    base: Path, adapter: Path, labels: Sequence[str], text: str, strategy: str
) -> list[tuple[str, int, int, float]]:
    """Return label, start, end and score of the entities that transformers' pipeline finds with the adapter merged."""
    named = dict(enumerate(labels))
    model = AutoModelForTokenClassification.from_pretrained(
        base, id2label=named, label2id={v: k for k, v in named.items()}, ignore_mismatched_sizes=True
    )
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()
    asked = pipeline(
        "token-classification", model=merged, tokenizer=AutoTokenizer.from_pretrained(base),
        aggregation_strategy=strategy,
    )  # fmt: skip
    found: Any = asked(text)
    return [(item["entity_group"], item["start"], item["end"], float(item["score"])) for item in found]


def tag_rows(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Return rows of words and tags: ``lamp`` and ``desk lamp`` are things, the garden and the kitchen are rooms."""
    rng, rows = np.random.default_rng(seed), []
    things = {"lamp": ["B-thing"], "desk lamp": ["B-thing", "I-thing"]}
    for _ in range(count):
        thing, room = str(rng.choice(list(things))), str(rng.choice(["kitchen", "garden"]))
        first = ["turn", str(rng.choice(["on", "off"])), "the"]
        words = [*first, *thing.split(), "in", "the", room]
        rows.append({"tokens": words, "ner_tags": ["O"] * 3 + things[thing] + ["O", "O", "B-room"]})
    return rows


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
