"""Tokenizers and image processors, loaded from a model's directory without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import CheckpointError, is_installed, require
from rmlora.tasks import Task

if TYPE_CHECKING:
    pass

__all__ = ["load_processor"]


def load_processor(base: Path, task: Task) -> Any:
    """Return the base's tokenizer (text) or its torchvision-free image processor (image).

    Raises:
        CheckpointError: the base ships none.
    """
    require("transformers", "serve")
    if not is_installed("torch"):
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is absent is as it should be
    from transformers import AutoImageProcessor, AutoTokenizer

    try:
        if task.modality == "image":
            return AutoImageProcessor.from_pretrained(base, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (ValueError, OSError, KeyError, TypeError) as error:
        kind = "image processor" if task.modality == "image" else "tokenizer"
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"The base at {base} has no usable {kind}: {reason}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
