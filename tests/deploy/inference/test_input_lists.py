"""A single input is not taken for a list of its characters or halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.text_pair import TextPair
from rmlora_deploy.inference import Embedder
from rmlora_deploy.inference.input_lists import check_inputs
from tests.helpers.handmade import word_bundle


@pytest.mark.parametrize("single", ["abc", b"abc", TextPair("a", "b"), [{"role": "user", "content": "a"}]])
def test_a_single_input_is_refused(single: Any) -> None:
    with pytest.raises(InputError, match="put a single one into a list"):
        check_inputs(single)


def test_lists_are_accepted_and_empty_batches_refused() -> None:
    for inputs in (["abc"], [TextPair("a", "b")], [[{"role": "user", "content": "a"}]], []):
        check_inputs(inputs)
    with pytest.raises(ConfigError, match="at least one input, not 0"):
        check_inputs(["a"], 0)


def test_no_texts_have_no_vectors(tmp_path: Path) -> None:
    opened = Embedder.open(word_bundle(tmp_path / "words", labels=(), task="feature-extraction"))
    assert opened.embed([]).shape == (0, 3) and opened.embed(["w0"]).shape == (1, 3)
