"""Computes the weighted sum of adapters, ``Σ wᵢ · sᵢ Bᵢ Aᵢ``, exactly, by concatenating their rank directions.

``[w₁s₁B₁ w₂s₂B₂ …] · [A₁; A₂; …]`` equals the sum, and its rank is the sum of the ranks; nothing is approximated.
:mod:`rmlora_converters.compress` finds the smallest rank that holds the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import AdapterError, ConfigError
from rmlora.fingerprint import differing_weight
from rmlora.wording import counted
from rmlora_converters.rebuild import with_factors, with_modules

__all__ = ["mix_adapters"]


def mix_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    head: int | None = None,
    allow_base_mismatch: bool = False,
) -> Adapter:
    """Return the weighted sum of ``adapters``; masked directions are left out. Texts are cut to the longest of their lengths.

    Args:
        adapters: two or more.
        weights: one per adapter; zero leaves out the update of that adapter.
        head: index of the adapter that supplies modules_to_save (heads), task, labels, pooling, and the form of inputs and prompts of the
            result; may be None if all adapters have the same ones.
        allow_base_mismatch: mix the adapters even if they were made for different bases.

    Raises:
        ConfigError: there is not one finite weight per adapter, or heads, poolings or forms of inputs differ and ``head`` is None.
        AdapterError: the adapters are for different bases, a module has different shapes in two of them, or no direction
            is left.
    """
    if len(weights) != len(adapters):
        raise ConfigError(
            f"{counted(len(adapters), 'adapter')} {'needs' if len(adapters) == 1 else 'need'} "
            f"{counted(len(adapters), 'weight')}, not {len(weights)}: change --weights."
        )
    if not all(np.isfinite(weights)):
        raise ConfigError("A weight is not a finite number: change --weights.")
    base_weights: dict[str, str] = {}
    for adapter in adapters:
        other = differing_weight(base_weights, adapter.base_weights)
        if other and not allow_base_mismatch:
            raise AdapterError(
                f"{adapter.source} was made for another base than {adapters[0].source} (the weight of '{other}' differs), "
                "so their sum fits neither base: pass --allow-base-mismatch to mix them anyway."
            )
        base_weights.update(adapter.base_weights)
    owner = _head_owner(adapters, head)
    lengths = [length for adapter in adapters if (length := adapter.trained_length) is not None]
    read = {"max_length": max(lengths)} if lengths else {}
    owner = replace(owner, metadata={**owner.metadata, "base_weights": base_weights, **read})
    parts: dict[str, list[tuple[LoraModule, float]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, module in adapter.modules.items():
            if weight and module.active_rank:
                parts.setdefault(path, []).append((module, weight))
    mixed = with_modules(owner, [_sum(path, parts[path]) for path in sorted(parts)])
    return replace(mixed, source=" + ".join(f"{w:g}·{a.source}" for a, w in zip(adapters, weights, strict=True)))


def _sum(path: str, parts: Sequence[tuple[LoraModule, float]]) -> LoraModule:
    first = parts[0][0]
    for module, _ in parts[1:]:
        if (module.kind, module.A.shape[1], module.B.shape[0]) != (first.kind, first.A.shape[1], first.B.shape[0]):
            raise AdapterError(
                f"'{path}' has {first.A.shape[1]} inputs and {first.B.shape[0]} outputs in one adapter and "
                f"{module.A.shape[1]} and {module.B.shape[0]} in another: they were made for different bases."
            )
    A = np.concatenate([module.A for module, _ in parts])  # noqa: N806 - the paper's symbol
    B = np.concatenate([np.float32(weight * module.scale) * module.B for module, weight in parts], axis=1)  # noqa: N806
    return with_factors(first, A, B)


def _head_owner(adapters: Sequence[Adapter], head: int | None) -> Adapter:
    if head is not None:
        return adapters[head]
    first = adapters[0]
    for other in adapters[1:]:
        same = first.modules_to_save.keys() == other.modules_to_save.keys() and all(
            np.array_equal(value, other.modules_to_save[name]) for name, value in first.modules_to_save.items()
        )
        if not same:
            raise ConfigError(
                f"{first.source} and {other.source} have different heads, and heads cannot be added: choose the one "
                "to keep with --head-from."
            )
    asked = {adapter.prompt_format: adapter for adapter in adapters if adapter.prompt_format is not None}
    if len(asked) > 1:
        raise ConfigError(
            f"{asked['chat'].source} was trained on chats and {asked['raw'].source} on prompts as they stand (--raw): choose "
            "whose way of asking their sum keeps with --head-from."
        )
    read = {adapter.input_form: adapter for adapter in adapters if adapter.input_form is not None}
    if len(read) > 1:
        raise ConfigError(
            f"{read['pair'].source} was trained on pairs of texts and {read['text'].source} on single texts: choose whose inputs "
            "their sum takes with --head-from."
        )
    pooled = {adapter.pooling: adapter for adapter in adapters if adapter.pooling is not None}
    if len(pooled) > 1:
        (first_way, one), (second_way, other), *_ = pooled.items()
        raise ConfigError(
            f"{one.source} was trained with the pooling {first_way} and {other.source} with {second_way}: choose whose vectors their "
            "sum makes with --head-from."
        )
    return next(iter([*asked.values(), *read.values(), *pooled.values()]), first)
