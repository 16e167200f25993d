"""``rmlora-deploy bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rmlora.errors import ConfigError
from rmlora.plots import check_plot_path
from rmlora.storage import check_writable, write_json
from rmlora.wording import counted
from rmlora_deploy.bench.bench_plan import DEFAULT_ENGINES, ENGINES, BatchShape, BenchSettings
from rmlora_deploy.bench.bench_plot import plot_bench
from rmlora_deploy.bench.bench_warnings import bench_warnings
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import colored, json_option, make_console, print_json, remote_code_option
from rmlora_deploy.cli.measuring import measure
from rmlora_deploy.cli.provider_options import add_options, provider_parts, show_providers

__all__ = ["command"]


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of whole numbers such as 1,8", param=parameter) from None


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...] | None:
    """Split ``cpu,cuda``; ``all`` becomes None."""
    return None if value == "all" else tuple(part.strip() for part in value.split(","))


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--provider",
    "providers",
    default="all",
    show_default=True,
    callback=_names,
    help="Execution providers to measure, e.g. cpu,cuda; each one named must work. all measures every available one and lists the others.",
)
@provider_parts
@click.option(
    "--list-providers", is_flag=True, help="List the providers and the devices that they offer here, and stop."
)
@click.option(
    "--engine",
    "engines",
    default="all",
    callback=_names,
    help=f"Engines to measure, among {', '.join(ENGINES)}; each one named must work. torch-compile needs a C++ "
    f"compiler and compiles for every batch shape.  [default: {' and '.join(DEFAULT_ENGINES)}, if it can run]",
)
@click.option("--threads", callback=_numbers, help="CPU threads, e.g. 1,4.  [default: 1,2]")
@click.option("--batch", default="1,8", show_default=True, callback=_numbers, help="Rows of a batch.")
@click.option(
    "--length",
    callback=_numbers,
    help="Tokens of a text; unused for images.  [default: 32,128, or what the model reads if that is less]",
)
@click.option("--rounds", type=int, default=3, show_default=True, help="How many times each contestant runs.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Time on each batch shape in a round.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Runs before timing.")
@click.option("--base", help="Base model for PyTorch.  [default: the one recorded in the bundle]")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Adapter for PyTorch.  [default: the one recorded in the bundle]",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture to write: .png, .svg or .pdf.")
@remote_code_option
@json_option
def command(
    bundle: Path | None, batch: tuple[int, ...], length: tuple[int, ...] | None, base: str | None, adapter: Path | None,
    output: Path | None, plot: Path | None, as_json: bool, provider_library: str | None,
    provider_options: tuple[str, ...], list_providers: bool, **settings: Any,
) -> None:  # fmt: skip
    """Measure a BUNDLE on every execution provider and compare it with PyTorch on the same inputs.

    Reports latency percentiles, throughput, load time and memory. Each contestant runs in its own process, pinned to as
    many cores as it has threads; the order alternates from round to round, and the figures are medians over the rounds
    with their range. PyTorch runs the merged model with SDPA in inference mode, with the same number of threads. A bundle
    with branches is measured with no adapter, with its first adapter, and with a different adapter for each row; PyTorch
    then runs the first adapter merged. Engines and providers that this machine lacks are listed as not measured.
    A language model is measured in ONNX Runtime alone: time to the first token, and tokens a second.
    docs/bench.md explains every figure.

    \b
    Examples:
      rmlora-deploy bench spam-bundle --plot bench.png
      rmlora-deploy bench spam-bundle --provider cpu,cuda --batch 1,32 --length 64 --output bench.json
      rmlora-deploy bench spam-bundle --engine onnx,torch,torch-compile --threads 2
      rmlora-deploy bench --list-providers
    """
    if list_providers:
        show_providers(provider_library)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE'.")
    console = make_console(as_json=as_json)
    if provider_library is not None or provider_options:
        if settings["providers"] is None:
            raise ConfigError(
                "--provider-library and --provider-option need the name of their provider: add --provider."
            )
        settings["providers"] = add_options(settings["providers"], provider_library, provider_options)
    bench_settings = BenchSettings(batches=batch, lengths=length, **settings)
    if output is not None:
        check_writable(output)
    if plot is not None:
        check_plot_path(plot)
    opened = Bundle.open(bundle)
    writes_text = opened.task.outputs.kind == "text"
    if plot is not None and writes_text:
        raise ConfigError(f"{bundle} is for {opened.task.name}, whose figures are not plotted: leave --plot out.")
    result = measure(opened, bench_settings, console, base=base, adapter=adapter)
    if output is not None:
        write_json(output, result)
    if plot is not None:
        plot_bench(result, plot)
    if as_json:
        print_json(result)
    else:
        (_show_generation if writes_text else _show)(console, result)
        for path in filter(None, (output, plot)):
            console.print(f"Written: {path}")


def _show(console: Console, result: Mapping[str, Any]) -> None:
    times = _table("engine", "threads", "batch", "p50 ms (range)", "p90", "p99", "rows/s", "vs PyTorch (range)")
    for row in result["rows"]:
        times.add_row(
            row["name"],
            str(row["threads"]),
            str(BatchShape(row["rows"], row["tokens"])),
            f"{_ms(row['p50_ms'])} ({'–'.join(map(_ms, row['p50_ms_range']))})",
            _ms(row["p90_ms"]),
            _ms(row["p99_ms"]),
            f"{row['rows_per_second']:,.0f}",
            _speed(row),
        )
    console.print(times)
    whole = _table("engine", "threads", "load s", "MB loaded", "MB peak", "differs by", "how")
    for item in result["contestants"]:
        if "not_measured" in item:
            continue
        whole.add_row(
            item["name"],
            str(item["threads"]),
            f"{item['load_seconds']:.2f}",
            *("–" if item[key] is None else f"{item[key]:,.0f}" for key in ("loaded_mb", "peak_mb")),
            f"{item['relative_error']:.0e}" if "relative_error" in item else "–",
            item["how"],
        )
    console.print(whole)
    for warning in bench_warnings(result):
        word, colon, text = warning.partition(":")
        console.print(colored(word + colon, "yellow", text))
    machine, settings = result["environment"], result["settings"]
    console.print(
        f"{machine['processor']}, {counted(machine['cores'], 'core')}. Medians over {counted(settings['rounds'], 'round')} in new "
        "processes, in alternating order, with their range; load and memory are those of the whole process, libraries "
        "included; 'differs by' is the largest difference from PyTorch's outputs, relative to their largest value.",
        style="dim",
    )


def _show_generation(console: Console, result: Mapping[str, Any]) -> None:
    """Print the figures of a language model."""
    table = _table(
        "adapters", "threads", "rows × prompt", "first token ms (range)", "tokens/s (range)", "load s", "MB peak"
    )
    for row in result["rows"]:
        low, high = row["tokens_per_second_range"]
        table.add_row(
            row["name"],
            str(row["threads"]),
            str(BatchShape(row["rows"], row["tokens"])),
            f"{_ms(row['first_token_ms'])} ({'–'.join(map(_ms, row['first_token_ms_range']))})",
            f"{row['tokens_per_second']:,.1f} ({low:,.1f}–{high:,.1f})",
            f"{row['load_seconds']:.2f}",
            "–" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}",
        )
    console.print(table)
    machine, settings = result["environment"], result["settings"]
    console.print(
        f"{machine['processor']}, {counted(machine['cores'], 'core')}. Medians over {counted(settings['rounds'], 'round')} in new "
        f"processes, with their range: the time until every row has its first token, and the tokens of all rows together in a "
        f"second, over {settings['new_tokens']} tokens a row after the first.",
        style="dim",
    )


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "left" if column.header == "how" else "right"
    return table


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _speed(row: Mapping[str, Any]) -> str:
    if "speed_over_torch" not in row:
        return ""
    low, high = row["speed_over_torch_range"]
    return f"{row['speed_over_torch']:.2f}× ({low:.2f}–{high:.2f})"
