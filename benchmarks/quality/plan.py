"""The parts of the study, in the order in which they are run: what the first paragraph needs comes first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.campaign import Campaign
from benchmarks.quality.methods import ABLATIONS, HEADLINE, MASKED, PEERS
from benchmarks.quality.study import REPORTED, SEEDS, SELECTION, SIZES

__all__ = ["NOISES", "RATE_FACTORS", "ROBUSTNESS_TASKS", "full_study", "quick_study", "selection"]

ROBUSTNESS_TASKS = ("trec", "movies", "tweets")
"""The three text tasks that leave the most room above the frozen base."""

NOISES = (0.1, 0.2)
RATE_FACTORS = (3.0, 10.0)


def full_study() -> list[Campaign]:
    """Return everything that docs/evidence.md reports."""
    tasks, sizes = list(REPORTED), list(SIZES)
    small = sizes[:2]
    return [
        *(Campaign(tasks, [size], list(HEADLINE), SEEDS) for size in sizes),
        *(Campaign(tasks, [size], list(MASKED), SEEDS) for size in small),
        *(Campaign(tasks, [size], list(ABLATIONS), SEEDS) for size in small),
        *(Campaign(tasks, [size], list(PEERS), SEEDS) for size in small),
        *(Campaign(ROBUSTNESS_TASKS, [1000], list(HEADLINE), SEEDS, label_noise=noise) for noise in NOISES),
        *(Campaign(ROBUSTNESS_TASKS, [1000], list(HEADLINE), SEEDS, rate_factor=factor) for factor in RATE_FACTORS),
    ]


def selection(methods: Sequence[str]) -> list[Campaign]:
    """Return the runs on which defaults are chosen: other data than any that is reported."""
    return [Campaign(list(SELECTION), list(SIZES)[:2], methods, SEEDS)]


def quick_study() -> list[Campaign]:
    """Return a small part of the study that shows that all of it works, in minutes."""
    return [Campaign(["trec", "tweets"], [200], list(HEADLINE), SEEDS[:2], learning_rates=(1e-3,))]
