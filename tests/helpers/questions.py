"""Tiny models that answer questions, adapters for them as PEFT writes them, and questions whose answers can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from tests.helpers.models import save_adapter_with_head, save_base

__all__ = ["LONG", "PAIRS", "make_question_adapter", "make_question_base", "pair_tokenizer", "question_rows"]

_WORDS = [
    "which",
    "what",
    "lamp",
    "kitchen",
    "garden",
    "turn",
    "on",
    "off",
    "the",
    "in",
    "desk",
    "and",
    "is",
    "red",
    "blue",
    "green",
    "light",
    ".",
    ",",
    "?",
    "'",
]
_PIECES = ["##s", "##er", "##ing", "##et", "##te"]
LONG = "the lamp in the kitchen is red . " * 12 + "the desk lamp is blue ."
"""A context of several windows."""
PAIRS = [
    ("which lamp is on?", "the desk lamp is on, the garden light is off."),
    ("what is red", "The Lamps, the   kitchenette and the desk lampet"),
    ("which light?", LONG),
    ("off?", "off."),
]


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with BERT's special tokens and types, for 40 tokens."""
    entries = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *_PIECES])}
    made = Tokenizer(WordPiece(entries, unk_token="[UNK]", continuing_subword_prefix="##"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=40,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def make_question_base(directory: Path, *, head: bool = False, positions: int = 40) -> Path:
    """Save a tiny BERT, with a head for answers or without, and its tokenizer."""
    torch.manual_seed(0)
    model: Any = BertForQuestionAnswering(
        BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40,
            max_position_embeddings=positions, pad_token_id=0, initializer_range=0.4,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    save_base(model if head else model.bert, directory)
    pair_tokenizer().save_pretrained(directory)
    return directory


def make_question_adapter(base: Path, directory: Path, *, rank: int = 4, seed: int = 1) -> Path:
    """Save a random adapter as plain PEFT does with QUESTION_ANS: the head whole, and no ``rmlora.json``."""
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_pretrained(base)
    return save_adapter_with_head(model, directory, head="qa_outputs", task_type="QUESTION_ANS", rank=rank, seed=seed)


def question_rows(count: int, seed: int = 0, *, unanswerable: float = 0.0) -> list[dict[str, Any]]:
    """Return rows in SQuAD's columns: what is red is asked, and one thing of two is."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        things = list(rng.permutation(["lamp", "kitchen", "garden", "desk"])[:2])
        colors = list(rng.permutation(["red", "blue"])) if rng.random() >= unanswerable else ["green", "blue"]
        context = " ".join(f"the {thing} is {color} ." for thing, color in zip(things, colors, strict=True))
        right = [things[colors.index("red")]] if "red" in colors else []
        answers = {"text": right, "answer_start": [context.index(text) for text in right]}
        rows.append({"question": "what is red ?", "context": context, "answers": answers})
    return rows
