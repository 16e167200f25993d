"""Figures of a bundle, from its manifest and files."""

from __future__ import annotations

from typing import Any

from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["describe_bundle"]


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return JSON-ready figures of ``bundle``: its manifest, without the list of layers, and the size of every file."""
    files = sorted(path for path in bundle.path.rglob("*") if path.is_file())
    manifest = {key: value for key, value in bundle.manifest.to_dict().items() if key != "layers"}
    return {
        **manifest,
        "kind": "bundle",
        "source": str(bundle.path),
        "files": {path.relative_to(bundle.path).as_posix(): path.stat().st_size for path in files},
        "bytes": sum(path.stat().st_size for path in files),
        "nodes": sum(bundle.manifest.model.operators.values()),
    }
