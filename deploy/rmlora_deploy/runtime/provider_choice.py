"""What users write for an execution provider: ``NAME[:DEVICE][@LIBRARY][?KEY=VALUE[&KEY=VALUE…]]``.

One text says all of it, so that it passes through flags, settings, reports and the processes of ``bench`` and Ray alike.
``cpu`` and ``cuda`` are the short form; ``openvino?INFERENCE_PRECISION_HINT=bf16`` has an option, and
``ggml:cpu@/opt/libggml_provider.so`` is a plugin's library and a device that it offers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from rmlora.errors import ConfigError

__all__ = ["ProviderChoice", "parse_options"]

_READABLE = " /{}[]\":',=;<>!*()|"
"""Characters of an option's value that stand for themselves."""


@dataclass(frozen=True)
class ProviderChoice:
    """An execution provider as the user chose it."""

    name: str
    """A short name, ONNX Runtime's name, or that of a plugin's provider."""
    device: str | None = None
    """Which of the devices that it offers: cpu, gpu or npu."""
    library: str | None = None
    """A plugin's shared library, or the Python package that carries one."""
    options: tuple[tuple[str, str], ...] = ()
    """Options that are passed to the provider."""

    @classmethod
    def parse(cls, text: str) -> ProviderChoice:
        """Return the choice that ``text`` describes.

        Raises:
            ConfigError: there is no name, or an option has no ``=``.
        """
        head, _, query = text.strip().partition("?")
        head, _, library = head.partition("@")
        name, _, device = head.partition(":")
        if not name:
            raise ConfigError("--provider is empty: name an execution provider, such as cpu.")
        options = parse_options([unquote(part) for part in query.split("&") if part])
        return cls(name, device.lower() or None, unquote(library) or None, options)

    def __str__(self) -> str:
        library = f"@{quote(self.library, safe=_READABLE)}" if self.library else ""
        head, _, options = self.label.partition("?")
        return head + library + (f"?{options}" if options else "")

    @property
    def label(self) -> str:
        """The choice without the library's path, for tables and reports."""
        options = "&".join(f"{key}={quote(value, safe=_READABLE)}" for key, value in self.options)
        return self.name + (f":{self.device}" if self.device else "") + (f"?{options}" if options else "")

    def with_options(self, options: Sequence[str], library: str | None = None) -> ProviderChoice:
        """Return the choice with further options (``KEY=VALUE``), and with a library if one is given.

        Raises:
            ConfigError: an option has no ``=``, or is given twice.
        """
        added = parse_options(options)
        twice = {key for key, _ in self.options} & {key for key, _ in added}
        if twice:
            raise ConfigError(f"The provider option {min(twice)} is given twice: give it once.")
        return replace(self, options=(*self.options, *added), library=library or self.library)


def parse_options(options: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Split ``KEY=VALUE`` at the first ``=``.

    Raises:
        ConfigError: an option has no ``=`` or no key, or is given twice.
    """
    pairs: list[tuple[str, str]] = []
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise ConfigError(f"The provider option '{option}' has another form than KEY=VALUE.")
        if key in dict(pairs):
            raise ConfigError(f"The provider option {key} is given twice: give it once.")
        pairs.append((key, value))
    return tuple(pairs)
