"""What transformers says of a model class: its parameters, which of them are tied, and where a checkpoint holds them.

The class is built without weights (torch's meta device) and transformers' own renames, prefixes and conversions of a load are
applied to the stored names, so names and shapes are those that ``from_pretrained`` would see. Importing this module needs no
torch; its functions do.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from rmlora.errors import is_installed
from rmlora.weight_parts import Part

__all__ = ["ModelLayout", "config_for_class", "model_layout", "transformers_can_tell"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelLayout:
    """The parameters of a model class, and where they are in one checkpoint."""

    architecture: str
    shapes: Mapping[str, Shape]
    """Parameter or buffer that a checkpoint of this class holds → its shape."""
    parts: Mapping[str, tuple[Part, ...]]
    """Parameter → where it is stored; parameters that the checkpoint lacks are left out."""
    tied: Mapping[str, str]
    """Parameter → the parameter with which it shares its weight."""
    unused: tuple[str, ...]
    """Stored tensors that belong to no parameter of the class."""
    prefix: str = ""
    """What the class puts before the names of the checkpoint, if that was saved from the model inside it."""
    new_names: Mapping[str, str] = field(default_factory=dict)
    """Parameter that is not stored → the name under which transformers would save it, where that is another."""
    attention: frozenset[str] = frozenset()
    """Paths of ``nn.MultiheadAttention`` modules."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Path of a grouped convolution → number of groups."""
    transposed: frozenset[str] = frozenset()
    """Paths of ``Conv1D`` modules, whose weight is ``[in, out]``."""
    unread: frozenset[str] = frozenset()
    """Paths of modules that the model never calls: it reads their weight itself, so PEFT's update has no effect."""
    optional: tuple[str, ...] = ()
    """Patterns of parameters that the class allows to be missing."""
    reads_tie: bool = False
    """True if the model computes otherwise when its weights are not tied, whatever they are."""

    @property
    def missing(self) -> list[str]:
        """Parameters that neither the checkpoint nor a tied parameter supplies, in the order of the model."""
        supplied = {source for target, source in self.tied.items() if target in self.parts} | set(self.parts)
        return [
            name
            for name in self.shapes
            if name not in supplied
            and self.tied.get(name) not in supplied
            and not any(re.search(pattern, name) for pattern in self.optional)
        ]


def transformers_can_tell() -> bool:
    """Return True if torch and a transformers that describes its loads (5 or newer) are installed."""
    if not (is_installed("torch") and is_installed("transformers")):
        return False
    try:
        import transformers.conversion_mapping
        import transformers.core_model_loading  # noqa: F401 - is it there?
    except ImportError:
        return False
    return True


def model_layout(config: Mapping[str, Any], architecture: str, tensors: Mapping[str, Shape]) -> ModelLayout | None:
    """Return what transformers says of a class and a checkpoint, or None if it does not know the class.

    Args:
        config: content of ``config.json``.
        architecture: name of a transformers class, or of an Auto class, which is then looked up for the configuration.
        tensors: stored name → shape.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    model = _build(config, architecture)
    if model is None:
        return None
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    transforms = get_model_conversion_mapping(model)
    parts, unused, prefix = _place(model, transforms, state, tensors)
    tied = {target: source for target, source in model.all_tied_weights_keys.items() if {target, source} <= set(shapes)}
    return ModelLayout(
        type(model).__name__,
        shapes,
        parts,
        tied,
        unused,
        prefix,
        _saved_names(model, transforms, state, [name for name in shapes if name not in parts]),
        _attention_modules(model),
        _grouped_convolutions(model),
        _conv1d_modules(model),
        _unread_modules(model),
        tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()),
        _reads_tie(model),
    )


def config_for_class(configuration: Any, model_class: Any) -> Any:
    """Return the configuration with which ``model_class`` is built: a part of ``configuration`` if it is a half of that model.

    The halves of CLIP project to where the whole model does, whatever their own configurations say.

    Raises:
        StopIteration: the class is for another type of model.
    """
    if isinstance(configuration, model_class.config_class):
        return configuration
    halves = (configuration.get_text_config(), getattr(configuration, "vision_config", None))
    half = next(half for half in halves if isinstance(half, model_class.config_class))
    if hasattr(configuration, "projection_dim"):
        half.projection_dim = configuration.projection_dim
    return half


def _build(config: Mapping[str, Any], architecture: str) -> Any:
    """Return the model on the meta device; None if transformers does not know its class or cannot build it."""
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        configuration = transformers.AutoConfig.for_model(**values)
        model_class = getattr(transformers, architecture)
        if hasattr(model_class, "_model_mapping"):
            model_class = model_class._model_mapping[type(configuration)]
            model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
        configuration = config_for_class(configuration, model_class)
        with _quiet(), contextlib.ExitStack() as contexts:
            for context in model_class.get_init_context(torch.float32, False, False, None):
                contexts.enter_context(context)
            return model_class(configuration)
    except Exception:  # noqa: BLE001 - a configuration from outside can fail in any way; the names are then found without it
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _place(
    model: Any, transforms: list[Any], state: Mapping[str, Any], tensors: Mapping[str, Shape]
) -> tuple[dict[str, tuple[Part, ...]], tuple[str, ...], str]:
    """Return parameter → parts, the stored tensors without a place, and the prefix that was added, as transformers' loader does."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    owner = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    parts: dict[str, tuple[Part, ...]] = {}
    groups: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    unused: list[str] = []
    added, known = "", dict(state)
    for stored in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
        if name not in state and stored in state:
            name, pattern = stored, None
        if name.startswith(f"{prefix}.") and not stored.startswith(f"{prefix}."):
            bare, _ = rename_source_key(stored, renamings, converters)
            added = f"{prefix}." if f"{prefix}.{bare}" == name else added
        if name not in state:
            unused.append(stored)
        elif pattern is None:
            parts[name] = (Part(stored),)
        else:
            groups.setdefault(name, (owner[pattern], []))[1].append((pattern, stored))
    for name, (converter, sources) in groups.items():
        parts.update(_trace(model, name, deepcopy(converter), sources, state, tensors))
    return parts, tuple(unused), added


def _saved_names(model: Any, transforms: list[Any], state: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """Return parameter → the name under which transformers saves it, where that is another and loads as the parameter."""
    from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming, rename_source_key

    forward = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    legacy = ("LayerNorm.gamma", "LayerNorm.beta", ".weight_g", ".weight_v")
    usual = [item for item in forward if not isinstance(item, PrefixChange) and item.source_patterns[0] not in legacy]
    backward: list[Any] = [item.reverse_transform() for item in reversed(usual)]
    found, known = {}, dict(state)
    for name in names:
        saved, _ = rename_source_key(name, backward, [], reverse=True)
        loaded, pattern = rename_source_key(saved, forward, converters, model.base_model_prefix, known)
        if saved != name and loaded == name and pattern is None:
            found[name] = saved
    return found


def _trace(
    model: Any,
    name: str,
    converter: Any,
    sources: list[tuple[str, str]],
    state: Mapping[str, Any],
    tensors: Mapping[str, Shape],
) -> dict[str, tuple[Part, ...]]:
    """Run a conversion on numbered rows, to see which stored row becomes which row of which parameter.

    Conversions that do more than move rows (transpose, add) give no parts: those parameters count as missing.
    """
    import torch

    limit = 1 << 32
    for number, (pattern, stored) in enumerate(sources):
        shape = tensors[stored]
        rows = torch.arange(shape[0] if shape else 1, dtype=torch.int64) + number * limit
        converter.add_tensor(name, stored, pattern, rows.reshape(-1, *[1] * (len(shape) - 1)))
    try:
        with _quiet():
            made = converter.convert(name, model=model, config=model.config)
    except Exception:  # noqa: BLE001 - the tensors are not those that the conversion expects
        return {}
    found = {}
    for parameter, value in made.items():
        numbers = value[0] if isinstance(value, list) else value
        names = [stored for _, stored in sources]
        parts = _parts_of(numbers, names, tensors, limit)
        if parts and parameter in state and _fits(numbers, tuple(state[parameter].shape), tensors[parts[0].tensor]):
            found[parameter] = parts
    return found


def _fits(numbers: Any, shape: Shape, stored: Shape) -> bool:
    """True if the traced rows and the stored tensor's other axes make up a parameter of ``shape``."""
    inner = len(stored) - 1
    leading = tuple(numbers.shape[: numbers.ndim - inner])
    return leading + stored[1:] == shape


def _parts_of(numbers: Any, names: list[str], tensors: Mapping[str, Shape], limit: int) -> tuple[Part, ...]:
    """Return the parts of a parameter whose rows are numbered; empty if they are not blocks of rows."""
    leading = numbers.reshape(numbers.shape[: numbers.ndim - len(tensors[names[0]]) + 1])
    if leading.ndim == 1:
        return _blocks_of(leading.tolist(), names, tensors, limit, ())
    if leading.ndim == 2:
        parts: list[Part] = []
        for index, row in enumerate(leading.tolist()):
            parts += _blocks_of(row, names, tensors, limit, ((index, index + 1),))
        return tuple(parts)
    return ()


def _blocks_of(
    numbers: list[int], names: list[str], tensors: Mapping[str, Shape], limit: int, outer: tuple[tuple[int, int], ...]
) -> tuple[Part, ...]:
    """Split one axis into runs of rows from the same stored tensor."""
    parts: list[Part] = []
    start = 0
    while start < len(numbers):
        tensor = numbers[start] // limit
        stop = start
        while stop < len(numbers) and numbers[stop] // limit == tensor:
            stop += 1
        rows = tuple(number % limit for number in numbers[start:stop])
        whole = rows == tuple(range(tensors[names[tensor]][0]))
        alone = not outer and stop - start == len(numbers)
        block = () if alone else (*outer, (start, stop))
        parts.append(Part(names[tensor], None if whole else rows, block))
        start = stop
    return tuple(parts)


def _attention_modules(model: Any) -> frozenset[str]:
    from torch.nn import MultiheadAttention

    return frozenset(name for name, module in model.named_modules() if isinstance(module, MultiheadAttention))


def _grouped_convolutions(model: Any) -> dict[str, int]:
    return {
        name: module.groups
        for name, module in model.named_modules()
        if getattr(module, "groups", 1) not in (1, None) and hasattr(module, "kernel_size")
    }


def _conv1d_modules(model: Any) -> frozenset[str]:
    from transformers.pytorch_utils import Conv1D

    return frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))


def _unread_modules(model: Any) -> frozenset[str]:
    """Return the modules of which the model's source only reads the weight, as WavLM's attention and LayoutLMv3's biases."""
    import inspect

    sources: dict[str, str] = {}
    found = set()
    for name, _ in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        home = type(model.get_submodule(parent)).__module__
        if home.startswith("torch."):  # nn.MultiheadAttention has a rule of its own
            continue
        if home not in sources:
            try:
                sources[home] = inspect.getsource(sys.modules[home])
            except (OSError, TypeError, KeyError):
                sources[home] = ""
        used = re.findall(rf"\.{leaf}\b(\.weight\b|\.bias\b|\s*=[^=])?", sources[home]) if leaf.isidentifier() else []
        if ".weight" in used and "" not in used:
            found.add(name)
    return frozenset(found)


def _reads_tie(model: Any) -> bool:
    """True if a ``forward`` of the model reads the configuration's ``tie_word_embeddings``."""
    import inspect

    classes = {type(module) for module in model.modules() if hasattr(module, "all_tied_weights_keys")}
    for item in classes:
        with contextlib.suppress(OSError, TypeError):
            if "config.tie_word_embeddings" in inspect.getsource(item.forward):
                return True
    return False
