"""What files that leave this machine call a base and data: names on the hub as they are, of a path its last part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["on_hub", "source_name", "without_paths"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SOURCES = ("base", "train", "validation", "test")
_DIRECTORIES = ("output", "run_dir")


def on_hub(source: str) -> bool:
    """Return True for the name of a model or dataset on the hub, and False for what is, or can only be, a path."""
    return not Path(source).exists() and _HUB_NAME.fullmatch(source.partition(":")[0]) is not None


def source_name(source: str) -> str:
    """Return a name on the hub as it is, and of a path its last part."""
    return source if on_hub(source) else Path(source).resolve().name


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training run with the last part of every path."""
    return {
        key: source_name(str(value))
        if key in _SOURCES and value is not None
        else Path(value).resolve().name
        if key in _DIRECTORIES and value is not None
        else value
        for key, value in settings.items()
    }
