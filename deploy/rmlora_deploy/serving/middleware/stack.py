"""The middleware of a server, in order."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.access_log import AccessLog
from rmlora_deploy.serving.middleware.auth import KeyCheck
from rmlora_deploy.serving.middleware.hosts import HostCheck
from rmlora_deploy.serving.middleware.limits import BodyLimits
from rmlora_deploy.serving.middleware.media_type import MediaTypeCheck
from rmlora_deploy.serving.middleware.shedding import Shedding
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["middleware_stack", "wrap"]


def middleware_stack(settings: ServeSettings, metrics: Metrics, registry: Registry | None = None) -> list[Middleware]:
    """Return the middleware, outermost first: refusals are logged, and all but the last two come before the body is read.

    Args:
        settings: of the server.
        metrics: counts the requests.
        registry: the models, whose load is checked before a request is parsed; None where the models are elsewhere.
    """
    hosts = [Middleware(HostCheck, hosts=settings.allowed_hosts)] if settings.allowed_hosts else []
    key = [Middleware(KeyCheck, key=settings.api_key)] if settings.api_key else []
    log, media_type = Middleware(AccessLog, metrics=metrics), Middleware(MediaTypeCheck)
    shedding = [Middleware(Shedding, registry=registry)] if registry is not None else []
    return [log, *hosts, *key, media_type, Middleware(BodyLimits, settings=settings), *shedding]


def wrap(app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> ASGIApp:
    """Return ``app`` behind the middleware."""
    for middleware in reversed(middleware_stack(settings, metrics)):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app
