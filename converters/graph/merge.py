"""Merging an adapter into the initializers of an ONNX graph: no torch, no new export, weights streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from converters.delta import delta_rows
from converters.graph.file import load_model, save_model
from converters.graph.weights import Kind, Wanted, WeightPlace, find_weights
from converters.side_files import PROVENANCE_FILE, copy_side_files
from converters.survival import ModuleSurvival, SurvivalMeter
from rmlora._version import __version__
from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.fingerprint import check_base
from rmlora.storage import atomic_directory, refuse_existing, write_json

__all__ = ["OnnxMergeReport", "merge_graph"]


_OF_THE_BASE = ("manifest.json",)
"""What a bundle of ours says of the graph before the merge."""

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class OnnxMergeReport:
    """What a merge into a graph did."""

    modules: tuple[ModuleSurvival, ...]
    """One entry per adapted module, worst loss first."""
    replaced: tuple[str, ...]
    """Parameters replaced by ones the adapter saved whole."""
    by_content: int
    """Weights that were found by their content and not by name."""
    nbytes: int

    @property
    def worst_loss(self) -> float:
        """The largest share of an update lost in the cast."""
        return max((item.loss for item in self.modules), default=0.0)


def merge_graph(
    graph: Path | str,
    adapter: Adapter,
    output: Path | str,
    *,
    base: Checkpoint | None = None,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> OnnxMergeReport:
    """Write the ONNX model ``graph`` with ``adapter`` in its weights to the directory ``output``.

    The file keeps its name, weights over 1 MiB lie beside it, and the small files beside the source (tokenizer,
    configuration) are copied. Sums are made in float32 and each weight is made while it is written, so memory holds
    a few tensors. A process killed on the way leaves ``output`` as it was.

    Args:
        graph: an ONNX file from any exporter.
        adapter: the update.
        output: directory to create.
        base: the checkpoint the graph was exported from; needed where the exporter renamed the weights.
        overwrite: replace an existing directory.
        allow_base_mismatch: merge although the adapter names another base.
        progress: called with (bytes written, bytes in all).

    Raises:
        InputError: the graph cannot be read.
        AdapterError: a module or head has no place in the graph, or the merged weight overflows its type.
        OutputError: the target exists or cannot be written.
    """
    graph, output = Path(graph), Path(output)
    refuse_existing(output, overwrite=overwrite)
    model = load_model(graph)
    if base is not None:
        check_base(adapter, base, allow_mismatch=allow_base_mismatch)
    wanted = [*map(_of_module, adapter.modules.values()), *(_of_saved(n, v.shape) for n, v in adapter.saved.items())]
    places = find_weights(model, wanted, base)
    meters: dict[str, SurvivalMeter] = {}
    for name in dict.fromkeys(place.initializer for place in places.values()):
        here = [place for place in places.values() if place.initializer == name]
        _replace(model.graph.initializers[name], here, adapter, meters)
    with atomic_directory(output, overwrite=overwrite) as directory:
        copy_side_files(graph.parent, directory, but=_OF_THE_BASE)
        nbytes = save_model(model, directory / graph.name, progress)
        missing = sorted(set(adapter.modules) - set(meters))
        if missing:
            raise AdapterError(f"The update of '{missing[0]}' was not merged: please report this as a bug.")
        report = OnnxMergeReport(
            modules=tuple(sorted((meter.result() for meter in meters.values()), key=lambda item: -item.loss)),
            replaced=tuple(sorted(adapter.saved)),
            by_content=sum(place.found_by == "content" for place in places.values()),
            nbytes=nbytes,
        )
        write_json(directory / PROVENANCE_FILE, _provenance(graph, adapter, report))
    return report


def _of_module(module: LoraModule) -> Wanted:
    kind: Kind = module.kind
    fan_in, fan_out = math.prod(module.lora_A.shape[1:]), module.lora_B.shape[0]
    shape = (fan_in, fan_out) if kind == "embedding" else (fan_out, *module.lora_A.shape[1:])
    return Wanted(f"{module.path}.weight", kind, shape, module.fan_in_fan_out)


def _of_saved(parameter: str, shape: tuple[int, ...]) -> Wanted:
    return Wanted(parameter, "linear" if len(shape) == 2 else "vector", shape)


def _replace(value: ir.Value, places: list[WeightPlace], adapter: Adapter, meters: dict[str, SurvivalMeter]) -> None:
    """Put a tensor in place of ``value``'s content that makes the merged weight when it is asked for."""
    source = value.const_value
    if source is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")
    dtype = source.dtype

    def merged() -> ir.TensorProtocol:
        whole = np.array(source.numpy())
        for place in places:
            index = place.slices(whole.ndim)
            whole[index] = _new_content(whole[index], place, adapter, meters)
        return ir.tensor(whole, dtype=dtype, name=value.name)

    value.const_value = ir.LazyTensor(merged, dtype=dtype, shape=ir.Shape(source.shape.numpy()), name=value.name)


def _new_content(part: AnyArray, place: WeightPlace, adapter: Adapter, meters: dict[str, SurvivalMeter]) -> AnyArray:
    if place.parameter in adapter.saved:
        saved = adapter.saved[place.parameter].astype(np.float32)
        return (saved.T if place.transposed else saved).astype(part.dtype)
    path = place.parameter.removesuffix(".weight")
    module = adapter.modules[path]
    weight = part.astype(np.float32)
    if module.kind == "linear":
        with np.errstate(over="ignore", invalid="ignore"):
            delta = (np.float32(module.scale) * module.B) @ module.A
        delta = delta.T if place.transposed else delta
    else:
        delta = delta_rows(module, weight.shape)
    exact = weight + delta
    with np.errstate(over="ignore"):
        cast: AnyArray = exact.astype(part.dtype)
    if not np.isfinite(cast.astype(np.float32)).all():
        raise AdapterError(
            f"Merging '{path}' gives values that {part.dtype} cannot hold (infinity or NaN): the update is broken or too "
            "large for this graph's type; merge into a float32 graph."
        )
    meters[path] = SurvivalMeter(path)
    meters[path].add(weight, delta, exact, cast)
    return cast


def _provenance(graph: Path, adapter: Adapter, report: OnnxMergeReport) -> Mapping[str, Any]:
    return {
        "created_by": f"rmlora-deploy {__version__}",
        "base": graph.name,
        "adapter": Path(adapter.source).name,
        "adapter_sha256": adapter.metadata.get("tensors_sha256"),
        "replaced": report.replaced,
        "by_content": report.by_content,
        "modules": [asdict(item) for item in report.modules],
    }
