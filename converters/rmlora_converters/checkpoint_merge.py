"""Merges an adapter into a safetensors checkpoint of any size, with only a few blocks in memory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmlora.adapter import Adapter
from rmlora.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from rmlora.errors import OutputError
from rmlora.fingerprint import check_base
from rmlora.storage import atomic_directory, refuse_existing, write_json
from rmlora.tensors import DTYPES, TensorInfo
from rmlora_converters.delta import delta_rows
from rmlora_converters.merge_plan import MergePlan, make_plan
from rmlora_converters.planned_tensors import PlannedTensor
from rmlora_converters.rounding import (
    LOSS_WARNING,
    RoundingMeter,
    RoundingReport,
    checked_cast,
    collect_roundings,
)
from rmlora_converters.shards import write_shard
from rmlora_converters.side_files import copy_side_files, write_provenance

__all__ = ["MergeReport", "merge_checkpoint"]

BLOCK_BYTES = 16 << 20
"""Bytes of a tensor processed at a time. A merge needs memory for one such block in float32 and its update."""


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
    writer = _Writer(plan, on_progress)
    with atomic_directory(output, overwrite=overwrite) as directory:
        _check_space(directory, output.parent, plan)
        copy_side_files(checkpoint.path, directory, but=(CONFIG_NAME, INDEX_NAME))
        for file_name, items in plan.shards.items():
            metadata = checkpoint.shards[file_name].metadata or {"format": "pt"}
            content = (writer.blocks(item) for item in items)
            write_shard(directory / file_name, [item.entry for item in items], content, metadata)
        report = MergeReport(
            modules=collect_roundings(plan.modules, writer.meters),
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


class _Writer:
    """Produces the bytes of planned tensors and measures the rounding loss of the merged ones."""

    def __init__(self, plan: MergePlan, on_progress: Callable[[int, int], None] | None) -> None:
        self._meters: dict[str, RoundingMeter] = {}
        self._on_progress = on_progress
        self._total = plan.nbytes
        self._done = 0

    @property
    def meters(self) -> list[RoundingMeter]:
        """The meter of every module merged so far."""
        return list(self._meters.values())

    def blocks(self, item: PlannedTensor) -> Iterator[bytes]:
        """Yield the content of one tensor."""
        for block in self._merged(item) if item.updates else self._copied(item):
            yield block
            self._done += len(block)
            if self._on_progress:
                self._on_progress(self._done, self._total)

    def _copied(self, item: PlannedTensor) -> Iterator[bytes]:
        if isinstance(item.source, TensorInfo) and item.source.dtype == item.entry.dtype:
            for start in range(0, item.source.nbytes, BLOCK_BYTES):
                yield item.source.read_bytes(start, min(BLOCK_BYTES, item.source.nbytes - start))
            return
        cast = checked_cast(item.source.read(), DTYPES[item.entry.dtype], item.entry.name)
        yield np.ascontiguousarray(cast).tobytes()

    def _merged(self, item: PlannedTensor) -> Iterator[bytes]:
        exact_type = np.float64 if item.entry.dtype == "F64" else np.float32
        stored_type = DTYPES[item.entry.dtype]
        rows, inner = item.entry.shape[0], item.entry.shape[1:]
        step = max(1, BLOCK_BYTES // max(1, 4 * int(np.prod(inner))))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            block = item.source.read(start, stop).astype(stored_type)
            for update in item.updates:
                low, high = max(start, update.start), min(stop, update.stop)
                if low < high:
                    delta = delta_rows(
                        update.module, (update.stop - update.start, *inner), low - update.start, high - update.start
                    )
                    weight = block[low - start : high - start].astype(exact_type)
                    meter = self._meters.setdefault(update.module.path, RoundingMeter(update.module.path))
                    block[low - start : high - start] = meter.merge(weight, delta, stored_type)
            yield block.tobytes()


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
