"""Merges an adapter into the initializers of an ONNX graph: no torch, no new export, weights streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.file_models import BaseConfig
from rmlora.fingerprint import check_base
from rmlora.json_files import check_values
from rmlora.renamed_modules import in_memory_names
from rmlora.storage import atomic_directory, read_json, refuse_existing, write_json
from rmlora.stored_weights import stored_weights
from rmlora_converters.block_sum import add_update, one_blas_thread
from rmlora_converters.delta import update_factors
from rmlora_converters.graph.files.lazy_tensor import lazy_transform
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import head_shape
from rmlora_converters.graph.locate.uses import uses_of
from rmlora_converters.graph.locate.weights import WeightLocation, find_weights, query_of_module, query_of_parameter
from rmlora_converters.graph.passes.adopt import weights_to_initializers
from rmlora_converters.graph.passes.replace_head import replace_head
from rmlora_converters.graph.passes.share_weights import share_equal_weights
from rmlora_converters.graph.passes.untie_lookups import untie_lookups
from rmlora_converters.merge_plan import set_labels
from rmlora_converters.rounding import RoundingMeter, RoundingReport, checked_cast, collect_roundings
from rmlora_converters.side_files import copy_side_files, write_provenance

__all__ = ["OnnxMergeReport", "merge_graph"]

_STALE_FILES = ("manifest.json",)
"""Files that describe the graph before the merge, if it comes from a bundle."""

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class OnnxMergeReport(RoundingReport):
    """What a merge into a graph did."""

    by_content: int
    """How many weights were found by content and not by name."""
    verification: Mapping[str, Any] | None = None
    """The report of ``check``, if one was passed."""


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
    """Merge ``adapter`` into the weights of the ONNX model ``graph``, and write the result to the directory ``output``.

    The file keeps its name; if its weights exceed 1 MiB they go to a file next to it. The small files in the directory of
    the source (tokenizer, configuration) are copied. Sums are computed in float32, and each weight is merged while it is
    written, so memory holds only a few tensors. If the process is killed, ``output`` stays as it was.

    Args:
        graph: an ONNX file from any exporter.
        adapter: the update to merge.
        output: directory to create.
        base: the checkpoint that the graph was exported from; required if the exporter renamed the weights.
        overwrite: replace an existing directory.
        allow_base_mismatch: merge even if the adapter was made for another base.
        check: called with the merged file before ``output`` appears. What it returns is recorded; if it raises, nothing is
            written.
        on_progress: called with (bytes written, total bytes).

    Raises:
        InputError: the graph cannot be read.
        AdapterError: a module or head is not in the graph, or the merged weight overflows its type.
        OutputError: the output exists or cannot be written.
    """
    graph, output = Path(graph), Path(output)
    refuse_existing(output, overwrite=overwrite)
    model = load_model(graph)
    weights_to_initializers(model)
    if base is not None:
        check_base(adapter, base, allow_mismatch=allow_base_mismatch)
        adapter = in_memory_names(adapter, stored_weights(base, adapter))
        share_equal_weights(model, base)
    meters: dict[str, RoundingMeter] = {}
    by_content, absent = _merge_weights(model, adapter, base, meters)
    dropped = tuple(path for path, module in adapter.modules.items() if module.parameter in absent)
    if len(dropped) == len(adapter.modules):
        raise AdapterError(
            f"{graph} has no weight of any module that {adapter.source} changes: it is not an export of the model that the "
            "adapter was made for."
        )
    with atomic_directory(output, overwrite=overwrite) as directory:
        copy_side_files(graph.parent, directory, but=_STALE_FILES)
        _set_labels(directory / "config.json", adapter)
        with one_blas_thread():
            nbytes = save_model(model, directory / graph.name, on_progress)
        report = OnnxMergeReport(
            modules=collect_roundings(set(adapter.modules) - set(dropped), meters.values()),
            replaced=tuple(sorted(set(adapter.modules_to_save) - set(absent))),
            dropped=dropped,
            by_content=by_content,
            nbytes=nbytes,
            verification=check(directory / graph.name) if check is not None else None,
        )
        write_provenance(directory, graph, adapter, report)
    return report


def _merge_weights(
    model: ir.Model, adapter: Adapter, base: Checkpoint | None, meters: dict[str, RoundingMeter]
) -> tuple[int, list[str]]:
    """Make the weights of ``model`` merge themselves when it is saved.

    Args:
        model: the graph to change.
        adapter: the update to merge.
        base: the checkpoint that the graph was exported from.
        meters: receives the meter of every module while the model is saved.

    Returns:
        how many weights were found by content, and the parameters that the graph does not have because no output depends on
        them.
    """
    saved = {name: value for name, value in adapter.modules_to_save.items() if not _is_updated(name, adapter)}
    matrices = sorted(name for name, array in saved.items() if name.endswith(".weight") and array.ndim == 2)
    paths = {name.removesuffix(".weight") for name in matrices}
    others = [name for name in saved if name.rpartition(".")[0] not in paths]
    absent = _ineffective(adapter, base)
    queries = [query_of_module(module) for module in adapter.modules.values() if module.parameter not in absent]
    matrix_queries = [
        query_of_parameter(name, head_shape(name.removesuffix(".weight"), saved[name].shape, model, base))
        for name in matrices
    ]
    untie_lookups(model, {query.shape for query in (*queries, *matrix_queries)})
    locations = find_weights(model, queries, base, absent=absent)
    matrix_locations = find_weights(model, matrix_queries, base, absent=absent)
    locations |= find_weights(
        model, [query_of_parameter(name, saved[name].shape) for name in others], base, absent=absent
    )
    absent += [name for name in saved if name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in absent]
    by_content = sum(item.found_by == "content" for item in [*locations.values(), *matrix_locations.values()])
    for name, location in matrix_locations.items():
        if any(node.op_type == "Gather" for node, _ in uses_of(model.graph.initializers[location.initializer])):
            _check_embedding_size(location, saved[name])
            locations[name] = location
        else:
            replace_head(model.graph, location, saved[name], saved.get(f"{location.module}.bias"))
    for name in dict.fromkeys(location.initializer for location in locations.values()):
        packed = [location for location in locations.values() if location.initializer == name]
        for location in packed:
            if _is_updated(location.parameter, adapter) and location.parameter in adapter.modules_to_save:
                _check_embedding_size(location, adapter.modules_to_save[location.parameter])
        _merge_initializer(model.graph.initializers[name], packed, adapter, meters)
    return by_content, absent


def _is_updated(parameter: str, adapter: Adapter) -> bool:
    """Return True if ``adapter`` also has an update of a parameter that it saved whole."""
    path, _, leaf = parameter.rpartition(".")
    return path in adapter.modules and adapter.modules[path].leaf == leaf


def _ineffective(adapter: Adapter, base: Checkpoint | None) -> list[str]:
    paths = stored_weights(base, adapter).ineffective(adapter.modules) if base is not None else []
    return [adapter.modules[path].parameter for path in paths]


def _check_embedding_size(location: WeightLocation, array: AnyArray) -> None:
    rows = location.stop - location.start
    if rows != len(array):
        raise AdapterError(
            f"'{location.parameter}' has {len(array)} rows in the adapter and {rows} in the graph: export the merged "
            "checkpoint instead."
        )


def _set_labels(path: Path, adapter: Adapter) -> None:
    if path.is_file():
        config = read_json(path, what="Model configuration", finite=False)
        check_values(
            BaseConfig, config, where=f"Model configuration {path}", advice="restore the file next to the graph"
        )
        set_labels(config, adapter)
        write_json(path, config, allow_nan=True)


def _merge_initializer(
    value: ir.Value, locations: Sequence[WeightLocation], adapter: Adapter, meters: dict[str, RoundingMeter]
) -> None:
    """Merge all parameters that an initializer holds, when it is read."""

    def merge(content: AnyArray) -> None:
        for location in locations:
            index = location.slices(content.ndim)
            content[index] = _merged(content[index], location, adapter, meters)

    lazy_transform(value, merge)


def _merged(part: AnyArray, location: WeightLocation, adapter: Adapter, meters: dict[str, RoundingMeter]) -> AnyArray:
    """Return the new content of one parameter: the base's or the one that the adapter saved whole, plus the update, if any."""
    saved = adapter.modules_to_save.get(location.parameter)
    whole = (
        part
        if saved is None
        else checked_cast(saved.T if location.transposed else saved, part.dtype, location.parameter)
    )
    if not _is_updated(location.parameter, adapter):
        return whole
    path = location.module
    merged = np.array(whole, order="C")
    # The graph decides the orientation, of square weights too: the adapter's flag is about the checkpoint.
    module = replace(adapter.modules[path], fan_in_fan_out=location.transposed)
    meters[path] = RoundingMeter(path)
    meters[path].add(add_update(merged, *update_factors(module, merged.shape), path))
    return merged
