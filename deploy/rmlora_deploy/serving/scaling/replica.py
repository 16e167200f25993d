"""A replica: the single-machine server, asked through Ray instead of a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmlora_deploy.serving.app import create_app
from rmlora_deploy.serving.errors import ServingError
from rmlora_deploy.serving.json_log import start_log
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.scaling.application import Application
from rmlora_deploy.serving.scaling.asgi import Call, Reply, answer_call
from rmlora_deploy.serving.scaling.shared_registry import SharedRegistry
from rmlora_deploy.serving.scaling.watcher import Watcher
from rmlora_deploy.serving.service import Service

__all__ = ["Replica"]


class Replica:
    """Everything that computes; runs as a deployment of Ray Serve."""

    def __init__(self, application: Application) -> None:
        """Open the bundles and take over the table.

        Raises:
            ConfigError: two models have one name, or there is no key in the environment.
            InputError: a bundle is damaged.
            ProviderError: the provider is absent.
        """
        from ray import serve

        start_log()
        settings = application.with_key()
        name: str = serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics()
        self._watcher = Watcher(application.shared_dir, name, self._report)
        self._registry = SharedRegistry(
            settings, self._metrics.batch, directory=Path(application.shared_dir), changes=self._watcher
        )
        for bundle, path in application.bundles.items():
            self._registry.open(Path(path), name=bundle)
        self._app = create_app(self._registry, self._metrics)
        self._service: Service = self._app.state.service
        self._watcher.start(self._registry)
        self._used = serve.multiplexed(_mark, max_num_models_per_replica=settings.max_active_adapters)
        self._closed = False

    async def answer(self, call: Call) -> Reply:
        """Answer a request; Ray is told which adapter this replica has used now."""
        from ray import serve

        adapter = serve.get_multiplexed_model_id()
        if adapter and self._serves(adapter):
            await self._used(adapter)
        return await answer_call(self._app, call)

    def _serves(self, adapter: str) -> bool:
        try:
            return self._registry.model(adapter).adapter is not None
        except ServingError:  # the application says so, in the words of the interface that was used
            return False

    def _report(self) -> dict[str, Any]:
        """Return what ``/metrics`` and ``/stats`` of all replicas are made of."""
        return {"metrics": self._metrics.text(), "stats": json.dumps(self._service.stats())}

    def __del__(self) -> None:
        """End: Ray calls this once the requests under way are answered."""
        if not getattr(self, "_closed", True):
            self._closed = True
            self._watcher.stop()
            self._registry.close(self._service.stop())


async def _mark(adapter: str) -> str:
    """Stand for an adapter in Ray's list of those that a replica has used last; the bank holds the adapter itself."""
    return adapter
