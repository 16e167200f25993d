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
from rmlora_deploy.runtime.device_libraries import missing_library, remedy
from rmlora_deploy.runtime.int8_products import EXACT_PRODUCTS, products_overflow

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "PROVIDERS",
    "Provider",
    "available",
    "check_provider",
    "create_session",
    "get_provider",
    "run_error",
    "unusable",
]

_DEVICE_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS|CUFFT|HIP|TensorRT) (?:failure|error) [^;\n]*")
_NO_MEMORY = re.compile(r"(?:Available memory of|Failed to allocate memory for) [^;\n]*")
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder in which a model opened from memory finds its external weights."""


@dataclass(frozen=True)
class Provider:
    """One execution provider: the short name users type, ONNX Runtime's name, and the options it is started with."""

    name: str
    ort_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    """The extra that installs an ONNX Runtime with this provider; None if no extra does."""
    device: str = "cpu"
    """Where ONNX Runtime binds its inputs and outputs: ``cpu`` or ``cuda``."""
    others: tuple[str, ...] = ("cpu",)
    """Providers that run the operators it does not support, the first choice first."""


PROVIDERS: tuple[Provider, ...] = (
    Provider("cpu", "CPUExecutionProvider", needs="cpu", others=()),
    # TF32 is on by default and keeps 10 of float32's 23 mantissa bits; for speed, export in fp16 instead.
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0},
        "gpu",
        device="cuda",
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        {"trt_engine_cache_enable": False},
        "gpu",
        device="cuda",
        others=("cuda", "cpu"),
    ),
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


def unusable(name: str) -> str | None:
    """Return why sessions cannot be opened on a provider here, as a part of a sentence; None if nothing is known to be missing."""
    if not available()[name]:
        return "not in the installed ONNX Runtime"
    return missing_library(name)


def check_provider(name: str) -> Provider:
    """Return a provider by its name (see :func:`get_provider`).

    Raises:
        ConfigError: there is no such provider.
        ProviderError: it is not in this build, or a library that it needs is missing.
    """
    chosen = get_provider(name)
    built = available()
    if not built[chosen.name]:
        present = ", ".join(name for name, there in built.items() if there)
        how = f" ({install_command(chosen.needs)})" if chosen.needs else ", such as its vendor's,"
        raise ProviderError(
            f"Provider '{chosen.name}' ({chosen.ort_name}) is not in the installed ONNX Runtime, which has: {present}. "
            f"Install one that has it{how} or choose another --provider."
        )
    missing = missing_library(chosen.name)
    if missing is not None:
        raise ProviderError(
            f"Provider '{chosen.name}' cannot start on this machine: {missing}. To use it, {remedy(missing)}, or choose "
            "another --provider."
        )
    return chosen


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
    chosen = check_provider(provider)
    import onnxruntime as ort

    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal: errors are raised, and the sentence says them
    if threads is not None:
        options.intra_op_num_threads = threads
    if products_overflow():
        options.add_session_config_entry(*EXACT_PRODUCTS)
    options.enable_mem_pattern = options.enable_mem_pattern and memory_pattern
    if isinstance(model, Path):
        external_files(model)  # so that they are next to it, which not every ONNX Runtime checks
    if made_from is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(made_from.parent))
    chain = [(item.ort_name, dict(item.options)) for item in (chosen, *map(get_provider, chosen.others))]
    name = called or made_from or (model if isinstance(model, Path) else "the model")
    source = model if isinstance(model, bytes) else str(model)
    # rmlora_converters/graph/passes/open_layer_norm.py says why this one is slower.
    slower = ["SkipLayerNormFusion"] if chosen.name == "cpu" else []
    try:
        # Without enable_fallback=0, a provider that fails, now or in a later run, is replaced by the CPU.
        session = ort.InferenceSession(source, options, providers=chain, disabled_optimizers=slower, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a family of pybind classes without a common public base
        reason = _reason(error, str(error).strip().partition("\n")[0])  # what follows is a stack of C++
        if chosen.name == "cpu":
            raise InputError(f"ONNX Runtime cannot load {name}: {reason}.") from None
        raise ProviderError(f"Provider '{chosen.name}' could not open {name}: {reason}.") from None
    if chosen.ort_name not in session.get_providers():
        raise ProviderError(
            f"Provider '{chosen.name}' did not start on this machine, and ONNX Runtime would have used the CPU instead: "
            "see its log above, or choose --provider cpu."
        )
    return session


def run_error(error: Exception, what: str = "The graph cannot be run on these inputs") -> InputError | ProviderError:
    """Return the exception to raise when a run fails: ``what`` went wrong and the reason, in one line of limited length.

    It is a :class:`ProviderError` if the device failed or lacks memory, which is not the inputs' fault. Use it after
    ``except Exception``: ONNX Runtime's errors have no common public base class.
    """
    if "BFCArena" in str(error) or "Failed to allocate memory" in str(error):
        return ProviderError(f"{what}: there is not enough memory ({_reason(error)}). Send fewer rows at once.")
    kind = ProviderError if _DEVICE_FAILURE.search(str(error)) else InputError
    return kind(f"{what}: {_reason(error)}.")


def _reason(error: Exception, text: str | None = None) -> str:
    """Return ONNX Runtime's reason in one line of limited length, without its code, C++ signatures and the path it was given.

    Args:
        error: as ONNX Runtime raised it.
        text: the part of its message to tell; all of it if None.
    """
    text = str(error) if text is None else text
    if found := _DEVICE_FAILURE.search(text) or _NO_MEMORY.search(text):
        return found[0].strip(". ")
    line = _PREFIX.sub("", " ".join(text.split())) or type(error).__name__
    return line[:300].rstrip(". ")


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")
