"""Dependencies of the routes: the service, and the state of the request."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Annotated, Any

from fastapi import Depends, Request

from rmlora_deploy.serving.service import Service

__all__ = ["ServiceOf", "StateOf"]


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _state(request: Request) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = request.scope["state"]
    return state


ServiceOf = Annotated[Service, Depends(_service)]
StateOf = Annotated[MutableMapping[str, Any], Depends(_state)]
