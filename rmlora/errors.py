"""Every error this project raises on purpose.

    RMLoRAError                  exit code 1   anything below
    ├── ConfigError                        2   a setting that cannot work, and the one to change
    ├── InputError                         3   a file, dataset or model that is missing or broken
    │   ├── AdapterError                   3   an adapter package that cannot be represented or does not fit
    │   │   └── BaseMismatchError          3   an adapter made for another base model
    │   └── CheckpointError                3   a base checkpoint that cannot be read as safetensors
    ├── DependencyError                    4   an optional package that is not installed
    ├── ProviderError                      5   an execution provider that is absent or failed to start
    ├── ParityError                        6   outputs that differ from PyTorch by more than the tolerance
    ├── TrainingError                      7   training that did not do what was asked
    └── OutputError                        8   a result that could not be written

The message is one sentence or two that say what, where and what to do: it is shown to the user as it stands.
The command line turns the class into the exit code; nothing else depends on the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec

__all__ = [
    "AdapterError",
    "BaseMismatchError",
    "CheckpointError",
    "ConfigError",
    "DependencyError",
    "InputError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "RMLoRAError",
    "TrainingError",
    "install_command",
    "is_installed",
    "require",
    "some_of",
]

_PROJECT = "rmlora-deploy"
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
"""Module → distribution, where the names differ."""


class RMLoRAError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class ConfigError(RMLoRAError):
    """A setting that cannot work; the message names the setting to change."""

    exit_code = 2


class InputError(RMLoRAError):
    """A file, dataset or model that is missing, unreadable or of the wrong form."""

    exit_code = 3


class AdapterError(InputError):
    """An adapter that is incomplete, corrupt, not representable, or does not fit the base."""


class BaseMismatchError(AdapterError):
    """An adapter that was trained on a different base model."""


class CheckpointError(InputError):
    """A base checkpoint that is missing, incomplete or not in safetensors format."""


class DependencyError(RMLoRAError):
    """An optional dependency is absent; the message carries the ``pip install`` command."""

    exit_code = 4


class ProviderError(RMLoRAError):
    """An execution provider was asked for that this installation or machine does not have."""

    exit_code = 5


class ParityError(RMLoRAError):
    """An exported model does not reproduce PyTorch within the tolerance of its precision."""

    exit_code = 6


class TrainingError(RMLoRAError):
    """Training could not do what RM-LoRA requires (no factors, sharded gradients, NaN loss)."""

    exit_code = 7


class OutputError(RMLoRAError):
    """A result could not be written (target exists, disk full, no permission)."""

    exit_code = 8


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported; it is looked up, not imported."""
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def require(module: str, extra: str) -> None:
    """Raise :class:`DependencyError` with the command that installs ``module``, unless it can be imported.

    Looks the module up without importing it, so it costs nothing when the module is present.
    """
    if not is_installed(module):
        raise DependencyError(
            f"This needs the package '{module}' (extra '{extra}'), which is not installed: run  "
            f"{install_command(extra, module)}  and try again."
        )


def install_command(extra: str, module: str | None = None) -> str:
    """Return the pip command that installs what is missing of an extra, and ``module`` in any case.

    It names the packages themselves, so it works wherever this project was installed from.
    """
    try:
        declared = requires(_PROJECT) or []
    except PackageNotFoundError:
        return f"pip install '.[{extra}]'"  # run from a checkout that is not installed
    wanted = [line.partition(";")[0].strip() for line in declared if f'extra == "{extra}"' in line]
    asked = _DISTRIBUTIONS.get(module or "", (module or "").replace("_", "-"))
    missing = [item for item in wanted if _name(item) == asked or not _has_distribution(_name(item))]
    return "pip install " + " ".join(f"'{item}'" for item in missing or wanted)


def _name(requirement: str) -> str:
    """Return the distribution of a requirement such as ``uvicorn[standard]<1,>=0.30``."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def some_of(names: Iterable[str], most: int = 8) -> str:
    """Return the first ``most`` names for a message, and how many more there are: a thousand of them are no sentence."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
