"""Numbers with their nouns and durations, as messages write them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "duration", "nearest", "numbers"]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 row``, ``2 rows``, ``1,024 rows``.

    Args:
        count: how many.
        noun: for one.
        plural: for any other number; None adds an s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``41 s``, ``3 min 5 s``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def nearest(names: Sequence[str]) -> str:
    """Return ``the nearest is a`` or ``the nearest are a, b``; an empty text for no names."""
    return f"the nearest {'is' if len(names) == 1 else 'are'} {', '.join(names)}" if names else ""


def numbers(values: list[int], most: int = 8) -> str:
    """Return ``4, 17 and 30``; after ``most`` numbers ``… and 12 more``."""
    listed = [str(value) for value in values[:most]]
    if len(values) > most:
        return ", ".join(listed) + f" and {len(values) - most:,} more"
    return " and ".join(part for part in (", ".join(listed[:-1]), listed[-1]) if part)
