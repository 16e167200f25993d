"""All errors that this project raises on purpose.

    RMLoRAError                  exit code 1   anything below
    ├── ConfigError                        2   an invalid setting; the message names it
    ├── InputError                         3   a missing or broken file, dataset or model
    │   ├── AdapterError                   3   an adapter that is damaged, unsupported or does not fit
    │   │   └── BaseMismatchError          3   an adapter made for another base model
    │   └── CheckpointError                3   a base checkpoint that cannot be read as safetensors
    ├── DependencyError                    4   an optional package that is not installed
    ├── ProviderError                      5   an execution provider that is missing or fails to start
    ├── ParityError                        6   outputs that differ from PyTorch by more than the tolerance
    ├── TrainingError                      7   training that diverged or did not apply RM-LoRA
    └── OutputError                        8   a result that could not be written
        └── ReadOnlyError                  8   a place that may not be written to

A message is one or two sentences that say what is wrong, where, and what to do. Users see it as it is, except that what a
file put into it can neither start a new line nor control a terminal. The command line maps the class to its exit code; nothing else depends on the numbers.
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
    "Interrupted",
    "OutputError",
    "ParityError",
    "ProviderError",
    "RMLoRAError",
    "ReadOnlyError",
    "TrainingError",
    "install_command",
    "is_installed",
    "require",
    "some_of",
]

_PROJECT = "rmlora-deploy"
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Import name → distribution name where they differ."""


class RMLoRAError(Exception):
    """Base class of all errors raised on purpose; ``exit_code`` is the exit code of the command line."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_printable(item) if isinstance(item, str) else item for item in arguments))


_MOST = 4000
"""Characters of a message; a name in a damaged file may have any number."""


def _printable(text: str) -> str:
    """Return ``text`` in limited length, with spaces for line breaks, and escapes for other characters that are not printed."""
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"
    if text.isprintable():
        return text
    line = " ".join(text.splitlines())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


class ConfigError(RMLoRAError):
    """An invalid setting; the message names the setting to change."""

    exit_code = 2


class InputError(RMLoRAError):
    """A file, dataset or model that is missing, unreadable or in the wrong format."""

    exit_code = 3


class AdapterError(InputError):
    """An adapter that is incomplete, damaged, not supported, or does not fit the base."""


class BaseMismatchError(AdapterError):
    """An adapter that was trained on a different base model."""


class CheckpointError(InputError):
    """A base checkpoint that is missing, incomplete or not in safetensors format."""


class DependencyError(RMLoRAError):
    """An optional package is not installed; the message contains the ``pip install`` command."""

    exit_code = 4


class ProviderError(RMLoRAError):
    """A requested execution provider is missing from this installation or machine, or fails to start."""

    exit_code = 5


class ParityError(RMLoRAError):
    """An exported model does not reproduce PyTorch within the tolerance of its precision."""

    exit_code = 6


class TrainingError(RMLoRAError):
    """Training cannot be done or went wrong: no LoRA factors, sharded gradients, a NaN loss."""

    exit_code = 7


class OutputError(RMLoRAError):
    """A result could not be written (target exists, disk full, no permission)."""

    exit_code = 8


class Interrupted(KeyboardInterrupt):
    """The user interrupted a run; the message says how to continue it. Not an :class:`RMLoRAError`: nothing is wrong."""


class ReadOnlyError(OutputError):
    """A place may not be written to: its permissions forbid it, or its file system is read-only."""


def is_installed(module: str) -> bool:
    """Return True if ``module`` can be imported; it is looked up, not imported."""
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def require(module: str, extra: str) -> None:
    """Raise :class:`DependencyError` with the command that installs ``module``, unless it can be imported.

    The module is looked up, not imported.
    """
    if not is_installed(module):
        raise DependencyError(
            f"This needs the package '{module}' (extra '{extra}'), which is not installed: run  "
            f"{install_command(extra, module)}  and try again."
        )


def install_command(extra: str, module: str | None = None, *, alone: bool = False) -> str:
    """Return the pip command that installs the missing packages of an extra, ``module``'s always included.

    It names the packages, not this project, so it works wherever the project was installed from. With ``alone`` it names
    the package of ``module`` only.
    """
    try:
        declared = requires(_PROJECT) or []
    except PackageNotFoundError:
        return f"pip install '.[{extra}]'"  # running from a checkout that is not installed
    packages = [line.partition(";")[0].strip() for line in declared if f'extra == "{extra}"' in line]
    required = _DISTRIBUTIONS.get(module or "", (module or "").replace("_", "-"))
    if alone:
        packages = [item for item in packages if _name(item) == required]
    missing = [item for item in packages if _name(item) == required or not _has_distribution(_name(item))]
    return "pip install " + " ".join(f"'{item}'" for item in missing or packages)


def _name(requirement: str) -> str:
    """Return the distribution name in a requirement such as ``uvicorn[standard]<1,>=0.30``."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def some_of(names: Iterable[str], most: int = 8) -> str:
    """Return the first ``most`` names and the number of the others, to keep a message readable."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
