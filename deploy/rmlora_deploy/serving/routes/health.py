"""Routes for load balancers, Prometheus and the page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from rmlora_deploy.serving.errors import BrokenError, StoppingError, UnavailableError
from rmlora_deploy.serving.routes.context import ServiceOf
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(tags=["Operation"], responses=declared(401))


@router.get("/health", responses=declared(503))
@router.get("/healthz", responses=declared(503))
@router.get("/v2/health/live", responses=declared(503, protocol=True))
async def live(service: ServiceOf) -> dict[str, bool]:
    """Say that the process is alive and can still compute; 503 means that it should be restarted."""
    if (problem := service.problem()) is not None:
        raise BrokenError(problem)
    return {"live": True}


@router.get("/readyz", responses=declared(503))
@router.get("/v2/health/ready", responses=declared(503, protocol=True))
async def ready(service: ServiceOf) -> dict[str, Any]:
    """Say that the server accepts requests, and how many of its models are unavailable because their files changed."""
    if service.stopping:
        raise StoppingError("The server is shutting down: send the request to another one.")
    if (problem := service.problem()) is not None:
        raise BrokenError(problem)
    service.registry.look_again()
    models = service.registry.models
    unavailable = sum(not service.registry.available(model) for model in models)
    if models and unavailable == len(models):
        raise UnavailableError("No model is available: the server's log says why.")
    return {"ready": True, "unavailable": unavailable}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceOf) -> Response:
    """Return Prometheus metrics."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/stats")
async def stats(service: ServiceOf) -> dict[str, Any]:
    """Return what the page shows: the last minute's latency and batch sizes, each model's rows, and what is allowed."""
    return service.stats()
