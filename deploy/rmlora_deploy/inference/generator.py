"""Generating text with a bundle, without torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.asking import end_tokens, prompt_format
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterSource
from rmlora_deploy.bundles.text_codec import Prompt, TextCodec, TextStream
from rmlora_deploy.inference.input_lists import check_inputs
from rmlora_deploy.inference.sampling import Sampling
from rmlora_deploy.runtime import AdapterChoice, AdapterRef
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName, resolve_choices
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch

__all__ = ["Generated", "Generator", "Piece"]

_MAX_NEW_TOKENS = 128
GREEDY = Sampling()


@dataclass(frozen=True)
class Generated:
    """The answer to one prompt."""

    text: str
    tokens: tuple[int, ...]
    """Of the answer, without the one that ended it."""
    finish: Literal["end", "length"]
    """``end``: the model ended it; ``length``: it has as many tokens as were asked for."""
    prompt_tokens: int
    seconds: float = field(compare=False)
    """From the start of the batch to the last token."""
    first_token_seconds: float = field(compare=False)
    """From the start of the batch to the first token."""


class Piece(NamedTuple):
    """One more token of an answer."""

    row: int
    """Number of the prompt."""
    token: int
    text: str
    """What it adds to the text; empty while it is only part of a character."""
    finish: Literal["end", "length"] | None = None
    """Set with the last token of a row; the token that ends an answer has no text."""


class Generator:
    """A bundle for text-generation, opened; with branches every prompt may use another adapter.

    >>> home = Generator.open("home-bundle")  # doctest: +SKIP
    >>> home.generate(["Turn on the light in the kitchen"], adapter="intents")[0].text  # doctest: +SKIP
    '{"intent": "HassTurnOn", "name": "light", "area": "kitchen"}'
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu", **options: Any) -> None:
        """Open the graph of ``bundle``; arguments and errors as :meth:`open`."""
        if bundle.task.outputs.kind != "text":
            raise ConfigError(f"{bundle.path} is for {bundle.task.name} and generates no text: open it with load().")
        self.bundle = bundle
        self.codec = TextCodec.open(bundle.path)
        self.session = bundle.decoder_session(provider, **options)

    @classmethod
    def open(cls, path: Path | str, *, provider: str = "cpu", trust_remote_code: bool = False, **options: Any) -> Self:
        """Open a bundle.

        Args:
            path: bundle directory, merged or with branches.
            provider: execution provider; ``cpu``.
            trust_remote_code: not needed, as no code of a model is run.
            options: ``threads``, and with branches ``max_active_adapters``.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: the bundle generates no text, or the provider is another one.
        """
        return cls(Bundle.open(path, trust_remote_code=trust_remote_code), provider, **options)

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapter: AdapterChoice | Sequence[AdapterChoice] = None,
        *,
        max_new_tokens: int = _MAX_NEW_TOKENS,
        raw: bool | None = None,
        sampling: Sampling = GREEDY,
        batch_size: int = 8,
    ) -> list[Generated]:
        """Return an answer to every prompt, in order.

        Args:
            prompts: texts or chats.
            adapter: with branches, one choice for all prompts or one for each: a name, ``{name: strength}``, or None for the
                base.
            max_new_tokens: tokens of the longest answer.
            raw: what becomes of texts: True continues them as they are, False makes them the user's message of a chat, None
                does for every row what its adapter was trained with (:meth:`takes_raw`).
            sampling: how tokens are chosen; None takes the likeliest.
            batch_size: prompts answered at once.

        Raises:
            InputError: a prompt or an adapter cannot be used, or the graph gives no usable numbers.
            ConfigError: the choices do not fit the prompts, the bundle is merged and there is nothing to choose, or a chat is
                asked of a model without a chat template.
        """
        check_inputs(prompts, batch_size)
        rows, refs = self._prepare(prompts, adapter, max_new_tokens, raw=raw)
        answers: list[Generated] = []
        for begin in range(0, len(rows), batch_size):
            part = slice(begin, begin + batch_size)
            answers += self._answer(rows[part], refs[part], max_new_tokens, sampling)
        return answers

    def stream(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = None,
        *,
        max_new_tokens: int = _MAX_NEW_TOKENS,
        raw: bool | None = None,
        sampling: Sampling = GREEDY,
    ) -> Iterator[Piece]:
        """Yield the answer to one prompt token by token; arguments and errors as :meth:`generate`."""
        rows, refs = self._prepare([prompt], adapter, max_new_tokens, raw=raw)
        return self._pieces(rows, refs, max_new_tokens, sampling)

    def specialize(self, adapter: AdapterName | None) -> None:
        """Open the graph once more with an adapter merged into its weights.

        Arguments and errors as those of
        :meth:`DecoderSession.specialize <rmlora_deploy.runtime.decoder.decoder_session.DecoderSession.specialize>`.

        >>> home.specialize("intents")  # batches that use it alone are as fast as a merged bundle  # doctest: +SKIP
        """
        self.session.specialize(adapter)

    def takes_raw(self, adapter: AdapterRef | None = None) -> bool:
        """Return True if texts are continued as they are, False if they become the user's message of a chat.

        That is as the adapter was trained. Without an adapter, and if it does not record how, a text becomes a message if the
        model has a chat template.
        """
        return prompt_format(self.bundle.manifest, self._source(adapter)) == "raw"

    def _source(self, adapter: AdapterRef | None) -> AdapterSource | None:
        """Return what is recorded of a row's adapter, or of the merged one; None for the base."""
        return self.bundle.manifest.adapter if adapter is None else self.bundle.adapter(adapter.name)

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        adapter: AdapterChoice | Sequence[AdapterChoice],
        max_new_tokens: int,
        *,
        raw: bool | None,
    ) -> tuple[list[list[int]], list[AdapterRef | None]]:
        """Return the tokens and the adapter of every prompt."""
        if not prompts:
            raise InputError("There is nothing to answer: give at least one prompt.")
        if max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is at least 1, not {max_new_tokens}.")
        refs = resolve_choices(adapter, len(prompts))
        if self.bundle.mode == "merged" and any(refs):
            raise ConfigError(f"{self.bundle.path} has its adapter merged: there is none to choose.")
        if raw is False and self.codec.chat is None:
            raise ConfigError(f"{self.bundle.path} has no chat template, so a text cannot become a message of a chat.")
        kinds = [self.takes_raw(ref) if raw is None else raw for ref in refs]
        return [self.codec.encode(prompt, raw=kind) for prompt, kind in zip(prompts, kinds, strict=True)], refs

    def _answer(
        self, rows: Sequence[Sequence[int]], refs: Sequence[AdapterRef | None], new_tokens: int, sampling: Sampling
    ) -> list[Generated]:
        began = time.perf_counter()
        tokens: list[list[int]] = [[] for _ in rows]
        first, last, finish = [0.0] * len(rows), [0.0] * len(rows), ["length"] * len(rows)
        for piece in self._pieces(rows, refs, new_tokens, sampling):
            now = time.perf_counter() - began
            first[piece.row] = first[piece.row] or now
            last[piece.row] = now
            finish[piece.row] = piece.finish or finish[piece.row]
            if piece.finish != "end":
                tokens[piece.row].append(piece.token)
        return [
            Generated(
                self.codec.decode(tokens[row]), tuple(tokens[row]), "end" if finish[row] == "end" else "length", len(prompt),
                last[row], first[row],
            )
            for row, prompt in enumerate(rows)
        ]  # fmt: skip

    def _pieces(
        self, rows: Sequence[Sequence[int]], refs: Sequence[AdapterRef | None], new_tokens: int, sampling: Sampling
    ) -> Iterator[Piece]:
        """Yield the tokens of all answers as they are made."""
        batch = DecoderBatch(self.session, rows, refs, new_tokens=new_tokens)
        streams, counts = [TextStream(self.codec) for _ in rows], [0] * len(rows)
        ends = [end_tokens(self.session.layout, self._source(ref)) for ref in refs]

        def piece(row: int, logits: npt.NDArray[np.float32]) -> Piece:
            token = sampling.choose(self._finite(logits))
            counts[row] += 1
            if token in ends[row]:
                return Piece(row, token, streams[row].end(), "end")
            if counts[row] == new_tokens:
                return Piece(row, token, streams[row].add(token) + streams[row].end(), "length")
            return Piece(row, token, streams[row].add(token))

        latest: dict[int, Piece] = {}
        for row in range(len(rows)):
            latest[row] = piece(row, batch.read(row)[-1])
            yield latest[row]
        while True:
            for place in reversed(range(len(batch.rows))):
                if latest[batch.rows[place]].finish is not None:
                    batch.finish(place)
            if not batch.rows:
                return
            logits = batch.advance([latest[row].token for row in batch.rows])
            for place, row in enumerate(batch.rows):
                latest[row] = piece(row, logits[place])
                yield latest[row]

    def _finite(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not np.isfinite(logits).all():
            raise InputError(
                f"The graph of {self.bundle.path} gives NaN or infinity for this text: its precision ({self.bundle.precision}) "
                "does not suffice, export it in fp32."
            )
        return logits
