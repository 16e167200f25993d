"""What a load test asks for: which models how often, which texts, and what must come back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora.storage import read_json

__all__ = ["LoadPlan", "Reference", "draw_requests"]


@dataclass(frozen=True)
class Reference:
    """Texts, and what every model must answer to each (a JSON file with ``texts``, ``answers`` and ``tolerance``).

    An answer is a list of probabilities, or of a model for embeddings the vector.
    """

    texts: list[str]
    answers: dict[str, list[list[float]]]
    """Model → one list of numbers for each text."""
    tolerance: float

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read a file.

        Raises:
            InputError: it is missing or of another form.
        """
        value = read_json(path, what="Reference answers")
        try:
            answers = {
                str(model): [[float(number) for number in row] for row in rows]
                for model, rows in dict(value["answers"]).items()
            }
            made = cls([str(text) for text in value["texts"]], answers, float(value["tolerance"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} needs 'texts', 'answers' and 'tolerance': it is no file of reference answers."
            ) from None
        if any(len(row) != len(made.texts) for row in made.answers.values()):
            raise InputError(f"{path} has not one answer for each text: it is damaged.")
        return made


@dataclass(frozen=True)
class LoadPlan:
    """How a server is loaded."""

    url: str
    models: tuple[str, ...]
    """Most wanted first."""
    texts: tuple[str, ...]
    seconds: float = 30.0
    warmup: float = 2.0
    """Seconds before anything is counted."""
    clients: int = 16
    """Closed loop: so many callers, each asking again once it is answered."""
    rate: float | None = None
    """Open loop: requests a second, at random times, whatever comes back; None takes the closed loop."""
    zipf: float = 1.0
    """The model of rank ``k`` is asked in proportion to ``k**-zipf``; 0 asks all alike."""
    rows: int = 1
    """Texts of a request."""
    embedders: frozenset[str] = frozenset()
    """Those of ``models`` that are asked for embeddings; the others classify."""
    timeout: float = 60.0
    retries: int = 0
    """How often a request that got a 429, a 5xx or no answer at all is sent again."""
    seed: int = 0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if not self.models or not self.texts:
            raise ConfigError("A load test needs at least one model and one text.")
        if self.clients < 1 or self.rows < 1 or self.retries < 0:
            raise ConfigError("--clients and --rows must be at least 1, and --retries not negative.")
        positive = (self.seconds, self.timeout, 1.0 if self.rate is None else self.rate)
        if not all(0 < value < math.inf for value in positive) or not 0 <= self.warmup < math.inf:
            raise ConfigError(
                "--seconds, --timeout and --rate must be more than 0, and --warmup not negative; none is infinite."
            )
        if not 0 <= self.zipf < math.inf:
            raise ConfigError("--zipf must not be negative; 0 asks all models alike.")
        if self.seed < 0:
            raise ConfigError("--seed must not be negative.")
        if self.reference is not None:
            unknown = next((name for name in self.models if name not in self.reference.answers), None)
            if unknown is not None:
                raise ConfigError(f"The reference file has no answers of '{unknown}': leave it out of --model.")


def draw_requests(plan: LoadPlan, stream: int = 0) -> Iterator[tuple[str, list[int]]]:
    """Yield a model and the numbers of the texts to send it, for ever; a stream of its own for every caller."""
    rng = np.random.default_rng([plan.seed, stream])
    shares = shares_of(len(plan.models), plan.zipf)
    while True:
        for model in rng.choice(len(plan.models), 256, p=shares):
            yield plan.models[model], rng.integers(0, len(plan.texts), plan.rows).tolist()


def shares_of(models: int, zipf: float) -> npt.NDArray[np.float64]:
    """Return the share of requests of every model."""
    weights = np.arange(1, models + 1, dtype=np.float64) ** -zipf
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def take_texts(path: Path) -> Sequence[str]:
    """Return the lines of ``path`` that are not blank.

    Raises:
        InputError: it cannot be read, or there are none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    if not lines:
        raise InputError(f"{path} has no texts.")
    return lines
