"""Finds the known names that somebody may have meant, quickly even among many."""

from __future__ import annotations

import bisect
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rmlora.wording import nearest

__all__ = ["nearest_beside", "nearest_names"]

_MOST = 3
"""Names returned."""
_COMPARED = 300
"""Up to so many names are all compared, which takes at most some milliseconds."""
_NEIGHBORS = 16
"""Of more, those that are compared on each side of the place that the name would have in alphabetical order."""
_LONGEST = 100
"""Characters of a name that are looked at."""


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of ``known`` that are similar to ``name``, the most similar first; upper and lower case are alike."""
    wanted = name[:_LONGEST].lower()
    originals = {item.lower(): item for item in known}
    candidates: Sequence[str] = list(originals)
    if len(candidates) > _COMPARED:
        # A typing error leaves the beginning or the end as it was.
        backwards = [item[::-1] for item in _neighbors(wanted[::-1], [item[::-1] for item in candidates])]
        candidates = [*_neighbors(wanted, candidates), *backwards]
    found = difflib.get_close_matches(wanted, dict.fromkeys(candidates), n=_MOST)
    return [originals[item] for item in found]


def _neighbors(name: str, known: Sequence[str]) -> list[str]:
    ordered = sorted(known)
    place = bisect.bisect_left(ordered, name)
    return ordered[max(0, place - _NEIGHBORS) : place + _NEIGHBORS]


def nearest_beside(path: Path, *, files: str | None = None) -> str:
    """Return ``the nearest is MiniLM``: directories named like ``path``, which does not exist, where it would be.

    Args:
        path: what was asked for.
        files: ending of files that count too, such as ``.gguf``.

    Returns:
        An empty text if ``path`` exists, or nothing similar does.
    """
    try:
        if path.exists():
            return ""
        with os.scandir(path.parent) as entries:
            beside = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and (entry.is_dir() or (files and entry.name.endswith(files)))
            ]
    except OSError:  # there is no such place, or this user may not look into it
        return ""
    return nearest([str(path.parent / name) for name in nearest_names(path.name, beside)])
