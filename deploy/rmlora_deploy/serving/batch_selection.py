"""Selects the waiting rows that are computed together with the one that has waited longest (pure)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_PADDING", "select_batch"]

MAX_PADDING = 0.125
"""Padding tokens allowed for each real token: larger batches are worth some padding, most of all for small models."""


def select_batch(lengths: Sequence[int], *, max_rows: int, padding: float = MAX_PADDING) -> list[int]:
    """Return the indices of the first row and of the rows computed with it, ascending.

    Rows are ordered by length. Starting from the first row, the batch grows in whichever direction costs less padding.

    Args:
        lengths: tokens of each waiting row; the one that has waited longest comes first.
        max_rows: rows of a batch.
        padding: padding tokens allowed for each real token.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    first = last = order.index(0)
    longest = total = max(1, lengths[0])
    while last - first + 1 < max_rows:
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
