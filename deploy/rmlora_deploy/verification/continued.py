"""Greedy continuations by a decoder's graph."""

from __future__ import annotations

from collections.abc import Sequence

from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["continued"]


def continued(
    session: DecoderSession,
    prompts: Sequence[Sequence[int]],
    refs: Sequence[AdapterRef | None],
    count: int,
    ends: frozenset[int],
) -> list[list[int]]:
    """Return the likeliest continuation of every prompt, all in one batch.

    Args:
        session: the opened decoder.
        prompts: tokens of each.
        refs: adapter of each; None for what the graph computes without.
        count: most tokens of a continuation.
        ends: tokens that end one, and are then its last.
    """
    batch, found = DecoderBatch(session, prompts, refs, new_tokens=count), [list[int]() for _ in prompts]
    for row in range(len(prompts)):
        found[row].append(int(batch.read(row)[-1].argmax()))
    while True:
        for place in reversed(range(len(batch.rows))):
            answer = found[batch.rows[place]]
            if len(answer) == count or answer[-1] in ends:
                batch.finish(place)
        if not batch.rows:
            return found
        logits = batch.advance([found[row][-1] for row in batch.rows])
        for place, row in enumerate(batch.rows):
            found[row].append(int(logits[place].argmax()))
