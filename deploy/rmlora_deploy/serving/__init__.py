"""Serves bundles over HTTP: batches requests across adapters, behind the interfaces that clients already speak."""

from rmlora_deploy.serving.app import create_app
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Registry", "ServeSettings", "create_app"]
