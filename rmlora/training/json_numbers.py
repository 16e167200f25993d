"""Figures of a run as JSON has them, which knows neither NaN nor infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["json_numbers"]


def json_numbers(value: Any) -> Any:
    """Return a copy of a JSON document with null for every number that is NaN or infinite.

    A loss may be NaN at one evaluation and not at those after it, and a perplexity too large for a number. Refused when the
    package is written, it would cost the whole run.
    """
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
