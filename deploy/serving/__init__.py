"""Serving bundles over HTTP: a queue that batches across adapters, behind the interfaces that clients already speak."""

from deploy.serving.app import create_app
from deploy.serving.registry import Registry
from deploy.serving.settings import ServeSettings

__all__ = ["Registry", "ServeSettings", "create_app"]
