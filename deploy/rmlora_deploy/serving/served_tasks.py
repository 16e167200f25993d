"""Which bundles are served: those that answer a request in one run of their graph."""

from __future__ import annotations

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["check_served"]


def check_served(bundle: Bundle) -> None:
    """Raise :class:`ConfigError` for a language model, whose texts this server does not generate."""
    if bundle.task.outputs.kind == "text":
        raise ConfigError(
            f"{bundle.path} is for {bundle.task.name}, which this server does not serve: generate text with  rmlora-deploy "
            "generate  or load(), or serve the same directory with onnxruntime_genai."
        )
