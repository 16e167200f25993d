"""Loading tokenizers and image processors from a model's directory, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmlora.confine import confine
from rmlora.errors import CheckpointError, is_installed, require
from rmlora.readable import check_readable, is_readable_file
from rmlora.storage import read_json

__all__ = ["load_image_processor", "load_tokenizer"]

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CONFIG = "tokenizer_config.json"


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer in ``directory``, with a padding token.

    Raises:
        CheckpointError: there is no usable one.
    """
    _require_transformers()
    from transformers import AutoTokenizer

    tokenizer = _load(directory, "tokenizer", lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=False))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_image_processor(directory: Path) -> Any:
    """Return the image processor in ``directory``, in the variant that does not need torchvision.

    Raises:
        CheckpointError: there is no usable one.
    """
    _require_transformers()
    from transformers import AutoImageProcessor

    return _load(
        directory,
        "image processor",
        lambda: AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False),
    )


def _require_transformers() -> None:
    require("transformers", "serve")
    if not is_installed("torch"):  # transformers would recommend installing it
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _load(directory: Path, kind: str, load: Callable[[], Any]) -> Any:
    # transformers calls a file that it may not read missing, or does without it.
    check_readable(path for pattern in _FILES for path in directory.glob(pattern))
    _confine_named_files(directory)
    try:
        return load()
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"The base at {directory} has no usable {kind}: {reason}") from None


def _confine_named_files(directory: Path) -> None:
    """Raise :class:`InputError` if the tokenizer's configuration names a file outside ``directory``.

    Transformers opens what ``fast_tokenizer_files`` lists, and some versions open what keys such as ``vocab_file`` name.
    Published configurations often hold such paths of the machine they were made on. If nothing is there, they are harmless.
    """
    file = directory / _CONFIG
    config = read_json(file, what="Tokenizer configuration") if is_readable_file(file) else {}
    if not isinstance(config, dict):
        return
    versions = config.get("fast_tokenizer_files")
    for name in versions if isinstance(versions, list) else ():
        confine(directory, name, where=file)
    for key, value in config.items():
        if key.endswith("_file") and isinstance(value, str) and _exists(directory, value):
            confine(directory, value, where=file)


def _exists(directory: Path, name: str) -> bool:
    try:
        return (directory / name).is_file() or Path(name).is_file()
    except (OSError, ValueError):
        return False
