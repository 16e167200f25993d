"""Feed damaged and hostile files to every reader of the toolkit, and count what it must never do.

Every input is a valid file with seeded changes: bytes flipped, cut and moved; values, types and keys of JSON and YAML;
headers of safetensors; fields of ONNX models; sizes of images; pipes, devices and links where a file is expected. A child
process with limits reads it as a command or the server would. Good ends are to read it, or to refuse it in one sentence.
Faults are an exception of another kind (users would see a traceback), a crash of the process, more than 10 s, and more
than 1 GB. The first inputs of every fault are saved with a note that says what happened.

    python -m benchmarks.fuzz                                    # 50,000 inputs over all readers, about a quarter of an hour
    python -m benchmarks.fuzz --inputs 2000 --reader manifest    # one reader; repeat --reader for more
    python -m benchmarks.fuzz --seed 7 --write                   # other inputs; write benchmarks/results/fuzz.json
    python -m benchmarks.fuzz --repeat manifest-1234             # one saved input again, with its traceback

A run that was stopped continues where it was: give the same --seed and --work. Exit code 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.fuzz.campaign import Campaign, Tally, shares
from benchmarks.fuzz.child import draw, run_one
from benchmarks.fuzz.readers import READERS
from benchmarks.fuzz.seeds import make_seeds
from benchmarks.results import environment, write_result
from rmlora.storage import write_json
from rmlora.wording import counted

_PARSERS = ("safetensors", "tokenizers", "onnx-ir", "pillow", "pydantic", "pyyaml", "click", "rich")
"""Packages that read or print what was changed, besides those that all results name."""
_EVERY = 1.0
"""Seconds between two progress lines, and between two saved states."""


def main() -> None:
    """Run the campaign, print a table, and exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs", type=int, default=50_000, help="over all chosen readers together (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="determines every input (default %(default)s)")
    parser.add_argument("--reader", action="append", choices=list(READERS), metavar="NAME",
                        help=f"only this reader; repeatable. One of: {', '.join(READERS)}")  # fmt: skip
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("fuzz-work"),
        help="directory of seeds, state and failures (default %(default)s)",
    )
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call continues")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/fuzz.json")
    parser.add_argument(
        "--repeat", metavar="READER-NUMBER", help="read one input again in this process, and print how it ends"
    )
    options = parser.parse_args()
    seeds = options.work / "seeds"
    if not (seeds / "requests").is_dir():
        seeds.mkdir(parents=True, exist_ok=True)
        make_seeds(seeds)
    if options.repeat:
        _repeat(options.repeat, options.seed, seeds, options.work)
        return
    chosen = options.reader or list(READERS)
    counts = dict(zip(chosen, shares(options.inputs, [READERS[name].weight for name in chosen]), strict=True))
    tallies, seconds = _run(counts, options.seed, options.work, options.minutes)
    result = _result(tallies, options.seed, seconds)
    print(json.dumps(result, indent=2) if options.json else _table(tallies))
    if options.write:
        print(write_result("fuzz", result), file=sys.stderr)
    sys.exit(1 if any(tally.bad for tally in tallies.values()) else 0)


def _run(counts: dict[str, int], seed: int, work: Path, minutes: float | None) -> tuple[dict[str, Tally], float]:
    """Do the inputs of every reader; return the tallies and the seconds of all calls together."""
    state = work / f"state-{seed}.json"
    saved = json.loads(state.read_text()) if state.is_file() else {"seconds": 0.0, "tallies": {}}
    tallies = {name: Tally(**saved["tallies"].get(name, {"reader": name})) for name in counts}
    start, shown = time.monotonic(), 0.0
    end = start + 60 * minutes if minutes else float("inf")

    def progress(tally: Tally) -> None:
        nonlocal shown
        if time.monotonic() > end:
            raise TimeoutError
        if time.monotonic() - shown > _EVERY:
            shown = time.monotonic()
            save()
            done, bad = (sum(getattr(item, name) for item in tallies.values()) for name in ("done", "bad"))
            line = f"{done:,} of {sum(counts.values()):,} inputs, {counted(bad, 'fault')}; {tally.reader} {tally.done:,} of {counts[tally.reader]:,}"
            print(
                f"\r{line:<100}" if sys.stderr.isatty() else line,
                end="" if sys.stderr.isatty() else "\n",
                file=sys.stderr,
            )

    def save() -> None:
        others = {name: item for name, item in saved["tallies"].items() if name not in tallies}
        kept = {**others, **{name: asdict(item) for name, item in tallies.items()}}
        write_json(state, {"seconds": saved["seconds"] + time.monotonic() - start, "tallies": kept})

    try:
        for name, count in counts.items():
            Campaign(name, seed, work / "seeds", work / "failures", tallies[name]).run(count, progress)
    except TimeoutError:
        print("\nThe time is up: give the same command again to continue.", file=sys.stderr)
    finally:
        save()
    return tallies, saved["seconds"] + time.monotonic() - start


def _result(tallies: dict[str, Tally], seed: int, seconds: float) -> dict[str, object]:
    names = ("done", "read", "refused", "tracebacks", "crashes", "hangs", "memory")
    total = sum(tally.done for tally in tallies.values())
    about = environment()
    about["command"] = f"python -m benchmarks.fuzz --inputs {total} --seed {seed} --write"
    about["packages"] |= {name: version(name) for name in _PARSERS}
    return {
        "environment": about,
        "seed": seed,
        "seconds": round(seconds),
        "limits": {"seconds": 10, "megabytes": 1024},
        **{name: sum(getattr(tally, name) for tally in tallies.values()) for name in names},
        "slowest_seconds": max(tally.slowest for tally in tallies.values()),
        "peak_mb": max(tally.peak_mb for tally in tallies.values()),
        "readers": {
            name: {key: value for key, value in asdict(tally).items() if key != "reader"}
            for name, tally in tallies.items()
        },
    }


def _table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'reader':<18}{'inputs':>8}{'read':>8}{'refused':>9}{'faults':>8}{'slowest':>9}{'memory':>10}"]
    for name, tally in tallies.items():
        lines.append(
            f"{name:<18}{tally.done:>8,}{tally.read:>8,}{tally.refused:>9,}{tally.bad:>8}{tally.slowest:>7.2f} s{tally.peak_mb:>7.0f} MB"
        )
        lines += [f"    {count} × {fault}" for fault, count in sorted(tally.faults.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


def _repeat(name: str, seed: int, seeds: Path, work: Path) -> None:
    reader, _, number = name.rpartition("-")
    directory = work / "repeated"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    READERS[reader].prepare(seeds, directory)
    for key, value in run_one(READERS[reader], directory, seeds, draw(seed, reader, int(number))).items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
