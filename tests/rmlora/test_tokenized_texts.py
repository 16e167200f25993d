"""Whether rows of so many tokens have room for a text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rmlora.errors import ConfigError
from rmlora.tokenized_texts import check_room


def test_a_length_without_room_for_a_text_is_refused() -> None:
    tokenizer = SimpleNamespace(num_special_tokens_to_add=lambda *, pair: 3 if pair else 2)
    check_room(tokenizer, 3)
    check_room(tokenizer, 5, pairs=True)
    with pytest.raises(
        ConfigError, match="--max-length 2 leaves no room for a text: the tokenizer adds 2 tokens .* take 3 or more"
    ):
        check_room(tokenizer, 2)
    with pytest.raises(ConfigError, match="--max-length 4 leaves no room for two texts: .* take 5 or more"):
        check_room(tokenizer, 4, pairs=True)
