"""What is measured: settings, contestants, and the job each worker process gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rmlora.errors import ConfigError, ProviderError
from rmlora_deploy.runtime.providers import PROVIDERS, available, get_provider

__all__ = [
    "DEFAULT_ENGINES",
    "ENGINES",
    "USES",
    "BenchSettings",
    "Contestant",
    "Engine",
    "Job",
    "Size",
    "Use",
    "contestants",
]

Engine = Literal["onnx", "torch", "torch-compile"]
Use = Literal["no adapter", "one adapter", "one for each row"]
USES: tuple[Use, ...] = get_args(Use)
"""What the rows of a batch ask of a bundle with branches."""

ENGINES: dict[Engine, str] = {"onnx": "ONNX Runtime", "torch": "PyTorch", "torch-compile": "PyTorch compiled"}
"""Engine → its name in tables."""

DEFAULT_ENGINES: tuple[Engine, ...] = ("onnx", "torch")


@dataclass(frozen=True)
class Size:
    """One batch: ``rows`` texts of ``tokens`` tokens each, or ``rows`` images (``tokens`` None)."""

    rows: int
    tokens: int | None

    def __str__(self) -> str:
        return str(self.rows) if self.tokens is None else f"{self.rows} × {self.tokens}"


@dataclass(frozen=True)
class BenchSettings:
    """Sizes and repetitions."""

    batches: tuple[int, ...] = (1, 8)
    lengths: tuple[int, ...] = (32, 128)
    """Tokens of a text; images have none."""
    threads: tuple[int, ...] | None = None
    """On the CPU; None is 1, and 2 where the machine has them."""
    providers: tuple[str, ...] | None = None
    """Those to measure, each of which must work; None is every provider there is, the absent ones listed."""
    engines: tuple[Engine, ...] | None = None
    """Those to measure, each of which must work; None is ONNX Runtime, and PyTorch where it can run."""
    rounds: int = 3
    """How often the contestants take turns, each time in a new process."""
    seconds: float = 1.0
    """Time spent on every size in a round, after the warm-up."""
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, numbers in (("--batch", self.batches), ("--length", self.lengths), ("--threads", self.threads)):
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise ConfigError(f"{flag} needs whole numbers of at least 1, e.g. {flag} 1,8.")
        for flag, number in (("--rounds", self.rounds), ("--seconds", self.seconds)):
            if not number > 0:
                raise ConfigError(f"{flag} must be positive, not {number}.")
        if self.warmup < 0:
            raise ConfigError(f"--warmup must be 0 or more, not {self.warmup}.")
        for engine in self.engines or ():
            if engine not in ENGINES:
                raise ConfigError(f"Unknown engine '{engine}': choose from {', '.join(ENGINES)}.")
        for provider in self.providers or ():
            get_provider(provider)

    def sizes(self, *, texts: bool) -> tuple[Size, ...]:
        """Return every batch; images have no length."""
        lengths = self.lengths if texts else (None,)
        return tuple(Size(rows, tokens) for rows in self.batches for tokens in lengths)


@dataclass(frozen=True)
class Contestant:
    """One engine on one provider with one number of threads; ``missing`` tells why it cannot run here."""

    engine: Engine
    provider: str
    threads: int
    missing: str | None = None
    use: Use | None = None
    """None for a merged bundle, and for PyTorch, which runs the merged model."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{ENGINES[self.engine]} {self.provider}" + (f", {self.use}" if self.use else "")


@dataclass(frozen=True)
class Job:
    """What one worker process is told, as JSON on its stdin."""

    bundle: str
    engine: Engine
    provider: str
    threads: int
    cores: tuple[int, ...]
    """Cores to stay on; empty where the system cannot pin."""
    sizes: tuple[tuple[int, int | None], ...]
    """Pairs of rows and tokens (None for images)."""
    seconds: float
    warmup: int
    seed: int
    base: str | None
    adapter: str | None
    use: Use | None = None


def contestants(
    settings: BenchSettings, threads: Sequence[int], torch_missing: str | None, *, branches: bool = False
) -> list[Contestant]:
    """Return every combination asked for, those that cannot run here included with the reason.

    A device is measured once, with the largest number of threads: its work does not depend on them. PyTorch runs
    on the CPU and, beside the provider ``cuda``, on that device.

    Args:
        settings: providers and engines.
        threads: numbers of threads on the CPU.
        torch_missing: why PyTorch cannot be measured, or None.
        branches: the bundle has branches, so ONNX Runtime is measured with every use of them.

    Raises:
        ProviderError: a provider asked for by name is not in the installed ONNX Runtime.
    """
    built = available()
    names = [item.name for item in PROVIDERS]
    wanted = names if settings.providers is None else [get_provider(name).name for name in settings.providers]
    absent = [name for name in wanted if not built[name]]
    if settings.providers is not None and absent:
        raise ProviderError(
            f"Provider '{absent[0]}' is not in the installed ONNX Runtime, which has: "
            f"{', '.join(name for name in names if built[name])}. Install one that has it or change --provider."
        )
    result = []
    for engine in settings.engines or DEFAULT_ENGINES:
        for provider in wanted:
            if engine != "onnx" and (provider not in ("cpu", "cuda") or not built[provider]):
                continue
            missing = torch_missing if engine != "onnx" else None if built[provider] else _NOT_BUILT
            counts = threads if provider == "cpu" else (max(threads),)
            uses: Sequence[Use | None] = USES if branches and engine == "onnx" and built[provider] else (None,)
            result += [
                Contestant(engine, provider, count, missing, use) for count in dict.fromkeys(counts) for use in uses
            ]
    return result


_NOT_BUILT = "not in the installed ONNX Runtime"
