"""Error responses: their body in the format of each interface, and their declaration in the OpenAPI schema."""

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
_MAX_MESSAGE = 1000
"""Characters of a message."""
_DESCRIPTIONS = {
    400: "Something in the request cannot be used; the message says what.",
    401: "The server needs a key, and the request does not send it.",
    403: "The server does not allow this, or the path is outside its directories.",
    404: "There is no model of that name; the message names the nearest ones.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The server is busy.",
    503: "The server is shutting down, or the model is not available at the moment.",
    504: "There was no answer within the time limit.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(examples=["There is no model 'spma': the nearest is spam; GET /v1/models lists all."])
    type: str = Field(examples=["not_found_error"])
    param: str | None
    code: int = Field(description="The HTTP status.", examples=[404])


class Error(BaseModel):
    """An error in OpenAI's format."""

    error: ErrorDetail


class ProtocolError(BaseModel):
    """An error in the format of the Open Inference Protocol."""

    error: str = Field(examples=["There is no model 'spma': the nearest is spam; GET /v1/models lists all."])


def error_body(path: str, status: int, message: str) -> dict[str, Any]:
    """Return the body of an error: in the Open Inference Protocol's format under ``/v2``, in OpenAI's everywhere else.

    ``/v2/rerank`` is Cohere's.
    """
    message = _encodable(message)
    if path.startswith("/v2") and path != "/v2/rerank":
        return {"error": message}
    return {"error": {"message": message, "type": _TYPES.get(status, "server_error"), "param": None, "code": status}}


def _encodable(message: str) -> str:
    """Return a message, which may repeat a client's words, shortened and without characters that cannot be encoded."""
    return message[:_MAX_MESSAGE].encode(errors="backslashreplace").decode()


def declared(*statuses: int, protocol: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return these errors as FastAPI's ``responses`` takes them.

    Args:
        statuses: HTTP statuses.
        protocol: True for the Open Inference Protocol's format.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        responses[status] = {"model": ProtocolError if protocol else Error, "description": _DESCRIPTIONS[status]}
        if status == 429:
            seconds = {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
            responses[status]["headers"] = {"Retry-After": seconds}
    return responses
