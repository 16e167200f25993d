"""Finding the longest row that a model computes, by asking it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["longest_readable"]


def longest_readable(computes: Callable[[int], bool], known: int, wanted: int) -> int:
    """Return the most tokens, at most ``wanted``, that a model computes.

    Args:
        computes: True if it computes a row of so many tokens.
        known: tokens of a row that it should compute.
        wanted: tokens to try first.

    Returns:
        ``wanted``, too, for a model that does not compute ``known`` tokens either: there the length is not what is wrong.
    """
    if computes(wanted):
        return wanted
    readable, failing = min(known, wanted), wanted
    if not computes(readable):
        return wanted
    while failing - readable > 1:
        middle = (readable + failing) // 2
        if computes(middle):
            readable = middle
        else:
            failing = middle
    return readable
