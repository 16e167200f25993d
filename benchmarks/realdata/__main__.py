"""Write the splits of one dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

import benchmarks.realdata
from benchmarks.realdata import READERS, write_splits


def main() -> None:
    """Write the splits of one dataset."""
    parser = argparse.ArgumentParser(
        description=benchmarks.realdata.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*READERS])
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="largest number of training rows")
    arguments = parser.parse_args()
    print(write_splits(arguments.name, arguments.target, seed=arguments.seed, limit=arguments.limit))


if __name__ == "__main__":
    main()
