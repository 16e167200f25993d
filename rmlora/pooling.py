"""Pooling token vectors into one vector per text or image, as configured in the files of sentence-transformers.

================ ====================================================================================
``modules.json`` the modules of the model in order: ``Pooling`` with its directory, and ``Normalize`` if used
``config.json``  in the directory of ``Pooling``: which tokens count
================ ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from rmlora.confine import confine
from rmlora.errors import CheckpointError, ConfigError
from rmlora.file_models import PoolingMode, SentenceModule
from rmlora.json_files import check_values
from rmlora.readable import is_readable_file
from rmlora.storage import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "POOLING_MODES",
    "Pooling",
    "PoolingMode",
    "check_padding",
    "pool",
    "read_pooling",
    "read_text_length",
    "write_pooling",
]

POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)

_MODULES_FILE = "modules.json"
_LENGTH_FILE = "sentence_bert_config.json"
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""Flags in older files of sentence-transformers; the chosen one is true."""
_NAMES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""Values of ``pooling_mode`` in newer files."""


@dataclass(frozen=True)
class Pooling:
    """What makes the vector, and whether it is normalized."""

    mode: PoolingMode = "mean"
    """``mean`` of all tokens but padding, the first token (``cls``), the ``last`` token before padding, or what the model itself
    makes of them (``pooler``)."""
    normalize: bool = True
    """True to divide by the Euclidean norm, so that dot products are cosines."""

    def __str__(self) -> str:
        return f"{self.mode}, {'normalized' if self.normalize else 'not normalized'}"


def read_pooling(directory: Path) -> Pooling | None:
    """Return the pooling that the sentence-transformers files in ``directory`` describe; None if there are none.

    Raises:
        InputError: they are damaged or describe a pooling that :class:`Pooling` cannot represent.
    """
    file = directory / _MODULES_FILE
    if not is_readable_file(file):
        return None
    modules = read_json(file, what="Modules of the sentence encoder")
    if not isinstance(modules, list):
        raise CheckpointError(f"{file} is not a list of modules with type and path: it is damaged.")
    checked = [
        check_values(
            SentenceModule,
            item,
            where=f"Entry {number} of {file}",
            advice="it is damaged, fetch the model again",
            error=CheckpointError,
        )
        for number, item in enumerate(modules, 1)
    ]
    parts = [(module.type.rpartition(".")[2], module.path) for module in checked]
    known = ("Transformer", "Pooling", "Normalize")
    other = next((kind for kind, _ in parts if kind not in known), None)
    if other is not None:
        raise CheckpointError(
            f"{file} has a module '{other}', but only Transformer, Pooling and Normalize can be exported: pass --pooling "
            "to leave out what comes after the encoder."
        )
    directories = [path for kind, path in parts if kind == "Pooling"]
    if len(directories) != 1:
        raise CheckpointError(
            f"{file} has {len(directories)} Pooling modules, but exactly one is supported: pass --pooling."
        )
    return Pooling(
        _read_mode(confine(directory, str(PurePosixPath(directories[0]) / "config.json"), where=file)),
        any(kind == "Normalize" for kind, _ in parts),
    )


def _read_mode(file: Path) -> PoolingMode:
    config = read_json(file, what="Pooling configuration")
    named = config.get("pooling_mode") if isinstance(config, dict) else None
    if named is not None:
        chosen: list[Any] = list(named) if isinstance(named, (list, tuple)) else [named]
        found = [_NAMES.get(str(name)) for name in chosen]
    else:
        flags = config if isinstance(config, dict) else {}
        chosen = [key for key, value in flags.items() if key.startswith("pooling_mode_") and value is True]
        found = [_FLAGS.get(key) for key in chosen]
    if len(found) != 1 or found[0] is None:
        what = " and ".join(map(str, chosen)) or "nothing"
        raise CheckpointError(
            f"{file} asks for {what}, but this program supports one of {', '.join(POOLING_MODES)}: choose with --pooling."
        )
    return found[0]


def write_pooling(directory: Path, pooling: Pooling, *, width: int, max_length: int | None = None) -> None:
    """Write the files with which sentence-transformers pools in the same way.

    Args:
        directory: of a model or an adapter.
        pooling: to describe.
        width: of the vectors.
        max_length: tokens that texts are cut to; None leaves that to the tokenizer.
    """
    kinds = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *([("Normalize", "2_Normalize")] if pooling.normalize else []),
    ]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    write_json(directory / _MODULES_FILE, modules)
    (directory / "1_Pooling").mkdir(exist_ok=True)
    flags = {flag: mode == pooling.mode for flag, mode in _FLAGS.items()}
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    if max_length is not None:
        write_json(directory / _LENGTH_FILE, {"max_seq_length": max_length, "do_lower_case": False})


def check_padding(pooling: Pooling, processor: Any) -> None:
    """Raise :class:`ConfigError` if a batch that ``processor`` pads cannot be pooled in this way."""
    if pooling.mode == "cls" and getattr(processor, "padding_side", "right") == "left":
        raise ConfigError(
            "Pooling by the first token (cls) does not work with a tokenizer that pads on the left: choose --pooling mean or "
            "last."
        )


def read_text_length(directory: Path) -> int | None:
    """Return the number of tokens that sentence-transformers truncates texts to; None if its file does not say."""
    file = directory / _LENGTH_FILE
    config = read_json(file, what="Configuration of the sentence encoder") if is_readable_file(file) else {}
    length = config.get("max_seq_length") if isinstance(config, dict) else None
    return int(length) if isinstance(length, int) and length > 0 else None


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool token vectors into ``[rows, width]``, as sentence-transformers defines it.

    Args:
        hidden: ``[rows, tokens, width]``.
        mask: ``[rows, tokens]``, 1 for text and 0 for padding.
        pooling: which tokens count, and whether the result is normalized.
    """
    import torch

    if pooling.mode == "cls":
        vectors = hidden[:, 0]
    elif pooling.mode == "last":
        last = hidden.shape[1] - 1 - mask.flip(1).argmax(1)
        vectors = hidden[torch.arange(len(hidden)), last]
    else:
        counted = mask.unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * counted).sum(1) / counted.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors
