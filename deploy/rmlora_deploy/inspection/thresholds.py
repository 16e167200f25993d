"""In words: from which probability a label applies, where several may."""

from __future__ import annotations

from rmlora.scoring import SeveralLabels
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["describe_thresholds"]


def describe_thresholds(bundle: Bundle) -> str | None:
    """Return the probability; None if no adapter, nor what is merged, gives several labels to a row."""
    if bundle.mode == "merged":
        scoring = bundle.scoring()
        return f"from a probability of {scoring.threshold:g}" if isinstance(scoring, SeveralLabels) else None
    found = {
        name: scoring.threshold
        for name in bundle.adapters
        if isinstance(scoring := bundle.scoring(name), SeveralLabels)
    }
    if len(set(found.values())) == 1:
        return f"from a probability of {next(iter(found.values())):g}"
    return ", ".join(f"from {value:g} with {name}" for name, value in found.items()) or None
