"""``rmlora-deploy export``: make an ONNX bundle from a base and adapters, and verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rmlora.errors import some_of
from rmlora.labels import parse_labels
from rmlora.pooling import POOLING_MODES
from rmlora.progress_display import ProgressDisplay
from rmlora.tasks import TASKS
from rmlora.training.data import Columns
from rmlora_deploy import api
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import PRECISIONS, QuantizationEntry
from rmlora_deploy.cli.adapter_table import show_adapters
from rmlora_deploy.cli.base_warning import warn_of_other_base
from rmlora_deploy.cli.console import (
    answer_options,
    by_adapter,
    colored,
    data_options,
    json_option,
    labels_option,
    make_console,
    named,
    print_json,
    remote_code_option,
)
from rmlora_deploy.cli.report_table import show_report

__all__ = ["command"]


@click.command("export")
@click.argument("base")
@click.option(
    "--adapter",
    "-a",
    "adapters",
    required=True,
    multiple=True,
    metavar="[NAME=]PATH",
    help="Adapter package, or any PEFT LoRA adapter; with --mode branches repeatable, each with a name.",
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Bundle directory to write.")
@click.option(
    "--mode",
    type=click.Choice(["merged", "branches"]),
    default="merged",
    show_default=True,
    help="merged: one model with the update in its weights. branches: one base with any number of adapters, and every row "
    "of a batch may use another.",
)
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    help="With --mode branches: use this ONNX export of BASE, from any exporter. Needs no torch.",
)
@click.option(
    "--output-name",
    help="With --onnx: the graph's output to use.  [default: found by name and shape]",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="fp16 halves the file; int8 quarters it and is the fastest on most CPUs; int4 is for large models. Branches stay "
    "in floating point.",
)
@click.option(
    "--calibration",
    metavar="FILE",
    help="With --precision int8 and --mode merged: inputs like those to come, with or without labels, on which the ranges of "
    "activations are measured.  [default: those of --data; without either, every batch has its own range, which is "
    "less exact]  Of a language model, with --precision int4: chats, prompts with answers, or texts that its weights are rounded "
    "by (GPTQ).",
)
@click.option(
    "--int8-bits",
    type=click.Choice(["7", "8"]),
    help="Bits of int8 weights. 7 is for x86 processors without VNNI, on which 8 bits are slower.  [default: 8]",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    help="Language models: execution provider that the graph is built for; other graphs run on every one.  [default: cuda for "
    "fp16 by the GenAI builder, else cpu]",
)
@click.option(
    "--exporter",
    type=click.Choice(["torch", "optimum"]),
    default="torch",
    show_default=True,
    help="optimum needs the package optimum-onnx.",
)
@click.option("--opset", type=click.IntRange(18, 23), help="ONNX operator set.  [default: 20]")
@click.option("--task", type=click.Choice(list(TASKS)), help="Needed only for adapters that do not record it.")
@click.option(
    "--pooling",
    type=click.Choice(POOLING_MODES),
    help="Embeddings: what makes a vector: all tokens, the first or the last, or (images) what the base pools itself.  "
    "[default: as the adapter's or base's files say, else mean for texts and the best that the base has for images]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Embeddings: scale every vector to length 1.  [default: as in those files, else yes]",
)
@labels_option
@data_options(
    "Labeled data to verify on: sample inputs are drawn from it and the metric is compared. With several adapters: "
    "NAME=FILE, repeatable.",
    multiple=True,
)
@answer_options
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Compare with PyTorch before the bundle is written."
)
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option("--allow-base-mismatch", is_flag=True, help="Export even if the adapter was made for another base.")
@click.option("--revision", help="Branch, tag or commit of a hub base.")
@remote_code_option
@json_option
def command(
    base: str, adapters: tuple[str, ...], output: Path, data: tuple[str, ...], text_column: str | None,
    pair_column: str | None, image_column: str | None, label_column: str | None, labels: str | None, int8_bits: str | None, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Make an ONNX bundle from BASE and adapters, and verify it against PyTorch and PEFT.

    BASE is a checkpoint directory, a .gguf file or a hub name. The bundle holds the graph, the tokenizer or image
    processor, the labels and a manifest, and runs without torch. Before it is written, PyTorch with PEFT, the merged
    PyTorch model and ONNX Runtime run on the same inputs, and the differences are written into the manifest. A graph
    that differs from PyTorch by more than its precision explains is refused (exit code 6).

    Choose --mode branches to serve several adapters from one base: every row of a batch may use another adapter, with
    its own rank and labels, or none. Adapters can be added later (rmlora-deploy adapter add).

    With adapters for embeddings the output is one vector per text or image, pooled and normalized in the graph.

    \b
    Examples:
      rmlora-deploy export MiniLM --adapter spam --output spam-bundle
      rmlora-deploy export MiniLM --adapter spam --output spam-int8 --precision int8 --data data/sms/test.jsonl
      rmlora-deploy export MiniLM --mode branches -a spam=spam-rmlora -a trec=trec-rmlora --output both
    """
    console = make_console(as_json=as_json)
    names = parse_labels(labels) if labels is not None else None
    paths = {name: Path(path) for name, path in named(adapters, flag="--adapter").items()}
    columns = Columns(text_column or image_column, label_column, pair_column)
    warn_of_other_base(paths.values(), base)
    with ProgressDisplay(console, "starting") as display:
        bundle = api.export(
            base, paths, output, data=by_adapter(data, list(paths), flag="--data"), columns=columns, labels=names,
            int8_bits=int(int8_bits) if int8_bits is not None else None, on_progress=lambda line: display.update(title=line), **flags,
        )  # fmt: skip
    if as_json:
        print_json({"output": str(bundle.path), **bundle.manifest.to_dict()})
    else:
        _show(console, bundle)


def _show(console: Console, bundle: Bundle) -> None:
    manifest = bundle.manifest
    model, optimization = manifest.model, manifest.optimization
    console.print(
        f"Bundle written to {bundle.path}: {bundle.precision}, {model.bytes / 1e6:.1f} MB, {sum(model.operators.values())} "
        f"nodes, opset {model.opset}, {optimization.level if optimization else ''}, {manifest.seconds or 0:.0f} s."
    )
    if manifest.pooling is not None:
        source = manifest.pooling.source
        why = {"chosen": "as chosen", "default": "the default"}.get(source, f"from the files of the {source}")
        console.print(f"Pooling: {bundle.pooling} ({why}).")
    if manifest.quantization is not None:
        console.print(_rounding(manifest.quantization))
    if bundle.mode == "branches":
        show_adapters(console, bundle)
        if absent := bundle.lora_inputs().absent:
            console.print(
                f"Left out the updates of {len(absent)} weights, on which no output depends: {some_of(absent, 3)}."
            )
    if optimization is not None and optimization.reason:
        console.print(colored("Note:", "yellow", f" {optimization.reason}; the graph without fusions was kept."))
    if manifest.verification is not None:
        show_report(console, manifest.verification)
    else:
        console.print(
            colored(
                "Not verified",
                "yellow",
                " (--no-verify, or PyTorch is not installed): run  rmlora-deploy verify  where PyTorch is "
                "installed before you rely on the bundle.",
            )
        )


def _rounding(entry: QuantizationEntry) -> str:
    """Return the sentence about how a merged int8 graph is rounded."""
    weights = f"{entry.products} products in int8, weights with {entry.weight_bits} bits"
    if entry.activations == "dynamic":
        why = (
            f", because {entry.reason}"
            if entry.reason is not None
            else ". With --data or --calibration they are rounded to fixed ranges, which is mostly more exact"
        )
        return f"{weights}; activations rounded to the range of every batch{why}."
    error = (entry.held_out_error or {}).get("static", 0.0)
    kept = f", {len(entry.kept_in_float)} products kept in float32" if entry.kept_in_float else ""
    return (
        f"{weights}; activations rounded to ranges measured on {entry.samples} inputs of {entry.calibrated_on}; "
        f"{entry.balanced} of them balanced{kept}; mean error on inputs that were held out {error:.1%}."
    )
