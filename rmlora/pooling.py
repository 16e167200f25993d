"""How the vector of a text is made of its tokens' vectors, as sentence-transformers writes it beside a model.

================ ====================================================================================
``modules.json`` the parts of the model in order; ``Pooling`` names its directory, ``Normalize`` stands for itself
``config.json``  of the pooling's directory: which tokens count
================ ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rmlora.errors import CheckpointError
from rmlora.storage import read_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["POOLING_MODES", "Pooling", "PoolingMode", "pool", "read_pooling", "read_text_length"]

PoolingMode = Literal["mean", "cls", "last"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)

_MODULES_FILE = "modules.json"
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""What sentence-transformers has long written: true for what is meant."""
_NAMES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""What newer versions write under ``pooling_mode``."""


@dataclass(frozen=True)
class Pooling:
    """Which tokens make the vector, and whether it is brought to length 1."""

    mode: PoolingMode = "mean"
    """``mean`` of all tokens that are no padding, the first one (``cls``), or the ``last`` one that is no padding."""
    normalize: bool = True
    """Divide by the Euclidean norm, so that a dot product is the cosine."""

    def __str__(self) -> str:
        return f"{self.mode}, {'normalized' if self.normalize else 'not normalized'}"


def read_pooling(directory: Path) -> Pooling | None:
    """Return the pooling that the sentence-transformers files in ``directory`` describe; None if there are none.

    Raises:
        InputError: they are damaged, or describe something that :class:`Pooling` cannot.
    """
    file = directory / _MODULES_FILE
    if not file.is_file():
        return None
    modules = read_json(file, what="Modules of the sentence encoder")
    try:
        parts = [(str(item["type"]).rpartition(".")[2], str(item["path"])) for item in modules]
    except (KeyError, TypeError):
        raise CheckpointError(f"{file} is no list of modules with type and path: it is damaged.") from None
    known = ("Transformer", "Pooling", "Normalize")
    other = next((kind for kind, _ in parts if kind not in known), None)
    if other is not None:
        raise CheckpointError(
            f"{file} has a module '{other}', and only Transformer, Pooling and Normalize can be exported: pass --pooling "
            "to leave out what comes after the encoder."
        )
    places = [path for kind, path in parts if kind == "Pooling"]
    if len(places) != 1:
        raise CheckpointError(f"{file} has {len(places)} poolings where one is expected: pass --pooling.")
    return Pooling(_read_mode(directory / places[0] / "config.json"), any(kind == "Normalize" for kind, _ in parts))


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
            f"{file} asks for {what}, and this program pools by one of {', '.join(POOLING_MODES)}: choose with --pooling."
        )
    return found[0]


def read_text_length(directory: Path) -> int | None:
    """Return the tokens that sentence-transformers cuts a text to; None where its file does not say."""
    file = directory / "sentence_bert_config.json"
    config = read_json(file, what="Configuration of the sentence encoder") if file.is_file() else {}
    length = config.get("max_seq_length") if isinstance(config, dict) else None
    return int(length) if isinstance(length, int) and length > 0 else None


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return ``[rows, width]`` of the tokens' vectors, by sentence-transformers' definitions.

    Args:
        hidden: ``[rows, tokens, width]``.
        mask: ``[rows, tokens]``, 1 for text and 0 for padding.
        pooling: which tokens count, and whether the result is brought to length 1.
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
