"""The child of a campaign: changes and reads one input after the other, and says how each ended.

It reads numbers of inputs from stdin, and writes one JSON line for each to its own stdout, which nothing else can reach.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

__all__ = ["draw", "main", "restore", "run_one", "where"]

_MOST_DATA = 6 << 30
"""Bytes that a child may take beyond what it has when it starts, touched or not; files that it only maps do not count."""


def draw(seed: int, reader: str, number: int) -> random.Random:
    """Return the generator of one input: what happens to it depends on nothing else."""
    return random.Random(f"{seed} {reader} {number}")


def run_one(reader: Any, directory: Path, seeds: Path, rng: random.Random) -> dict[str, Any]:
    """Change a file, read it, put the seed back, and return how it ended."""
    from benchmarks.fuzz.readers import change
    from benchmarks.fuzz.reading import clean
    from rmlora.errors import RMLoRAError

    file, what = change(reader, directory, seeds, rng)
    result: dict[str, Any] = {"file": file, "change": what}
    start = time.monotonic()
    try:
        reader.read(directory, file, rng)
        result["end"] = "read"
    except RMLoRAError as error:
        message = str(error)
        good = message.isprintable() and message.endswith((".", "?"))
        result.update(end="refused" if good else "traceback", message=message[:400], at="not one sentence")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - this is what is looked for, pyo3's panics included
        result.update(end="traceback", message=f"{type(error).__name__}: {str(error)[:400]}", at=where(error))
        result["traceback"] = traceback.format_exc()[-6000:]
    result["seconds"] = round(time.monotonic() - start, 3)
    clean(directory)
    return result


def where(error: BaseException) -> str:
    """Return file and line of our own code that an exception passed last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "rmlora" in frame.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"


def restore(directory: Path, seeds: Path, file: str) -> None:
    """Put the seed of ``file`` back."""
    path = directory / file
    if path.is_symlink() or path.is_file() or path.is_fifo():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(seeds / file, path)


def main() -> None:
    """Serve a campaign: ``python -m benchmarks.fuzz.child READER SEEDS DIRECTORY SEED``."""
    name, seeds, directory, seed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # libraries print
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=RuntimeWarning, module="rmlora")  # users would see it
    os.fsync = lambda descriptor: None  # half of a merge's time here, and nothing is kept
    from benchmarks.fuzz.readers import READERS

    reader = READERS[name]
    reader.prepare(seeds, directory)
    for file in reader.files[:2]:  # imports and caches are not an input's memory
        _read_seed(reader, directory, file)
    os.dup2(null, 2)
    _limit_data()
    _say(answers, {"ready": _memory("VmRSS")})
    for line in sys.stdin:
        number = int(line)
        _forget_peak()
        result = run_one(reader, directory, seeds, draw(seed, name, number))
        _say(answers, {"number": number, "peak_mb": _memory("VmHWM"), **result})
        restore(directory, seeds, result["file"])


def _read_seed(reader: Any, directory: Path, file: str) -> None:
    from benchmarks.fuzz.reading import clean
    from rmlora.errors import CheckpointError

    for number in range(30):  # some readers do more for some inputs
        try:
            reader.read(directory, file, random.Random(number))
            clean(directory)
        except CheckpointError:  # the base of the settings is missing, so that no training begins
            if reader.name != "train-settings":
                raise


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")


def _limit_data() -> None:
    taken = int(_memory("VmData") * (1 << 20))
    resource.setrlimit(resource.RLIMIT_DATA, (taken + _MOST_DATA, resource.RLIM_INFINITY))


def _memory(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
