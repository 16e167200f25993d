"""Loading tokenizers and image processors from a model's directory, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rmlora.confine import confine
from rmlora.errors import CheckpointError, InputError, is_installed, require
from rmlora.file_models import ImageProcessorConfig, TokenizerConfig
from rmlora.json_files import check_size, check_values
from rmlora.library_calls import library_call
from rmlora.readable import check_readable, is_readable_file
from rmlora.sample_data import draw_image
from rmlora.storage import read_json

__all__ = ["load_image_processor", "load_tokenizer", "plain_image_processor", "refuse_own_code", "save_processor"]

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_OWN_FILES = ("*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja", "*.tiktoken")
"""Those that tokenizers and image processors read, whatever else lies beside them."""
_TOKENIZER_CONFIG = "tokenizer_config.json"
_IMAGE_CONFIG = "preprocessor_config.json"
_MOST_TOKENS = 1 << 24
"""Highest number of a token; the largest known vocabularies have a million."""
_ADVICE = "fetch or export the model again"


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
    _check(directory, _TOKENIZER_CONFIG, TokenizerConfig)
    return _load(directory, "tokenizer", lambda: _tokenizer(directory, trust_remote_code=trust_remote_code))


def _tokenizer(directory: Path, *, trust_remote_code: bool) -> Any:
    if not is_installed("transformers"):
        from rmlora.plain_tokenizer import PlainTokenizer

        tokenizer: Any = PlainTokenizer.open(directory)
    else:
        _quiet_advice()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    _try_tokenizer(tokenizer)
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
    _check(directory, _IMAGE_CONFIG, ImageProcessorConfig)
    return _load(directory, "image processor", lambda: _image_processor(directory, trust_remote_code=trust_remote_code))


def _image_processor(directory: Path, *, trust_remote_code: bool) -> Any:
    if not is_installed("transformers"):
        from rmlora.plain_images import PlainImageProcessor

        processor: Any = PlainImageProcessor.open(directory)
    else:
        _quiet_advice()
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=trust_remote_code)
    return _tried(processor)


def _tried(processor: Any) -> Any:
    """Return an image processor; raise an exception of any kind unless it does what all tasks need."""
    pixels = processor([draw_image(0)], return_tensors="np")["pixel_values"]
    if pixels.ndim != 4 or pixels.dtype.kind != "f":
        raise ValueError("it makes no array of rows, channels, height and width")
    return processor


def save_processor(processor: Any, directory: Path, *, source: str) -> None:
    """Write a tokenizer or image processor, which was read from ``source``, into ``directory``.

    Raises:
        CheckpointError: transformers cannot write it.
    """

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"The tokenizer or image processor of {source} cannot be written ({reason}): {_ADVICE}.")

    with library_call(refuse):
        highest = max(processor.get_vocab().values(), default=0) if hasattr(processor, "get_vocab") else 0
        if highest > _MOST_TOKENS:  # writing counts from 0 up to it
            raise ValueError(f"a token has the number {highest:,}")
        processor.save_pretrained(directory)


def _try_tokenizer(tokenizer: Any) -> None:
    """Raise an exception of any kind unless the tokenizer does what all tasks need: a damaged one may only fail in use."""
    rows = tokenizer(["a b", "c"], truncation=True, max_length=8)["input_ids"]
    if not all(isinstance(number, int) for row in rows for number in row):
        raise ValueError("its tokens are no numbers")
    if not all(isinstance(name, str) for name in getattr(tokenizer, "model_input_names", ())):
        raise ValueError("its model_input_names are no names")
    for name in ("pad_token_id", "pad_token_type_id"):
        int(getattr(tokenizer, name) or 0)


def _check(directory: Path, name: str, model: type[BaseModel]) -> None:
    """Check the types of a configuration's keys, which transformers takes as they are; it may be missing."""
    file = directory / name
    if is_readable_file(file):
        value = read_json(file, what="Configuration", finite=False)
        check_values(model, value, where=f"Configuration {file}", advice=_ADVICE, error=CheckpointError)


def plain_image_processor(directory: Path) -> Any:
    """Return the :class:`PlainImageProcessor` for the image processor in ``directory``; None if transformers is needed."""
    require("PIL", "predict")
    _check_files(directory)
    _check(directory, _IMAGE_CONFIG, ImageProcessorConfig)
    from rmlora.plain_images import PlainImageProcessor

    try:
        return _load(directory, "image processor", lambda: _tried(PlainImageProcessor.open(directory)))
    except CheckpointError:
        return None


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
    def refuse(reason: str) -> CheckpointError:
        where = _damaged_file(directory)
        reads = "images" if "image" in kind else "texts"
        return CheckpointError(
            where or f"{directory} has no usable {kind} ({reason}): {_ADVICE}, or give one that reads {reads}."
        )

    with library_call(refuse):
        try:
            return load()
        except (ValueError, OSError) as error:
            refuse_own_code(error, directory)
            raise


def _damaged_file(directory: Path) -> str | None:
    """Return the error that names the damaged one of the files in ``directory``, which transformers does not; None if all are JSON."""
    try:
        for path in sorted(
            path for pattern in _OWN_FILES for path in directory.glob(pattern) if path.suffix == ".json"
        ):
            read_json(path, what="The file", finite=False)
    except InputError as error:
        return str(error)
    return None


def _check_files(directory: Path) -> None:
    """Raise :class:`InputError` if a file may not be read, or the tokenizer's configuration names a file outside ``directory``.

    Transformers opens what ``fast_tokenizer_files`` lists, and some versions open what keys such as ``vocab_file`` name.
    Published configurations often hold such paths of the machine they were made on. If nothing is there, they are harmless.
    """
    # Transformers calls a file that it may not read missing, or does without it.
    check_readable(path for pattern in _FILES for path in directory.glob(pattern))
    for path in (path for pattern in _OWN_FILES for path in directory.glob(pattern)):
        if path.is_file():
            check_size(path, what="The file")
    file = directory / _TOKENIZER_CONFIG
    config = read_json(file, what="Tokenizer configuration", finite=False) if is_readable_file(file) else {}
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
