"""The ONNX Runtime execution providers that have a short name, in one table, and opening a session on any provider.

A provider is never silently replaced by another: if the requested one is not installed, offers no device, runs none of the
graph, or is dropped by ONNX Runtime while it opens the model, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import ConfigError, InputError, ProviderError, install_command, require
from rmlora_converters.graph.files.model_file import external_files
from rmlora_deploy.runtime.device_libraries import missing_library, remedy
from rmlora_deploy.runtime.int8_products import EXACT_PRODUCTS, products_overflow
from rmlora_deploy.runtime.openvino import fill_options, inference_precision, standard_operators
from rmlora_deploy.runtime.plugin_libraries import choose_devices, find_plugin, installed_plugins
from rmlora_deploy.runtime.provider_choice import ProviderChoice

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "PROVIDERS",
    "Provider",
    "available",
    "built_providers",
    "check_provider",
    "computed_in",
    "create_session",
    "get_provider",
    "provider_label",
    "run_error",
    "unusable",
]

_DEVICE_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS|CUFFT|HIP|TensorRT) (?:failure|error) [^;\n]*")
_NO_MEMORY = re.compile(r"(?:Available memory of|Failed to allocate memory for) [^;\n]*")
_OPENVINO_REASON = re.compile(r"OpenVINO does not support[^\n]*|NotFound: [^\n]*|Invalid OpenVINO EP option: \S+")
"""What an error of OpenVINO's says after its stack of C++."""
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""ONNX Runtime's option for remembering which provider runs which node."""
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
    runs_nodes: bool = False
    """True if it runs a graph node by node, so that an optional input may be fed; one that compiles a graph takes the default of
    such an input for a constant, and what is fed changes nothing."""
    install: str = "Install a build of ONNX Runtime that has it, such as its vendor's,"
    """What to do where it is absent, if no extra installs it."""
    devices: tuple[Any, ...] = field(default=(), compare=False)
    """Devices that a plugin library offers it; empty for a provider of ONNX Runtime's own build."""


PROVIDERS: tuple[Provider, ...] = (
    Provider("cpu", "CPUExecutionProvider", needs="cpu", others=(), runs_nodes=True),
    # TF32 is on by default and keeps 10 of float32's 23 mantissa bits; for speed, export in fp16 instead.
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0},
        "gpu",
        device="cuda",
        runs_nodes=True,
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        {"trt_engine_cache_enable": False},
        "gpu",
        device="cuda",
        others=("cuda", "cpu"),
    ),
    Provider("rocm", "ROCMExecutionProvider", runs_nodes=True),
    Provider("migraphx", "MIGraphXExecutionProvider"),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        install="Install onnxruntime-openvino in place of onnxruntime, with the release of openvino that it was built for,",
    ),
    Provider("dml", "DmlExecutionProvider", runs_nodes=True),
    Provider("coreml", "CoreMLExecutionProvider"),
)


def get_provider(provider: str) -> Provider:
    """Return a provider, with the options chosen for it; nothing is loaded.

    Args:
        provider: a short name or ONNX Runtime's name, in any case, or a whole choice
            (:mod:`rmlora_deploy.runtime.provider_choice`).

    Raises:
        ConfigError: there is no such provider, and neither a library nor an installed package that could have it.
    """
    choice = ProviderChoice.parse(provider)
    found = _known(choice.name)
    if found is None:
        if choice.library is None and choice.name.lower() not in installed_plugins():
            raise ConfigError(
                f"Unknown provider '{choice.name}': choose one of {', '.join(p.name for p in PROVIDERS)}, or name a plugin's "
                "library with --provider-library."
            )
        found = Provider(choice.name, choice.name, install="See which hardware and drivers it needs,")
    options = dict(choice.options)
    if found.name == "openvino":
        options = fill_options(options, choice.device)
    return replace(found, options={**found.options, **options}) if options else found


def _known(name: str) -> Provider | None:
    """Return a provider of the table, or another one that the installed ONNX Runtime was built with."""
    lower = name.lower()
    for provider in PROVIDERS:
        if lower in (provider.name, provider.ort_name.lower()):
            return provider
    for ort_name in built_providers():
        if lower in (ort_name.lower(), ort_name.lower().removesuffix("executionprovider")):
            return Provider(lower.removesuffix("executionprovider"), ort_name)
    return None


def built_providers() -> list[str]:
    """Return ONNX Runtime's names of the providers in the installed build."""
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    return list(ort.get_available_providers())


def provider_label(provider: str) -> str:
    """Return what tables and reports call a choice of provider."""
    return ProviderChoice.parse(provider).label


def computed_in(provider: str) -> str | None:
    """Return the precision that a provider is told to compute in by its options; None if it takes the graph's."""
    found = get_provider(provider)
    return inference_precision(found.options) if found.name == "openvino" else None


def available() -> dict[str, bool]:
    """Return short name → True if the installed ONNX Runtime was built with that provider."""
    built = set(built_providers())
    return {provider.name: provider.ort_name in built for provider in PROVIDERS}


def unusable(provider: str) -> str | None:
    """Return why sessions cannot be opened on a provider here, as a part of a sentence; None if nothing is known to be missing."""
    choice = ProviderChoice.parse(provider)
    found = _known(choice.name)
    if found is None or choice.library is not None or found.ort_name not in built_providers():
        try:
            plugin = find_plugin(choice)
        except ProviderError as error:
            return str(error).rstrip(".")
        if plugin is None:
            return "not in the installed ONNX Runtime"
        return None if plugin.devices else f"its library {plugin.library} offers no device on this machine"
    return missing_library(found.name)


def check_provider(provider: str) -> Provider:
    """Return a provider (see :func:`get_provider`), with the devices that its library offers if it is a plugin.

    Raises:
        ConfigError: there is no such provider.
        ProviderError: it is not in this build, its plugin library cannot be loaded or offers no device, or a library that it
            needs is missing.
    """
    choice, chosen = ProviderChoice.parse(provider), get_provider(provider)
    if choice.library is not None or chosen.ort_name not in built_providers():
        return _with_plugin(choice, chosen)
    missing = missing_library(chosen.name)
    if missing is not None:
        raise ProviderError(
            f"Provider '{chosen.name}' cannot start on this machine: {missing}. To use it, {remedy(missing)}, or choose "
            "another --provider."
        )
    return chosen


def _with_plugin(choice: ProviderChoice, chosen: Provider) -> Provider:
    """Return the provider as its plugin library offers it; errors as :func:`check_provider`."""
    plugin = find_plugin(choice)
    present = ", ".join(name for name, there in available().items() if there)
    how = f"Install one that has it ({install_command(chosen.needs)})" if chosen.needs else chosen.install
    if plugin is None:
        raise ProviderError(
            f"Provider '{chosen.name}' ({chosen.ort_name}) is not in the installed ONNX Runtime, which has: {present}. "
            f"{how} or choose another --provider; a plugin is named with --provider-library."
        )
    try:
        devices = choose_devices(choice, plugin)
    except ProviderError as error:
        if plugin.devices:
            raise
        raise ProviderError(f"{error} {how} or choose another --provider: this ONNX Runtime has {present}.") from None
    return replace(chosen, ort_name=devices[0].ep_name, devices=devices, options=dict(choice.options))


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
    name = called or made_from or (model if isinstance(model, Path) else "the model")
    if isinstance(model, Path):
        external_files(model)  # so that they are next to it, which not every ONNX Runtime checks
    if chosen.name == "openvino":
        model, made_from = standard_operators(model, made_from)
    if made_from is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(made_from.parent))
    if chosen.device == "cpu" and chosen.name != "cpu":
        options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
    session = _open(model, chosen, options, name, threads)
    if chosen.ort_name not in session.get_providers():
        raise ProviderError(
            f"Provider '{chosen.name}' did not start on this machine, and ONNX Runtime would have used the CPU instead: "
            "see its log above, or choose --provider cpu."
        )
    if chosen.device == "cpu" and chosen.name != "cpu":
        _refuse_idle(session, chosen, name)
    return session


def _open(
    model: Path | bytes, chosen: Provider, options: ort.SessionOptions, name: object, threads: int | None
) -> ort.InferenceSession:
    """Open a session; errors as :func:`create_session`."""
    import onnxruntime as ort

    source = model if isinstance(model, bytes) else str(model)
    # rmlora_converters/graph/passes/open_layer_norm.py says why this one is slower.
    slower = ["SkipLayerNormFusion"] if chosen.name == "cpu" else []
    chain = None
    try:
        if chosen.devices:  # the CPU runs what the plugin does not
            options.add_provider_for_devices(
                list(chosen.devices), {key: str(value) for key, value in chosen.options.items()}
            )
        else:
            own = {**chosen.options, **({"num_of_threads": threads} if threads and chosen.name == "openvino" else {})}
            chain = [(chosen.ort_name, own)]
            chain += [(item.ort_name, dict(item.options)) for item in map(get_provider, chosen.others)]
        # Without enable_fallback=0, a provider that fails, now or in a later run, is replaced by the CPU.
        return ort.InferenceSession(source, options, providers=chain, disabled_optimizers=slower, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a family of pybind classes without a common public base
        text = str(error).strip()
        found = _OPENVINO_REASON.search(text)
        reason = _reason(error, found[0] if found else text.partition("\n")[0])  # what follows is a stack of C++
        if chosen.name == "cpu":
            raise InputError(f"ONNX Runtime cannot load {name}: {reason}.") from None
        raise ProviderError(f"Provider '{chosen.name}' could not open {name}: {reason}.") from None


def _refuse_idle(session: ort.InferenceSession, chosen: Provider, name: object) -> None:
    """Raise :class:`ProviderError` if the CPU runs every node of the graph, because the provider took none."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.24
        return
    parts = session.get_provider_graph_assignment_info()
    if parts and all(part.ep_name != chosen.ort_name for part in parts):
        count = sum(len(part.get_nodes()) for part in parts)
        raise ProviderError(
            f"Provider '{chosen.name}' runs none of the {count} operators of {name}, so the CPU would run all of them: see what "
            "the provider supports and its options (--provider-option), or choose --provider cpu."
        )


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
