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

__all__ = ["load_image_processor", "load_tokenizer", "refuse_own_code"]

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CONFIG = "tokenizer_config.json"


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer in ``directory``, with a padding token: transformers', else :class:`PlainTokenizer`.

    Args:
        directory: of a base, an adapter or a bundle.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        CheckpointError: there is no usable one.
    """
    _check_files(directory)
    if not is_installed("transformers"):
        require("tokenizers", "predict")
        from rmlora.plain_tokenizer import PlainTokenizer

        return PlainTokenizer.open(directory)
    _quiet_advice()
    from transformers import AutoTokenizer

    tokenizer = _load(
        directory,
        "tokenizer",
        lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_image_processor(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the image processor in ``directory``: transformers', without torchvision, else :class:`PlainImageProcessor`.

    Args:
        directory: of a base, an adapter or a bundle.
        trust_remote_code: run code that comes with the processor.

    Raises:
        CheckpointError: there is no usable one.
    """
    require("PIL", "predict")
    _check_files(directory)
    if not is_installed("transformers"):
        from rmlora.plain_images import PlainImageProcessor

        return PlainImageProcessor.open(directory)
    _quiet_advice()
    from transformers import AutoImageProcessor

    return _load(
        directory,
        "image processor",
        lambda: AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=trust_remote_code),
    )


def refuse_own_code(error: Exception, directory: Path) -> None:
    """Raise :class:`CheckpointError` naming the flag if transformers refused to run code that comes with a model."""
    if "trust_remote_code" in str(error):
        raise CheckpointError(
            f"{directory} comes with code of its own, which was not run: if you trust its source, pass --trust-remote-code "
            "to train, export, verify, predict or bench."
        ) from None


def _quiet_advice() -> None:
    if not is_installed("torch"):  # transformers would recommend installing it
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _load(directory: Path, kind: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (ValueError, OSError, KeyError, TypeError) as error:
        refuse_own_code(error, directory)
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"The base at {directory} has no usable {kind}: {reason}") from None


def _check_files(directory: Path) -> None:
    """Raise :class:`InputError` if a file may not be read, or the tokenizer's configuration names a file outside ``directory``.

    Transformers opens what ``fast_tokenizer_files`` lists, and some versions open what keys such as ``vocab_file`` name.
    Published configurations often hold such paths of the machine they were made on. If nothing is there, they are harmless.
    """
    # Transformers calls a file that it may not read missing, or does without it.
    check_readable(path for pattern in _FILES for path in directory.glob(pattern))
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
