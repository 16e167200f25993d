"""Tokens of the data, or of padding, for which a base has no embedding are refused before training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import CheckpointError
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from tests.helpers.chats import chat_base, chat_tokenizer, conversations, tiny_llama, write_rows
from tests.helpers.cli import tokenizer
from tests.helpers.models import VOCABULARY
from tests.helpers.similar_texts import scored_pairs, write_lines


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """The base, whose tokenizer may be changed."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def start(base: Path, data: Path, **more: Any) -> None:
    train(TrainSettings(str(base), str(data), data.parent / "adapter", epochs=1, **more))


def test_padding_without_an_embedding_is_refused(copied: Path, data: Path, tmp_path: Path) -> None:
    grown = tokenizer()
    grown.add_special_tokens({"pad_token": "[PAD]"})
    grown.save_pretrained(copied)
    rows = Path(shutil.copy(data, tmp_path / "train.jsonl"))
    message = rf"pads with token {VOCABULARY} \('\[PAD\]'\), but the base has embeddings for {VOCABULARY} tokens"
    with pytest.raises(CheckpointError, match=message):
        start(copied, rows)


def test_a_text_with_a_token_without_an_embedding_is_refused(copied: Path, tmp_path: Path) -> None:
    grown = tokenizer()
    grown.add_tokens(["added"])
    grown.save_pretrained(copied)
    pairs = scored_pairs(24)
    pairs[3] = {key: f"added {value}" if isinstance(value, str) else value for key, value in pairs[3].items()}
    rows = write_lines(tmp_path / "train.jsonl", pairs)
    with pytest.raises(
        CheckpointError, match=rf"data has token {VOCABULARY} \('added'\) of the tokenizer .*: resize it"
    ):
        start(copied, rows, task="feature-extraction")


def test_a_chat_with_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    tiny_llama(vocabulary=len(chat_tokenizer()) - 1).save_pretrained(base)
    rows = write_rows(tmp_path / "train.jsonl", conversations(8))
    with pytest.raises(CheckpointError, match="data has token 20 .* but the base has embeddings for 20 tokens"):
        start(base, rows, task="text-generation")
