"""The application as Ray Serve runs it; a config file names ``rmlora_deploy.serving.scaling.deployments:build``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rmlora_deploy.serving.scaling.application import INGRESS, REPLICA, Application, Scale
from rmlora_deploy.serving.scaling.ingress import Ingress
from rmlora_deploy.serving.scaling.replica import Replica

if TYPE_CHECKING:
    from ray.serve import Application as ServeApplication

__all__ = ["build", "build_application"]


def build(args: Mapping[str, Any]) -> ServeApplication:
    """Return the application for the ``args`` of a config file, whose ``deployments`` set replica counts and resources.

    Raises:
        ConfigError: the args are invalid.
    """
    return build_application(Application.from_args(args), Scale(replicas=2))


def build_application(application: Application, scale: Scale) -> ServeApplication:
    """Return the application at that scale."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    options = scale.options(application.settings)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)  # the replica logs every request
    replica = serve.deployment(name=REPLICA, logging_config=quiet, **options[REPLICA])(Replica)
    front = serve.ingress(Ingress(application))(_Front)
    ingress = serve.deployment(name=INGRESS, logging_config=quiet, **options[INGRESS])(front)
    bound: ServeApplication = ingress.bind(replica.bind(application))
    return bound


class _Front:
    """Connects the ingress to the replicas, so that Ray Serve starts and stops them together."""

    def __init__(self, replicas: Any) -> None:
        self.replicas = replicas
