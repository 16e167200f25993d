"""Rows that a decoder continues together, each with its own length and adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterRef
from rmlora_deploy.runtime.decoder.bound_run import BoundRun

if TYPE_CHECKING:
    from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["DecoderBatch"]

AnyArray = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]

_CHUNK = 256
"""Tokens from which a prompt is read in several runs, of at least as many tokens each: what an operator writes then still
lies in the processor's caches when the next one reads it, and with an adapter three of them pass over every output."""
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
        self._step: BoundRun | None = None
        """For advancing the rows that are left; None after their number changed."""

    def read(self, row: int, *, start: int = -1, chunk: int | None = None) -> Logits:
        """Read the prompt of a row and return logits ``[positions, vocabulary]``.

        Args:
            row: number of the row; every row is read once, before the first :meth:`advance`.
            start: first position whose logits are returned, of the last ``chunk`` tokens.
            chunk: tokens read in one run; None chooses what is fast.

        Raises:
            InputError: the graph cannot be run.
        """
        tokens, place = self._prompts[row], slice(row, row + 1)
        run = self._run(place, self._arrays(self._refs[row]))
        logits: Logits = np.empty((0, 0), np.float32)
        if chunk is None:  # as many runs of equal length as are worth it
            chunk = -(-len(tokens) // max(1, len(tokens) // _CHUNK))
        for done in range(0, len(tokens), chunk):
            part = tokens[done : done + chunk]
            logits = run(part[None], np.array([done + len(part)]), start)[0]
        return logits

    def advance(self, tokens: Sequence[int]) -> Logits:
        """Append one token to every row that is left, and return the logits ``[rows, vocabulary]`` after it.

        Args:
            tokens: one for each of :attr:`rows`.

        Raises:
            InputError: the graph cannot be run.
        """
        count = len(self.rows)
        if self._step is None:
            self._step = self._run(slice(0, count), {name: array[:count] for name, array in self._lora.items()})
        self._lengths[:count] += 1
        ids = np.array(tokens, np.int64)[:, None]
        return self._step(ids, self._lengths[:count], -1)[:, -1]

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
        self._step = None

    def _run(self, rows: slice, lora: Mapping[str, AnyArray]) -> BoundRun:
        return BoundRun(self._session, self._graph, self._values, rows, lora)


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
