"""Running a bundle's inputs through its graph, batch by batch, whatever kind of bundle it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterEntry, Manifest
from rmlora_deploy.runtime import AdapterChoice, AdapterRef
from rmlora_deploy.runtime.adapters.adapter_ref import resolve_choices
from rmlora_deploy.runtime.outputs import graph_logits

__all__ = ["BundleRunner"]

AnyArray = npt.NDArray[Any]


class BundleRunner:
    """An opened bundle: merged, or with branches whose rows name their adapters.

    Args:
        bundle: what to run.
        provider: execution provider.
        options: ``threads``; with branches also ``max_active_adapters``, ``rows`` and ``max_concurrent_runs`` of
            :class:`rmlora_deploy.runtime.AdapterSession`.

    Raises:
        InputError: the graph cannot be opened.
        ProviderError: the provider is absent or does not start.
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu", **options: Any) -> None:
        self.bundle = bundle
        self.preprocessor = bundle.preprocessor()
        self.session = bundle.adapter_session(provider, **options) if bundle.mode == "branches" else None
        self._merged = graph_logits(bundle.session(provider, **options)) if self.session is None else None

    def run(
        self, inputs: Sequence[Any], adapters: AdapterChoice | Sequence[AdapterChoice], batch_size: int
    ) -> Iterator[tuple[AdapterEntry | Manifest, AnyArray]]:
        """Yield for every input, in order, what it was computed with and its output ``[labels]`` or ``[width]``.

        Raises:
            InputError: an input or an adapter cannot be used.
            ConfigError: the choices do not fit the inputs, or the bundle is merged and there is nothing to choose.
        """
        refs = resolve_choices(adapters, len(inputs))
        if self.session is None and any(refs):
            raise ConfigError(f"{self.bundle.path} has its adapter merged: there is none to choose.")
        entries = [self.bundle.adapter(ref.name) if ref else self.bundle.manifest for ref in refs]
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            batch = self.preprocessor(inputs[part], lengths=[entry.max_length for entry in entries[part]])
            yield from zip(entries[part], self._outputs(batch, refs[part]), strict=True)

    def _outputs(self, batch: dict[str, AnyArray], refs: Sequence[AdapterRef | None]) -> Sequence[AnyArray]:
        if self.session is not None:
            return self.session.run(batch, refs)
        assert self._merged is not None  # noqa: S101 - one of the two is open
        return list(np.asarray(self._merged(batch)))
