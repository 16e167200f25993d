"""Memory for adapters: one array per LoRA input of the graph, with an index for each of many adapters.

A run is handed these arrays as they are, together with the index of each row's adapter. An index is written only while no run
uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError
from rmlora.wording import counted
from rmlora_converters.graph.files.onnx_adapter import AdapterArrays, Layout
from rmlora_deploy.runtime.binding import BoundInputs

__all__ = ["BASE_INDEX", "BucketShape", "RankBucket", "RankBuckets", "base_arrays"]

AnyArray = npt.NDArray[Any]

BASE_INDEX = 0
"""The index that holds no adapter: its rows give the base model's output."""
_MIN_RANK, _MIN_LABELS = 8, 16
"""The smallest sizes. Larger ones are these doubled, so that adapters of similar size share a bucket."""


class BucketShape(NamedTuple):
    """The size of every adapter in a bucket; smaller adapters are padded with zeros."""

    rank: int
    labels: tuple[int, ...]
    """Outputs of each head; 0 where the base model's own head is used."""


class RankBucket:
    """Arrays for adapters that are padded to one shape.

    Args:
        defaults: LoRA input → the base model's values, ``[1, …]``.
        shape: size of every adapter.
        capacity: adapters that fit, in addition to the base. The operating system provides the memory as indices are first
            written.
    """

    def __init__(self, defaults: Mapping[str, AnyArray], shape: BucketShape, capacity: int) -> None:
        self._defaults = defaults
        labels = dict(zip(_heads(defaults), shape.labels, strict=True))
        self.arrays = {
            name: np.zeros(_array_shape(name, default, capacity + 1, shape.rank, labels), default.dtype)
            for name, default in defaults.items()
        }
        """LoRA input → ``[capacity + 1, …]``."""
        self.free = list(range(capacity, BASE_INDEX, -1))
        """Unused indices; the next one to be taken is the last."""
        self.idle_bindings: list[BoundInputs] = []
        """Bindings of the arrays that no run is using."""
        self.changed: set[int] = set()
        """Indices that were written since they were last sent to a device."""
        self._bytes = [array.reshape(-1).view(np.uint8).data for array in self.arrays.values()]
        """Every array as bytes. Writing through these memory views keeps the interpreter lock; numpy would release it for
        each of a hundred small arrays, and getting it back can take longer than the copy."""
        self._copy_plans: WeakKeyDictionary[Layout, _CopyPlan] = WeakKeyDictionary()
        self.write(BASE_INDEX, {})

    def write(self, index: int, adapter: Mapping[str, AnyArray], strength: float = 1.0) -> None:
        """Write an adapter to an index that no run uses.

        Args:
            index: where to write it.
            adapter: LoRA input → ``[1, …]``; inputs it lacks get the base model's values.
            strength: factor on the low-rank update.
        """
        if not isinstance(adapter, AdapterArrays) or strength != 1.0:
            self._write_padded(index, self.arrays, adapter, strength)
        else:
            self._write_file(index, adapter, strength)
        self.changed.add(index)

    def _write_file(self, index: int, adapter: AdapterArrays, strength: float) -> None:
        """Write an adapter as it was read from its file."""
        if adapter.layout not in self._copy_plans:
            self._copy_plans[adapter.layout] = _CopyPlan.of(adapter.layout, self.arrays)
        plan = self._copy_plans[adapter.layout]
        for number, span in plan.whole:
            size = span.stop - span.start
            self._bytes[number][index * size : (index + 1) * size] = adapter.data[span]
        self._write_padded(index, plan.padded, adapter, strength)

    def _write_padded(self, index: int, names: Iterable[str], adapter: Mapping[str, AnyArray], strength: float) -> None:
        """Write the LoRA inputs ``names`` and fill the rest of their arrays at this index with zeros."""
        for name in names:
            kind, target, source = name.rpartition(".")[2], self.arrays[name][index], adapter.get(name)
            if kind == "lora_A":
                rank = source.shape[2] if source is not None else 0
                if source is not None:
                    target[:, :rank] = source[0]
                target[:, rank:] = 0
            elif kind == "lora_B":
                rank = source.shape[1] if source is not None else 0
                if source is not None:
                    with np.errstate(all="ignore"):  # a damaged file's infinities are judged by what they lead to
                        np.multiply(source[0], strength, out=target[:rank])
                target[rank:] = 0
            else:
                source = self._defaults[name] if source is None else source
                width = source.shape[-1]
                target[..., :width] = source[0]
                target[..., width:] = 0


def base_arrays(defaults: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Return LoRA inputs that leave the base as it is, ``[1, …]``: updates of zeros, and the base model's own heads.

    The defaults of a graph say the same with updates of rank 0, which not every provider can compute.
    """
    labels = tuple(defaults[f"{head}.bias"].shape[-1] for head in _heads(defaults))
    return RankBucket(defaults, BucketShape(_MIN_RANK, labels), 0).arrays


@dataclass(frozen=True)
class _CopyPlan:
    """How adapter files of one layout are copied into a bucket."""

    whole: Sequence[tuple[int, slice]]
    """Arrays that need no padding: position of the LoRA input, and the array's bytes in the file."""
    padded: Sequence[str]
    """LoRA inputs that need padding, or for which the file has no array."""

    @classmethod
    def of(cls, layout: Layout, arrays: Mapping[str, AnyArray]) -> _CopyPlan:
        """Make the plan for copying files of ``layout`` into a bucket's ``arrays``."""
        whole, padded = [], []
        for number, (name, array) in enumerate(arrays.items()):
            entry = layout.entries.get(name)
            if entry is not None and entry.shape == (1, *array.shape[1:]):
                whole.append((number, slice(entry.start, entry.stop)))
            else:
                padded.append(name)
        return cls(whole, padded)


class RankBuckets:
    """The buckets of a session, each created when the first adapter of its shape is loaded.

    Args:
        defaults: LoRA input → the base model's values, ``[1, …]``.
        capacity: adapters that fit in each bucket.
    """

    def __init__(self, defaults: Mapping[str, AnyArray], capacity: int) -> None:
        self._defaults, self._capacity = defaults, capacity
        self.heads = _heads(defaults)
        """Module paths of the heads, in the order of execution."""
        self._buckets: dict[BucketShape, RankBucket] = {}
        self._by_layout: WeakKeyDictionary[Layout, RankBucket] = WeakKeyDictionary()

    def bucket_for(self, adapter: Mapping[str, AnyArray]) -> RankBucket:
        """Return the bucket for an adapter: its largest rank and its heads fit. Not thread-safe.

        Raises:
            ConfigError: memory for a new bucket cannot be allocated.
        """
        layout = adapter.layout if isinstance(adapter, AdapterArrays) else None
        bucket = self._by_layout.get(layout) if layout is not None else None
        if bucket is None:
            shape = self._shape_for(adapter)
            if shape not in self._buckets:
                try:
                    self._buckets[shape] = RankBucket(self._defaults, shape, self._capacity)
                except MemoryError:
                    raise ConfigError(
                        f"There is not enough memory for {counted(self._capacity, 'adapter')} of rank {shape.rank}: keep fewer in memory "
                        "(--max-active-adapters)."
                    ) from None
            bucket = self._buckets[shape]
            if layout is not None:
                self._by_layout[layout] = bucket
        return bucket

    def _shape_for(self, adapter: Mapping[str, AnyArray]) -> BucketShape:
        rank = max((array.shape[2] for name, array in adapter.items() if name.endswith(".lora_A")), default=0)
        widths = (
            max(item[f"{head}.bias"].shape[-1] for item in (self._defaults, adapter) if f"{head}.bias" in item)
            for head in self.heads
        )
        return BucketShape(
            _round_up(_MIN_RANK, rank), tuple(_round_up(_MIN_LABELS, width) if width else 0 for width in widths)
        )


def _heads(defaults: Mapping[str, AnyArray]) -> list[str]:
    return [name.removesuffix(".bias") for name in defaults if name.endswith(".bias")]


def _round_up(size: int, least: int) -> int:
    """Return ``size``, doubled until it is at least ``least``."""
    while size < least:
        size *= 2
    return size


def _array_shape(name: str, default: AnyArray, indices: int, rank: int, labels: Mapping[str, int]) -> list[int]:
    shape = [indices, *default.shape[1:]]
    if name.endswith(".lora_A"):
        shape[2] = rank
    elif name.endswith(".lora_B"):
        shape[1] = rank
    else:
        shape[-1] = labels[name.rpartition(".")[0]]
    return shape
