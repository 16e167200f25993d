"""A model as clients know it: a name, and what runs under it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rmlora.tasks import Task
from rmlora.text_pair import InputForm
from rmlora_deploy.bundles.manifest import AdapterEntry
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName

if TYPE_CHECKING:
    from rmlora_deploy.serving.model_runner import ModelRunner

__all__ = ["ServedModel"]


@dataclass(frozen=True)
class ServedModel:
    """A model that clients can name: a bundle, or one of its adapters."""

    id: str
    """The name."""
    runner: ModelRunner
    """Computes its rows."""
    adapter: AdapterName | None
    """What the adapter is registered under in the runner's session: a string if it belongs to the bundle, an
    :class:`AdapterKey` if it was loaded at run time. None for the bundle itself: the base, or what was merged into it."""
    labels: tuple[str, ...]
    max_length: int | None
    """Tokens that texts are truncated to."""
    rank: int | None = None
    nbytes: int = 0
    """Size of an adapter's file."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    function_to_apply: str | None = None
    """What turns scores into answers; None for vectors."""
    input_form: InputForm | None = None
    """What its adapter was trained on; None if that is not recorded, or for images."""
    no_answer: bool | None = None
    """Whether its adapter learned that a question may have no answer; None if that is not recorded, or for other tasks."""
    threshold: float | None = None
    """Probability from which a label applies, where several may; None is one half."""
    file: Path | None = None
    """The file that the server wrote for it; None if it belongs to a bundle."""
    sha256: str = ""
    """SHA-256 of that file."""

    @classmethod
    def of_entry(cls, name: str, runner: ModelRunner, adapter: AdapterName, entry: AdapterEntry) -> ServedModel:
        """Return the model that an adapter of a bundle makes.

        Args:
            name: that clients use.
            runner: of the bundle.
            adapter: what it is registered under in the runner's session.
            entry: of the bundle's manifest.
        """
        return cls(
            name, runner, adapter, tuple(entry.labels), entry.max_length, entry.rank, entry.bytes,
            function_to_apply=entry.function_to_apply, input_form=runner.bundle.task.inputs.form or entry.input_form,
            no_answer=entry.no_answer, threshold=entry.threshold,
        )  # fmt: skip

    @property
    def task(self) -> Task:
        """Task of the model."""
        return self.runner.bundle.task
