"""What is measured: contestants, sizes, and the job each worker process gets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploy.providers import PROVIDERS, available, get_provider
from rmlora.errors import ConfigError

__all__ = ["BenchSettings", "Contestant", "Job", "contestants"]

Engine = Literal["onnx", "torch"]


@dataclass(frozen=True)
class Contestant:
    """One engine on one provider with one number of threads; ``missing`` tells why it cannot run here."""

    engine: Engine
    provider: str
    threads: int
    missing: str | None = None

    @property
    def name(self) -> str:
        """Short name for tables."""
        label = {"onnx": "ONNX Runtime", "torch": "PyTorch"}[self.engine]
        return f"{label} {self.provider}"


@dataclass(frozen=True)
class BenchSettings:
    """Sizes and repetitions."""

    batches: tuple[int, ...] = (1, 8)
    lengths: tuple[int, ...] = (32, 128)
    threads: tuple[int, ...] = (1, 2)
    providers: tuple[str, ...] = ("all",)
    rounds: int = 3
    """How often the contestants take turns, each time in a new process."""
    seconds: float = 1.0
    """Time spent on every size in a round, after the warm-up."""
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "lengths", "threads"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be whole numbers of at least 1: change --{name.rstrip('es')}.")
        if self.rounds < 1 or self.seconds <= 0 or self.warmup < 0:
            raise ConfigError("rounds and seconds must be positive: change --rounds or --seconds.")
        for provider in self.providers:
            if provider != "all":
                get_provider(provider)


@dataclass(frozen=True)
class Job:
    """What one worker process is told, as JSON on its stdin."""

    bundle: str
    engine: Engine
    provider: str
    threads: int
    cores: tuple[int, ...]
    sizes: tuple[tuple[int, int | None], ...]
    """Pairs of rows and tokens (None for images)."""
    seconds: float
    warmup: int
    seed: int
    base: str | None = None
    adapter: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def contestants(settings: BenchSettings, torch_missing: str | None) -> list[Contestant]:
    """Return every combination asked for, those that cannot run here included with the reason.

    Args:
        settings: threads and providers; ``all`` is every provider of the table.
        torch_missing: why PyTorch cannot be measured, or None.
    """
    built = available()
    wanted = (
        [p.name for p in PROVIDERS]
        if "all" in settings.providers
        else [get_provider(p).name for p in settings.providers]
    )
    result = []
    for provider in wanted:
        missing = None if built[provider] else "not in the installed ONNX Runtime"
        threads = settings.threads if provider == "cpu" else settings.threads[-1:]
        result += [Contestant("onnx", provider, count, missing) for count in threads]
    result += [Contestant("torch", "cpu", count, torch_missing) for count in settings.threads]
    return result
