"""A copy of a rank bucket in a device's memory, brought up to date before a run.

Only the indices that were written since the last run are sent, into their places in the copy. No run that has begun uses them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora_converters.graph.files.model_file import to_bytes
from rmlora_deploy.runtime.adapters.rank_buckets import RankBucket
from rmlora_deploy.runtime.binding import BoundInputs
from rmlora_deploy.runtime.providers import create_session

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["DeviceBucket", "DeviceCopy"]

AnyArray = npt.NDArray[Any]

_FEWEST = 8
"""Indices that the first copy has room for. One that is too small is replaced by one of twice its size."""


@dataclass(frozen=True)
class DeviceCopy:
    """The arrays of a bucket on a device."""

    arrays: Mapping[str, ort.OrtValue]
    """LoRA input → ``[room, …]``."""
    idle_bindings: list[BoundInputs] = field(default_factory=list)
    """Bindings of the arrays that no run is using."""


class DeviceBucket:
    """Keeps a copy of a bucket on a device. Safe to use from any number of threads.

    Args:
        bucket: in host memory.
        device: its name in ONNX Runtime, which is also that of the provider that copies on it.
    """

    def __init__(self, bucket: RankBucket, device: str) -> None:
        self._bucket, self._device = bucket, device
        self._lock = threading.Lock()
        self._copy = DeviceCopy({})
        self._room = 0
        self._by_type: dict[np.dtype[Any], list[str]] = defaultdict(list)
        for name, array in bucket.arrays.items():
            if array[0].size:  # without a head of its own, the base's may have no width
                self._by_type[array.dtype].append(name)
        self._split = create_session(to_bytes(_split_graph(bucket.arrays, self._by_type)), device)

    def current(self) -> DeviceCopy:
        """Return a copy that holds every index written before this call; the same object until it needs more room."""
        with self._lock:
            changed: set[int] = set()
            while self._bucket.changed:
                changed.add(self._bucket.changed.pop())
            try:
                if changed and max(changed) >= self._room:
                    self._copy = self._send_all(max(changed) + 1)
                else:
                    for index in changed:
                        self._send(index)
            except BaseException:
                self._bucket.changed.update(changed)
                raise
            return self._copy

    def _send_all(self, indices: int) -> DeviceCopy:
        """Return a copy with room for so many indices; runs that have begun go on with the one before."""
        import onnxruntime as ort

        room = max(self._room, _FEWEST)
        while room < indices:
            room *= 2
        arrays = {
            name: ort.OrtValue.ortvalue_from_numpy(array[:room].copy(), self._device, 0)
            for name, array in self._bucket.arrays.items()
        }
        self._room = room
        return DeviceCopy(arrays)

    def _send(self, index: int) -> None:
        """Write one index: its rows travel in one piece, and are split into the arrays' own memory on the device."""
        binding = self._split.io_binding()
        for dtype, names in self._by_type.items():
            rows = [self._bucket.arrays[name][index].reshape(-1) for name in names]
            binding.bind_cpu_input(_joined(dtype), np.concatenate(rows))
            for name, row in zip(names, rows, strict=True):
                place = self._copy.arrays[name].data_ptr() + index * row.nbytes
                binding.bind_output(name, self._device, 0, dtype.type, [row.size], place)
        self._split.run_with_iobinding(binding)


def _split_graph(arrays: Mapping[str, AnyArray], by_type: Mapping[np.dtype[Any], list[str]]) -> ir.Model:
    """Return a graph that splits the joined rows of each element type: one input for each type, one output for each array."""
    inputs, nodes, sizes = [], [], []
    outputs: list[ir.Value] = []
    for dtype, names in by_type.items():
        kind = ir.TensorType(ir.DataType.from_numpy(dtype))
        lengths = [arrays[name][0].size for name in names]
        joined = ir.Value(name=_joined(dtype), shape=ir.Shape([sum(lengths)]), type=kind)
        tensor = ir.tensor(np.array(lengths, np.int64), name=f"{_joined(dtype)}.lengths")
        value = ir.Value(
            name=tensor.name, const_value=tensor, shape=ir.Shape([len(lengths)]), type=ir.TensorType(tensor.dtype)
        )
        node = ir.node("Split", [joined, value], {"axis": 0}, num_outputs=len(names))
        for output, name, length in zip(node.outputs, names, lengths, strict=True):
            output.name, output.type, output.shape = name, kind, ir.Shape([length])
        inputs.append(joined)
        sizes.append(value)
        nodes.append(node)
        outputs += node.outputs
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=sizes, opset_imports={"": 17}, name="split")
    return ir.Model(graph, ir_version=10)


def _joined(dtype: np.dtype[Any]) -> str:
    return f"joined.{dtype.name}"
