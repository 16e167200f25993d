"""Runs ONNX Runtime GenAI's model builder in a process of its own.

The builder prints a line for every layer, puts its modules at the top of ``sys.path``, and holds the whole model in memory; in
a process of its own none of that reaches the caller.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rmlora.errors import CheckpointError, ConfigError, OutputError, require
from rmlora_deploy.bundles.manifest import Precision
from rmlora_deploy.runtime.decoder.decoder_layout import GENAI_CONFIG

__all__ = ["INT4_RECIPE", "build_decoder", "builders_provider"]

_BUILT_IN: Mapping[str, tuple[Precision, ...]] = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "int8", "int4")}
"""Execution provider → precisions in which the builder's graph for it runs: for the CPU, its fp16 declares wrong shapes; for
CUDA, its fp32 leaves out the keys and values."""

INT4_RECIPE = "k_quant_mixed"
"""The builder's recipe for int4: 4 bits, and 8 for the output layer and the layers that suffer most."""

_OPTIONS: Mapping[str, Mapping[str, str]] = {"int4": {"algo_config": INT4_RECIPE}}
"""Precision → options of the builder."""
_MODULE = "onnxruntime_genai.models.builder"
_REASON = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt)|Exception): ?(.*)$")


def builders_provider(precision: Precision, provider: str | None) -> str:
    """Return the execution provider that a graph is built for; None takes the first in which there is this precision.

    Raises:
        ConfigError: the builder makes no graph in this precision for the provider that runs.
    """
    able = [name for name, precisions in _BUILT_IN.items() if precision in precisions]
    if provider is None:
        return able[0]
    if provider not in able:
        made = ", ".join(_BUILT_IN.get(provider, ())) or "nothing"
        raise ConfigError(
            f"The GenAI builder's graph in {precision} for {provider} does not run; for {provider} it makes {made}, and {precision} "
            f"for {' and '.join(able)}: change --precision or --provider."
        )
    return provider


def build_decoder(
    checkpoint: Path, output: Path, precision: Precision, *, provider: str, trust_remote_code: bool = False
) -> None:
    """Write graph, ``genai_config.json`` and tokenizer of the model in ``checkpoint`` to ``output``.

    Args:
        checkpoint: directory with ``config.json``, safetensors and tokenizer.
        output: directory to create.
        precision: of the weights.
        provider: execution provider that the graph is for, which decides its attention operator and its types.
        trust_remote_code: run code that comes with the model.

    Raises:
        DependencyError: onnxruntime-genai is not installed.
        CheckpointError: the builder fails.
        OutputError: the disk is full.
    """
    require("onnxruntime_genai", "genai")
    options = {"hf_token": "false", "hf_remote": str(trust_remote_code).lower(), **_OPTIONS.get(precision, {})}
    command = [
        sys.executable, "-m", _MODULE, "--input", str(checkpoint), "--output", str(output), "--precision", precision,
        "--execution_provider", provider, "--cache_dir", str(output / "cache"),
        "--extra_options", *(f"{key}={value}" for key, value in options.items()),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode != 0 or not (output / GENAI_CONFIG).is_file():
        reason = _reason(done.stderr)
        if "No space left" in done.stderr:
            raise OutputError(f"The disk of {output.parent} is full: free some space or choose another directory.")
        raise CheckpointError(
            f"ONNX Runtime GenAI's builder cannot build {checkpoint} in {precision} for {provider} ({reason}): choose another "
            "--precision, or report it to onnxruntime-genai."
        )
    _remove_cache(output / "cache")


def _reason(stderr: str) -> str:
    """Return the exception that ended the builder, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = next((line for line in reversed(lines) if _REASON.match(line)), None)
    return (named or (lines[-1] if lines else "it was killed"))[:300].rstrip(". ")


def _remove_cache(directory: Path) -> None:
    """Remove the builder's folder for downloads, which is empty."""
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
