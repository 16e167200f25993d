"""From a module path of the running model to the tensor's name in the base checkpoint.

A task model wraps the bare encoder under its base-model prefix (``bert.encoder…``) while the checkpoint of
the encoder has no prefix, and the other way round; so names agree only up to a leading part. On top of that
transformers 5 renamed the modules of the ViT family in memory and still stores the names of transformers 4.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import product

from rmlora.errors import AdapterError

__all__ = ["find_tensor", "find_tensors", "infer_prefix"]


_STORED_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)layers\.(?=\d)", r"\1encoder.layer."),
    (r"attention\.q_proj\b", "attention.attention.query"),
    (r"attention\.k_proj\b", "attention.attention.key"),
    (r"attention\.v_proj\b", "attention.attention.value"),
    (r"attention\.o_proj\b", "attention.output.dense"),
    (r"mlp\.fc1\b", "intermediate.dense"),
    (r"mlp\.fc2\b", "output.dense"),
)
"""transformers 5's module names → what checkpoints of the ViT family store; DINOv2 uses only some of them."""


def find_tensor(parameter: str, names: Collection[str]) -> str | None:
    """Return the checkpoint name of ``parameter`` (a module path with ``.weight`` or ``.bias``), or None.

    An exact match wins; otherwise the one name that equals ``parameter`` after leading parts are removed
    from either. Of several, the longest agreement wins.
    """
    for spelling in _spellings(parameter):
        if name := _find_spelled(spelling, names):
            return name
    return None


def _find_spelled(parameter: str, names: Collection[str]) -> str | None:
    if parameter in names:
        return parameter
    parts = parameter.split(".")
    for drop in range(1, len(parts) - 1):  # the checkpoint lacks the prefix: keep at least module.weight
        shorter = ".".join(parts[drop:])
        if shorter in names:
            return shorter
    longer = [name for name in names if name.endswith("." + parameter)]
    return longer[0] if len(longer) == 1 else None


def _spellings(parameter: str) -> Iterator[str]:
    """Yield ``parameter`` as it stands, then with every combination of stored spellings."""
    rules = [rule for rule in _STORED_SPELLINGS if re.search(rule[0], parameter)]
    for chosen in product((False, True), repeat=len(rules)):
        spelled = parameter
        for (pattern, stored), apply in zip(rules, chosen, strict=True):
            spelled = re.sub(pattern, stored, spelled) if apply else spelled
        yield spelled


def find_tensors(parameters: Iterable[str], names: Collection[str], *, where: str) -> dict[str, str]:
    """Map every parameter to its checkpoint name.

    Raises:
        AdapterError: one is not there; the message names it and the nearest candidates.
    """
    found: dict[str, str] = {}
    for parameter in parameters:
        name = find_tensor(parameter, names)
        if name is None:
            last = parameter.split(".")[-2:]
            near = sorted(n for n in names if n.split(".")[-2:] == last)[:4]
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise AdapterError(
                f"The adapter changes '{parameter}', which {where} does not have{hint}: this is not the base it was made for."
            )
        if name in found.values():
            raise AdapterError(f"Two modules of the adapter lead to the same tensor '{name}' of {where}.")
        found[parameter] = name
    return found


def infer_prefix(found: dict[str, str]) -> str:
    """Return what the running model puts before the checkpoint's names (``"bert."``), or an empty string."""
    for parameter, name in found.items():
        for spelling in _spellings(parameter):
            if spelling.endswith("." + name):
                return spelling.removesuffix(name)
    return ""
