"""Generate docs/speed.md and its plots from benchmarks/results; a table without results says how to measure it.

python -m benchmarks.speed_page
python -m benchmarks.speed_page --results build/speed-quick --output build/speed-quick/speed.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.contest import ROOT
from benchmarks.results import RESULTS
from benchmarks.speed_page.page import write_page


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the results files")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "speed.md", help="page to write")
    options = parser.parse_args()
    print(write_page(options.results, options.output))


if __name__ == "__main__":
    main()
