"""Plugin libraries of ONNX Runtime: execution providers outside its build, and the devices that they offer.

Such a library is a file, or comes in a Python package (``onnxruntime-ep-NAME``) that says where it is. ONNX Runtime loads
it once per process and asks it which of the machine's devices it can use; that may be none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rmlora.errors import ProviderError
from rmlora_deploy.runtime.processor_name import processor_name
from rmlora_deploy.runtime.provider_choice import ProviderChoice

__all__ = ["Plugin", "choose_devices", "device_kind", "find_plugin", "installed_plugins"]

_PACKAGE = re.compile(r"onnxruntime[-_.]ep[-_.](.+)", re.IGNORECASE)
"""Names of packages that carry a plugin library, by ONNX Runtime's convention."""
_registered: dict[str, Plugin] = {}
"""Path of a library → what it offers, for this process."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Plugin:
    """A registered library."""

    library: str
    devices: tuple[Any, ...] = field(compare=False, default=())
    """ONNX Runtime's ``OrtEpDevice`` objects: each is one device for one provider of the library."""

    @property
    def providers(self) -> list[str]:
        """ONNX Runtime's names of the providers that offer a device."""
        return list(dict.fromkeys(device.ep_name for device in self.devices))


def installed_plugins() -> dict[str, str]:
    """Return provider → name of the installed package that carries it."""
    found = {}
    for package in distributions():
        name = package.metadata["Name"] or ""
        if match := _PACKAGE.fullmatch(name):
            found[match[1].lower()] = name
    return dict(sorted(found.items()))


def find_plugin(choice: ProviderChoice) -> Plugin | None:
    """Register the library that ``choice`` names, or that an installed package has for it; None if there is neither.

    Raises:
        ProviderError: the library cannot be loaded, or ONNX Runtime is too old for plugins.
    """
    if choice.library is not None:
        return _register(_library_of(choice.library), choice.name)
    package = installed_plugins().get(choice.name.lower().removesuffix("executionprovider"))
    return _register(_library_in(package.replace("-", "_").replace(".", "_")), choice.name) if package else None


def choose_devices(choice: ProviderChoice, plugin: Plugin) -> tuple[Any, ...]:
    """Return the devices of one provider and of one kind.

    Raises:
        ProviderError: the library offers no device, none of the kind that is asked for, or several kinds and none is asked
            for.
    """
    if not plugin.devices:
        raise ProviderError(
            f"Provider '{choice.name}': its library {plugin.library} was loaded and offers no device on this machine, whose "
            f"processor is {processor_name()}."
        )
    provider = _same_provider(choice.name, plugin)
    own = [device for device in plugin.devices if device.ep_name == provider]
    kinds = list(dict.fromkeys(map(device_kind, own)))
    if choice.device is None and len(kinds) > 1:
        raise ProviderError(
            f"Provider '{choice.name}' offers several devices, {', '.join(kinds)}: choose one with --provider "
            f"{choice.name}:{kinds[0]}."
        )
    chosen = [device for device in own if choice.device in (None, device_kind(device))]
    if not chosen:
        raise ProviderError(
            f"Provider '{choice.name}' offers no device '{choice.device}' on this machine, only {', '.join(kinds)}."
        )
    return tuple(chosen[:1])


def device_kind(device: Any) -> str:
    """Return ``cpu``, ``gpu`` or ``npu`` for ONNX Runtime's description of a device."""
    return str(device.device.type).rpartition(".")[2].lower()


def _same_provider(name: str, plugin: Plugin) -> str:
    """Return the provider of the library that ``name`` means; a library with only one needs no exact name."""
    wanted = name.lower().removesuffix("executionprovider")
    for provider in plugin.providers:
        if provider.lower().removesuffix("executionprovider") == wanted:
            return provider
    if len(plugin.providers) > 1:
        raise ProviderError(
            f"The library {plugin.library} has no provider '{name}': choose --provider {' or '.join(plugin.providers)}."
        )
    return plugin.providers[0]


def _register(library: Path, name: str) -> Plugin:
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} takes no plugin libraries, such as {library}: install onnxruntime 1.23 or newer."
        )
    key = str(library.resolve())
    with _lock:
        if key not in _registered:
            known = set(map(_identity, ort.get_ep_devices()))
            try:
                ort.register_execution_provider_library(_unused(name), key)  # it looks for others beside itself
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common public base class
                raise ProviderError(f"The plugin library {library} cannot be used: {_why(error)}.") from None
            new = [device for device in ort.get_ep_devices() if _identity(device) not in known]
            _registered[key] = Plugin(str(library), tuple(new))
        return _registered[key]


def _identity(device: Any) -> tuple[object, ...]:
    return device.ep_name, device_kind(device), device.device.device_id, tuple(sorted(device.ep_metadata.items()))


def _unused(name: str) -> str:
    """Return a registration name that no other library of this process has."""
    taken = len(_registered)
    return name if not taken else f"{name}-{taken}"


def _library_of(text: str) -> Path:
    """Return the file that a user names, or that the Python package of that name carries."""
    path = Path(text)
    if path.is_file():
        return path
    module = text.replace("-", "_")
    if module.isidentifier():
        return _library_in(module)
    raise ProviderError(
        f"The plugin library {text} is not there: give a shared library, or a Python package that carries one, such as "
        "onnxruntime-ep-openvino."
    )


def _library_in(module: str) -> Path:
    """Return the library that an installed package carries.

    Raises:
        ProviderError: it is not installed, or does not say where its library is.
    """
    try:
        package = import_module(module)
        found: Sequence[Any] = [getattr(package, name, None) for name in ("get_library_path", "library_path")]
        locate = next(filter(callable, found), None)
        if locate is None:
            raise ProviderError(f"The package {module} carries no plugin library: it has no get_library_path().")
        return Path(str(locate()))
    except ModuleNotFoundError:
        raise ProviderError(
            f"There is no file and no installed Python package {module}: give the path of the plugin's library, or install "
            "the package that carries it."
        ) from None
    except (OSError, ImportError, RuntimeError) as error:
        raise ProviderError(f"The package {module} does not find its plugin library: {_why(error)}.") from None


def _why(error: Exception) -> str:
    """Return the reason in one line, without ONNX Runtime's code and with the path it repeats said once."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Failed to (?:load library|get symbol) \S+ with error: ", "", text)
    return text[:300].rstrip(". ")
