"""The clients of a load test (asyncio, one process)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rmlora.errors import InputError
from rmlora.nearest_names import nearest_names
from rmlora.wording import nearest
from rmlora_deploy.loadtest.load_plan import LoadPlan, draw_requests, input_of
from rmlora_deploy.loadtest.wire import Reply, Wire

__all__ = ["ListedModel", "Load", "Outcome", "check_models", "list_models", "run_load"]

_RETRIED = (429, 500, 502, 503, 504)
_KEY_REFUSED = (401, 403)
_NAMED = 4
"""Models that are named if none is like the one that was asked for."""
_PAUSE = 0.05
"""Seconds before a request is sent again; doubled every time."""
_MAX_PAUSE = 5.0
_MAX_IN_PROGRESS = 2000
"""Requests of an open loop that may be in progress; further ones are counted as not sent."""


class ListedModel(NamedTuple):
    """What a server says of a model."""

    task: str
    reads_pairs: bool


@dataclass(frozen=True)
class Outcome:
    """The result of one request."""

    due: float
    """When it was due, in seconds after counting began."""
    seconds: float
    """From when it was due until its answer."""
    status: int
    """HTTP status; 0 if there was no response."""
    model: str
    wrong: int = 0
    """Answers that differ from the reference."""
    retries: int = 0


@dataclass
class Load:
    """The results of a load test."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    not_sent: int = 0


async def list_models(
    url: str, key: str | None, *, adapters_only: bool = True, needed: bool = True
) -> dict[str, ListedModel]:
    """Return the models of a server by name.

    Args:
        url: of the server.
        key: sent as a bearer token.
        adapters_only: leave out the bundles, unless there are no adapters.
        needed: False returns no models if the server responds, but does not list them.

    Raises:
        InputError: the server cannot be reached, or its answer is not a list of models.
    """
    try:
        async with Wire(url, _headers(key)) as wire:
            reply = await wire.request("GET", "/v1/models")
    except (OSError, ValueError) as error:
        raise _unreachable(url, error) from None
    try:
        return _parse_models(url, reply, adapters_only=adapters_only)
    except InputError:
        if needed or reply.status in _KEY_REFUSED:
            raise
        return {}


def _parse_models(url: str, reply: Reply, *, adapters_only: bool) -> dict[str, ListedModel]:
    if reply.status != 200:
        raise InputError(
            f"{url}/v1/models answers {reply.status}: check --api-key, and that it is a server of rmlora-deploy."
        )
    try:
        cards = json.loads(reply.body)["data"]
        selected = [card for card in cards if card.get("parent") or not adapters_only]
        return {
            str(card["id"]): ListedModel(str(card.get("task")), card.get("input_form") == "pair")
            for card in selected or cards
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{url}/v1/models lists its models in another format: is it a server of rmlora-deploy?"
        ) from None


def check_models(asked: Sequence[str], known: Collection[str]) -> None:
    """Raise :class:`InputError` if one of ``asked`` is not among ``known``, unless the server does not list its models."""
    unknown = next((name for name in asked if name not in known), None)
    if unknown is None or not known:
        return
    near = nearest_names(unknown, known)
    hint = (
        nearest(near)
        if near
        else f"it has {', '.join(sorted(known)[:_NAMED])}"
        + (f" and {len(known) - _NAMED:,} more" if len(known) > _NAMED else "")
    )
    raise InputError(f"The server has no model '{unknown}': {hint}.")


async def run_load(plan: LoadPlan, key: str | None, *, progress: Callable[[int, float], None] | None = None) -> Load:
    """Run a load test.

    Args:
        plan: what to send.
        key: sent as a bearer token.
        progress: called four times a second with the number of requests counted and the seconds since counting began,
            which are negative during warm-up.

    Raises:
        InputError: the server cannot be reached.
    """
    load = Load()
    begin = time.perf_counter() + plan.warmup
    end = begin + plan.seconds
    async with await _reach(plan, key) as wire:
        reporter = asyncio.create_task(_report(load, begin, progress)) if progress is not None else None
        if plan.rate is None:
            await asyncio.gather(*(_closed_loop(wire, plan, load, begin, end, n) for n in range(plan.clients)))
        else:
            await _open_loop(wire, plan, load, begin, end)
        if reporter is not None:
            reporter.cancel()
    load.seconds = plan.seconds
    return load


async def _reach(plan: LoadPlan, key: str | None) -> Wire:
    """Return a client of a server that responds."""
    try:
        wire = Wire(plan.url, _headers(key))
        await wire.request("GET", "/healthz")
    except (OSError, ValueError) as error:
        raise _unreachable(plan.url, error) from None
    return wire


def _unreachable(url: str, error: Exception) -> InputError:
    return InputError(f"Cannot reach {url} ({error or type(error).__name__}): is the server running?")


async def _closed_loop(wire: Wire, plan: LoadPlan, load: Load, begin: float, end: float, number: int) -> None:
    """Send one request after another, as client ``number``."""
    requests = draw_requests(plan, number)
    while (now := time.perf_counter()) < end:
        outcome = await _ask(wire, plan, *next(requests), due=now, begin=begin)
        if begin <= now and time.perf_counter() <= end:
            load.outcomes.append(outcome)
        if outcome.status != 200:
            await asyncio.sleep(_PAUSE)  # do not flood a server that refuses at once


async def _open_loop(wire: Wire, plan: LoadPlan, load: Load, begin: float, end: float) -> None:
    """Send at random times, whether or not earlier requests have been answered."""
    assert plan.rate is not None  # noqa: S101
    rng = np.random.default_rng([plan.seed, 1])
    requests, in_progress = draw_requests(plan), set[asyncio.Task[None]]()
    due = begin - plan.warmup

    async def one(model: str, texts: list[int], due: float) -> None:
        outcome = await _ask(wire, plan, model, texts, due=due, begin=begin)
        if due >= begin:
            load.outcomes.append(outcome)

    while (due := due + float(rng.exponential(1 / plan.rate))) < end:
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        if wire.in_progress >= _MAX_IN_PROGRESS:
            load.not_sent += due >= begin
            continue
        task = asyncio.create_task(one(*next(requests), due))
        in_progress.add(task)
        task.add_done_callback(in_progress.discard)
    await asyncio.gather(*in_progress)


async def _ask(wire: Wire, plan: LoadPlan, model: str, texts: list[int], *, due: float, begin: float) -> Outcome:
    path, key = "/v1/embeddings" if model in plan.embedders else "/classify", "input"
    if model in plan.taggers:
        path, key = "/predict", "inputs"
    inputs: Any = [input_of(plan, model, number) for number in texts]
    if model in plan.answerers:
        path, key, (question, context) = "/predict", "inputs", inputs[0]
        inputs = {"question": question, "context": context}
    body = {"model": model, key: inputs, "user": f"loadtest-{due:.9f}"}
    sent = json.dumps(body).encode()
    statuses: list[int] = []
    wrong = 0
    for attempt in range(plan.retries + 1):
        pause = 0.0
        try:
            reply = await wire.request("POST", path, sent, timeout=plan.timeout)
            statuses.append(reply.status)
            pause = _retry_after(reply)
            if reply.status == 200 and plan.reference is not None:
                wrong = _count_wrong(plan, model, texts, json.loads(reply.body))
        except (OSError, ValueError):
            statuses[attempt:] = [0]
        if statuses[-1] not in (0, *_RETRIED) or attempt == plan.retries:
            break
        await asyncio.sleep(max(pause, min(_PAUSE * 2**attempt, _MAX_PAUSE)))
    return Outcome(due - begin, time.perf_counter() - due, statuses[-1], model, wrong, len(statuses) - 1)


def _retry_after(reply: Reply) -> float:
    """Return the seconds that a response asks to wait before the request is sent again."""
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0


def _count_wrong(plan: LoadPlan, model: str, texts: list[int], answer: Mapping[str, Any]) -> int:
    assert plan.reference is not None  # noqa: S101
    expected = [plan.reference.answers[model][number] for number in texts]
    try:
        got = [item["embedding" if model in plan.embedders else "probs"] for item in answer["data"]]
        if len(got) != len(expected) or answer["model"] != model:
            return len(expected)
        return sum(
            len(a) != len(b) or not max(abs(x - y) for x, y in zip(a, b, strict=True)) <= plan.reference.tolerance
            for a, b in zip(expected, got, strict=True)
        )
    except (KeyError, TypeError, ValueError):  # an answer in another format
        return len(expected)


async def _report(load: Load, begin: float, progress: Callable[[int, float], None]) -> None:
    while True:
        progress(len(load.outcomes), time.perf_counter() - begin)
        await asyncio.sleep(0.25)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.strip()}"} if key else {}
