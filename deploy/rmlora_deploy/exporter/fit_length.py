"""How much of a text a bundle reads, where no adapter records it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rmlora.adapter import Adapter
from rmlora.longest_readable import longest_readable
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.processor import trained_length
from rmlora_deploy.bundles.reference import reference_inputs

__all__ = ["fit_length"]


def fit_length(bundle: Bundle, adapters: Iterable[Adapter]) -> None:
    """Lower the length that ``bundle`` cuts texts to, to what its graph computes.

    Without a record of the training it comes from the tokenizer, many of which have no limit, and then the first long text would
    fail. A length of every adapter's training is taken as it is.

    Args:
        bundle: with its graph and reference inputs written.
        adapters: of the bundle.
    """
    wanted = bundle.manifest.max_length
    if wanted is None or all(trained_length(adapter) for adapter in adapters):
        return
    session = bundle.session()
    names = {item.name for item in session.get_inputs()}
    first = reference_inputs(bundle.path / REFERENCE_FILE)[0]
    sample = {name: array[:1] for name, array in first.items() if name in names}
    known = min(array.shape[1] for array in sample.values())

    def computes(tokens: int) -> bool:
        row = {name: np.resize(array, (1, tokens)) for name, array in sample.items()}
        try:
            session.run(None, row)
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no common class that can be imported
            return False
        return True

    bundle.manifest.max_length = longest_readable(computes, known, wanted)
