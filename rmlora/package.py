"""Adapter packages on disk: PEFT's two files, plus ``rmlora.json``.

    adapter_config.json          PEFT's; no keys are added, because unknown keys break older PEFT
    adapter_model.safetensors    base_model.model.<path>.lora_A.weight, …, and modules_to_save
    rmlora.json                  format version, settings, task, labels, base fingerprint, rank mask, metrics

Adapters of other tools have no ``rmlora.json`` and load too. Variants that cannot be written as ``W + scale · B A`` (such as
DoRA) are refused by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from rmlora._version import __version__
from rmlora.adapter import Adapter, Array, LoraModule, ModuleKind
from rmlora.confine import confine_files
from rmlora.directory_kind import holds_model
from rmlora.errors import AdapterError, InputError
from rmlora.file_models import AdapterConfig, PackageMetadata
from rmlora.json_files import check_values
from rmlora.nearest_names import nearest_beside
from rmlora.patterns import first_matches
from rmlora.peft_names import PEFT_PREFIX, sort_tensors
from rmlora.readable import is_readable_directory, is_readable_file
from rmlora.storage import atomic_directory, read_json, sha256_file, write_json, write_tensors
from rmlora.tensors import FLOATING, TensorFile

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "METADATA_FILE",
    "TENSORS_FILE",
    "load_package",
    "peft_tensors",
    "save_package",
    "write_metadata",
]

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
METADATA_FILE = "rmlora.json"
CARD_FILE = "README.md"

_UNSUPPORTED_OPTIONS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "LoRA with biases on B",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "megatron_config": "Megatron layers",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
}
"""Options of adapter_config.json with which the update is not ``scale · B A`` added to the base's weight."""

_CHANGES_BASE = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
"""Initializations that also change the base weight, so the factors alone do not define the update."""


def load_package(path: Path | str) -> Adapter:
    """Read an adapter directory, written by this project or by PEFT.

    Raises:
        AdapterError: files are missing, damaged or links out of the directory, or may not be read, the variant is not supported, a tensor holds NaN, or factors do not
            fit each other or the config.
    """
    path = Path(path)
    try:
        _check_files(path)
        config = _read_values(path / CONFIG_FILE, "Adapter configuration", AdapterConfig)
        metadata = (
            _read_values(path / METADATA_FILE, "Adapter metadata", PackageMetadata)
            if is_readable_file(path / METADATA_FILE)
            else {}
        )
        tensors = {name: info.read() for name, info in TensorFile(path / TENSORS_FILE).infos.items()}
    except AdapterError:
        raise
    except InputError as error:
        raise AdapterError(str(error)) from None
    _check_metadata(path, metadata)
    return parse_adapter(config, tensors, metadata, source=str(path))


def _check_files(path: Path) -> None:
    """Raise :class:`InputError` unless ``path`` holds an adapter, none of whose files is a link out of the directory."""
    if not is_readable_directory(path):
        advice = nearest_beside(path) or f"give the one that holds {CONFIG_FILE}"
        raise AdapterError(f"Adapter not found: {path} is not a directory; {advice}.")
    confine_files(path, os.listdir(path))
    if not is_readable_file(path / CONFIG_FILE):
        if holds_model(path):
            raise AdapterError(
                f"{path} is a model, not an adapter: give the base first, and then the directory that holds {CONFIG_FILE}."
            )
        inner = sorted(item.name for item in path.iterdir() if item.is_dir() and is_readable_file(item / CONFIG_FILE))
        raise AdapterError(
            f"{path} holds no {CONFIG_FILE}, but its folders do ({', '.join(inner[:4])}): PEFT saves adapters of other names than "
            "'default' there; give one of them."
            if inner
            else f"{path} holds no {CONFIG_FILE}: it is not a PEFT adapter."
        )
    if not is_readable_file(path / TENSORS_FILE):
        pickled = (path / "adapter_model.bin").is_file()
        raise AdapterError(
            f"{path} holds only adapter_model.bin, a pickle that can run code when loaded: save it again as safetensors."
            if pickled
            else f"{path} holds no {TENSORS_FILE}: the adapter is incomplete."
        )


def parse_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Array], metadata: Mapping[str, Any], *, source: str
) -> Adapter:
    """Build an :class:`Adapter` from the content of the three files.

    Args:
        config: of ``adapter_config.json``.
        tensors: PEFT's names (``base_model.model.…``) → arrays.
        metadata: of ``rmlora.json``; empty if there is none.
        source: where they were read from, for error messages.

    Raises:
        AdapterError: as :func:`load_package`.
    """
    refuse_unsupported(config, source=source)
    content = sort_tensors(tensors, source)
    factors = content.factors
    if not factors:
        raise AdapterError(f"{source} holds no LoRA factors: it changes nothing, so it is not a LoRA adapter.")
    masks = metadata.get("rank_mask") or {}
    unknown = sorted(set(masks) - {path for path, _ in factors})
    if unknown:
        raise AdapterError(f"The rank mask in {source}/{METADATA_FILE} names '{unknown[0]}', which the adapter lacks.")
    paths = sorted(path for path, _ in factors)
    ranks = _values_by_pattern(config, "rank_pattern", paths, source)
    alphas = _values_by_pattern(config, "alpha_pattern", paths, source)
    modules = {
        path: _module(path, kind, pair, config, ranks.get(path), alphas.get(path), masks.get(path), source)
        for (path, kind), pair in sorted(factors.items())
    }
    for path in content.attention & set(modules):
        modules[path] = replace(modules[path], leaf="in_proj_weight")
        inner = modules[f"{path}.out_proj"]
        # PEFT adds this update twice, in training too: MultiheadAttention.merge sets out_proj's weight to the sum, and then
        # calls out_proj.merge, which adds it again.
        modules[inner.path] = replace(inner, peft_path=f"{path}.base_layer.out_proj", scale=2 * inner.scale)
    return Adapter(
        modules=modules,
        modules_to_save=content.modules_to_save,
        peft_config=dict(config),
        metadata=dict(metadata),
        source=source,
    )


def refuse_unsupported(config: Mapping[str, Any], *, source: str) -> None:
    """Raise :class:`AdapterError` naming the variant if ``config`` is not plain LoRA."""
    _refuse_other_methods(config, source)
    for option, name in _UNSUPPORTED_OPTIONS.items():
        if config.get(option):
            raise AdapterError(
                f"{source} uses {name} ({option}): what it changes is not s·B·A of the modules' weights alone, so it is not "
                "supported. PEFT's merge_and_unload makes a whole model of it."
            )
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str):
        for key, name in _CHANGES_BASE.items():
            if initialization.startswith(key):
                raise AdapterError(
                    f"{source} was initialized with {name}, which also changes the base weights: save it with PEFT's "
                    "path_initial_model_for_weight_conversion, which makes a plain LoRA adapter of it."
                )


def _refuse_other_methods(config: Mapping[str, Any], source: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"{source} is a {kind or 'non-PEFT'} adapter: only LoRA adapters (peft_type LORA) can be deployed."
        )


def save_package(adapter: Adapter, path: Path | str, *, overwrite: bool = False, card: str | None = None) -> None:
    """Write ``adapter`` as a package that PEFT can load, with ``card`` as its model card.

    Raises:
        OutputError: the target exists and ``overwrite`` is not set, or it cannot be written.
    """
    with atomic_directory(Path(path), overwrite=overwrite) as directory:
        tensors = {name: np.ascontiguousarray(value) for name, value in peft_tensors(adapter).items()}
        write_tensors(directory / TENSORS_FILE, tensors, metadata={"format": "pt"})
        write_json(directory / CONFIG_FILE, dict(adapter.peft_config))
        masks = {m.path: m.rank_mask.tolist() for m in adapter.modules.values() if m.rank_mask is not None}
        write_metadata(directory, {**adapter.metadata, "rank_mask": masks})
        if card is not None:
            (directory / CARD_FILE).write_text(card, encoding="utf-8")


def peft_tensors(adapter: Adapter) -> dict[str, Array]:
    """Return the content of ``adapter_model.safetensors`` under the names that PEFT reads."""
    tensors: dict[str, Array] = {}
    for module in adapter.modules.values():
        stem = f"{PEFT_PREFIX}{module.peft_path or module.path}.lora_"
        a, b = ("embedding_A", "embedding_B") if module.kind == "embedding" else ("A.weight", "B.weight")
        tensors[stem + a] = module.lora_A
        tensors[stem + b] = module.lora_B
    for name, value in adapter.modules_to_save.items():
        path, _, leaf = name.rpartition(".")
        inner = f"{path}.base_layer" if path in adapter.modules else path
        tensors[f"{PEFT_PREFIX}{inner}.{leaf}" if path else PEFT_PREFIX + name] = value
    return tensors


def write_metadata(directory: Path, values: Mapping[str, Any]) -> None:
    """Write ``rmlora.json``, with format version and hash, into a directory that already holds the tensors.

    ``values`` may hold: ``rmlora`` (:meth:`RMLoRAConfig.to_dict`), ``task``, ``labels``, ``architecture``,
    ``base_model``, ``base_fingerprint``, ``base_weights``, ``weight_map`` (:mod:`rmlora.stored_weights`), ``rank_mask``,
    ``metrics``, ``training``.
    """
    head = {"format_version": FORMAT_VERSION, "created_by": f"rmlora-deploy {__version__}"}
    tail = {"tensors_sha256": sha256_file(directory / TENSORS_FILE)}
    write_json(directory / METADATA_FILE, {**values, **head, **tail})


def _read_values(path: Path, what: str, model: type[BaseModel]) -> dict[str, Any]:
    """Return the content of a JSON file whose keys have the types of ``model``."""
    value: dict[str, Any] = read_json(path, what=what)
    if model is AdapterConfig and isinstance(value, dict):  # other methods have other types under the same keys
        _refuse_other_methods(value, str(path.parent))
    check_values(model, value, where=f"{what} {path}", advice="the adapter is damaged, copy or save it again")
    return value


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    if not metadata:
        return
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path / METADATA_FILE} has format version {version}, this program reads {FORMAT_VERSION}: "
            "upgrade rmlora-deploy or save the adapter again."
        )
    expected = metadata.get("tensors_sha256")
    if expected and sha256_file(path / TENSORS_FILE) != expected:
        raise AdapterError(
            f"{path / TENSORS_FILE} is not the file that {METADATA_FILE} was written for (SHA-256 differs): "
            "the package is corrupt, copy it again."
        )


def _module(
    path: str,
    kind: ModuleKind,
    pair: dict[str, Array],
    config: Mapping[str, Any],
    own_rank: Any,
    own_alpha: Any,
    mask: Any,
    source: str,
) -> LoraModule:
    """Build one module; ``own_rank`` and ``own_alpha`` are its values by pattern, None where no pattern names it."""
    if set(pair) != {"A", "B"}:
        missing = "B" if "A" in pair else "A"
        raise AdapterError(f"{source} lacks lora_{missing} of '{path}': the adapter file is incomplete.")
    for factor in pair.values():
        if factor.dtype.kind not in "fV" and factor.dtype.name not in {"bfloat16"}:
            raise AdapterError(
                f"The factors of '{path}' in {source} are {factor.dtype}, not one of {sorted(FLOATING)}."
            )
    if min(pair["A"].ndim, pair["B"].ndim) < 2 or 0 in (*pair["A"].shape, *pair["B"].shape):
        shapes = f"lora_A is {list(pair['A'].shape)}, lora_B is {list(pair['B'].shape)}"
        raise AdapterError(
            f"The factors of '{path}' in {source} are no matrices ({shapes}): the adapter file is damaged."
        )
    rank = int(pair["A"].shape[0])
    expected = int(own_rank if own_rank is not None else config.get("r") or rank)
    if rank != expected:
        raise AdapterError(
            f"'{path}' in {source} has rank {rank} but {CONFIG_FILE} says {expected}: the two files are not of the same adapter."
        )
    default = config.get("lora_alpha")
    alpha = float(own_alpha if own_alpha is not None else rank if default is None else default)
    return LoraModule(
        path=path,
        kind=kind,
        lora_A=pair["A"],
        lora_B=pair["B"],
        scale=alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank,
        fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
        rank_mask=None if mask is None else np.asarray(mask, dtype=np.bool_),
    )


def _values_by_pattern(config: Mapping[str, Any], key: str, paths: list[str], source: str) -> dict[str, Any]:
    """Return the value of each module that ``rank_pattern`` or ``alpha_pattern`` names."""
    patterns = config.get(key) or {}
    matched = first_matches(list(patterns), paths, key=key, source=f"{source}/{CONFIG_FILE}")
    return {path: patterns[pattern] for path, pattern in matched.items()}
