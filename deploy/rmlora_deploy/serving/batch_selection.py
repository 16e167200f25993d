"""Which of the rows that wait are computed with the one that has waited longest (pure)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PADDING", "select_batch"]

PADDING = 0.125
"""How much of a batch may be padding, in parts of what is not: larger batches are worth some, small models' most."""


def select_batch(lengths: Sequence[int], *, most: int, padding: float = PADDING) -> list[int]:
    """Return the places of the first row and of those that are computed with it, ascending.

    Rows are taken in the order of their lengths, from the first row's on in both directions, whichever costs less padding.

    Args:
        lengths: tokens of the rows that wait, the one that has waited longest first.
        most: rows of a batch.
        padding: how many tokens of padding are allowed for each token that is none.
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    first = last = order.index(0)
    longest = total = max(1, lengths[0])
    while last - first + 1 < most:
        rows = last - first + 2
        shorter = lengths[order[first - 1]] if first else None
        longer = lengths[order[last + 1]] if last + 1 < len(order) else None
        costs = [
            (rows * max(longest, length, 1) / (total + max(1, length)), step)
            for length, step in ((longer, 1), (shorter, -1))
            if length is not None
        ]
        if not costs or min(costs)[0] > 1 + padding:
            break
        if min(costs)[1] > 0:
            last += 1
            longest = max(longest, lengths[order[last]])
            total += max(1, lengths[order[last]])
        else:
            first -= 1
            total += max(1, lengths[order[first]])
    return sorted(order[first : last + 1])
