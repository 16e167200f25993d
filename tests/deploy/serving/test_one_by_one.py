"""Loading adapters takes no more of a server than one call at a time does, however many are sent."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmlora_deploy.serving.errors import BusyError
from rmlora_deploy.serving.one_by_one import OneByOne
from tests.helpers.servers import Answer, ask, classify, serving


@pytest.fixture
def slow(served: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a package whose pattern takes as long as patterns may."""
    monkeypatch.setattr("rmlora.patterns.SECONDS", 0.3)
    package = shutil.copytree(served["many"].parent / "three", tmp_path / "packages" / "slow")
    config = json.loads((package / "adapter_config.json").read_text())
    (package / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {r"([a-z._0-9]+)+!": 4}}))
    return Path(package).parent


def test_a_storm_of_loads_stops_nothing_else(served: dict[str, Path], slow: Path) -> None:
    calls = 40
    with serving({"many": served["many"]}, adapter_dirs=(slow,)) as server, ThreadPoolExecutor(calls) as pool:

        def load(number: int) -> Answer:
            return ask(server.url, "/v1/load_lora_adapter", {"lora_name": f"a{number}", "lora_path": "slow"})

        loads = [pool.submit(load, number) for number in range(calls)]
        while not any(item.done() for item in loads):
            time.sleep(0.01)
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("loading")]
        assert len(threads) == 1
        assert ask(server.url, "/").status == 200 and classify(server.url, "three", "w1")
        answers = [item.result() for item in loads]
    assert Counter(answer.status for answer in answers) == {400: 16, 429: 24}
    assert all("takes too long to match" in answer.message for answer in answers if answer.status == 400)
    busy = next(answer for answer in answers if answer.status == 429)
    assert busy.headers["retry-after"] == "5" and "are waiting already" in busy.message


def test_calls_are_made_one_at_a_time_in_order_and_not_for_those_who_left() -> None:
    made, at_once, most = list[int](), 0, 0
    may_end = threading.Event()

    def call(number: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        may_end.wait(10)
        made.append(number)
        at_once -= 1
        if number == 3:
            raise ValueError("three")
        return number

    async def calls() -> None:
        tasks = [asyncio.create_task(lane.run(call, number)) for number in range(16)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="16 calls for tests are waiting already"):
            await lane.run(call, 16)
        tasks[5].cancel()
        await asyncio.sleep(0.1)
        may_end.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[3], ValueError) and isinstance(results[5], asyncio.CancelledError)
        assert [item for item in results if isinstance(item, int)] == [n for n in range(16) if n not in (3, 5)]
        assert await lane.run(call, 17) == 17, "there is room again"

    lane = OneByOne("tests")
    asyncio.run(calls())
    lane.close()
    assert made == [*range(5), *range(6, 16), 17] and most == 1
