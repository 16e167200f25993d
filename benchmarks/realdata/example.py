"""One labeled example, and how repeated ones are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Example", "normal", "unique_inputs"]


class Example(NamedTuple):
    """An input, its label, and the group that must stay on one side of a split."""

    input: Any
    """A text, a pair of texts, or an image as a uint8 array."""
    label: str | float
    """The class, or a number for graded tasks."""
    group: str | None = None
    """Examples of one group come from one source, say a sentence template; None for an example that stands alone."""


def unique_inputs(examples: Sequence[Example]) -> list[Example]:
    """Keep the first of the examples whose inputs are equal, and none of those whose labels then disagree.

    Texts are equal up to spaces and case, pairs also up to their order, images in every pixel.
    """
    first: dict[Any, Example] = {}
    labels: dict[Any, set[str | float]] = {}
    for example in examples:
        key = _key(example.input)
        first.setdefault(key, example)
        labels.setdefault(key, set()).add(example.label)
    return [example for key, example in first.items() if len(labels[key]) == 1]


def _key(value: Any) -> Any:
    if isinstance(value, str):
        return normal(value)
    if isinstance(value, tuple):
        return tuple(sorted(map(normal, value)))
    return value.tobytes()


def normal(text: str) -> str:
    """Return ``text`` with single spaces and in lower case."""
    return " ".join(text.lower().split())
