"""Measuring a bundle with progress on the console, for ``bench`` and for pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.progress_display import ProgressDisplay
from rmlora_deploy.bench.bench_plan import BenchSettings
from rmlora_deploy.bench.rounds import run_bench
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["measure"]


def measure(
    bundle: Bundle, settings: BenchSettings, console: Console, *, base: str | None = None, adapter: Path | None = None
) -> dict[str, Any]:
    """Return what :func:`rmlora_deploy.bench.rounds.run_bench` measures, with this process's command in it; errors are the same.

    Args:
        bundle: what to measure.
        settings: what to measure, and how often.
        console: where progress is shown.
        base: base model for PyTorch; None uses the one recorded in the bundle.
        adapter: adapter for PyTorch; None uses the one recorded in the bundle.
    """
    with ProgressDisplay(console, "starting", noun="measurement") as display:
        return run_bench(
            bundle,
            settings,
            base=base,
            adapter=adapter,
            command=sys.argv[1:],
            on_progress=lambda name, done, total: display.update(done, total=total, title=name),
        )
