"""Random inputs for a bundle's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, InputError
from rmlora.file_models import BaseConfig
from rmlora.inputs import Arrays
from rmlora.json_files import check_values
from rmlora.storage import read_json
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["longest_text", "random_inputs"]


def random_inputs(bundle: Bundle, rows: int, tokens: int | None, seed: int) -> Arrays:
    """Return a batch without padding, with the graph's names and types; every engine gets the same one.

    For an adapter that reads pairs, the second half of each row is the second text.

    Args:
        bundle: its manifest lists the inputs.
        rows: batch size.
        tokens: length of each text; None for images.
        seed: seed of the token ids or pixels.

    Raises:
        ConfigError: the model has fewer positions than ``tokens``.
        InputError: the graph takes an input that is neither text nor image, or images of no fixed size.
    """
    path, config = bundle.path / "config.json", _config(bundle)
    positions = _positions(config)
    if tokens and positions and tokens > positions:
        raise ConfigError(f"The model reads at most {positions} tokens, not {tokens}: lower --length.")
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for item in bundle.manifest.model.inputs:
        name, shape = item.name, (rows, tokens or 1)
        if name == "pixel_values":
            arrays[name] = rng.standard_normal((rows, *_image_shape(item.shape)), dtype=np.float32)
        elif name == "input_ids":
            words = config.get("vocab_size")
            if not isinstance(words, int) or words < 1:
                raise InputError(f"{path} does not say how many tokens the model knows (vocab_size): restore the file.")
            arrays[name] = rng.integers(0, words, shape, dtype=np.int64)
        elif name in ("attention_mask", "token_type_ids"):
            arrays[name] = np.full(shape, int(name == "attention_mask"), dtype=np.int64)
            if name == "token_type_ids" and "pair" in bundle.input_forms and config.get("type_vocab_size", 1) > 1:
                arrays[name][:, shape[1] // 2 :] = 1
        else:
            raise InputError(f"The graph takes '{name}', which bench cannot make up: only text and image inputs.")
    return arrays


def longest_text(bundle: Bundle) -> int | None:
    """Return the tokens of the longest text that a bundle reads; None for images, or if nothing says it."""
    if (length := bundle.manifest.max_length) is None:
        return None
    return min(length, _positions(_config(bundle)) or length)


def _config(bundle: Bundle) -> dict[str, Any]:
    """Return the configuration of the model; errors as :func:`random_inputs`."""
    path = bundle.path / "config.json"
    config: dict[str, Any] = read_json(path, what="Model configuration", finite=False)
    check_values(BaseConfig, config, where=f"Model configuration {path}", advice="export the bundle again")
    return config


def _positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) and positions > 0 else None


def _image_shape(shape: list[int | str]) -> tuple[int, ...]:
    sides = tuple(side for side in shape[1:] if isinstance(side, int))
    if len(sides) != len(shape) - 1:
        raise InputError("The graph takes images of any size: export it with a fixed size to measure it.")
    return sides
