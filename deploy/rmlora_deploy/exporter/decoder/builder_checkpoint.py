"""The checkpoint as the GenAI builder must see it: what it reads under one name only, some models store under another.

What it cannot do without is asked for here, before the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmlora.checkpoint import CONFIG_NAME, Checkpoint
from rmlora.errors import CheckpointError, require
from rmlora.library_calls import library_call
from rmlora.processors import load_tokenizer
from rmlora.storage import read_json, write_json

__all__ = ["builder_checkpoint", "builder_config", "check_end_token"]

_GENERATION = "generation_config.json"
_EPSILONS = ("layer_norm_eps", "norm_eps")
"""What other models call the ``rms_norm_eps`` that the builder reads for every kind of norm; without it, it takes 1e-6."""


def builder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration (``config.json``) with the keys that the builder looks for."""
    made = dict(config)
    epsilon = next((config[name] for name in _EPSILONS if config.get(name) is not None), None)
    if config.get("rms_norm_eps") is None and epsilon is not None:
        made["rms_norm_eps"] = epsilon
    layers = config.get("num_hidden_layers")
    if config.get("sliding_window") and not config.get("layer_types") and config.get("use_sliding_window") is not False:
        made["layer_types"] = ["sliding_attention"] * int(layers or 0)  # else the builder ignores the window
    return made


def builder_checkpoint(checkpoint: Checkpoint, directory: Path) -> Path:
    """Return a directory with the files of ``checkpoint`` and the builder's configuration; no weight is copied.

    Args:
        checkpoint: the model.
        directory: to create, with links to the files.
    """
    config = builder_config(checkpoint.config)
    if config == checkpoint.config:
        return checkpoint.path
    directory.mkdir()
    for path in checkpoint.path.iterdir():
        if path.is_file() and path.name != CONFIG_NAME:
            (directory / path.name).symlink_to(path.resolve())
    write_json(directory / CONFIG_NAME, config, allow_nan=True)
    return directory


def check_end_token(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> None:
    """Raise :class:`CheckpointError` if neither the configurations nor the tokenizer of a model name a token that ends a text."""
    require("transformers", "export")
    from transformers import AutoConfig

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"transformers cannot read the configuration of {checkpoint.path} ({reason}).")

    file = checkpoint.path / _GENERATION
    generation = read_json(file, what="Generation configuration", finite=False) if file.is_file() else {}
    if isinstance(generation, dict) and generation.get("eos_token_id") is not None:
        return
    with library_call(refuse):
        config = AutoConfig.for_model(**checkpoint.config)
    if getattr(config, "eos_token_id", None) is not None:
        return
    if load_tokenizer(checkpoint.path, trust_remote_code=trust_remote_code).eos_token_id is None:
        raise CheckpointError(
            f"{checkpoint.path} names no token that ends a text, which its graph needs: add 'eos_token_id' to its {CONFIG_NAME} or "
            f"{_GENERATION}, or 'eos_token' to its tokenizer_config.json."
        )
