"""Recognizing the heads that an adapter saved, by the names that transformers' models give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmlora.adapter import Adapter

__all__ = ["first_head", "head_outputs", "other_head"]

_OTHER_HEADS = {
    "qa_outputs": "answers in a text",
    "predictions": "masked words",
    "lm_head": "the next word",
    "embed_out": "the next word",
}
"""Part of a module's path that only the models of other tasks have → what it is for."""

_HEADS = ("classifier", "score", "out_proj", "logits_proj", "linear_out", "summary", "head", "qa_outputs")
"""Last part of the path of a head that gives scores, in transformers' models."""


def other_head(adapter: Adapter, *, except_for: str | None = None) -> tuple[str, str] | None:
    """Return the name of a tensor that only models of other tasks have, and what it is for; None if ``adapter`` has none.

    Args:
        adapter: any.
        except_for: part of a module's path that is not another task's.
    """
    for name in adapter.modules_to_save:
        for head, purpose in _OTHER_HEADS.items():
            if head != except_for and head in name.split("."):
                return name, purpose
    return None


def first_head(adapter: Adapter) -> str | None:
    """Return the name of a classifier head's weight that ``adapter`` saved whole; None if it has none."""
    return next(_head_weights(adapter), None)


def _head_weights(adapter: Adapter) -> Iterator[str]:
    """Yield the names of classifier head weights in ``adapter``, the last first.

    XLNet has a ``summary`` before its head; for XLM it is the head.
    """
    found = [
        name
        for name in reversed(list(adapter.modules_to_save))
        if name.endswith(".weight") and _is_head(name.removesuffix(".weight"))
    ]
    yield from sorted(found, key=lambda name: name.endswith("summary.weight"))


def _is_head(path: str) -> bool:
    """Return True for the path of a classification head: ``classifier``, ``classifier.1``, not ``layers.0.out_proj``."""
    parts = path.split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return parts[-1] in _HEADS and not any(part.isdigit() for part in parts)


def head_outputs(adapter: Adapter) -> int | None:
    """Return how many outputs the head in ``adapter`` has, saved whole or adapted; None if it has no head."""
    saved = next((int(adapter.modules_to_save[name].shape[0]) for name in _head_weights(adapter)), None)
    if saved is not None:
        return saved
    adapted = (module for path, module in adapter.modules.items() if module.kind == "linear" and _is_head(path))
    return next((int(module.lora_B.shape[0]) for module in adapted), None)
