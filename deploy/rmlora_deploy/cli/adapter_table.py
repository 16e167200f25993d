"""The adapters of a bundle as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["show_adapters"]

_SHOWN = 6
"""Labels listed for each adapter."""


def show_adapters(console: Console, bundle: Bundle) -> None:
    """Print a table of the adapters of ``bundle``."""
    if not bundle.adapters:
        console.print("No adapters: add one with  rmlora-deploy adapter add.")
        return
    verified = {
        name: row for report in reversed(bundle.manifest.verifications) for name, row in (report.adapters or {}).items()
    }
    labeled = bundle.task.outputs.has_labels
    table = Table("adapter", *(["labels"] if labeled else []), "rank", "modules", "MB", "differs from PyTorch by")
    for column in table.columns[-4:]:
        column.justify = "right"
    for name, entry in bundle.adapters.items():
        labels = ", ".join(entry.labels[:_SHOWN]) + (" …" if len(entry.labels) > _SHOWN else "")
        measured = f"{verified[name].onnx.max_relative_error:.1e}" if name in verified else "not verified"
        table.add_row(
            name,
            *([labels] if labeled else []),
            str(entry.rank),
            str(entry.modules),
            f"{entry.bytes / 1e6:.2f}",
            measured,
        )
    console.print(table)
