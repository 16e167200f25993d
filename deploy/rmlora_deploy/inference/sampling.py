"""Choosing the next token: the likeliest one, or one drawn from the likeliest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; without a temperature, the likeliest one is.

    Raises:
        ConfigError: a setting is out of range.
    """

    temperature: float = 0.0
    """What logits are divided by before one token is drawn; 0 takes the likeliest."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the random numbers."""
    _random: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"--temperature is between 0 (the likeliest token) and 100, not {self.temperature:g}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is more than 0 and at most 1, not {self.top_p:g}.")
        object.__setattr__(self, "_random", np.random.default_rng(self.seed))

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Return a token for logits ``[vocabulary]``."""
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        chances = np.exp(scaled[order] - scaled[order[0]])
        chances /= chances.sum()
        kept = min(len(order), int(np.searchsorted(np.cumsum(chances), self.top_p)) + 1)
        chances = chances[:kept] / chances[:kept].sum()
        return int(order[self._random.choice(kept, p=chances)])
