"""Errors of the server, and the HTTP status of every error.

RMLoRAError
└── ServingError
    ├── BrokenError         503   the server cannot compute any more
    ├── BusyError           429   the queue is full; ``retry_after`` says when to try again
    ├── ForbiddenError      403   the server is not set up to allow this
    ├── LateError           504   no answer within the time limit
    ├── StoppingError       503   the server is shutting down
    ├── TooLargeError       413   the request is more work than one may be
    ├── UnavailableError    503   the model's files are not what they were, or cannot be read
    ├── UnknownModelError   404   no model has that name
    └── UnreachableError    503   another process that is needed does not answer
"""

from __future__ import annotations

from rmlora.errors import ConfigError, InputError, RMLoRAError

__all__ = [
    "BrokenError",
    "BusyError",
    "ForbiddenError",
    "LateError",
    "ServingError",
    "StoppingError",
    "TooLargeError",
    "UnavailableError",
    "UnknownModelError",
    "UnreachableError",
    "status_of",
]


class ServingError(RMLoRAError):
    """A request cannot be answered, for reasons that are not in its content."""

    status = 500


class BrokenError(ServingError):
    """The server cannot compute any more, and should be replaced."""

    status = 503


class BusyError(ServingError):
    """The queue is full."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class ForbiddenError(ServingError):
    """The server is not set up to allow this."""

    status = 403


class StoppingError(ServingError):
    """The server is shutting down and accepts no more requests."""

    status = 503
    retry_after = 1
    """Seconds, after which a client that asks again reaches another server."""


class UnavailableError(ServingError):
    """The model cannot be used at the moment: its files are not what they were, or cannot be read."""

    status = 503


class TooLargeError(ServingError):
    """The request is more work than one may be."""

    status = 413


class LateError(ServingError):
    """There was no answer within the time limit."""

    status = 504


class UnknownModelError(ServingError):
    """No served model has that name."""

    status = 404


class UnreachableError(ServingError):
    """Another process that is needed does not answer."""

    status = 503
    retry_after = 1
    """Seconds."""


def status_of(error: RMLoRAError) -> int:
    """Return the HTTP status for ``error``."""
    if isinstance(error, ServingError):
        return error.status
    return 400 if isinstance(error, (InputError, ConfigError)) else 500
