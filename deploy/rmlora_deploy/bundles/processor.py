"""The tokenizer or image processor of a bundle, how long its texts may be, and the small files it is saved with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.adapter import Adapter
from rmlora.confine import confine_files
from rmlora.errors import AdapterError
from rmlora.pooling import read_text_length
from rmlora.processors import save_processor
from rmlora.readable import is_readable_file
from rmlora.storage import read_json, write_json
from rmlora.tasks import Task

__all__ = ["common_processor", "max_length", "trained_length", "write_side_files"]

_LEFT_TO_THE_CLASS = ("padding_side", "truncation_side", "model_input_names")
"""Settings of a tokenizer that transformers writes only where they differ from its class's."""


def common_processor(base: Path, adapters: Sequence[Adapter], task: Task, *, trust_remote_code: bool = False) -> Any:
    """Return the processor that ``adapters`` were trained with: the one in their packages, else the base's.

    Args:
        base: directory of the base.
        adapters: at least one.
        task: of the adapters.
        trust_remote_code: run code that comes with a processor.

    Raises:
        AdapterError: two adapters were trained with different processors.
    """
    load = partial(task.inputs.load_processor, trust_remote_code=trust_remote_code)
    own = {adapter.source: load(Path(adapter.source)) for adapter in adapters if _has_own(adapter)}
    if not own:
        return load(base)
    (first, processor), *others = own.items()
    if len(own) < len(adapters):
        others.append((str(base), load(base)))
    for source, other in others:
        if task.inputs.essence(other) != task.inputs.essence(processor):
            raise AdapterError(
                f"{first} and {source} {task.inputs.different_processors} differently and cannot share a bundle: export them "
                "into separate bundles."
            )
    return processor


def write_side_files(directory: Path, base: Path, config: Mapping[str, Any], processor: Any) -> None:
    """Write the processor and ``config`` to ``directory``, and copy the license of ``base``."""
    save_processor(processor, directory, source=str(base))
    _record_defaults(directory / "tokenizer_config.json", processor)
    written = _jsonable({k: v for k, v in config.items() if k != "_name_or_path"})
    write_json(directory / "config.json", written, allow_nan=True)
    for name in ("LICENSE", "LICENSE.txt"):
        if is_readable_file(base / name):
            confine_files(base, [name])
            shutil.copyfile(base / name, directory / name)


def _record_defaults(settings: Path, processor: Any) -> None:
    """Write what transformers leaves to the class of a tokenizer into its settings, for readers without transformers."""
    if settings.is_file():
        defaults = {name: getattr(processor, name) for name in _LEFT_TO_THE_CLASS}
        given = read_json(settings, what="Tokenizer configuration", finite=False)
        write_json(settings, {**given, **defaults}, allow_nan=True)


def max_length(adapters: Sequence[Adapter], processor: Any, task: Task, base: Path | None = None) -> int | None:
    """Return the tokens that texts are cut to, or None for images.

    This is the longest length of any adapter's training if all record one. Otherwise it is, for embeddings, the length in
    the base's sentence-transformers files, and else the tokenizer's limit.
    """
    limit = task.inputs.length_limit(processor)
    if limit is None:
        return None
    trained = [length for adapter in adapters if (length := trained_length(adapter))]
    if len(trained) == len(adapters):
        return max(trained)
    own = read_text_length(base) if base is not None and task.outputs.pools else None
    return own or limit


def trained_length(adapter: Adapter) -> int | None:
    """Return the tokens that texts were cut to in training; None if the package does not record it."""
    return adapter.trained_length or read_text_length(Path(adapter.source))


def _has_own(adapter: Adapter) -> bool:
    return any((Path(adapter.source) / name).is_file() for name in ("preprocessor_config.json", "tokenizer.json"))


def _jsonable(value: Any) -> Any:
    """Return configuration values as JSON types; torch types become their names."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value).removeprefix("torch.")
