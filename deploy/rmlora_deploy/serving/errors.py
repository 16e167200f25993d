"""Errors of a server that are not a caller's input, and the HTTP status of every error.

RMLoRAError
└── ServingError
    ├── BusyError           429   too much waits already; ``retry_after`` says when to come back
    ├── ForbiddenError      403   the server is not set up for this
    ├── LateError           504   not answered in time
    ├── StoppingError       503   the server takes no more requests
    ├── UnknownModelError   404   no model of that name
    └── UnreachableError    503   another process that is needed cannot be asked
"""

from __future__ import annotations

from rmlora.errors import ConfigError, InputError, RMLoRAError

__all__ = [
    "BusyError",
    "ForbiddenError",
    "LateError",
    "ServingError",
    "StoppingError",
    "UnknownModelError",
    "UnreachableError",
    "status_of",
]


class ServingError(RMLoRAError):
    """A request that cannot be answered for reasons that are not in its content."""

    status = 500


class BusyError(ServingError):
    """Too much waits already."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ForbiddenError(ServingError):
    """The server is not set up to do this."""

    status = 403


class StoppingError(ServingError):
    """The server takes no more requests."""

    status = 503


class LateError(ServingError):
    """The answer did not come in time."""

    status = 504


class UnknownModelError(ServingError):
    """No model of that name is served."""

    status = 404


class UnreachableError(ServingError):
    """Another process that is needed cannot be asked."""

    status = 503


def status_of(error: RMLoRAError) -> int:
    """Return the HTTP status for ``error``."""
    if isinstance(error, ServingError):
        return error.status
    return 400 if isinstance(error, (InputError, ConfigError)) else 500
