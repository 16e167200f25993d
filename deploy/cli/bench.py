"""``rmlora-deploy bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from deploy.bench.plan import BenchSettings
from deploy.bench.plot import plot_bench
from deploy.bench.run import run_bench
from deploy.bundle import Bundle
from deploy.cli.console import json_option, make_console, print_json
from deploy.providers import available, get_provider
from rmlora.errors import OutputError, ProviderError
from rmlora.storage import write_json

__all__ = ["command"]


def _numbers(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of whole numbers such as 1,8", param=parameter) from None
    if min(numbers) < 1:
        raise click.BadParameter(f"{min(numbers)} is less than 1", param=parameter)
    return numbers


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--provider",
    default="all",
    show_default=True,
    help="Providers to measure, e.g. cpu,cuda; all also lists what is absent.",
)
@click.option("--threads", default="1,2", show_default=True, callback=_numbers, help="Threads on the CPU.")
@click.option("--batch", default="1,8", show_default=True, callback=_numbers, help="Rows of a batch.")
@click.option("--length", default="32,128", show_default=True, callback=_numbers, help="Tokens of a text.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often the contestants take turns."
)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Time on every size in a round.")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="Runs before timing.")
@click.option("--base", help="Base for PyTorch's rows.  [default: the recorded one]")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Adapter for PyTorch's rows.  [default: the recorded one]"
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG file to write.")
@json_option
def command(
    bundle: Path, provider: str, threads: tuple[int, ...], batch: tuple[int, ...], length: tuple[int, ...], rounds: int,
    seconds: float, warmup: int, base: str | None, adapter: Path | None, output: Path | None, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    r"""Measure a BUNDLE on every execution provider, against PyTorch on the same inputs.

    Every contestant runs in a process of its own, pinned to as many cores as it has threads; they take turns in
    alternating order, and the figures are medians over the rounds with their range. PyTorch runs the merged
    model with SDPA in inference mode. Providers that this machine lacks are listed as not measured.

    \b
    Examples:
      rmlora-deploy bench spam-bundle --plot bench.png
      rmlora-deploy bench spam-bundle --provider cpu,cuda --batch 1,32 --length 64 --output bench.json
    """
    console = make_console(as_json=as_json)
    settings = BenchSettings(
        batches=batch,
        lengths=length,
        threads=threads,
        providers=tuple(provider.split(",")),
        rounds=rounds,
        seconds=seconds,
        warmup=warmup,
    )
    for path in (output, plot):
        if path is not None and not path.parent.is_dir():
            raise OutputError(f"{path} cannot be written: the directory {path.parent} does not exist; create it first.")
    _check_wanted(settings)
    opened = Bundle.open(bundle)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("starting", total=None)
        result = run_bench(
            opened,
            settings,
            base=base,
            adapter=adapter,
            command=sys.argv[1:],
            progress=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
        )
    if output:
        write_json(output, result)
    if plot:
        plot_bench(result, plot)
    if as_json:
        print_json(result)
    else:
        _show(console, result)


def _check_wanted(settings: BenchSettings) -> None:
    """Refuse a provider asked for by name that cannot be measured, before minutes are spent on the others."""
    there = available()
    absent = [name for name in settings.providers if name != "all" and not there[get_provider(name).name]]
    if absent:
        raise ProviderError(
            f"Provider '{absent[0]}' is not in the installed ONNX Runtime, which has: "
            f"{', '.join(name for name, found in there.items() if found)}. Install one that has it or change --provider."
        )


def _show(console: Console, result: dict[str, Any]) -> None:
    measured = [row for row in result["rows"] if "p50_ms" in row]
    times = Table(
        "engine", "threads", "rows × tokens", "p50 ms (range)", "p99 ms", "rows/s", "vs PyTorch", title="Latency"
    )
    for row in measured:
        low, high = row["p50_ms_range"]
        times.add_row(
            row["name"],
            str(row["threads"]),
            f"{row['rows']} × {row['tokens']}" if row["tokens"] else str(row["rows"]),
            f"{row['p50_ms']:.1f} ({low:.1f}–{high:.1f})",
            f"{row['p99_ms']:.1f}",
            f"{row['rows_per_second']:,.0f}",
            f"{row['speed_over_torch']:.2f}×" if "speed_over_torch" in row else "",
        )
    console.print(times)
    sizes = Table("engine", "threads", "load s", "model MB", "peak MB", title="Load time and memory")
    for row in {(row["name"], row["threads"]): row for row in measured}.values():
        figures = (f"{row['load_seconds']:.2f}", f"{row['model_mb']:.0f}", f"{row['peak_mb']:.0f}")
        sizes.add_row(row["name"], str(row["threads"]), *figures)
    console.print(sizes)
    absent: dict[str, list[str]] = {}
    for row in result["rows"]:
        if "not_measured" in row:
            absent.setdefault(row["not_measured"], []).append(row["name"])
    for reason, names in absent.items():
        console.print(f"Not measured ({reason}): {', '.join(dict.fromkeys(names))}.")
    environment = result["environment"]
    console.print(
        f"{environment['processor']}, {environment['cores']} cores; medians over {result['settings']['rounds']} rounds in "
        "separate pinned processes, alternating order."
    )
