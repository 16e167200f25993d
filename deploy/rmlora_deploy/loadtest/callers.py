"""The callers of a load test (asyncio, one process)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from rmlora.errors import InputError
from rmlora_deploy.loadtest.load_plan import LoadPlan, draw_requests

__all__ = ["Load", "Outcome", "list_models", "run_load"]

_AGAIN = (429, 500, 502, 503, 504)
_PAUSE = 0.05
"""Seconds before a request is sent again; doubled every time."""
_LONGEST_PAUSE = 5.0
_MOST_OPEN = 2000
"""Requests of an open loop that may be under way; beyond them they are counted as not sent."""


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    when: float
    """Seconds after counting began at which it was due."""
    seconds: float
    """From when it was due until its answer."""
    status: int
    """HTTP status; 0 without any."""
    model: str
    wrong: int = 0
    """Answers that are not the reference's."""
    retries: int = 0


@dataclass
class Load:
    """Everything that was seen."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    not_sent: int = 0


async def list_models(url: str, key: str | None, *, adapters_only: bool = True) -> dict[str, str]:
    """Return the models of a server, each with its task.

    Raises:
        InputError: it cannot be reached, or answers something else.
    """
    try:
        async with aiohttp.ClientSession(headers=_headers(key)) as session, session.get(f"{url}/v1/models") as reply:
            if reply.status != 200:
                raise InputError(f"{url}/v1/models answers {reply.status}: is the key right, and is it our server?")
            cards = (await reply.json())["data"]
    except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} cannot be asked ({error or type(error).__name__}): is the server running?") from None
    try:
        wanted = [card for card in cards if card.get("parent") or not adapters_only]
        return {str(card["id"]): str(card.get("task")) for card in wanted or cards}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{url}/v1/models lists no models as our server does: is it our server?") from None


async def run_load(plan: LoadPlan, key: str | None, *, progress: Callable[[int, float], None] | None = None) -> Load:
    """Load the server as planned.

    Args:
        plan: what to ask for.
        key: sent as bearer token.
        progress: called now and then with requests answered and seconds gone.

    Raises:
        InputError: the server cannot be reached at all.
    """
    load = Load()
    begin = time.perf_counter() + plan.warmup
    end = begin + plan.seconds
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=plan.timeout)
    async with aiohttp.ClientSession(headers=_headers(key), connector=connector, timeout=timeout) as session:
        await _reachable(session, plan)
        teller = asyncio.create_task(_tell(load, begin, progress)) if progress is not None else None
        if plan.rate is None:
            await asyncio.gather(*(_caller(session, plan, load, begin, end, n) for n in range(plan.clients)))
        else:
            await _open_loop(session, plan, load, begin, end)
        if teller is not None:
            teller.cancel()
    load.seconds = plan.seconds
    return load


async def _reachable(session: aiohttp.ClientSession, plan: LoadPlan) -> None:
    try:
        async with session.get(f"{plan.url}/healthz") as reply:
            await reply.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise InputError(
            f"{plan.url} cannot be reached ({error or type(error).__name__}): is the server running?"
        ) from None


async def _caller(
    session: aiohttp.ClientSession, plan: LoadPlan, load: Load, begin: float, end: float, number: int
) -> None:
    requests = draw_requests(plan, number)
    while (now := time.perf_counter()) < end:
        outcome = await _ask(session, plan, *next(requests), due=now, begin=begin)
        if begin <= now and time.perf_counter() <= end:
            load.outcomes.append(outcome)
        if outcome.status != 200:
            await asyncio.sleep(_PAUSE)  # a server that refuses at once is not to be flooded


async def _open_loop(session: aiohttp.ClientSession, plan: LoadPlan, load: Load, begin: float, end: float) -> None:
    """Send at times drawn beforehand; an answer that is late does not hold back the next request."""
    assert plan.rate is not None  # noqa: S101
    rng = np.random.default_rng([plan.seed, 1])
    requests, under_way = draw_requests(plan), set[asyncio.Task[None]]()
    due = begin - plan.warmup

    async def one(model: str, texts: list[int], due: float) -> None:
        outcome = await _ask(session, plan, model, texts, due=due, begin=begin)
        if due >= begin:
            load.outcomes.append(outcome)

    while (due := due + float(rng.exponential(1 / plan.rate))) < end:
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        if len(under_way) >= _MOST_OPEN:
            load.not_sent += due >= begin
            continue
        task = asyncio.create_task(one(*next(requests), due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def _ask(
    session: aiohttp.ClientSession, plan: LoadPlan, model: str, texts: list[int], *, due: float, begin: float
) -> Outcome:
    body = {"model": model, "input": [plan.texts[number] for number in texts]}
    path = "/v1/embeddings" if model in plan.embedders else "/classify"
    for attempt in range(plan.retries + 1):
        status, wrong = 0, 0
        try:
            async with session.post(f"{plan.url}{path}", json=body) as reply:
                status = reply.status
                content = await reply.read()
            if status == 200 and plan.reference is not None:
                wrong = _count_wrong(plan, model, texts, json.loads(content))
        except (TimeoutError, aiohttp.ClientError, ValueError):
            status = 0
        if status not in (0, *_AGAIN) or attempt == plan.retries:
            break
        await asyncio.sleep(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
    return Outcome(due - begin, time.perf_counter() - due, status, model, wrong, attempt)


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
    except (KeyError, TypeError, ValueError):  # an answer of another form
        return len(expected)


async def _tell(load: Load, begin: float, progress: Callable[[int, float], None]) -> None:
    while True:
        progress(len(load.outcomes), time.perf_counter() - begin)
        await asyncio.sleep(0.25)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
