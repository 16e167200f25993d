"""Recording how long each part of a run took, so that a resumed run reports its whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.errors import InputError
from rmlora.storage import read_json, write_json

__all__ = ["RunParts"]

_FILE = "parts.json"
_INTERVAL = 1.0
"""Seconds between two writes at least."""
_MOST_SECONDS = 1e10
"""Three hundred years: a longer time is damage."""


class RunParts(TrainerCallback):
    """Keep ``parts.json`` in the run's directory: the seconds of this part so far, after those of the earlier parts.

    It is written while training goes on, because a part that is killed cannot write at its end.

    Args:
        run_dir: directory of the run.
        started: when this part began, on ``clock``.
        clock: of seconds.
    """

    def __init__(self, run_dir: Path, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._started, self._clock = run_dir / _FILE, started, clock
        self._earlier = _read(self._file)
        self._written = -_INTERVAL

    @property
    def count(self) -> int:
        """Number of parts, this one included."""
        return len(self._earlier) + 1

    @property
    def seconds(self) -> float:
        """Duration of all parts so far."""
        return sum(self._earlier) + self._clock() - self._started

    def record(self) -> None:
        """Write the duration of this part so far."""
        write_json(self._file, [round(value, 3) for value in (*self._earlier, self._clock() - self._started)])
        self._written = self._clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write about once a second."""
        if self._clock() - self._written >= _INTERVAL:
            self.record()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write beside every checkpoint."""
        self.record()


def _read(file: Path) -> list[float]:
    """Return the seconds of the earlier parts; a damaged file only costs their durations."""
    try:
        content = read_json(file, what="Durations of the run")
    except InputError:
        return []
    valid = isinstance(content, list) and all(
        isinstance(value, int | float) and 0 <= value < _MOST_SECONDS for value in content
    )
    return [float(value) for value in content] if valid else []
