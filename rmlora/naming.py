"""Finding a parameter of the model in memory among the tensor names of the base checkpoint, by the names alone.

:mod:`rmlora.stored_weights` uses this where transformers and the package do not say which name is which.

A task model puts the encoder under a prefix (``bert.encoder…``) that the encoder's own checkpoint does not have, or the
checkpoint has one and the model does not; so names may differ in their leading parts. In addition, transformers 5 renamed
the modules of the ViT family in memory but still stores them under the names of transformers 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import product

from rmlora.errors import AdapterError
from rmlora.wording import nearest

__all__ = ["find_tensor", "find_tensors", "former_names", "infer_prefix"]


def _swin_projection(match: re.Match[str]) -> str:
    return "attention.self." + {"q": "query", "k": "key", "v": "value"}[match[1]]


_STORED_SPELLINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(^|\.)layers\.(?=\d)", r"\1encoder.layer."),
    (r"attention\.q_proj\b", "attention.attention.query"),
    (r"attention\.k_proj\b", "attention.attention.key"),
    (r"attention\.v_proj\b", "attention.attention.value"),
    (r"attention\.o_proj\b", "attention.output.dense"),
    (r"mlp\.fc1\b", "intermediate.dense"),
    (r"mlp\.fc2\b", "output.dense"),
    (r"LayerNorm\.weight$", "LayerNorm.gamma"),
    (r"LayerNorm\.bias$", "LayerNorm.beta"),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"attention\.([qkv])_proj\b", _swin_projection),
    (r"^lm_head\.weight$", "embed_out.weight"),
)
"""Names of transformers 5 → names stored by transformers 4 and older: of the ViT family (DINOv2 uses only some of them), Swin,
GPT-NeoX, and of layers converted from TensorFlow. :mod:`rmlora.transformers_layout` knows all of them, where torch is."""


def find_tensor(parameter: str, names: Collection[str]) -> str | None:
    """Return the checkpoint name of ``parameter`` (a module path plus ``.weight`` or ``.bias``), or None.

    An exact match wins. Otherwise leading parts of ``parameter`` are removed until a name matches, and last, leading parts
    of the names, where the match must be unique.
    """
    for spelling in _spellings(parameter):
        if name := _find_spelled(spelling, names):
            return name
    return None


def former_names(path: str) -> list[str]:
    """Return the names that older versions of transformers gave to the module at ``path``; mostly none."""
    return [name for name in dict.fromkeys(_spellings(path)) if name != path]


def _find_spelled(parameter: str, names: Collection[str]) -> str | None:
    if parameter in names:
        return parameter
    parts = parameter.split(".")
    for drop in range(1, len(parts) - 1):  # without the model's prefix; at least module.weight remains
        shorter = ".".join(parts[drop:])
        if shorter in names:
            return shorter
    longer = [name for name in names if name.endswith("." + parameter)]
    return longer[0] if len(longer) == 1 else None


def _spellings(parameter: str) -> Iterator[str]:
    """Yield ``parameter`` unchanged, then with every combination of the stored spellings."""
    rules = [rule for rule in _STORED_SPELLINGS if re.search(rule[0], parameter)]
    for chosen in product((False, True), repeat=len(rules)):
        spelled = parameter
        for (pattern, stored), apply in zip(rules, chosen, strict=True):
            spelled = re.sub(pattern, stored, spelled) if apply else spelled
        yield spelled


def find_tensors(parameters: Iterable[str], names: Collection[str], *, where: str) -> dict[str, str]:
    """Map every parameter to its checkpoint name.

    Raises:
        AdapterError: one is missing, or two share a tensor; the message names it and the nearest candidates.
    """
    found: dict[str, str] = {}
    for parameter in parameters:
        name = find_tensor(parameter, names)
        if name is None:
            last = parameter.split(".")[-2:]
            near = sorted(n for n in names if n.split(".")[-2:] == last)[:4]
            hint = f"; {nearest(near)}" if near else ""
            raise AdapterError(
                f"The adapter changes '{parameter}', which {where} does not have{hint}: this is not the base it was made for."
            )
        if name in found.values():
            raise AdapterError(f"Two modules of the adapter match the same tensor '{name}' of {where}.")
        found[parameter] = name
    return found


def infer_prefix(found: dict[str, str]) -> str:
    """Return the prefix of the model in memory that checkpoint names lack (``"bert."``), or an empty string."""
    for parameter, name in found.items():
        for spelling in _spellings(parameter):
            if spelling.endswith("." + name):
                return spelling.removesuffix(name)
    return ""
