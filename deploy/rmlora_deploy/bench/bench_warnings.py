"""What speaks against the figures of a bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["bench_warnings"]

_QUIET = 0.1
"""Share of the cores that other programs may use before a warning appears."""


def bench_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for everything that a reader of the figures must know.

    Args:
        result: what :func:`rmlora_deploy.bench.rounds.run_bench` returned.
    """
    absent: dict[str, list[str]] = {}
    for item in result["contestants"]:
        if "not_measured" in item:
            absent.setdefault(item["not_measured"], []).append(item["name"])
    warnings = [
        f"Not measured: {', '.join(dict.fromkeys(names))} ({reason.rstrip('.')})." for reason, names in absent.items()
    ]
    disturbed = max((item.get("others_share") or 0.0 for item in result["contestants"]), default=0.0)
    if disturbed > _QUIET:
        warnings.append(
            f"Warning: other programs took up to {disturbed:.0%} of the cores during the measurement: these figures are not "
            "reliable. Repeat it on a quiet machine."
        )
    return warnings
