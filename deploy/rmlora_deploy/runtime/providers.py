"""The ONNX Runtime execution providers this project supports, in one table, and opening a session on one.

A provider is never silently replaced by another: if the requested one is not installed, or ONNX Runtime drops it while
opening the model, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import ConfigError, InputError, ProviderError, install_command, require
from rmlora_converters.graph.files.model_file import external_files

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["PROVIDERS", "Provider", "available", "create_session", "get_provider", "run_error"]

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder in which a model opened from memory finds its external weights."""


@dataclass(frozen=True)
class Provider:
    """One execution provider: the short name users type, ONNX Runtime's name, and the options it is started with."""

    name: str
    ort_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = "gpu"
    """The extra that installs an ONNX Runtime with this provider, if there is one."""


PROVIDERS: tuple[Provider, ...] = (
    Provider("cpu", "CPUExecutionProvider", needs="cpu"),
    # TF32 is on by default and keeps 10 of float32's 23 mantissa bits; for speed, export in fp16 instead.
    Provider("cuda", "CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0}),
    Provider("tensorrt", "TensorrtExecutionProvider", {"trt_engine_cache_enable": False}),
    Provider("rocm", "ROCMExecutionProvider"),
    Provider("migraphx", "MIGraphXExecutionProvider"),
    Provider("openvino", "OpenVINOExecutionProvider"),
    Provider("dml", "DmlExecutionProvider"),
    Provider("coreml", "CoreMLExecutionProvider"),
)


def get_provider(name: str) -> Provider:
    """Return a provider by its short name or ONNX Runtime's name, in any case.

    Raises:
        ConfigError: there is no such provider.
    """
    for provider in PROVIDERS:
        if name.lower() in (provider.name, provider.ort_name.lower()):
            return provider
    raise ConfigError(f"Unknown provider '{name}': choose one of {', '.join(p.name for p in PROVIDERS)}.")


def available() -> dict[str, bool]:
    """Return short name → True if the installed ONNX Runtime was built with that provider."""
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    built = set(ort.get_available_providers())
    return {provider.name: provider.ort_name in built for provider in PROVIDERS}


def create_session(
    model: Path | bytes,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    memory_pattern: bool = True,
    made_from: Path | None = None,
    options: ort.SessionOptions | None = None,
    called: Path | None = None,
) -> ort.InferenceSession:
    """Open ``model`` on exactly the requested provider; operators it does not support run on the CPU.

    Args:
        model: path of an ONNX file, or a serialized model.
        threads: intra-op threads; None lets ONNX Runtime choose.
        memory_pattern: let ONNX Runtime plan memory for input shapes it has seen; with many inputs this costs more than it
            saves.
        made_from: for a serialized model, the file it was made from, whose folder holds the external weights.
        options: session options to start from; without them nothing is logged.
        called: what errors call the model; None for its own path.

    Raises:
        ProviderError: the provider is not in this build, or could not start (no device, no driver).
        InputError: the file is missing, is not a model ONNX Runtime can load, or names a file outside its directory.
    """
    chosen = get_provider(name=provider)
    if not available()[chosen.name]:
        present = ", ".join(name for name, there in available().items() if there)
        raise ProviderError(
            f"Provider '{chosen.name}' ({chosen.ort_name}) is not in the installed ONNX Runtime, which has: {present}. "
            f"Install one that has it ({install_command(chosen.needs)}) or choose another --provider."
        )
    import onnxruntime as ort

    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal: errors are raised, and the sentence says them
    if threads is not None:
        options.intra_op_num_threads = threads
    options.enable_mem_pattern = options.enable_mem_pattern and memory_pattern
    if isinstance(model, Path):
        external_files(model)  # so that they are next to it, which not every ONNX Runtime checks
    if made_from is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(made_from.parent))
    chain = [(chosen.ort_name, dict(chosen.options))]
    if chosen.name != "cpu":
        chain.append(("CPUExecutionProvider", {}))
    name = called or made_from or (model if isinstance(model, Path) else "the model")
    source = model if isinstance(model, bytes) else str(model)
    # rmlora_converters/graph/passes/open_layer_norm.py says why this one is slower.
    slower = ["SkipLayerNormFusion"] if chosen.name == "cpu" else []
    try:
        session = ort.InferenceSession(source, options, providers=chain, disabled_optimizers=slower)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a family of pybind classes without a common public base
        if chosen.name == "cpu":
            raise InputError(f"ONNX Runtime cannot load {name}: {_reason(error)}.") from None
        raise ProviderError(f"Provider '{chosen.name}' could not open {name}: {_reason(error)}.") from None
    if chosen.ort_name not in session.get_providers():
        raise ProviderError(
            f"Provider '{chosen.name}' did not start on this machine (no device or driver found), and ONNX Runtime "
            "would have used the CPU instead: fix the device or choose --provider cpu."
        )
    return session


def run_error(error: Exception, what: str = "The graph cannot be run on these inputs") -> InputError:
    """Return the exception to raise when a run fails: ``what`` went wrong and the reason, in one line of limited length.

    Use it after ``except Exception``: ONNX Runtime's errors have no common public base class.
    """
    return InputError(f"{what}: {_reason(error)}.")


def _reason(error: Exception) -> str:
    """Return ONNX Runtime's reason in one line of limited length, without its code and the path it was given."""
    line = _PREFIX.sub("", " ".join(str(error).split())) or type(error).__name__
    return line[:300].rstrip(". ")


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")
