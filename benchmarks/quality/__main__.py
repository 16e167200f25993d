"""Carry out the quality study and write its page.

The study takes about ten hours on two cores. It can be stopped at any time: each finished run is written to the results
file, and the same command goes on from there.

    python -m benchmarks.quality                    # everything that docs/evidence.md reports, then the page
    python -m benchmarks.quality --quick            # two tasks, 200 examples, two seeds; into build/quality (minutes)
    python -m benchmarks.quality --left             # what is still to do
    python -m benchmarks.quality --select rmlora    # runs on the selection tasks, for choosing defaults
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.quality.campaign import run_all
from benchmarks.quality.methods import METHODS
from benchmarks.quality.page import write_page
from benchmarks.quality.plan import full_study, quick_study, selection
from benchmarks.quality.store import RunStore
from benchmarks.results import RESULTS, environment
from rmlora.storage import write_json
from rmlora_deploy.bench.machine import usable_cores

_QUICK = Path("build/quality")


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of the study, kept apart from the results")
    parser.add_argument(
        "--select", nargs="+", metavar="METHOD", choices=METHODS, help="run the selection tasks instead"
    )
    parser.add_argument("--left", action="store_true", help="count the runs that are left, and stop")
    parser.add_argument("--workers", type=int, default=len(usable_cores()), help="runs at once (default: one per core)")
    parser.add_argument(
        "--models", type=Path, default=Path("build/models"), help="rebuilt checkpoints (default %(default)s)"
    )
    options = parser.parse_args()
    console = Console()
    name = "quality_selection" if options.select else "quality"
    directory = _QUICK if options.quick else RESULTS
    store = RunStore(directory / f"{name}.jsonl")
    campaigns = quick_study() if options.quick else selection(options.select) if options.select else full_study()
    left = sum(len(campaign.to_do(store)) for campaign in campaigns)
    console.print(f"{len(store)} runs are done; {left} can be started now.")
    if options.left:
        return
    try:
        run_all(campaigns, store, options.models, workers=options.workers, console=console)
    except KeyboardInterrupt:
        console.print(f"Stopped. {len(store)} runs are in {store.path}; the same command goes on from there.")
        sys.exit(130)
    write_json(directory / f"{name}.json", environment())
    if not options.select:
        console.print(f"Written: {write_page(store, directory if options.quick else None)}")


if __name__ == "__main__":
    main()
