"""``rmlora-deploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deploy.bundle import Bundle
from deploy.cli.console import data_options, json_option, make_console, print_json
from deploy.verify.evaluation import read_evaluation
from deploy.verify.run import raise_on_departure, verify_bundle
from deploy.verify.sources import load_torch_pair, torch_is_installed
from rmlora.training.data import Columns

__all__ = ["command", "show_report"]


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--base", help="Base model.  [default: the one recorded in the bundle]")
@click.option("--adapter", type=click.Path(path_type=Path), help="Adapter.  [default: the one recorded in the bundle]")
@data_options("Labelled data: inputs are drawn from it and the metric is compared.")
@click.option(
    "--provider", default="cpu", show_default=True, help="Execution provider to verify: cpu, cuda, tensorrt, …"
)
@click.option(
    "--reference-only",
    is_flag=True,
    help="Compare with PyTorch's outputs stored in the bundle; what happens by itself where torch is absent.",
)
@json_option
def command(
    bundle: Path, base: str | None, adapter: Path | None, data: str | None, text_column: str | None,
    image_column: str | None, label_column: str | None, provider: str, reference_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare a BUNDLE with PyTorch and PEFT on real inputs of several shapes.

    The report is written into the bundle's manifest. When the graph departs by more than its precision
    explains, the exit code is 6 and the first layer that departs is named.

    \b
    Examples:
      rmlora-deploy verify spam-bundle --data test.jsonl
      rmlora-deploy verify spam-bundle --provider cuda --reference-only
    """
    console = make_console(as_json=as_json)
    opened = Bundle.open(bundle)
    columns = Columns(text_column or image_column, label_column)
    evaluation = read_evaluation(data, columns, task=opened.task, labels=opened.labels) if data else None
    pair = None
    if not reference_only and not torch_is_installed():
        console.print("PyTorch or PEFT is not installed: comparing with the outputs stored in the bundle.")
    elif not reference_only:
        pair = load_torch_pair(opened, base, adapter)
    report = verify_bundle(opened, opened.preprocessor(), pair, evaluation=evaluation, provider=provider)
    if as_json:
        print_json(report)
    else:
        show_report(console, report)
    opened.manifest["verification"] = report
    opened.save_manifest()
    raise_on_departure(report, opened.precision)


def show_report(console: Console, report: dict[str, Any]) -> None:
    """Print a verification report as a table."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in report["shapes"])
    table = Table("compared with " + report["against"], "max error", "relative", "rms, relative", "same choice")
    for key, name in (("pytorch_merged", "PyTorch, merged"), ("onnx", f"ONNX Runtime, {report['provider']}")):
        if key in report:
            row = report[key]
            table.add_row(
                name,
                f"{row['max_abs_error']:.1e}",
                f"{row['max_relative_error']:.1e}",
                f"{row['rms_relative_error']:.1e}",
                f"{row['argmax_agreement']:.1%}",
            )
    console.print(table)
    limit = report["tolerance"]
    console.print(
        f"Inputs of shapes {shapes}; allowed relative error {limit['relative_error']:.2g}, rms {limit['rms_error']:.2g}."
    )
    if "evaluation" in report:
        scores = report["evaluation"]
        torch_score = f"PyTorch {scores['pytorch']:.4f}, " if "pytorch" in scores else ""
        console.print(
            f"{scores['metric'].capitalize()} on {scores['examples']} examples of {scores['data']}: {torch_score}"
            f"ONNX Runtime {scores['onnx']:.4f}."
        )
