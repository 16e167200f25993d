"""The small files that go with a model's weights: tokenizer, configuration, license, and the record of a merge."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from rmlora._version import __version__
from rmlora.adapter import Adapter
from rmlora.confine import confine_files
from rmlora.package import CONFIG_FILE, METADATA_FILE
from rmlora.pooling import write_pooling
from rmlora.readable import is_readable_file
from rmlora.storage import write_json
from rmlora.tasks import TASKS
from rmlora_converters.rounding import RoundingReport

__all__ = ["PROVENANCE_FILE", "copy_side_files", "write_provenance", "write_trained_pooling"]

PROVENANCE_FILE = "rmlora_merge.json"
"""The record of a merge: what was merged, and all fields of the report, such as the rounding loss of every module."""

_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "README.md")
"""Files to copy: no pickles and no other copies of the weights."""

_MODULES = ("[0-9]*_*/*.json", "[0-9]*_*/*.safetensors")
"""Modules that sentence-transformers runs after the encoder, such as ``1_Pooling/config.json``."""


def copy_side_files(source: Path, target: Path, *, but: Collection[str] = ()) -> None:
    """Copy the small files of the directory ``source`` to ``target``, except those named in ``but``.

    Shard indexes and the record of an earlier merge describe the old weights, and transformers would look for the weights of an
    adapter whose configuration lies beside a model's, so they are not copied.

    Raises:
        InputError: one of them is a link that leads out of ``source``, or may not be read.
    """
    for pattern in (*_PATTERNS, *_MODULES):
        for path in source.glob(pattern):
            stale = (
                (path.parent == source and path.name in but)
                or path.name.endswith(".index.json")
                or path.name in (PROVENANCE_FILE, CONFIG_FILE, METADATA_FILE)
            )
            if not stale and is_readable_file(path):
                confine_files(source, [path.relative_to(source)])
                copy = target / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def write_trained_pooling(directory: Path, adapter: Adapter) -> None:
    """Replace the base's sentence-transformers files in ``directory`` where ``adapter`` records how it cuts and pools texts."""
    width = adapter.metadata.get("dimensions")
    task = TASKS.get(adapter.task or "")
    of_images = task is not None and task.inputs.modality == "image"
    if adapter.pooling is not None and width is not None and not of_images:
        write_pooling(directory, adapter.pooling, width=int(width), max_length=adapter.trained_length)


def write_provenance(directory: Path, base: Path, adapter: Adapter, report: RoundingReport) -> None:
    """Write the record of a merge to ``directory``: what was merged, and what ``report`` says."""
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
