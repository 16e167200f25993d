"""What every opened bundle does, merged or with branches: it runs inputs through its graph, batch by batch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError
from rmlora.inputs import Arrays
from rmlora.text_pair import check_form
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterEntry, Manifest
from rmlora_deploy.inference.input_lists import check_inputs
from rmlora_deploy.runtime import AdapterChoice, AdapterRef, AdapterSession
from rmlora_deploy.runtime.adapters.adapter_ref import resolve_choices
from rmlora_deploy.runtime.graph_logits import graph_logits

__all__ = ["OpenedBundle"]

AnyArray = npt.NDArray[Any]


class OpenedBundle(ABC):
    """A bundle opened on one execution provider; its subclasses say what the outputs mean.

    All methods may be called from any number of threads.
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu", **options: Any) -> None:
        """Open the graph of ``bundle``; arguments and errors as :meth:`open`."""
        self._check_task(bundle)
        self.bundle = bundle
        self._preprocessor = bundle.preprocessor()
        varies = bundle.task.inputs.varies_in_length
        self._reading: AbstractContextManager[Any] = threading.Lock() if varies else nullcontext()
        """Held while texts are read: a tokenizer keeps in itself to how many tokens it cuts them. Image processors do not change."""
        self.session: AdapterSession | None = None
        """Switches the adapters of a bundle with branches; None for a merged one."""
        if bundle.mode == "branches":
            self.session = bundle.adapter_session(provider, **options)
        else:
            self._merged = graph_logits(bundle.session(provider, **options))

    @classmethod
    def open(cls, path: Path | str, *, provider: str = "cpu", trust_remote_code: bool = False, **options: Any) -> Self:
        """Open a bundle.

        Args:
            path: bundle directory, merged or with branches.
            provider: execution provider.
            trust_remote_code: run code that comes with the tokenizer.
            options: ``threads``; with branches also ``max_active_adapters``, ``rows`` and ``max_concurrent_runs`` of
                :class:`rmlora_deploy.runtime.AdapterSession`.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: the bundle's outputs are of another kind.
            ProviderError: the provider is not available or does not start.
        """
        return cls(Bundle.open(path, trust_remote_code=trust_remote_code), provider, **options)

    @staticmethod
    @abstractmethod
    def _check_task(bundle: Bundle) -> None:
        """Raise :class:`ConfigError` if the outputs of ``bundle`` are not of this class's kind."""

    def _run(
        self, inputs: Sequence[Any], adapters: AdapterChoice | Sequence[AdapterChoice], batch_size: int
    ) -> Iterator[tuple[AdapterEntry | Manifest, Arrays, AnyArray]]:
        """Yield for every input, in order, what it was computed with, its row, and its output.

        Outputs are ``[labels]`` or ``[width]``; of tokens they are ``[tokens, labels]``, those of padding after the row's own.

        Raises:
            InputError: an input or an adapter cannot be used.
            ConfigError: the choices do not fit the inputs, or the bundle is merged and there is nothing to choose.
        """
        check_inputs(inputs, batch_size)
        refs = resolve_choices(adapters, len(inputs))
        if self.session is None and any(refs):
            raise ConfigError(f"{self.bundle.path} has its adapter merged: there is none to choose.")
        for number, (value, ref) in enumerate(zip(inputs, refs, strict=True), 1):
            name = ref.name if ref else None
            check_form(value, self.bundle.input_form(name), number=number, name=name or self.bundle.path.name)
        entries = [self.bundle.adapter(ref.name) if ref else self.bundle.manifest for ref in refs]
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            with self._reading:
                rows = self._preprocessor.rows(inputs[part], lengths=[entry.max_length for entry in entries[part]])
            outputs = self._outputs(self._preprocessor.collate(rows), refs[part])
            yield from zip(entries[part], rows, outputs, strict=True)

    def _outputs(self, batch: dict[str, AnyArray], refs: Sequence[AdapterRef | None]) -> Sequence[AnyArray]:
        return list(np.asarray(self._merged(batch))) if self.session is None else self.session.run(batch, refs)
