"""Errors as each interface writes them, and as the OpenAPI schema declares them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = ["declared", "error_body"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_LONGEST = 1000
"""Characters of a message."""
_MEANINGS = {
    400: "Something in the request cannot be used; the message says what.",
    401: "The server was started with a key, and the request does not bring it.",
    403: "The server was not started to do this, or the path is outside of its directories.",
    404: "No model of that name is served.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "Too much waits already.",
    503: "The server is stopping.",
    504: "The answer did not come in time.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(examples=["There is no model of that name here: GET /v1/models lists them."])
    type: str = Field(examples=["not_found_error"])
    param: str | None
    code: int = Field(description="The HTTP status.", examples=[404])


class Error(BaseModel):
    """An error as OpenAI's clients read it."""

    error: ErrorDetail


class ProtocolError(BaseModel):
    """An error as the Open Inference Protocol has it."""

    error: str = Field(examples=["There is no model of that name here: GET /v1/models lists them."])


def error_body(path: str, status: int, message: str) -> dict[str, Any]:
    """Return the body of an error: the Open Inference Protocol's under ``/v2``, OpenAI's everywhere else."""
    message = _writable(message)
    if path.startswith("/v2"):
        return {"error": message}
    return {"error": {"message": message, "type": _TYPES.get(status, "server_error"), "param": None, "code": status}}


def _writable(message: str) -> str:
    """Return a message that may repeat a client's words so that it can be encoded, and is short."""
    return message[:_LONGEST].encode(errors="backslashreplace").decode()


def declared(*statuses: int, protocol: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what FastAPI's ``responses`` takes for these errors.

    Args:
        statuses: HTTP statuses.
        protocol: whether they are those of the Open Inference Protocol.
    """
    made: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        made[status] = {"model": ProtocolError if protocol else Error, "description": _MEANINGS[status]}
        if status == 429:
            seconds = {"description": "Seconds until it is worth asking again.", "schema": {"type": "integer"}}
            made[status]["headers"] = {"Retry-After": seconds}
    return made
