"""What of a bundle decides its answers and their labels: two bundles that mean the same may serve under one name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rmlora_deploy.bundles.manifest import AdapterEntry, Manifest

__all__ = ["adapter_meaning", "content_digest", "fixed_parts"]

_FIXED = {"mode", "task", "labels", "function_to_apply", "pooling", "max_length", "precision", "model", "files"}
_ASKED = ("input_form", "no_answer", "threshold")
_OF_ADAPTERS = ("labels", "function_to_apply", "max_length", *_ASKED)


def fixed_parts(manifest: Manifest) -> dict[str, Any]:
    """Return the parts of a manifest that a running server cannot exchange, as plain values."""
    merged = manifest.adapter
    asked = {"how the adapter is asked": {key: getattr(merged, key) for key in _ASKED}} if merged is not None else {}
    return {**manifest.model_dump(mode="json", include=_FIXED), **asked}


def adapter_meaning(entry: AdapterEntry) -> dict[str, Any]:
    """Return what of an adapter's entry decides its answers and their labels, as plain values."""
    return {"sha256": entry.files.get(entry.file), **{key: getattr(entry, key) for key in _OF_ADAPTERS}}


def content_digest(manifest: Manifest) -> str:
    """Return a hash of all that decides a bundle's answers; what verification found, for example, is not part of it."""
    adapters = {name: adapter_meaning(entry) for name, entry in manifest.adapters.items()}
    content = json.dumps([fixed_parts(manifest), adapters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
