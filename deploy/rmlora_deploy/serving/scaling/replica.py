"""A replica: the single-machine server, called through Ray instead of over a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmlora_deploy.serving.app import create_app
from rmlora_deploy.serving.errors import BrokenError, ServingError
from rmlora_deploy.serving.json_log import start_log
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.scaling.application import Application
from rmlora_deploy.serving.scaling.asgi import Call, Reply, answer_call
from rmlora_deploy.serving.scaling.replica_registry import ReplicaRegistry
from rmlora_deploy.serving.scaling.watcher import Watcher
from rmlora_deploy.serving.service import Service

__all__ = ["Replica"]


class Replica:
    """Answers requests; runs as a deployment of Ray Serve."""

    def __init__(self, application: Application) -> None:
        """Open the bundles and apply the adapter state.

        Raises:
            ConfigError: two models have the same name, the key is missing in the environment, or other replicas serve
                another content of a bundle's directory.
            InputError: a bundle is damaged.
            ProviderError: the provider is missing.
        """
        from ray import serve

        start_log()
        settings = application.with_key()
        name: str = serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics()
        self._watcher = Watcher(application.shared_dir, name, self._report)
        self._registry = ReplicaRegistry(
            settings, self._metrics.batch, directory=Path(application.shared_dir), changes=self._watcher
        )
        for bundle, path in application.bundles.items():
            self._registry.open(Path(path), name=bundle).warm_up()
        self._app = create_app(self._registry, self._metrics)
        self._service: Service = self._app.state.service
        self._watcher.start(self._registry)
        self._used = serve.multiplexed(_mark, max_num_models_per_replica=settings.max_active_adapters)
        self._closed = False

    async def answer(self, call: Call) -> Reply:
        """Answer a request, and tell Ray which adapter this replica used."""
        from ray import serve

        adapter = serve.get_multiplexed_model_id()
        if adapter and self._serves(adapter):
            await self._used(adapter)
        return await answer_call(self._app, call)

    def check_health(self) -> None:
        """Let Ray replace this replica once it cannot compute any more.

        Raises:
            BrokenError: its workers were given up, or a batch does not end.
        """
        if (problem := self._service.problem()) is not None:
            raise BrokenError(problem)

    def _serves(self, adapter: str) -> bool:
        try:
            return self._registry.model(adapter).adapter is not None
        except ServingError:  # the application answers with this error
            return False

    def _report(self) -> dict[str, Any]:
        """Return this replica's part of ``/metrics`` and ``/stats``, and what its bundles contain."""
        return {
            "metrics": self._metrics.text(),
            "stats": json.dumps(self._service.stats()),
            "contents": self._registry.contents(),
        }

    def __del__(self) -> None:
        """Shut down; Ray calls this once the requests in progress are answered."""
        if not getattr(self, "_closed", True):
            self._closed = True
            self._watcher.stop()
            self._registry.close(self._service.stop())


async def _mark(adapter: str) -> str:
    """Stand for an adapter in Ray's list of those a replica used last; the adapter itself is in the adapter cache."""
    return adapter
