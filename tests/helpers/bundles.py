"""Bundles of tiny models for the tests of export, verification, prediction and measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmlora.package import write_metadata
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from tests.helpers.cli import tokenizer
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, save_adapter, save_base

LABELS = ["red", "green", "blue"]
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def make_sources(name: str, directory: Path, **metadata: object) -> tuple[Path, Path]:
    """Save a tiny base with its processor, and a random adapter with our metadata; return the two directories."""
    architecture = ARCHITECTURES[name]
    base = save_base(build(name), directory / "base")
    if architecture.task == "image-classification":
        (base / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    else:
        tokenizer().save_pretrained(base)
    adapter = save_adapter(adapt(build(name), lora_config(name), size=0.3), directory / "adapter")
    write_metadata(adapter, {"task": architecture.task, "labels": LABELS, **metadata})
    return base, adapter


def make_bundle(name: str, directory: Path, **settings: Any) -> Bundle:
    """Export a tiny model to ``directory / "bundle"``."""
    base, adapter = make_sources(name, directory)
    options: dict[str, Any] = {
        "base": str(base),
        "adapters": {"adapter": adapter},
        "output": directory / "bundle",
        **settings,
    }
    return export_bundle(ExportSettings(**options), on_progress=lambda line: None)
