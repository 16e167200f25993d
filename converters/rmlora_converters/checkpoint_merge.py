"""Merges an adapter into a safetensors checkpoint of any size, with only a few blocks in memory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rmlora.adapter import Adapter
from rmlora.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from rmlora.errors import OutputError
from rmlora.fingerprint import check_base
from rmlora.storage import atomic_directory, refuse_existing, write_json
from rmlora_converters.merge_plan import MergePlan, make_plan
from rmlora_converters.rounding import (
    LOSS_WARNING,
    RoundingReport,
    collect_roundings,
)
from rmlora_converters.side_files import copy_side_files, write_provenance, write_trained_pooling
from rmlora_converters.write_planned import write_planned

__all__ = ["MergeReport", "merge_checkpoint"]


@dataclass(frozen=True)
class MergeReport(RoundingReport):
    """What a merge into a checkpoint did."""

    added: tuple[str, ...]
    """Names of tensors that the base does not have, such as a new head."""
    untied: str | None
    """Output layer that no longer shares the embedding's weight, if the update forced them apart."""
    shards: int
    base_fingerprint: str


def merge_checkpoint(
    base: Path | str,
    adapter: Adapter,
    output: Path | str,
    *,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge ``adapter`` into ``base`` and write the result to the directory ``output``, with the base's shards and types.

    Sums are computed in float32. If the process is killed, ``output`` stays as it was.

    Args:
        base: checkpoint directory.
        adapter: the update to merge.
        output: directory to create.
        overwrite: replace an existing directory.
        allow_base_mismatch: merge even if the adapter was made for another base.
        on_progress: called with (bytes written, total bytes).

    Raises:
        CheckpointError: the base cannot be read.
        AdapterError: the adapter does not fit, or the merged weight overflows the base's type.
        OutputError: the output exists, cannot be written, or does not fit on the disk.

    Warns:
        UserWarning: more than 5 % of a module's update was lost in the cast.
    """
    output = Path(output)
    refuse_existing(output, overwrite=overwrite)
    checkpoint = Checkpoint(Path(base))
    fingerprint = check_base(adapter, checkpoint, allow_mismatch=allow_base_mismatch)
    plan = make_plan(checkpoint, adapter)
    with atomic_directory(output, overwrite=overwrite) as directory:
        _check_space(directory, output.parent, plan)
        copy_side_files(checkpoint.path, directory, but=(CONFIG_NAME, INDEX_NAME))
        write_trained_pooling(directory, adapter)
        metadata = {name: shard.metadata or {"format": "pt"} for name, shard in checkpoint.shards.items()}
        meters = write_planned(directory, plan.shards, metadata, on_progress)
        report = MergeReport(
            modules=collect_roundings(plan.modules, meters),
            replaced=plan.replaced,
            dropped=plan.dropped,
            added=plan.added,
            untied=plan.untied,
            shards=len(plan.shards),
            nbytes=plan.nbytes,
            base_fingerprint=fingerprint,
        )
        write_json(directory / CONFIG_NAME, plan.config, allow_nan=True)
        _write_index(checkpoint, plan, directory)
        write_provenance(directory, checkpoint.path, adapter, report)
    if report.worst_loss > LOSS_WARNING:
        warnings.warn(
            f"{report.worst_loss:.1%} of the update of '{report.modules[0].module}' was rounded away: the base's type is "
            "too coarse for such a small update; merge into a float32 base or keep the adapter as a branch.",
            stacklevel=2,
        )
    return report


def _check_space(directory: Path, parent: Path, plan: MergePlan) -> None:
    free = shutil.disk_usage(directory).free
    if free < plan.nbytes:
        raise OutputError(
            f"The merged model needs {plan.nbytes / 1e9:.2f} GB and the disk of {parent} has "
            f"{free / 1e9:.2f} GB free: free some space or choose another directory; nothing was written."
        )


def _write_index(checkpoint: Checkpoint, plan: MergePlan, directory: Path) -> None:
    if not (checkpoint.path / INDEX_NAME).is_file():
        return
    weight_map = {item.entry.name: file for file, items in plan.shards.items() for item in items}
    write_json(
        directory / INDEX_NAME,
        {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(weight_map.items()))},
    )
