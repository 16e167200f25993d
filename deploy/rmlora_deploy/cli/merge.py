"""``rmlora-deploy merge``: merge an adapter into a checkpoint or an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmlora.errors import some_of
from rmlora.package import load_package
from rmlora.progress_display import ProgressDisplay
from rmlora.wording import counted
from rmlora_converters.checkpoint_merge import MergeReport
from rmlora_converters.graph.passes.merge_weights import OnnxMergeReport
from rmlora_converters.rounding import LOSS_WARNING
from rmlora_deploy import api
from rmlora_deploy.cli.base_warning import warn_of_other_base
from rmlora_deploy.cli.console import colored, json_option, make_console, print_json

__all__ = ["command"]

_SHOWN = 5


@click.command("merge")
@click.argument("base")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option("--onnx", type=click.Path(path_type=Path), help="Merge into this ONNX export of BASE instead.")
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option("--allow-base-mismatch", is_flag=True, help="Merge even if the adapter was made for another base.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="With --onnx: compare the result with PyTorch and PEFT.",
)
@click.option("--revision", help="Branch, tag or commit of a hub base.")
@json_option
def command(
    base: str,
    adapter: Path,
    output: Path,
    onnx: Path | None,
    overwrite: bool,
    allow_base_mismatch: bool,
    verify: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Merge ADAPTER into BASE and write an ordinary checkpoint.

    BASE is a checkpoint directory, a .gguf file or a hub name; ADAPTER is any PEFT LoRA adapter. The weights are
    streamed, so a model larger than memory merges in a few hundred megabytes, and neither torch nor a GPU is needed.
    Sharding and element types stay those of BASE. The report says how much of each update was lost in rounding to
    that element type.

    With --onnx the update is merged into an ONNX file that any exporter made from BASE. Its weights are found by
    name, else by comparing them with BASE's, packed and transposed weights included. If PyTorch and PEFT are
    installed, the result is compared with them before it is written.

    \b
    Examples:
      rmlora-deploy merge MiniLM spam --output spam-checkpoint
      rmlora-deploy merge MiniLM spam --onnx MiniLM-onnx/model.onnx --output spam-onnx
    """
    console = make_console(as_json=as_json)
    warn_of_other_base([adapter], base)
    with ProgressDisplay(console, "merging", noun="MB", plural="MB") as display:
        report = api.merge(
            base, adapter, output, onnx=onnx, verify=verify, overwrite=overwrite, revision=revision,
            allow_base_mismatch=allow_base_mismatch,
            on_progress=lambda done, total: display.update(done / 1e6, total=total / 1e6),
        )  # fmt: skip
    rounded = load_package(adapter).base_precision
    if as_json:
        noted = {"trained_on": rounded} if rounded else {}
        print_json({"output": str(output), "worst_loss": report.worst_loss, **noted, **asdict(report)})
        return
    _show(console, report, output)
    if rounded:
        console.print(
            colored(
                "Note:",
                "yellow",
                f" the adapter was trained on the base rounded to 4 bits ({rounded}) and is merged into the base as it is, so the "
                "figures of its training are not exactly those of the result: measure it.",
            )
        )


def _show(console: Console, report: MergeReport | OnnxMergeReport, output: Path) -> None:
    size = f"{report.nbytes / 1e6:,.1f} MB"
    if isinstance(report, OnnxMergeReport):
        console.print(
            f"Merged {counted(len(report.modules), 'module')} into {output} ({size}); {counted(len(report.replaced), 'tensor')} replaced, "
            f"{counted(report.by_content, 'weight')} found by content."
        )
        console.print(_verdict(report.verification))
    else:
        console.print(
            f"Merged {counted(len(report.modules), 'module')} into {output} ({size}, "
            f"{counted(report.shards, 'shard')}); {counted(len(report.added), 'tensor')} added, {len(report.replaced)} replaced."
        )
        if report.untied:
            console.print(
                f"The output layer {report.untied} no longer shares the embedding's weight, since the update changes only one."
            )
    if report.dropped:
        console.print(
            f"Left out {len(report.dropped)} modules that nothing computes with: {some_of(report.dropped, 3)}."
        )
    _show_rounding(console, report)


def _verdict(verification: Mapping[str, Any] | None) -> str | Text:
    if verification is None:
        return "Not compared with PyTorch (--no-verify)."
    if verification["passed"] is None:
        return colored("Not compared with PyTorch:", "yellow", f" {verification['reason']}.")
    onnx = verification["onnx"]
    agreement = onnx["argmax_agreement"]  # None where nothing is chosen, as with numbers and spans
    chosen = f", the first choice is the same on {agreement:.1%}" if agreement is not None else ""
    return (
        f"Compared with PyTorch and PEFT on {counted(onnx['rows'], 'input')}: logits differ by at most "
        f"{onnx['max_relative_error']:.1e} of the largest{chosen}."
    )


def _show_rounding(console: Console, report: MergeReport | OnnxMergeReport) -> None:
    table = Table("module", "‖Δ‖/‖W‖", "lost in rounding", title="Lost in rounding, worst first")
    for item in report.modules[:_SHOWN]:
        table.add_row(item.module, f"{item.relative_size:.3f}", f"{item.loss:.2e}")
    console.print(table)
    if report.worst_loss > LOSS_WARNING:
        console.print(
            colored(
                "Warning:",
                "yellow",
                f" {report.worst_loss:.1%} of the update of '{report.modules[0].module}' was lost in "
                "rounding: merge into a float32 base, or export with --mode branches.",
            )
        )
