"""``rmlora-deploy verify``: compare a bundle with PyTorch and PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rmlora.errors import ConfigError
from rmlora.progress_display import ProgressDisplay
from rmlora.training.answer_metrics import AnswerMetric
from rmlora.training.data import Columns
from rmlora_deploy import api
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import (
    answer_options,
    by_adapter,
    data_options,
    json_option,
    make_console,
    print_json,
    remote_code_option,
)
from rmlora_deploy.cli.provider_options import provider_option
from rmlora_deploy.cli.report_table import show_report
from rmlora_deploy.verification.torch_pair import torch_is_installed

__all__ = ["command"]


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--base", help="Base model.  [default: where it was at export, on the same machine]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Adapter package, with its name if the bundle has several.  [default: where it was at export]",
)
@data_options("Labeled data to compare the metric on; NAME=FILE, repeatable, for several adapters.", multiple=True)
@answer_options
@provider_option(" to verify")
@click.option(
    "--reference-only",
    is_flag=True,
    help="Compare with PyTorch's outputs stored in the bundle; the default if torch is not installed.",
)
@click.option("--no-write", is_flag=True, help="Leave the report out of the bundle's manifest.")
@remote_code_option
@json_option
def command(
    bundle: Path, base: str | None, adapters: tuple[str, ...], data: tuple[str, ...], text_column: str | None,
    pair_column: str | None, image_column: str | None, label_column: str | None, metric: AnswerMetric | None, max_new_tokens: int | None, provider: str, reference_only: bool, no_write: bool,
    trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare a BUNDLE with PyTorch and PEFT on real inputs of several shapes.

    The report is added to the bundle's manifest, which keeps the last three of each kind: compared with PyTorch, or with
    stored outputs, on each execution provider. A bundle that may not be written to is verified all the same. If the graph differs from PyTorch by more than its precision
    explains, the exit code is 6 and the error names the first layer that differs. A bundle with branches is compared
    without an adapter, with each adapter alone, and with all of them mixed in one batch.

    Verify again after adding adapters, on another execution provider, or after copying a bundle to another machine.

    \b
    Examples:
      rmlora-deploy verify spam-bundle --data data/sms/test.jsonl
      rmlora-deploy verify spam-bundle --provider cuda --reference-only
      rmlora-deploy verify home-bundle --data chats.jsonl --metric exact_match
      rmlora-deploy verify both --data spam=data/sms/test.jsonl --data trec=data/trec/test.jsonl
    """
    console = make_console(as_json=as_json)
    opened = Bundle.open(bundle)
    if not reference_only and not torch_is_installed():
        console.print("PyTorch or PEFT is not installed: comparing with PyTorch's outputs stored in the bundle.")
    with ProgressDisplay(console, "comparing"):
        report = api.verify(
            opened, base=base, adapters=_given(opened, adapters, "--adapter"), data=_given(opened, data, "--data"),
            columns=Columns(text_column or image_column, label_column, pair_column), metric=metric, max_new_tokens=max_new_tokens, provider=provider,
            reference_only=reference_only, check=False, record=not no_write, trust_remote_code=trust_remote_code,
            on_unrecorded=console.print,
        )  # fmt: skip
    if as_json:
        print_json(report.to_dict())
    else:
        show_report(console, report)
    api.raise_if_failed(report, opened)


def _given(bundle: Bundle, values: Sequence[str], flag: str) -> str | dict[str, str] | None:
    """Return the values of a repeatable flag: one path for a merged bundle, or adapter → path with branches."""
    if not values:
        return None
    if bundle.mode == "branches":
        return by_adapter(values, list(bundle.adapters), flag=flag)
    if len(values) > 1:
        raise ConfigError(f"{bundle.path} holds one adapter: give {flag} once.")
    return values[0]
