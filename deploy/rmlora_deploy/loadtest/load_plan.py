"""What a load test sends: which models how often, which texts, and the expected answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora.json_files import read_text
from rmlora.storage import read_json
from rmlora.text_lines import text_lines

__all__ = ["LoadPlan", "Reference", "draw_requests", "input_of", "read_texts", "shares_of"]


@dataclass(frozen=True)
class Reference:
    """Texts, and each model's expected answers (a JSON file with ``texts``, ``answers`` and ``tolerance``).

    An answer is a list of probabilities, or the vector of an embedding model.
    """

    texts: list[str]
    answers: dict[str, list[list[float]]]
    """Model → one list of numbers for each text."""
    tolerance: float
    """Largest difference allowed between an expected number and the server's."""

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read a file.

        Raises:
            InputError: it is missing or in another format.
        """
        value = read_json(path, what="Reference answers")
        try:
            answers = {
                str(model): [[float(number) for number in row] for row in rows]
                for model, rows in dict(value["answers"]).items()
            }
            made = cls([str(text) for text in value["texts"]], answers, float(value["tolerance"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{path} is not a file of reference answers: it needs 'texts', 'answers' and 'tolerance'."
            ) from None
        if any(len(row) != len(made.texts) for row in made.answers.values()):
            raise InputError(f"{path} is damaged: a model's answers are not as many as the texts.")
        return made


@dataclass(frozen=True)
class LoadPlan:
    """A load test."""

    url: str
    models: tuple[str, ...]
    """The most popular first."""
    texts: tuple[str, ...]
    seconds: float = 30.0
    warmup: float = 2.0
    """Seconds before anything is counted."""
    clients: int = 16
    """Closed loop: number of clients, each of which sends its next request after the answer to the last."""
    rate: float | None = None
    """Open loop: requests per second, sent at random times without waiting for answers; None for a closed loop."""
    zipf: float = 1.0
    """The ``k``-th model is asked in proportion to ``k**-zipf``; 0 asks all equally."""
    rows: int = 1
    """Texts of a request."""
    embedders: frozenset[str] = frozenset()
    """Models that are asked for embeddings."""
    taggers: frozenset[str] = frozenset()
    """Models that are asked for entities; the others classify."""
    answerers: frozenset[str] = frozenset()
    """Models that are asked a question: a text, with the next one as its context."""
    pair_readers: frozenset[str] = frozenset()
    """Models that read pairs: each text is sent with the next one."""
    timeout: float = 60.0
    retries: int = 0
    """How often a request is sent again after a 429, a 5xx or no answer."""
    seed: int = 0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if not self.models or not self.texts:
            raise ConfigError("A load test needs at least one model and one text.")
        if self.clients < 1 or self.rows < 1 or self.retries < 0:
            raise ConfigError("--clients and --rows must be at least 1, and --retries must not be negative.")
        positive = (self.seconds, self.timeout, 1.0 if self.rate is None else self.rate)
        if not all(0 < value < math.inf for value in positive) or not 0 <= self.warmup < math.inf:
            raise ConfigError(
                "--seconds, --timeout and --rate must be more than 0, --warmup must not be negative, and all must be finite."
            )
        if not 0 <= self.zipf < math.inf:
            raise ConfigError("--zipf must not be negative; 0 asks all models equally.")
        if self.seed < 0:
            raise ConfigError("--seed must not be negative.")
        if self.reference is not None:
            unknown = next((name for name in self.models if name not in self.reference.answers), None)
            if unknown is not None:
                raise ConfigError(f"The reference file has no answers for '{unknown}': remove it from --model.")


def input_of(plan: LoadPlan, model: str, number: int) -> str | list[str]:
    """Return what a model is sent for a text: the text, or the pair that it makes with the next one."""
    text = plan.texts[number]
    return [text, plan.texts[(number + 1) % len(plan.texts)]] if model in plan.pair_readers else text


def draw_requests(plan: LoadPlan, stream: int = 0) -> Iterator[tuple[str, list[int]]]:
    """Yield, without end, a model and the indices of the texts to send it; every ``stream`` is a different sequence."""
    rng = np.random.default_rng([plan.seed, stream])
    shares = shares_of(len(plan.models), plan.zipf)
    while True:
        for model in rng.choice(len(plan.models), 256, p=shares):
            yield plan.models[model], rng.integers(0, len(plan.texts), plan.rows).tolist()


def shares_of(models: int, zipf: float) -> npt.NDArray[np.float64]:
    """Return each model's share of the requests."""
    weights = np.arange(1, models + 1, dtype=np.float64) ** -zipf
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def read_texts(path: Path) -> Sequence[str]:
    """Return the lines of ``path`` that are not blank.

    Raises:
        InputError: the file cannot be read, or has no texts.
    """
    lines = [line for line in text_lines(read_text(path, what="Text file")) if line.strip()]
    if not lines:
        raise InputError(f"{path} has no texts.")
    return lines
