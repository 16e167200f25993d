"""Every table of speeds, one after the other, and the page generated from them: what ``make bench-speed`` runs.

    python -m benchmarks.speed            # writes benchmarks/results and docs/speed.md, about an hour and a half
    python -m benchmarks.speed --quick    # writes build/speed-quick, 10 minutes

A table that fails does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec

from benchmarks.contest import QUICK_RESULTS
from benchmarks.peers import missing, python_of
from benchmarks.speed_page.sections import SECTIONS


def main() -> None:
    """Run the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and sizes; writes to build/speed-quick")
    options = parser.parse_args()
    failed = []
    for module in dict.fromkeys(section.module for section in SECTIONS):
        if find_spec(f"benchmarks.{module}") is None:
            continue
        start = time.monotonic()
        print(f"== {module}", flush=True)
        words = [*(["--quick"] if options.quick else []), *more_words(module)]
        if subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *words], check=False).returncode:
            failed.append(module)
        print(f"== {module}: {time.monotonic() - start:.0f} s", flush=True)
    page = [sys.executable, "-m", "benchmarks.speed_page"]
    if options.quick:
        page += ["--results", str(QUICK_RESULTS), "--output", str(QUICK_RESULTS / "speed.md")]
    subprocess.run(page, check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def more_words(module: str) -> list[str]:
    """Return what a table's command needs to know of the peers' environments."""
    if module == "merge_speed" and missing("mergekit") is None:
        return ["--mergekit", str(python_of("mergekit"))]
    return []


if __name__ == "__main__":
    main()
