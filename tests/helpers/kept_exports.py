"""Keeps the graphs of torch's ONNX exporter: an export takes seconds, and tests export the same few tiny models again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import onnx
import onnx_ir as ir
import torch

__all__ = ["KeptExports"]

_LARGEST = 1 << 20
"""Parameters of the largest model whose graph is kept; graphs of real ones would fill the memory."""
_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
_SAME = "custom_translation_table"
"""Argument that all exports share: functions that are made anew each time."""
_PATHS = ("_name_or_path", "name_or_path")
"""Attributes that say where a model was read from, which no graph depends on."""


@dataclass(frozen=True)
class KeptProgram:
    """What the exporter returned, as far as it is read."""

    model: ir.Model


class KeptExports:
    """Stands in for ``torch.onnx.export``.

    The first export of a model with some arguments is the real one. It and later ones get copies of its graph if the model and
    the arguments are equal in everything that they hold: every tensor, every setting, every class and function.
    """

    def __init__(self, export: Callable[..., Any]) -> None:
        self._export = export
        self._graphs: dict[str, bytes] = {}
        self._held: dict[int, Any] = {}
        """Objects that count by identity, by address; while they live, no other has it."""

    def __call__(self, module: Any, *words: Any, **options: Any) -> Any:
        """Export ``module``, or copy its graph; an export that fails is not kept."""
        large = sum(value.numel() for value in module.parameters()) > _LARGEST
        if large or words or "f" in options or not options.get("dynamo"):
            return self._export(module, *words, **options)
        contents = _Contents(self._held)
        contents.add((module, {name: value for name, value in options.items() if name != _SAME}))
        key = contents.digest()
        if key not in self._graphs:
            program = self._export(module, **options)
            if program is None:
                return None
            self._graphs[key] = ir.to_proto(program.model).SerializeToString()
        return KeptProgram(ir.from_proto(onnx.load_from_string(self._graphs[key])))


class _Contents:
    """A hash of all that an object holds, through attributes and containers; classes and functions count by identity."""

    def __init__(self, held: dict[int, Any]) -> None:
        self._hash = hashlib.sha256()
        self._held = held
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []

    def digest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._word(type(value).__name__, repr(value))
        elif id(value) in self._seen:
            self._word("again", str(self._seen[id(value)]))  # tied weights are one object
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._add_parts(value)

    def _add_parts(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._word(str(value.dtype), str(value.shape), str(value.stride()))
            self._hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            self._add_all(type(value), [part for pair in value.items() for part in pair])
        elif isinstance(value, Sequence | AbstractSet):
            self._add_all(type(value), sorted(value, key=repr) if isinstance(value, AbstractSet) else list(value))
        elif isinstance(value, MethodType):
            self._add_all(MethodType, [value.__func__, value.__self__])
        elif isinstance(value, partial):
            self._add_all(partial, [value.func, value.args, value.keywords])
        elif isinstance(value, type | FunctionType) or not hasattr(value, "__dict__"):
            self._identity(value)
        else:
            self._add_all(type(value), [pair for pair in vars(value).items() if pair[0] not in _PATHS])

    def _add_all(self, kind: type, parts: Sequence[Any]) -> None:
        self._identity(kind)
        self._word(str(len(parts)))
        for part in parts:
            self.add(part)

    def _identity(self, value: Any) -> None:
        self._held[id(value)] = value
        self._word("is", str(id(value)))

    def _word(self, *words: str) -> None:
        self._hash.update("\0".join((*words, "")).encode())
