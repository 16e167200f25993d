"""What OpenVINO's provider needs beyond its name: its own properties as options, and a graph of operators that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rmlora.errors import ConfigError
from rmlora_converters.graph.files.model_file import load_model, to_bytes
from rmlora_converters.graph.passes.expand_attention import expand_attention
from rmlora_converters.graph.passes.truth_of_sizes import replace_truth_casts

__all__ = ["fill_options", "inference_precision", "standard_operators"]

_PRECISIONS = {"bf16": "bf16", "f16": "fp16"}
"""OpenVINO's word → ours, for those that are less exact than a float32 graph."""


def fill_options(options: Mapping[str, str], device: str | None) -> dict[str, str]:
    """Return the provider's options, with OpenVINO's own properties where it takes them.

    Args:
        options: keys in lower case are the provider's; those in upper case are OpenVINO's properties, such as
            ``INFERENCE_PRECISION_HINT``, and go into ``load_config``.
        device: the device to compute on; None is the one in ``options``, or the CPU.

    Raises:
        ConfigError: ``load_config`` is not JSON.
    """
    own = {key: value for key, value in options.items() if not key.isupper()}
    if device is not None:
        own["device_type"] = device.upper()
    properties = {key: value for key, value in options.items() if key.isupper()}
    if properties or device is not None:
        own.setdefault("device_type", "CPU")
    if properties:
        try:
            config = json.loads(own.get("load_config", "{}"))
            config = {**config, own["device_type"]: {**config.get(own["device_type"], {}), **properties}}
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(
                "The provider option load_config is not a JSON object such as "
                '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}.'
            ) from None
        own["load_config"] = json.dumps(config)
    return own


def inference_precision(options: Mapping[str, object]) -> str | None:
    """Return the precision in the provider's options (as :func:`fill_options` made them) if it is less than float32."""
    config = json.loads(str(options.get("load_config", "{}")))
    hints = [str(values.get("INFERENCE_PRECISION_HINT", "")) for values in config.values() if isinstance(values, dict)]
    return next((_PRECISIONS[hint.lower()] for hint in hints if hint.lower() in _PRECISIONS), None)


def standard_operators(model: Path | bytes, made_from: Path | None) -> tuple[Path | bytes, Path | None]:
    """Return a model without what OpenVINO claims and cannot read or computes wrongly, and the file that holds its weights.

    The model is returned as it is if it has none of them.

    Args:
        model: path of an ONNX file, or a serialized model.
        made_from: for a serialized model, the file it was made from.

    Raises:
        InputError: the file is missing or is no ONNX model.
    """
    graph = load_model(model) if isinstance(model, Path) else _parse(model)
    if not expand_attention(graph) + replace_truth_casts(graph) + _fill_updates(graph):
        return model, made_from
    return to_bytes(graph), model if isinstance(model, Path) else made_from


def _fill_updates(graph: ir.Model) -> int:
    """Make updates of rank 0, which OpenVINO computes as noise, updates of rank 1 that are zero; return how many arrays it were."""
    empty = [
        value for value in _updates(graph) if value.const_value is not None and 0 in value.const_value.shape.numpy()
    ]
    for value in empty:
        assert value.const_value is not None and value.name is not None  # noqa: S101 - as chosen above
        sizes = [size or 1 for size in value.const_value.shape.numpy()]
        value.const_value = ir.tensor(np.zeros(sizes, value.const_value.dtype.numpy()), name=value.name)
    return len(empty)


def _updates(graph: ir.Model) -> list[ir.Value]:
    """Return the LoRA inputs for factors, whether they have defaults or not."""
    every = {value.name: value for value in (*graph.graph.inputs, *graph.graph.initializers.values())}
    return [value for name, value in every.items() if (name or "").endswith((".lora_A", ".lora_B"))]


def _parse(model: bytes) -> ir.Model:
    import onnx

    return ir.serde.deserialize_model(onnx.load_from_string(model))
