"""Opens a graph with branches again, with one adapter merged into its weights, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.file_identity import ChangedFileError, Status, path_status
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.passes.specialize import specialize
from rmlora_deploy.runtime.providers import create_session

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Specializer"]


class Specializer:
    """Makes sessions for single adapters from the files that a session was opened from.

    Args:
        model: the graph with branches, about to be opened.
        provider: execution provider of the sessions.
        options: of :func:`~rmlora_deploy.runtime.providers.create_session`.
    """

    def __init__(self, model: Path, provider: str, **options: Any) -> None:
        self._model, self._provider, self._options = model, provider, options
        self._statuses = _statuses(model)

    def open(self, lora_inputs: LoraInputs, arrays: Mapping[str, npt.NDArray[np.generic]]) -> ort.InferenceSession:
        """Return a session of the graph without branches, with the adapter in ``arrays`` merged into its weights.

        Args:
            lora_inputs: of the graph.
            arrays: LoRA input → array with ``rows`` = 1; empty for the base.

        Raises:
            ChangedFileError: the graph's files have changed since.
            ConfigError: the weights are quantized in a way that nothing can be merged into.
        """
        model = load_model(self._model)
        specialize(model, lora_inputs, arrays)
        with tempfile.TemporaryDirectory() as directory:
            save_model(model, path := Path(directory) / "model.onnx")
            if _statuses(self._model) != self._statuses:
                raise ChangedFileError(
                    f"{self._model} has changed since it was opened: open it again to specialize it."
                )
            return create_session(path, self._provider, **self._options)


def _statuses(model: Path) -> list[Status | None]:
    """Return what changes whenever a graph file or its external weights do."""
    files = (model, model.with_name(f"{model.name}.data"))
    return [path_status(file) if file.exists() else None for file in files]
