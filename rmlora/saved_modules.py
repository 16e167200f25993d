"""Checks that an adapter holds the modules that its configuration says were trained and saved whole."""

from __future__ import annotations

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError
from rmlora.stored_weights import StoredWeights

__all__ = ["check_saved_modules"]


def check_saved_modules(adapter: Adapter, weights: StoredWeights) -> None:
    """Check every name in ``modules_to_save`` that the model has; PEFT lists some that only other models have.

    Raises:
        AdapterError: the file has no tensor of such a module, so the base's own, untrained one would be used in its place.
    """
    listed = adapter.peft_config.get("modules_to_save") or ()
    changed = [*adapter.modules_to_save, *(f"{path}." for path in adapter.modules)]
    parameters = weights.layout.shapes if weights.layout is not None else weights.checkpoint.tensors
    for name in [listed] if isinstance(listed, str) else listed:
        part = f".{name}."
        if any(part in f".{parameter}" for parameter in changed):
            continue
        if any(part in f".{parameter}" and weights.find_shared(parameter) for parameter in parameters):
            raise AdapterError(
                f"{adapter.source} says that '{name}' was trained and saved whole (modules_to_save), but its file has no tensor of "
                "it: the adapter is incomplete, save it again with PEFT's save_pretrained."
            )
