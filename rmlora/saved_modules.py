"""Checks that an adapter holds the modules that its configuration says were trained and saved whole."""

from __future__ import annotations

from collections.abc import Iterable

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError
from rmlora.renamed_modules import in_memory_names
from rmlora.stored_weights import StoredWeights

__all__ = ["check_saved_modules"]


def check_saved_modules(adapter: Adapter, weights: StoredWeights) -> None:
    """Check that every parameter of the modules in ``modules_to_save`` which the base stores is in the adapter too.

    A name in the list stands for all modules whose path ends with it, as in PEFT's ``_set_trainable``. PEFT lists some that
    only other models have.

    Raises:
        AdapterError: the file lacks such a parameter, so the base's own, untrained one would be used in its place.
    """
    listed = adapter.peft_config.get("modules_to_save") or ()
    names = [listed] if isinstance(listed, str) else list(listed)
    if not names:
        return
    renamed = in_memory_names(adapter, weights)
    for parameter in _parameters(weights):
        name = next((name for name in names if _is_part(parameter, name)), None)
        if name is None or any(parameter.startswith(f"{path}.") for path in renamed.modules):
            continue
        copies = (other for other in weights.shares_with(parameter) if _is_part(other, name))  # of which PEFT saves one
        if {parameter, *copies} & renamed.modules_to_save.keys():
            continue
        if weights.find_shared(parameter):
            other = (
                ""
                if weights.layout is not None
                else ", or made for a class of models that lacks it, which cannot be told without torch"
            )
            raise AdapterError(
                f"{adapter.source} says that '{name}' was trained and saved whole (modules_to_save), but its file has no "
                f"'{parameter}', which the base has: the adapter is incomplete{other}. Save it again with PEFT's "
                "save_pretrained."
            )


def _parameters(weights: StoredWeights) -> Iterable[str]:
    """Return the names of the model's parameters; without torch those that are stored, and a tied output layer's."""
    if weights.layout is not None:
        return weights.layout.shapes
    tie = weights.checkpoint.tied_output
    return [*weights.checkpoint.tensors, *([f"{tie.layer}.weight"] if tie else [])]


def _is_part(parameter: str, name: str) -> bool:
    """Return True if ``parameter`` is of a module whose path ends with ``name``."""
    path = parameter.rpartition(".")[0]
    while path:
        if path.endswith(name):
            return True
        path = path.rpartition(".")[0]
    return False
