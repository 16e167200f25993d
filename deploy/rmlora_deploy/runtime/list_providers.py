"""The execution providers of this machine: those of the table, others in the build, and installed plugins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ProviderError
from rmlora_deploy.runtime.plugin_libraries import device_kind, find_plugin, installed_plugins
from rmlora_deploy.runtime.provider_choice import ProviderChoice
from rmlora_deploy.runtime.providers import available, built_providers, get_provider, unusable

__all__ = ["ProviderRow", "list_providers"]


@dataclass(frozen=True)
class ProviderRow:
    """One provider."""

    name: str
    """What ``--provider`` takes."""
    ort_name: str
    origin: str
    """Where it comes from: ONNX Runtime's build, a package, or a library."""
    devices: tuple[str, ...]
    """Kinds of devices that it offers, as far as they are known without a session: those of plugins."""
    missing: str | None
    """Why it cannot be used; None if nothing is known to be missing."""


def list_providers(library: str | None = None) -> list[ProviderRow]:
    """Return all providers, each with what it offers.

    Args:
        library: a plugin library, or the package that carries one, to list too.

    Raises:
        ProviderError: ``library`` cannot be loaded.
    """
    rows = [
        ProviderRow(name, get_provider(name).ort_name, "the build" if built else "–", (), unusable(name))
        for name, built in available().items()
        if built or name not in installed_plugins()
    ]
    listed = {row.ort_name for row in rows}
    rows += [
        ProviderRow(name.lower().removesuffix("executionprovider"), name, "the build", (), None)
        for name in built_providers()
        if name not in listed
    ]
    for name, package in installed_plugins().items():
        try:
            rows += _of_plugin(ProviderChoice(name), package)
        except ProviderError as error:
            rows.append(ProviderRow(name, "–", package, (), str(error).rstrip(".")))
    if library is not None:
        rows += _of_plugin(ProviderChoice(Path(library).stem, library=library), library)
    return rows


def _of_plugin(choice: ProviderChoice, origin: str) -> list[ProviderRow]:
    plugin = find_plugin(choice)
    if plugin is None or not plugin.devices:
        return [ProviderRow(choice.name, "–", origin, (), "its library offers no device on this machine")]
    return [
        ProviderRow(
            provider.lower().removesuffix("executionprovider"), provider, origin,
            tuple(f"{device_kind(item)} ({item.device.vendor})" for item in plugin.devices if item.ep_name == provider), None,
        )
        for provider in plugin.providers
    ]  # fmt: skip
