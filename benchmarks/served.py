"""Shared by the benchmarks of servers: a server in a new process, the load test against it, and alternating runs."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import contest
from rmlora_deploy.bench.machine import pin, usable_cores

__all__ = ["load", "make_parser", "server", "settings_of", "split_cores", "take_turns"]

Run = dict[str, Any]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that both benchmarks of 1,000 adapters have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of one turn (default %(default)s)")
    parser.add_argument("--adapters", type=int, default=1000, help="registered adapters (default %(default)s)")
    parser.add_argument(
        "--max-active-adapters", type=int, default=64, help="adapters in memory per server (default %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=16, help="closed-loop clients (default %(default)s)")
    parser.add_argument("--work", type=Path, help="keep bundles here (default: a temporary directory)")
    return parser


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a result depends on."""
    return {key: value for key, value in vars(options).items() if key != "work"}


def take_turns(
    names: Sequence[str], rounds: int, run: Callable[[str], Run], show: Callable[[Run], str]
) -> dict[str, list[Run]]:
    """Run each contestant ``rounds`` times, in alternating order, and print a line after each turn."""
    width = max(map(len, names))
    runs, _ = contest.take_turns(
        names, rounds, run, lambda name, turn: print(f"{name:{width}} {show(turn)}", flush=True)
    )
    return runs


def load(url: str, reference: Path, options: argparse.Namespace) -> Run:
    """Run the load test on the server at ``url`` with every model of ``reference`` and return its figures."""
    models = json.loads(reference.read_text())["answers"]
    done = subprocess.run(
        [
            sys.executable, "-m", "rmlora_deploy", "loadtest", url, "--json", "--reference", str(reference),
            "--seconds", str(options.seconds), "--clients", str(options.clients),
            *(part for model in models for part in ("--model", model)),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    figures: Run = json.loads(done.stdout)
    return figures


def split_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return this process's cores in two parts: all but the last for the server, and the last for its clients.

    The one core of a machine that has no more is in both.
    """
    cores = usable_cores()
    return cores[:-1] or cores, cores[-1:]


@contextmanager
def server(*arguments: str | Path, cores: Sequence[int] = ()) -> Iterator[str]:
    """Run ``rmlora-deploy serve`` on a free port, on ``cores`` if there are any, and yield its address."""
    command = [sys.executable, "-m", "rmlora_deploy", "serve", *map(str, arguments), "--port", "0"]
    own = usable_cores()
    pin(cores or own)  # which the server inherits
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    pin(own)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://[\d.:]+", line):
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # its log, which would fill the pipe
        yield found.group()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
