"""What is measured: the settings, the batches, and the contestants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.provider_choice import ProviderChoice
from rmlora_deploy.runtime.providers import PROVIDERS, check_provider, get_provider, provider_label, unusable

__all__ = [
    "DEFAULT_ENGINES",
    "ENGINES",
    "SPECIALIZED",
    "BatchShape",
    "BenchSettings",
    "Contestant",
    "Engine",
    "Use",
    "list_contestants",
    "uses_of",
]

Engine = Literal["onnx", "torch", "torch-compile"]
Use = Literal["no adapter", "one adapter", "one adapter, specialized", "one for each row"]
"""Which adapters the rows of a batch use, in a bundle with branches."""
SPECIALIZED: Use = "one adapter, specialized"
"""All rows use an adapter that is merged into the weights of a graph of its own."""

ENGINES: dict[Engine, str] = {"onnx": "ONNX Runtime", "torch": "PyTorch", "torch-compile": "PyTorch compiled"}
"""Engine → its name in tables."""

_DEFAULT_LENGTHS = (32, 128)
DEFAULT_ENGINES: tuple[Engine, ...] = ("onnx", "torch")


@dataclass(frozen=True)
class BatchShape:
    """One batch: ``rows`` texts of ``tokens`` tokens each, or ``rows`` images (``tokens`` is None)."""

    rows: int
    tokens: int | None

    def __str__(self) -> str:
        return str(self.rows) if self.tokens is None else f"{self.rows} × {self.tokens}"


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how often."""

    batches: tuple[int, ...] = (1, 8)
    """Rows of a batch."""
    lengths: tuple[int, ...] | None = None
    """Tokens of a text; None is 32 and 128, or less where the model reads less. Unused for images."""
    threads: tuple[int, ...] | None = None
    """CPU threads; None is 1, and 2 if the machine has two cores."""
    providers: tuple[str, ...] | None = None
    """Providers to measure, each of which must work; None measures every available one and lists the others."""
    engines: tuple[Engine, ...] | None = None
    """Engines to measure, each of which must work; None is ONNX Runtime, and PyTorch if it can run."""
    rounds: int = 3
    """How many times each contestant runs, each time in a new process."""
    seconds: float = 1.0
    """Time spent on each batch shape in a round, after the warm-up."""
    warmup: int = 3
    """Runs before timing."""
    seed: int = 0
    trust_remote_code: bool = False
    """Run code that comes with the base, for PyTorch."""

    def __post_init__(self) -> None:
        for flag, numbers in (("--batch", self.batches), ("--length", self.lengths), ("--threads", self.threads)):
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise ConfigError(f"{flag} needs whole numbers of at least 1, e.g. {flag} 1,8.")
        for flag, number in (("--rounds", self.rounds), ("--seconds", self.seconds)):
            if not 0 < number < math.inf:
                raise ConfigError(f"{flag} must be positive and finite, not {number}.")
        if self.warmup < 0:
            raise ConfigError(f"--warmup must be 0 or more, not {self.warmup}.")
        for engine in self.engines or ():
            if engine not in ENGINES:
                raise ConfigError(f"Unknown engine '{engine}': choose from {', '.join(ENGINES)}.")
        for provider in self.providers or ():
            get_provider(provider)

    def for_texts_up_to(self, longest: int | None) -> BenchSettings:
        """Return the settings with lengths, which are at most ``longest`` if the user has not chosen them; None is no limit."""
        if self.lengths is not None:
            return self
        return replace(self, lengths=tuple(dict.fromkeys(min(n, longest or n) for n in _DEFAULT_LENGTHS)))

    def shapes(self, *, texts: bool) -> tuple[BatchShape, ...]:
        """Return the shape of every batch to measure; images have no length."""
        lengths = (self.lengths or _DEFAULT_LENGTHS) if texts else (None,)
        return tuple(BatchShape(rows, tokens) for rows in self.batches for tokens in lengths)


@dataclass(frozen=True)
class Contestant:
    """One engine on one provider with one number of threads."""

    engine: Engine
    provider: str
    threads: int
    missing: str | None = None
    """Why it cannot run on this machine; None if it can."""
    use: Use | None = None
    """None for a merged bundle, and for PyTorch, which runs the merged model."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{ENGINES[self.engine]} {provider_label(self.provider)}" + (f", {self.use}" if self.use else "")


def uses_of(bundle: Bundle) -> list[Use | None]:
    """Return how the adapters of a bundle are used while it is measured; only None if there is none to choose.

    A specialized graph is left out where the weights have too few bits for an update to be merged into them.
    """
    if bundle.mode != "branches" or not bundle.adapters:
        return [None]
    too_few = ("int4",) if bundle.task.outputs.kind == "text" else ("int8", "int4")
    return [use for use in get_args(Use) if use != SPECIALIZED or bundle.precision not in too_few]


def list_contestants(
    settings: BenchSettings, threads: Sequence[int], torch_missing: str | None, *, uses: Sequence[Use | None] = (None,)
) -> list[Contestant]:
    """Return every combination that the settings ask for, including those that cannot run here, with the reason.

    A device is measured only with the largest number of threads, because its work does not depend on them. PyTorch
    runs on the CPU, and on the GPU if the provider ``cuda`` is measured.

    Args:
        settings: providers and engines.
        threads: numbers of CPU threads.
        torch_missing: why PyTorch cannot be measured, or None.
        uses: of adapters, with each of which ONNX Runtime is measured (:func:`uses_of`).

    Raises:
        ProviderError: the settings name a provider that is not in the installed ONNX Runtime or cannot start here.
    """
    chosen = [item.name for item in PROVIDERS]
    if settings.providers is not None:
        chosen = list(map(_checked, settings.providers))
    result = []
    for engine in settings.engines or DEFAULT_ENGINES:
        for provider in chosen:
            why_not = unusable(provider)
            if engine != "onnx" and (provider not in ("cpu", "cuda") or why_not):
                continue
            missing = torch_missing if engine != "onnx" else why_not
            counts = threads if provider == "cpu" else (max(threads),)
            own = uses if engine == "onnx" and not why_not else (None,)
            result += [
                Contestant(engine, provider, count, missing, use) for count in dict.fromkeys(counts) for use in own
            ]
    return result


def _checked(provider: str) -> str:
    """Return the choice of a provider that works, under its short name; errors as :func:`list_contestants`."""
    return str(replace(ProviderChoice.parse(provider), name=check_provider(provider).name))
