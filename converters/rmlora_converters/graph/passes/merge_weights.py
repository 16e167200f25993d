"""Merging an adapter into the initializers of an ONNX graph: no torch, no new export, weights streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.fingerprint import check_base
from rmlora.storage import atomic_directory, read_json, refuse_existing, write_json
from rmlora_converters.delta import delta_rows
from rmlora_converters.graph.files.lazy_tensor import lazy_transform
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import head_shape
from rmlora_converters.graph.locate.uses import uses_of
from rmlora_converters.graph.locate.weights import WeightLocation, find_weights, query_of_module, query_of_parameter
from rmlora_converters.graph.passes.replace_head import replace_head
from rmlora_converters.merge_plan import name_labels
from rmlora_converters.rounding import RoundingMeter, RoundingReport, checked_cast, complete
from rmlora_converters.side_files import copy_side_files, write_provenance

__all__ = ["OnnxMergeReport", "merge_graph"]

_OF_THE_BASE = ("manifest.json",)
"""What a bundle of ours says of the graph before the merge."""

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class OnnxMergeReport(RoundingReport):
    """What a merge into a graph did."""

    by_content: int
    """Weights that were found by their content and not by name."""
    verification: Mapping[str, Any] | None = None
    """What the check that was asked for reports."""


def merge_graph(
    graph: Path | str,
    adapter: Adapter,
    output: Path | str,
    *,
    base: Checkpoint | None = None,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    check: Callable[[Path], Mapping[str, Any]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
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
        check: called with the merged file before ``output`` comes to be; its report goes into the record, its error ends
            the merge.
        on_progress: called with (bytes written, bytes in all).

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
    wanted = [query_of_module(module) for module in adapter.modules.values()]
    heads = {name.removesuffix(".weight") for name, array in adapter.modules_to_save.items() if _is_matrix(name, array)}
    whole = {name: array for name, array in adapter.modules_to_save.items() if name.rpartition(".")[0] not in heads}
    wanted += [query_of_parameter(name, array.shape) for name, array in whole.items()]
    locations = find_weights(model, wanted, base)
    own = [
        query_of_parameter(
            f"{head}.weight", head_shape(head, adapter.modules_to_save[f"{head}.weight"].shape, model, base)
        )
        for head in sorted(heads)
    ]
    head_places = find_weights(model, own, base)
    by_content = sum(location.found_by == "content" for location in [*locations.values(), *head_places.values()])
    for name, location in head_places.items():
        if any(node.op_type == "Gather" for node, _ in uses_of(model.graph.initializers[location.initializer])):
            locations[name] = _same_size(
                location, adapter.modules_to_save[name]
            )  # an embedding, whose table keeps its size
        else:
            bias = adapter.modules_to_save.get(f"{name.removesuffix('.weight')}.bias")
            replace_head(model.graph, location, adapter.modules_to_save[name], bias)
    meters: dict[str, RoundingMeter] = {}
    for name in dict.fromkeys(location.initializer for location in locations.values()):
        here = [location for location in locations.values() if location.initializer == name]
        _replace(model.graph.initializers[name], here, adapter, meters)
    with atomic_directory(output, overwrite=overwrite) as directory:
        copy_side_files(graph.parent, directory, but=_OF_THE_BASE)
        _name_labels(directory / "config.json", adapter)
        nbytes = save_model(model, directory / graph.name, on_progress)
        report = OnnxMergeReport(
            modules=complete(adapter, meters.values()),
            replaced=tuple(sorted(adapter.modules_to_save)),
            by_content=by_content,
            nbytes=nbytes,
            verification=check(directory / graph.name) if check is not None else None,
        )
        write_provenance(directory, graph, adapter, report)
    return report


def _is_matrix(name: str, array: AnyArray) -> bool:
    return name.endswith(".weight") and array.ndim == 2


def _same_size(location: WeightLocation, modules_to_save: AnyArray) -> WeightLocation:
    if location.stop - location.start != len(modules_to_save):
        raise AdapterError(
            f"'{location.parameter}' has {len(modules_to_save)} rows in the adapter and {location.stop - location.start} in the graph: export the "
            "merged checkpoint instead."
        )
    return location


def _name_labels(path: Path, adapter: Adapter) -> None:
    if path.is_file():
        config = read_json(path, what="Model configuration")
        name_labels(config, adapter)
        write_json(path, config)


def _replace(
    value: ir.Value, locations: list[WeightLocation], adapter: Adapter, meters: dict[str, RoundingMeter]
) -> None:
    """Let ``value`` hold the merged weight once it is asked for it."""

    def merge(whole: AnyArray) -> None:
        for location in locations:
            index = location.slices(whole.ndim)
            whole[index] = _new_content(whole[index], location, adapter, meters)

    lazy_transform(value, merge)


def _new_content(
    part: AnyArray, location: WeightLocation, adapter: Adapter, meters: dict[str, RoundingMeter]
) -> AnyArray:
    if location.parameter in adapter.modules_to_save:
        modules_to_save = adapter.modules_to_save[location.parameter]
        return checked_cast(
            modules_to_save.T if location.transposed else modules_to_save, part.dtype, location.parameter
        )
    path = location.parameter.removesuffix(".weight")
    weight = part.astype(np.float32)
    # The graph decides the orientation, also of a square weight; the adapter's flag speaks of the checkpoint's.
    delta = delta_rows(replace(adapter.modules[path], fan_in_fan_out=location.transposed), weight.shape)
    meters[path] = RoundingMeter(path)
    return meters[path].merge(weight, delta, part.dtype)
