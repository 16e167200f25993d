"""The flags that choose an execution provider, and the list of those that this machine has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from rmlora.errors import ConfigError, require
from rmlora_deploy.cli.console import make_console

__all__ = ["add_options", "provider_option", "provider_parts", "show_providers"]

_Function = Callable[..., Any]


def provider_parts(function: _Function) -> _Function:
    """Decorate a command with ``--provider-library`` and ``--provider-option``."""
    function = click.option(
        "--provider-option",
        "provider_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the provider; repeatable.  See docs/providers.md.",
    )(function)
    return click.option(
        "--provider-library",
        metavar="FILE|PACKAGE",
        help="Plugin library that has the provider: a shared library, or a Python package that carries one.",
    )(function)


def provider_option(verb: str = "") -> Callable[[_Function], _Function]:
    """Return a decorator that adds ``--provider`` with its library and options; the command gets all as ``provider``.

    Args:
        verb: what is done on the provider, such as " to verify", for the help text.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def command(
            *arguments: Any, provider: str, provider_library: str | None, provider_options: Sequence[str], **rest: Any
        ) -> Any:
            (whole,) = add_options((provider,), provider_library, provider_options)
            return function(*arguments, provider=whole, **rest)

        flag = click.option(
            "--provider",
            default="cpu",
            show_default=True,
            help=f"Execution provider{verb}: cpu, cuda, openvino, …; bench --list-providers lists them.",
        )
        return flag(provider_parts(command))

    return decorate


def add_options(providers: Sequence[str], library: str | None, options: Sequence[str]) -> tuple[str, ...]:
    """Return the providers with the library and the options, which belong to the only one that is not the CPU.

    Raises:
        ConfigError: it is not clear which provider they belong to, or an option has no ``=``.
    """
    from rmlora_deploy.runtime.provider_choice import ProviderChoice

    if library is None and not options:
        return tuple(providers)
    choices = [ProviderChoice.parse(provider) for provider in providers]
    others = [choice for choice in choices if choice.name.lower() not in ("cpu", "cpuexecutionprovider")]
    if len(others) != 1 and len(choices) != 1:
        raise ConfigError(
            "--provider-library and --provider-option belong to one provider: name one besides cpu, or write the options with "
            "the name, e.g. --provider 'cpu,openvino?INFERENCE_PRECISION_HINT=bf16'."
        )
    target = (others or choices)[0]
    return tuple(str(choice.with_options(options, library) if choice is target else choice) for choice in choices)


def show_providers(library: str | None) -> None:
    """Print the providers of this machine and the devices that they offer, those of ``library`` included."""
    require("onnxruntime", "cpu")
    import onnxruntime as ort
    from rich.table import Table

    from rmlora_deploy.runtime.list_providers import list_providers

    console = make_console()
    table = Table("provider", "ONNX Runtime's name", "from", "devices", "usable")
    for row in list_providers(library):
        table.add_row(row.name, row.ort_name, row.origin, ", ".join(row.devices), row.missing or "yes")
    console.print(table)
    console.print(f"ONNX Runtime {ort.__version__}", style="dim")
