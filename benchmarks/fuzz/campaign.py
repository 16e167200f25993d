"""Runs a reader's inputs in children with limits, and counts how they end."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz.child import draw

__all__ = ["SECONDS", "Campaign", "Tally"]

SECONDS = 10.0
"""Longest time for one input."""
MEGABYTES = 1024.0
"""Most memory for one input, beyond what the child has before it."""
_START_SECONDS = 180.0
_FRESH_AFTER = 4000
"""Inputs after which a child is replaced, so that a slow leak is not taken for one input's memory."""


@dataclass
class Tally:
    """How the inputs of one reader ended."""

    reader: str
    done: int = 0
    read: int = 0
    """Accepted: the change did not matter, or it is still valid."""
    refused: int = 0
    """Refused in a sentence."""
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    memory: int = 0
    """Inputs that took more than 1 GB."""
    slowest: float = 0.0
    peak_mb: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    """Kind of fault and place → how often."""

    @property
    def bad(self) -> int:
        """Number of faults."""
        return self.tracebacks + self.crashes + self.hangs + self.memory


class Campaign:
    """The inputs of one reader.

    Args:
        reader: its name.
        seed: with the number of an input it determines the input.
        seeds: directory with the valid files.
        failures: directory for inputs that end badly.
        tally: of the inputs that were done before.
    """

    def __init__(self, reader: str, seed: int, seeds: Path, failures: Path, tally: Tally) -> None:
        self.reader, self.seed, self.seeds, self.failures, self.tally = reader, seed, seeds, failures, tally
        self._child: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._baseline = 0.0
        self._served = 0
        self._buffer = b""

    def run(self, stop: int, progress: Callable[[Tally], None]) -> None:
        """Do the inputs up to ``stop``, calling ``progress`` after each."""
        try:
            while self.tally.done < stop:
                self._count(self._one(self.tally.done))
                self.tally.done += 1
                progress(self.tally)
        finally:
            self._end()

    def _one(self, number: int) -> dict[str, Any]:
        if self._child is None or self._served >= _FRESH_AFTER:
            self._begin()
        child = self._child
        assert child is not None and child.stdin is not None
        self._served += 1
        try:
            child.stdin.write(f"{number}\n".encode())
            child.stdin.flush()
            answer = self._answer(SECONDS + 2)  # the child says how long it took; this is for those that never end
        except (BrokenPipeError, EOFError):
            code = child.wait()
            self._end()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return {"number": number, "end": "crash", "message": name, "at": name}
        except TimeoutError:
            self._end()
            return {"number": number, "end": "hang", "message": f"more than {SECONDS:.0f} s", "at": ""}
        if answer["seconds"] > SECONDS:
            answer.update(end="hang", at=answer["file"])
        elif answer["peak_mb"] - self._baseline > MEGABYTES:
            answer.update(end="memory", at=answer["file"], message=f"{answer['peak_mb'] - self._baseline:.0f} MB")
            self._end()
        return answer

    def _begin(self) -> None:
        self._end()
        self._directory = Path(tempfile.mkdtemp(prefix="rmlora-fuzz-"))
        words = [sys.executable, "-m", "benchmarks.fuzz.child", self.reader, self.seeds, self._directory, self.seed]
        scratch = str(self._directory / "cache")
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": scratch, "RMLORA_CACHE": scratch,
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error",
        }  # fmt: skip
        self._child = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._buffer, self._served = b"", 0
        try:
            self._baseline = float(self._answer(_START_SECONDS)["ready"])
        except EOFError:
            raise RuntimeError(f"The unchanged seeds of '{self.reader}' cannot be read: see the error above.") from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._child.stdout], [], [], seconds)
            if not ready:
                raise TimeoutError
            part = os.read(self._child.stdout.fileno(), 1 << 16)
            if not part:
                raise EOFError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with_errors_ignored(pipe.close)
            self._child = None
            shutil.rmtree(self._directory, ignore_errors=True)

    def _count(self, answer: dict[str, Any]) -> None:
        tally, end = self.tally, answer["end"]
        tally.slowest = max(tally.slowest, answer.get("seconds", 0.0))
        tally.peak_mb = max(tally.peak_mb, round(answer.get("peak_mb", 0.0) - self._baseline, 1))
        names = {"traceback": "tracebacks", "crash": "crashes", "hang": "hangs"}
        name = names.get(end, end)
        setattr(tally, name, getattr(tally, name) + 1)
        if end not in ("read", "refused"):
            kind = f"{end} {answer.get('at', '')} {answer['message'].partition(':')[0]}"
            tally.faults[kind] = tally.faults.get(kind, 0) + 1
            if tally.faults[kind] <= 3:
                self._keep(answer)

    def _keep(self, answer: dict[str, Any]) -> None:
        """Save the input and what is known of it."""
        from benchmarks.fuzz.readers import READERS, change

        target = self.failures / f"{self.reader}-{answer['number']}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        reader = READERS[self.reader]
        reader.prepare(self.seeds, target)
        change(reader, target, self.seeds, draw(self.seed, self.reader, answer["number"]))
        (target / "fault.txt").write_text(
            "".join(f"{key}: {value}\n" for key, value in answer.items()), errors="replace"
        )


def with_errors_ignored(close: Callable[[], object]) -> None:
    """Call ``close``; a pipe of a dead process may not close cleanly."""
    try:
        close()
    except OSError:
        return


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Return ``total`` split in proportion to ``weights``, exactly."""
    bounds = [round(total * sum(weights[:number]) / sum(weights)) for number in range(len(weights) + 1)]
    return [after - before for before, after in itertools.pairwise(bounds)]
