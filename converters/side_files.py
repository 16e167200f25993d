"""The small files beside a model's weights: tokenizer, configuration, licence."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

__all__ = ["PROVENANCE_FILE", "copy_side_files"]

PROVENANCE_FILE = "rmlora_merge.json"
"""What a merge leaves beside its result: from what it was made, and what survived."""

_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "README.md")
"""What is copied; never pickles and never other copies of the weights."""


def copy_side_files(source: Path, target: Path, *, but: Collection[str] = ()) -> None:
    """Copy the small files of the directory ``source`` to ``target``, leaving out the names in ``but``.

    Indexes of shards and records of an earlier merge speak of the old weights, so they stay behind.
    """
    for pattern in _PATTERNS:
        for path in source.glob(pattern):
            stale = path.name in but or path.name.endswith(".index.json") or path.name == PROVENANCE_FILE
            if path.is_file() and not stale:
                shutil.copyfile(path, target / path.name)
