"""Worker: starts a server, puts it under load from clients in a closed loop, and stops it.

The job has ``server`` (a command with ``{port}``), ``environment``, ``ready`` and ``path`` (of the URL), ``model``,
``clients``, ``seconds``, ``texts``, and ``answers``: what the server should answer, a vector or a list of probabilities for
each text. Both kinds of server speak the same protocol: ``POST {"model", "input"}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import numpy as np

from benchmarks.worker import read_job, report

START_SECONDS, WARMUP_SECONDS = 180, 1.0


def main() -> None:
    """Run the load and report requests a second, latency, errors and how far the answers are from the expected ones."""
    job = read_job()
    with server(job) as url:
        latencies, errors, seconds = asyncio.run(load(job, url))
        answers = asyncio.run(ask_all(job, url))
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    report(
        {"requests/s": len(latencies) / seconds, "p50 ms": float(p50), "p99 ms": float(p99)},
        errors=errors,
        **compare(job, answers),
    )


@contextmanager
def server(job: dict[str, Any]) -> Iterator[str]:
    """Start the server on a free port, wait until it is ready, and yield its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [word.replace("{port}", str(port)) for word in job["server"]]
    with tempfile.TemporaryFile() as log:
        environ = {**os.environ, **job.get("environment", {})}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            if not asyncio.run(wait_until_ready(process, url + job["ready"])):
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read()[-300:].decode(errors='replace').strip()}")
            yield url
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


async def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Return True once ``url`` answers with 200, and False if the process ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while process.poll() is None and time.monotonic() < end:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return True
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    return False


async def load(job: dict[str, Any], url: str) -> tuple[list[float], int, float]:
    """Return the latencies of the answered requests in seconds, the number of failed ones, and the time they took."""
    bodies = [_body(job, text) for text in job["texts"]]
    latencies: list[float] = []
    errors = 0
    begin = time.perf_counter() + WARMUP_SECONDS
    end = begin + job["seconds"]

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal errors
        position = number
        while (start := time.perf_counter()) < end:
            async with session.post(url + job["path"], data=bodies[position % len(bodies)]) as response:
                await response.read()
            position += job["clients"]
            if response.status != 200:
                errors += 1
            elif start >= begin:
                latencies.append(time.perf_counter() - start)

    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(number, session) for number in range(job["clients"])))
    if not latencies:
        raise SystemExit(f"the server answered none of {errors} requests")
    return latencies, errors, time.perf_counter() - begin


async def ask_all(job: dict[str, Any], url: str) -> list[Any]:
    """Return the server's answer to each text for which one is expected."""
    answers = []
    async with aiohttp.ClientSession(headers={"content-type": "application/json"}) as session:
        for text in job["texts"][: len(job["answers"])]:
            async with session.post(url + job["path"], data=_body(job, text)) as response:
                answers.append((await response.json())["data"][0])
    return answers


def compare(job: dict[str, Any], answers: list[Any]) -> dict[str, float]:
    """Return the smallest cosine to the expected vectors, or the largest difference of a probability."""
    if "embedding" in answers[0]:
        got, expected = np.array([answer["embedding"] for answer in answers]), np.array(job["answers"])
        cosines = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
        return {"worst_cosine": float(cosines.min())}
    return {"worst_probability": float(np.abs(np.array([_probabilities(a) for a in answers]) - job["answers"]).max())}


def _probabilities(answer: Any) -> list[float]:
    """Return the probabilities in the order of the labels' names: ours lists them, infinity names them."""
    if isinstance(answer, dict):
        return list(answer["probs"])
    return [item["score"] for item in sorted(answer, key=lambda item: str(item["label"]))]


def _body(job: dict[str, Any], text: str) -> bytes:
    return json.dumps({"model": job["model"], "input": [text]}).encode()


if __name__ == "__main__":
    main()
