"""Runs of a decoder on the same rows: their memory and adapters are bound once, and what changes is written into place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora_converters.graph.passes.logits_start import LOGITS_START
from rmlora_deploy.runtime.decoder.key_values import KeyValues
from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

    from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["BoundRun"]

AnyArray = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]


class BoundRun:
    """An IOBinding for some rows of a batch. Runs with equally many tokens use the same arrays again.

    Args:
        session: the opened decoder.
        graph: the session that computes the rows.
        values: keys and values of the batch.
        rows: places of the rows in it.
        lora: LoRA input → array ``[rows, …]`` or ``[1, …]``.
    """

    def __init__(
        self,
        session: DecoderSession,
        graph: ort.InferenceSession,
        values: KeyValues,
        rows: slice,
        lora: Mapping[str, AnyArray],
    ) -> None:
        self._session, self._graph = session, graph
        self._binding = graph.io_binding()
        self._binding.bind_output(session.layout.logits)  # first, so that it is the first of the outputs
        self._alive = values.bind(self._binding, rows)
        """What is bound: ONNX Runtime uses the memory of these."""
        for name, array in lora.items():
            self._alive.append(self._bind(name, array))
        self._fed: dict[str, AnyArray] = {}
        self._fed_values: dict[str, ort.OrtValue] = {}
        self._shape: tuple[tuple[int, ...], int] | None = None
        """Shape of the ids, and first position of the logits, of the last run."""
        self._logits: AnyArray | None = None
        """Where ONNX Runtime writes the logits; None in the first run of a shape, which shows how many there are."""

    def __call__(self, ids: AnyArray, lengths: AnyArray, start: int) -> Logits:
        """Return float32 logits ``[rows, positions, vocabulary]`` of new tokens.

        Args:
            ids: int64 ``[rows, n]``.
            lengths: tokens of each row, the new ones included.
            start: first position whose logits are returned.

        Raises:
            InputError: the graph cannot be run.
        """
        layout, count = self._session.layout, ids.shape[1]
        try:
            self._prepare(ids.shape, start)
            self._feed(layout.input_ids, ids)
            self._feed(layout.attention_mask, (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))
            if self._session.takes_positions:
                self._feed(layout.position_ids, lengths[:, None] - count + np.arange(count))
            if self._session.chooses_logits:
                self._feed(LOGITS_START, np.array([start], np.int64))
            self._graph.run_with_iobinding(self._binding)
            logits = self._read()
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The model cannot be run on this text") from None
        return logits if self._session.chooses_logits else logits[:, start:]

    def _prepare(self, shape: tuple[int, ...], start: int) -> None:
        """Let ONNX Runtime allocate the logits if the last run had others."""
        if self._shape != (shape, start):
            self._shape, self._logits = (shape, start), None
            self._binding.bind_output(self._session.layout.logits)

    def _feed(self, name: str, array: AnyArray) -> None:
        known = self._fed.get(name)
        if known is not None and known.shape == array.shape:
            known[...] = array
            return
        self._fed[name] = np.ascontiguousarray(array, np.int64)
        self._fed_values[name] = self._bind(name, self._fed[name])

    def _bind(self, name: str, array: AnyArray) -> ort.OrtValue:
        """Bind an array as an input; return what must stay alive with the binding."""
        import onnxruntime as ort

        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(name, value)  # bind_cpu_input refuses optional inputs
        return value

    def _read(self) -> Logits:
        """Return a copy of the logits, because the next run writes over them."""
        import onnxruntime as ort

        if self._logits is None:
            found = np.asarray(self._binding.get_outputs()[0].numpy())
            self._logits = np.empty_like(found)
            self._logits_value = ort.OrtValue.ortvalue_from_numpy(self._logits)
            self._binding.bind_ortvalue_output(self._session.layout.logits, self._logits_value)
            return found.astype(np.float32)
        return self._logits.astype(np.float32)
