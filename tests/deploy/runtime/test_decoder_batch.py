"""Rows that advance together get what they get alone, whatever their lengths, adapters and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rmlora.errors import ConfigError, InputError
from rmlora_deploy import export
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder import decoder_batch
from rmlora_deploy.runtime.decoder.bound_run import BoundRun
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from tests.helpers.decoders import decoder_adapter, decoder_base
from tests.helpers.rarely import rarely

PROMPTS = [list(b"The river rises in the hills"), list(b"Hi"), list(b"A quiet film about two brothers and the farm")]


@pytest.fixture(
    scope="module", params=["llama fp32", "llama int8", rarely("llama int4"), rarely("bloom fp32"), "gpt2 int8"]
)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    name, precision = request.param.split()
    directory = tmp_path_factory.mktemp(name)
    base = decoder_base(name, directory / "base")
    adapters = {
        name: decoder_adapter(base, directory / name, seed=rank, r=rank, size=0.2)
        for name, rank in (("a", 8), ("b", 8), ("c", 2))
    }
    export(base, adapters, directory / "bundle", precision=precision, verify=False)
    return Bundle.open(directory / "bundle").decoder_session(threads=1)


def advance(
    session: DecoderSession,
    prompts: list[list[int]],
    refs: list[AdapterRef | None],
    *,
    steps: int = 6,
    drop: int | None = None,
) -> list[list[np.ndarray]]:
    """Return the logits of every step by row; the row ``drop`` is finished after two steps."""
    batch = DecoderBatch(session, prompts, refs, new_tokens=steps)
    found = [[batch.read(row)[-1]] for row in range(len(prompts))]
    for step in range(steps):
        if step == 2 and drop is not None:
            batch.finish(batch.rows.index(drop))
        logits = batch.advance([int(found[row][-1].argmax()) for row in batch.rows])
        for place, row in enumerate(batch.rows):
            found[row].append(logits[place])
    return found


@pytest.mark.parametrize("names", [(None, None, None), ("a", "a", "a"), ("a", "b", None), (None, "b", "a")])
@pytest.mark.parametrize("drop", [None, 0])
def test_rows_are_bit_equal_to_the_same_rows_alone(
    session: DecoderSession, names: tuple[str | None, ...], drop: int | None
) -> None:
    refs = [AdapterRef(name) if name else None for name in names]
    together = advance(session, PROMPTS, refs, drop=drop)
    for row, prompt in enumerate(PROMPTS):
        alone = advance(session, [prompt], [refs[row]])[0]
        assert len(together[row]) == (3 if row == drop else 7)
        for got, want in zip(together[row], alone, strict=False):
            np.testing.assert_array_equal(got, want)


def test_a_padded_rank_and_a_strength_change_no_other_row(session: DecoderSession) -> None:
    refs = [AdapterRef("c"), AdapterRef("a", 0.5), AdapterRef("b", 0.0)]
    together = advance(session, PROMPTS, refs, steps=1)
    base = advance(session, [PROMPTS[2]], [None], steps=1)[0]
    half = advance(session, [PROMPTS[1]], [AdapterRef("a")], steps=1)[0]
    np.testing.assert_allclose(together[2][0], base[0], atol=1e-5)
    assert np.abs(together[1][0] - half[0]).max() > 1e-3


def test_reading_in_chunks_and_at_once_give_the_same_logits(session: DecoderSession) -> None:
    tokens = PROMPTS[2]
    whole = session.logits(tokens, AdapterRef("a"))
    assert whole.shape[0] == len(tokens)
    np.testing.assert_array_equal(session.logits(tokens, AdapterRef("a"), start=-1)[0], whole[-1])
    batch = DecoderBatch(session, [tokens], [AdapterRef("a")], new_tokens=0)
    chunked = batch.read(0, chunk=7)[-1]
    assert np.abs(chunked - whole[-1]).max() <= 0.2 * np.abs(whole[-1]).max()  # rounded weights round activations too


@pytest.mark.parametrize(("tokens", "runs"), [(1, [1]), (7, [7]), (8, [4, 4]), (11, [6, 5]), (12, [4, 4, 4])])
def test_a_long_prompt_is_read_in_runs_of_equal_length(
    session: DecoderSession, monkeypatch: pytest.MonkeyPatch, tokens: int, runs: list[int]
) -> None:
    monkeypatch.setattr(decoder_batch, "_CHUNK", 4)
    read: list[int] = []
    run = BoundRun.__call__

    def counted(self: BoundRun, ids: Any, lengths: Any, start: int) -> Any:
        read.append(ids.shape[1])
        return run(self, ids, lengths, start)

    monkeypatch.setattr(BoundRun, "__call__", counted)
    DecoderBatch(session, [list(range(5, 5 + tokens))], [None], new_tokens=0).read(0)
    assert read == runs


def test_what_cannot_be_read_is_refused(session: DecoderSession) -> None:
    for prompt, message in (
        ([], "has no tokens"), ([4000], "does not know"), ([-1], "does not know"), ([5] * 250, "exceeds the 256"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            DecoderBatch(session, [[5], prompt], [None, None], new_tokens=10)
    with pytest.raises(InputError, match="There is no adapter 'x': known are a, b, c"):
        session.logits([5], AdapterRef("x"))


def test_adapters_are_read_when_needed_and_only_some_are_kept(session: DecoderSession) -> None:
    reads: list[str] = []

    def loader(name: str) -> dict[str, np.ndarray]:
        reads.append(name)
        return dict(session.adapters.stored("a"))

    small = DecoderSession(session.path, session.layout, threads=1, max_active_adapters=1)
    for name in ("x", "y"):
        small.register(name, lambda name=name: loader(name))  # type: ignore[misc]
    for name in ("x", "x", "y", "x"):
        small.logits([5, 6], AdapterRef(name))
    assert reads == ["x", "y", "x"]
    with pytest.raises(ConfigError, match="There is an adapter 'x' already"):
        small.register("x", dict)
    small.unload("x")
    with pytest.raises(InputError, match="There is no adapter 'x'"):
        small.logits([5], AdapterRef("x"))
    with pytest.raises(ConfigError, match="at least one adapter"):
        DecoderSession(session.path, session.layout, max_active_adapters=0)
    with pytest.raises(ConfigError, match="generated on --provider cpu"):
        DecoderSession(session.path, session.layout, provider="cuda")
