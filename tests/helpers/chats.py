"""A tiny causal language model with a chat template, and conversations for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CHATML", "MARKED", "chat_base", "chat_tokenizer", "conversations", "tiny_llama", "write_rows"]

WORDS = [*"abcdefghij", "user", "assistant", "system", "you", "help", "\n", " "]
SPECIAL = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nyou help<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's template with other words."""
MARKED = CHATML.replace(
    "{{ message['content'] }}<|im_end|>\n{% endfor %}",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}",
)
"""The same with markers around what the assistant says."""


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per word, space and line break."""
    entries = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(WordLevel(entries, unk_token="<unk>"))
    words.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    words.pre_tokenizer = Split(Regex(r"\s"), "isolated")
    words.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        extra_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    fast.model_input_names = ["input_ids", "attention_mask"]
    if template:
        fast.chat_template = template
    return fast


def tiny_llama(vocabulary: int = len(SPECIAL) + len(WORDS), *, tied: bool = True) -> LlamaForCausalLM:
    """Return a random Llama of two layers, with the output layer tied to the embeddings."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, pad_token_id=1, bos_token_id=2,
            eos_token_id=3,
        )
    )  # fmt: skip


def chat_base(directory: Path, template: str | None = CHATML, *, tied: bool = True) -> Path:
    """Save the tiny model with its tokenizer."""
    tiny_llama(tied=tied).save_pretrained(directory)
    chat_tokenizer(template).save_pretrained(directory)
    return directory


def conversations(count: int = 40) -> list[dict[str, Any]]:
    """Return chats of one turn: one of three letters is asked about among others, and the answer is the one after it."""
    letters = "defghij"
    rows = []
    for number in range(count):
        first, second = "abc"[number % 3], letters[(number // 3) % 7]
        answer = "bcd"[number % 3]
        rows.append(
            {"messages": [{"role": "user", "content": f"{second} {first}"}, {"role": "assistant", "content": answer}]}
        )
    return rows


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write one JSON document per line."""
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path
