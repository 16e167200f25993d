"""The small files beside a model's weights: tokenizer, configuration, license."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from rmlora._version import __version__
from rmlora.adapter import Adapter
from rmlora.storage import write_json
from rmlora_converters.rounding import RoundingReport

__all__ = ["PROVENANCE_FILE", "copy_side_files", "write_provenance"]

PROVENANCE_FILE = "rmlora_merge.json"
"""What a merge leaves beside its result: from what it was made, and what survived."""

_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "README.md")
"""What is copied; never pickles and never other copies of the weights."""

_MODULES = ("[0-9]*_*/*.json", "[0-9]*_*/*.safetensors")
"""What sentence-transformers puts behind the encoder, such as ``1_Pooling/config.json``."""


def copy_side_files(source: Path, target: Path, *, but: Collection[str] = ()) -> None:
    """Copy the small files of the directory ``source`` to ``target``, leaving out the names in ``but``.

    Indexes of shards and records of an earlier merge speak of the old weights, so they stay behind.
    """
    for pattern in (*_PATTERNS, *_MODULES):
        for path in source.glob(pattern):
            stale = (
                (path.parent == source and path.name in but)
                or path.name.endswith(".index.json")
                or path.name == PROVENANCE_FILE
            )
            if path.is_file() and not stale:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def write_provenance(directory: Path, base: Path, adapter: Adapter, report: RoundingReport) -> None:
    """Write from what a merge in ``directory`` was made, and what it reports."""
    write_json(
        directory / PROVENANCE_FILE,
        {
            "created_by": f"rmlora-deploy {__version__}",
            "base": base.name,
            "adapter": Path(adapter.source).name,
            "adapter_sha256": adapter.metadata.get("tensors_sha256"),
            **asdict(report),
        },
    )
