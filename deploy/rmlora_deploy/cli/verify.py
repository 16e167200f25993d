"""``rmlora-deploy verify``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.errors import ConfigError
from rmlora.training.data import Columns
from rmlora_deploy.bundles.adapters import record_verification
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import data_options, json_option, make_console, named, print_json
from rmlora_deploy.verification.evaluation import read_evaluation
from rmlora_deploy.verification.torch_pair import load_torch_pair, torch_is_installed
from rmlora_deploy.verification.verify_branches import raise_on_branch_mismatch, verify_branches
from rmlora_deploy.verification.verify_merged import raise_on_mismatch, verify_bundle

__all__ = ["command", "show_report"]

_Verified: TypeAlias = tuple[dict[str, Any], dict[str, list[np.ndarray]]]
"""A report, and PyTorch's outputs by adapter to keep in the bundle."""


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--base", help="Base model.  [default: the one recorded in the bundle]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Where an adapter is now, with its name if the bundle has several.  [default: as recorded in the bundle]",
)
@data_options(
    "Labeled data on which the metric is compared; NAME=FILE, repeatable, for several adapters.", multiple=True
)
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
    bundle: Path, base: str | None, adapters: tuple[str, ...], data: tuple[str, ...], text_column: str | None,
    image_column: str | None, label_column: str | None, provider: str, reference_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare a BUNDLE with PyTorch and PEFT on real inputs of several shapes.

    The report is written into the bundle's manifest. When the graph departs by more than its precision
    explains, the exit code is 6 and the first layer that departs is named. A bundle with branches is compared with no
    adapter, with each alone, and with all of them mixed in one batch.

    \b
    Examples:
      rmlora-deploy verify spam-bundle --data test.jsonl
      rmlora-deploy verify spam-bundle --provider cuda --reference-only
      rmlora-deploy verify both --data spam=spam-test.jsonl --data trec=trec-test.jsonl
    """
    console = make_console(as_json=as_json)
    opened = Bundle.open(bundle)
    columns = Columns(text_column or image_column, label_column)
    with_torch = not reference_only and torch_is_installed()
    if not reference_only and not with_torch:
        console.print("PyTorch or PEFT is not installed: comparing with the outputs stored in the bundle.")
    verify = _verify_branches if opened.mode == "branches" else _verify_merged
    report, expected = verify(opened, base, adapters, data, columns, provider, with_torch)
    if as_json:
        print_json(report)
    else:
        show_report(console, report)
    record_verification(opened, report, expected)
    if opened.mode == "branches":
        raise_on_branch_mismatch(report, opened.precision)
    else:
        raise_on_mismatch(report, opened.precision)


def _verify_merged(
    bundle: Bundle, base: str | None, adapters: Sequence[str], data: Sequence[str], columns: Columns, provider: str,
    with_torch: bool,
) -> _Verified:  # fmt: skip
    for flag, values in (("--adapter", adapters), ("--data", data)):
        if len(values) > 1:
            raise ConfigError(f"{bundle.path} holds one adapter: give {flag} once.")
    evaluation = read_evaluation(data[0], columns, task=bundle.task, labels=bundle.labels) if data else None
    pair = load_torch_pair(bundle, base, Path(adapters[0]) if adapters else None) if with_torch else None
    return verify_bundle(bundle, bundle.preprocessor(), pair, evaluation=evaluation, provider=provider), {}


def _verify_branches(
    bundle: Bundle, base: str | None, adapters: Sequence[str], data: Sequence[str], columns: Columns, provider: str,
    with_torch: bool,
) -> _Verified:  # fmt: skip
    places = {name: Path(path) for name, path in named(adapters, flag="--adapter").items()}
    sources = named(data, flag="--data")
    for name in (*places, *sources):
        bundle.adapter(name)
    evaluations = {
        name: read_evaluation(source, columns, task=bundle.task, labels=bundle.adapter(name)["labels"])
        for name, source in sources.items()
    }
    return verify_branches(
        bundle,
        (lambda name: load_torch_pair(bundle, base, places.get(name), name=name)) if with_torch else None,
        evaluations=evaluations,
        provider=provider,
    )


def show_report(console: Console, report: dict[str, Any]) -> None:
    """Print a verification report as a table."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in report["shapes"])
    rows = list(_rows(report))
    vectors = any(row.get("min_cosine") is not None for _, row in rows)
    last = "least cosine" if vectors else "same choice"
    table = Table("compared with " + report["against"], "max error", "relative", "rms, relative", last)
    for name, row in rows:
        table.add_row(
            escape(name),
            f"{row['max_abs_error']:.1e}",
            f"{row['max_relative_error']:.1e}",
            f"{row['rms_relative_error']:.1e}",
            f"{row['min_cosine']:.6f}" if vectors else f"{row['argmax_agreement']:.1%}",
        )
    console.print(table)
    limit = report["tolerance"]
    other = f"least cosine {limit['cosine']:g}" if vectors else f"rms {limit['rms_error']:.2g}"
    console.print(f"Inputs of shapes {shapes}; allowed relative error {limit['relative_error']:.2g}, {other}.")
    if report.get("unverified"):
        console.print(
            f"[yellow]Not verified:[/] {escape(', '.join(report['unverified']))} (no outputs of PyTorch are stored; verify "
            "where it is installed)."
        )
    for scores in filter(None, (item.get("evaluation") for item in (report, *report.get("adapters", {}).values()))):
        torch_score = f"PyTorch {scores['pytorch']:.4f}, " if "pytorch" in scores else ""
        console.print(
            f"{scores['metric'].capitalize()} on {scores['examples']} examples of {scores['data']}: {torch_score}"
            f"ONNX Runtime {scores['onnx']:.4f}."
        )


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the comparisons of a report with the name of each."""
    if "adapters" not in report:
        for key, name in (("pytorch_merged", "PyTorch, merged"), ("onnx", f"ONNX Runtime, {report['provider']}")):
            if key in report:
                yield name, report[key]
        return
    exactly = "the same to the bit" if report["base"]["bit_equal"] else "the plain graph"
    yield f"no adapter ({exactly})", report["base"]
    for name, row in report["adapters"].items():
        yield name, row["onnx"]
    if report["mixed"]:
        yield "all mixed in one batch", report["mixed"]
