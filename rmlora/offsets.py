"""Which characters of a text its tokens stand for, as fast tokenizers say it (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import CheckpointError

__all__ = ["OFFSETS", "require_offsets", "trimmed"]

OFFSETS = "offset_mapping"
"""Key of a row's array ``[tokens, 2]``: the characters that a token stands for, as tokenizers call it."""


def require_offsets(tokenizer: Any, directory: Path, *, need: str) -> None:
    """Raise :class:`CheckpointError` if a tokenizer does not say which characters its tokens stand for.

    Args:
        tokenizer: read from ``directory``.
        directory: for the error message.
        need: what is impossible without, as the beginning of "… need that".
    """
    try:
        known = OFFSETS in tokenizer(["a b"], return_offsets_mapping=True)
    except (
        NotImplementedError,
        TypeError,
        ValueError,
    ):  # tokenizers written in Python refuse to say it, each in its way
        known = False
    if not known:
        raise CheckpointError(
            f"The tokenizer in {directory} does not say which characters its tokens stand for, and {need} need that: save it as "
            "a fast tokenizer (a tokenizer.json), or take a base that has one."
        )


def trimmed(offsets: npt.NDArray[Any], text: str) -> npt.NDArray[np.int64]:
    """Return offsets ``[tokens, 2]`` without white space at both ends, which some tokenizers count to the token."""
    made = np.array(offsets, np.int64).reshape(-1, 2)
    for number, (start, stop) in enumerate(made.tolist()):
        part = text[start:stop]
        if part[:1].isspace() or part[-1:].isspace():
            begin = start + len(part) - len(part.lstrip())
            made[number] = (begin, max(begin, start + len(part.rstrip())))
    return made
