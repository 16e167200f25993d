"""The one way into an export: checks what both modes need, then exports merged or with branches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from rmlora.errors import ConfigError, InputError, ParityError, require
from rmlora.package import load_package
from rmlora.storage import refuse_existing
from rmlora.tasks import TASKS
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.export_settings import ExportSettings

__all__ = ["export_bundle"]


def export_bundle(settings: ExportSettings, *, on_progress: Callable[[str], None] | None = None) -> Bundle:
    """Export, lower the precision, verify, and write the bundle; a step that fails leaves no files.

    Args:
        settings: of the export.
        on_progress: called with a line before every step.

    Raises:
        ConfigError: settings that do not go together.
        InputError: base, adapter or data cannot be used, or the model cannot be exported.
        ParityError: the graph differs from PyTorch by more than its precision explains.
        DependencyError: a package of the extra ``export`` is missing.
        OutputError: the bundle cannot be written.
    """
    report_progress = on_progress or (lambda line: None)
    require("onnxruntime", "cpu")
    if settings.graph is None:  # an existing graph needs no torch
        for module in ("torch", "transformers", "peft"):
            require(module, "export")
    if settings.output_name is not None and settings.graph is None:
        raise ConfigError("--output-name chooses an output of a graph that you give with --onnx.")
    refuse_existing(settings.output, overwrite=settings.overwrite)
    unknown = sorted(set(settings.data) - set(settings.adapters))
    if unknown:
        raise ConfigError(
            f"--data is given for '{unknown[0]}', but the adapters are {', '.join(settings.adapters)}: write "
            "--data NAME=FILE with the name of one of them."
        )
    _check_int8(settings)
    _check_calibration(settings)
    try:
        return _exporter(settings)(settings, on_progress=report_progress)
    except ParityError as error:
        raise ParityError(f"{error} No bundle was written.") from None


def _exporter(settings: ExportSettings) -> Callable[..., Bundle]:
    """Return what exports these adapters: it depends on the kind of their outputs, and on the mode.

    Raises:
        ConfigError: an option goes with another kind of model.
    """
    if _generates_text(settings):
        from rmlora_deploy.exporter.decoder.decoder_bundle import export_decoder

        return export_decoder
    if settings.provider is not None:
        raise ConfigError(
            "--provider chooses what a language model's graph is built for; other graphs run on every provider."
        )
    if settings.metric is not None or settings.max_new_tokens is not None:
        raise ConfigError("--metric and --max-new-tokens are for adapters for text-generation: leave them out.")
    if settings.mode == "merged":
        from rmlora_deploy.exporter.merged_bundle import export_merged

        return export_merged
    from rmlora_deploy.exporter.branch_bundle import export_branches

    return export_branches


def _generates_text(settings: ExportSettings) -> bool:
    """Return True if the first adapter is for text; the exporters say what is wrong with one that cannot be read."""
    name = settings.task
    if name is None and settings.adapters:
        with suppress(InputError):
            name = load_package(next(iter(settings.adapters.values()))).task
    return name in TASKS and TASKS[name].outputs.kind == "text"


def _check_int8(settings: ExportSettings) -> None:
    """Raise :class:`ConfigError` if options of int8 are given for what they do not change."""
    if settings.int8_bits is not None and settings.precision != "int8":
        raise ConfigError(f"--int8-bits goes with --precision int8, not {settings.precision}.")
    if settings.int8_bits not in (None, 7, 8):
        raise ConfigError(f"--int8-bits is 7 or 8, not {settings.int8_bits}.")


def _check_calibration(settings: ExportSettings) -> None:
    """Raise :class:`ConfigError` if calibration data is given where nothing is calibrated; language models have rules of their own."""
    if settings.calibration is None or _generates_text(settings):
        return
    if settings.precision != "int8":
        raise ConfigError(
            f"--calibration goes with --precision int8, not {settings.precision}: of such models nothing else is calibrated."
        )
    if settings.mode != "merged":
        raise ConfigError(
            "--calibration goes with --mode merged: adapters in branches change what the base computes with, so its "
            "activations are rounded to the range of every batch."
        )
