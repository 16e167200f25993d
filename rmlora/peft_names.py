"""The names of tensors in PEFT's ``adapter_model.safetensors``: factors, modules saved whole, and bookkeeping.

    base_model.model.<path>.lora_A.weight            factor; training scripts that skip PEFT's save add the adapter's name
    base_model.model.<path>.lora_embedding_A         factor of an embedding
    base_model.model.<path>.base_layer.<leaf>        the module under the LoRA layer, saved whole (biases, embeddings)
    base_model.model.<path>.modules_to_save.<leaf>   module saved whole
    base_model.model.<path>.original_module.<leaf>   the base's copy of that module, which no output depends on: dropped

Launchers and ``torch.compile`` add parts to these names that belong to no model; they are removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rmlora.adapter import Array, ModuleKind
from rmlora.errors import AdapterError

__all__ = ["PEFT_PREFIX", "PackageContent", "clean_path", "sort_tensors"]

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the path of every module."""

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Path parts of torch.compile and FSDP wrappers, at any depth."""
_LEADING = (PEFT_PREFIX, "module.")
"""Prefixes of PEFT and of data-parallel wrappers, possibly several times."""


@dataclass
class PackageContent:
    """The tensors of an adapter file, sorted."""

    factors: dict[tuple[str, ModuleKind], dict[str, Array]] = field(default_factory=dict)
    """(module path, kind) → the factors ``A`` and ``B``."""
    modules_to_save: dict[str, Array] = field(default_factory=dict)
    """Parameter path → tensor saved whole."""
    attention: set[str] = field(default_factory=set)
    """Paths of ``nn.MultiheadAttention`` modules, whose LoRA updates are on ``in_proj_weight`` and ``out_proj``."""


def clean_path(name: str) -> str:
    """Return ``name`` without the parts that PEFT, torch.compile and launchers put around a model."""
    name = _WRAPPERS.sub("", name)
    while prefix := next((prefix for prefix in _LEADING if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def sort_tensors(tensors: Mapping[str, Array], source: str) -> PackageContent:
    """Sort the tensors of an adapter file by what they are.

    Args:
        tensors: PEFT's names → arrays.
        source: where they were read from, for error messages.

    Raises:
        AdapterError: a tensor is empty or not finite, is in the file twice or for several adapters, or is not plain LoRA.
    """
    content = PackageContent()
    adapters: set[str] = set()
    for name, tensor in tensors.items():
        _check_content(name, tensor, source)
        if adapter := _sort(clean_path(name), tensor, content, source):
            adapters.add(adapter)
    if len(adapters) > 1:
        raise AdapterError(
            f"{source} holds factors of several adapters ({', '.join(sorted(adapters))}): save each with save_pretrained into a "
            "directory of its own."
        )
    return content


def _check_content(name: str, tensor: Array, source: str) -> None:
    if tensor.size == 0:
        raise AdapterError(
            f"Tensor '{name}' in {source} is empty (shape {list(tensor.shape)}), as DeepSpeed ZeRO-3 leaves a parameter that was "
            "not gathered: save the adapter again with stage3_gather_16bit_weights_on_model_save, or from zero_to_fp32.py."
        )
    if np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == np.bool_:
        return
    if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
        raise AdapterError(
            f"Tensor '{name}' in {source} holds NaN or infinity: the training run that made it diverged."
        )


def _sort(name: str, tensor: Array, content: PackageContent, source: str) -> str | None:
    """Put one tensor into ``content``; return the adapter's name if the tensor's name contains one."""
    if match := re.fullmatch(r"(.+)\.lora_(A|B)(?:\.(\w+))?\.weight", name):
        kind: ModuleKind = "linear" if tensor.ndim == 2 else "conv"
    elif match := re.fullmatch(r"(.+)\.lora_embedding_(A|B)(?:\.(\w+))?", name):
        kind = "embedding"
    elif "lora_magnitude_vector" in name:
        raise AdapterError(f"{source} holds DoRA magnitudes ('{name}'), which cannot be written as W + s·B·A.")
    elif re.search(r"\.lora_\w+", name):
        raise AdapterError(f"{source} holds '{name}', which is not part of plain LoRA: this variant is not supported.")
    else:
        if ".original_module." not in name:
            plain = re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", name)
            _put(content.modules_to_save, plain, tensor, source)
        return None
    path = match[1]
    if path.endswith(".base_layer.out_proj"):
        content.attention.add(path.removesuffix(".base_layer.out_proj"))
        path = path.replace(".base_layer.out_proj", ".out_proj")
    elif ".base_layer" in f".{path}":
        raise AdapterError(
            f"{source} holds '{name}', a LoRA layer around another one: that is LoRA on bare parameters, which is not supported."
        )
    _put(content.factors.setdefault((path, kind), {}), match[2], tensor, f"{source} ('{path}')")
    return match[3]


def _put(target: dict[str, Array], name: str, tensor: Array, source: str) -> None:
    """Add a tensor; PEFT itself saves the bias of a module twice if both ``bias`` and ``modules_to_save`` ask for it."""
    if name in target and not np.array_equal(target[name], tensor):
        raise AdapterError(
            f"Tensor '{name}' is in {source} twice, under names that differ only by a wrapper's prefix: save the adapter again."
        )
    target[name] = tensor
