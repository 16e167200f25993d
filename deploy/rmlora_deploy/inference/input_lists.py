"""Several inputs, and none that is mistaken for several: a text is a sequence of texts, and a pair one of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rmlora.errors import ConfigError, InputError
from rmlora.text_pair import TextPair

__all__ = ["check_inputs"]


def check_inputs(inputs: Sequence[Any], batch_size: int = 1) -> None:
    """Check what a caller wants answered.

    Args:
        inputs: texts, pairs, chats or images.
        batch_size: inputs computed at once.

    Raises:
        InputError: ``inputs`` is a single one.
        ConfigError: a batch would be empty.
    """
    chat = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Mapping)
    if isinstance(inputs, (str, bytes, TextPair)) or chat:
        raise InputError("Inputs are a list of texts, pairs, chats or images: put a single one into a list.")
    if batch_size < 1:
        raise ConfigError(f"A batch has at least one input, not {batch_size}.")
