"""What every contestant of the table of language models does: steps of batches after a prompt, and reading prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.worker import median_ms, median_step_ms

__all__ = ["Begin", "measure_steps"]

Begin = Callable[[list[list[int]], list[int], int], Callable[[], object]]
"""Reads prompts, and returns what gives each row the next of the given tokens; it is called at most as often as the third
argument says."""

_TOKENS = (3, 40_000)
_STEPS = 32


def measure_steps(begin: Begin, seconds: float, *, rows: Sequence[int] = (1, 8)) -> dict[str, float]:
    """Return column → milliseconds.

    Args:
        begin: the contestant's.
        seconds: time to spend on each figure.
        rows: sizes of the batches; a contestant that takes one row only measures that.
    """
    random = np.random.default_rng(0)
    figures = {}
    for count in rows:
        prompts = random.integers(*_TOKENS, (count, 96)).tolist()
        tokens = random.integers(*_TOKENS, count).tolist()
        figures[f"step, {count} row{'s' if count > 1 else ''}"] = median_step_ms(
            lambda prompts=prompts, tokens=tokens: begin(prompts, tokens, _STEPS), seconds, steps=_STEPS
        )
    for length in (96, 512):
        prompt = random.integers(*_TOKENS, length).tolist()
        figures[f"read {length}"] = median_ms(lambda prompt=prompt: begin([prompt], [], 1), seconds)
    return figures
