"""Rows that a decoder continues together, each with its own length and adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora_converters.graph.passes.logits_start import LOGITS_START
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterRef
from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

    from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["DecoderBatch"]

AnyArray = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]

_CHUNK = 1024
"""Tokens of a prompt that are read in one run."""
_CAPACITY_STEP = 64
"""Capacities are multiples of this."""


class DecoderBatch:
    """A batch in progress: prompts are read row by row, then all rows that are not finished advance together.

    A row is read alone, so its first token is bit-equal to what it is alone. Rows that advance together occupy the first
    places of the memory: when one finishes, the last one takes its place.

    Args:
        session: the opened decoder.
        prompts: tokens of every row.
        adapters: adapter of every row; None for the base model.
        new_tokens: tokens that a row may be continued by.

    Raises:
        InputError: a prompt is empty, has a token that the model does not know, or is too long; or an adapter cannot be used.
    """

    def __init__(
        self,
        session: DecoderSession,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[AdapterRef | None],
        *,
        new_tokens: int,
    ) -> None:
        self._session = session
        self._prompts = [_checked(tokens, session, new_tokens, number) for number, tokens in enumerate(prompts, 1)]
        self._refs = list(adapters)
        longest = max(len(tokens) for tokens in self._prompts) + new_tokens
        self._values = session.key_values(len(prompts), -(-longest // _CAPACITY_STEP) * _CAPACITY_STEP)
        self._lengths = np.array([len(tokens) for tokens in self._prompts])
        """Tokens of each place that were read."""
        self.rows = list(range(len(prompts)))
        """Row number at each place that still advances."""
        self._graph, takes_arrays = session.session_for(self._refs)
        self._arrays = session.adapters.arrays if takes_arrays else _no_arrays
        self._lora = session.adapters.stacked(self._refs) if takes_arrays else {}
        self._binding: ort.IOBinding | None = None
        """For advancing the rows that are left; None after their number changed."""
        self._alive: list[ort.OrtValue] = []
        """What is bound: ONNX Runtime uses the memory of these."""

    def read(self, row: int, *, start: int = -1, chunk: int = _CHUNK) -> Logits:
        """Read the prompt of a row and return logits ``[positions, vocabulary]``.

        Args:
            row: number of the row; every row is read once, before the first :meth:`advance`.
            start: first position whose logits are returned, of the last ``chunk`` tokens.
            chunk: tokens read in one run.

        Raises:
            InputError: the graph cannot be run.
        """
        tokens, place = self._prompts[row], slice(row, row + 1)
        binding, _alive = self._bind(place, self._arrays(self._refs[row]))
        logits: Logits = np.empty((0, 0), np.float32)
        for done in range(0, len(tokens), chunk):
            part = tokens[done : done + chunk]
            logits = self._run(binding, part[None], np.array([done + len(part)]), start)[0]
        return logits

    def advance(self, tokens: Sequence[int]) -> Logits:
        """Append one token to every row that is left, and return the logits ``[rows, vocabulary]`` after it.

        Args:
            tokens: one for each of :attr:`rows`.

        Raises:
            InputError: the graph cannot be run.
        """
        count = len(self.rows)
        if self._binding is None:
            lora = {name: array[:count] for name, array in self._lora.items()}
            self._binding, self._alive = self._bind(slice(0, count), lora)
        self._lengths[:count] += 1
        ids = np.array(tokens, np.int64)[:, None]
        return self._run(self._binding, ids, self._lengths[:count], -1)[:, -1]

    def finish(self, place: int) -> None:
        """Take the row at ``place`` out; the last row moves there."""
        last = len(self.rows) - 1
        if place != last:
            self._values.move(last, place)
            self._lengths[place] = self._lengths[last]
            self.rows[place] = self.rows[last]
            for array in self._lora.values():
                if len(array) > 1:
                    array[place] = array[last]
        self.rows.pop()
        self._binding = None

    def _bind(self, rows: slice, lora: Mapping[str, AnyArray]) -> tuple[ort.IOBinding, list[ort.OrtValue]]:
        """Return a binding with the rows' keys, values and adapters, and what must stay alive with it."""
        import onnxruntime as ort

        binding = self._graph.io_binding()
        binding.bind_output(self._session.layout.logits)  # first, so that it is the first of the outputs
        bound = self._values.bind(binding, rows)
        for name, array in lora.items():
            bound.append(ort.OrtValue.ortvalue_from_numpy(array))
            binding.bind_ortvalue_input(name, bound[-1])
        return binding, bound

    def _run(self, binding: ort.IOBinding, ids: AnyArray, lengths: AnyArray, start: int) -> Logits:
        """Run new tokens ``ids [rows, n]`` of rows that have ``lengths`` tokens with them."""
        import onnxruntime as ort

        layout, count = self._session.layout, ids.shape[1]
        feeds: dict[str, AnyArray] = {
            layout.input_ids: ids,
            layout.attention_mask: (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64),
        }
        if self._session.takes_positions:
            feeds[layout.position_ids] = (lengths[:, None] - count + np.arange(count)).astype(np.int64)
        if self._session.chooses_logits:
            feeds[LOGITS_START] = np.array([start], np.int64)
        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        try:
            for name, value in values.items():  # bind_cpu_input refuses optional inputs
                binding.bind_ortvalue_input(name, value)
            self._graph.run_with_iobinding(binding)
            # Copied, because the next run may write over what ONNX Runtime returns.
            logits: Logits = binding.get_outputs()[0].numpy().astype(np.float32, copy=True)
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error, "The model cannot be run on this text") from None
        if not self._session.chooses_logits:
            logits = logits[:, start:]
        return logits


def _no_arrays(ref: AdapterRef | None) -> dict[str, AnyArray]:
    """Return what a specialized graph takes of an adapter, which is in its weights."""
    return {}


def _checked(tokens: Sequence[int], session: DecoderSession, new_tokens: int, number: int) -> npt.NDArray[np.int64]:
    """Return the tokens of a prompt as an array.

    Raises:
        InputError: there are none, too many, or unknown ones.
    """
    layout = session.layout
    if not len(tokens):
        raise InputError(f"Prompt {number} has no tokens: give it at least one word.")
    if len(tokens) + new_tokens > layout.context_length:
        raise InputError(
            f"Prompt {number} has {len(tokens)} tokens, and with {new_tokens} new ones it exceeds the {layout.context_length} that "
            "the model can hold: shorten it, or ask for fewer new tokens."
        )
    found = np.asarray(tokens, np.int64)
    if found.min() < 0 or found.max() >= layout.vocabulary:
        raise InputError(
            f"Prompt {number} has a token that the model does not know: its tokenizer is of another model."
        )
    return found
