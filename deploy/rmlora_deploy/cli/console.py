"""Options and output that the commands share: console, JSON, names of paths, columns of data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console
from rich.text import Text

from rmlora.errors import ConfigError, some_of
from rmlora.training.answer_metrics import AnswerMetric
from rmlora_deploy.cli.output_encoding import shows_unicode

__all__ = [
    "answer_options",
    "by_adapter",
    "colored",
    "data_options",
    "json_option",
    "labels_option",
    "make_console",
    "named",
    "print_json",
    "refuse_raw_system",
    "remote_code_option",
    "system_option",
    "unique_names",
    "write_text",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, nothing else.")
"""``--json``; progress and messages then go to stderr."""


labels_option = click.option(
    "--labels",
    metavar="A,B,…|FILE",
    help="Label names in the order of the outputs: with commas between them, or a file with one per line, a JSON list or an "
    "id2label object.  [default: those of the adapter, else of the base]",
)
"""``--labels``, read by :func:`rmlora.labels.parse_labels`."""

remote_code_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the base. Only for sources you trust."
)
"""``--trust-remote-code``; without it code of a base never runs, and nobody is asked on the terminal."""

system_option = click.option(
    "--system", metavar="TEXT", help="System message of the chat, such as the one that the adapter was trained with."
)
"""``--system``, refused with ``--raw`` by :func:`refuse_raw_system`."""


def refuse_raw_system(system: str | None, *, raw: bool | None) -> None:
    """Raise :class:`ConfigError` for a system message where there is no chat."""
    if system is not None and raw:
        raise ConfigError(
            "--system is a message of a chat, and --raw continues prompts as they are: leave one of them out."
        )


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that control a terminal → how they are shown."""
_FILE_WIDTH = 110
"""Width in characters when the output goes to a file or a pipe."""


def data_options(purpose: str, *, multiple: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator with ``--data`` and the names of its columns.

    Args:
        purpose: the help of ``--data``.
        multiple: allow the option once per adapter, as NAME=FILE.
    """

    def decorate(function: _Function) -> _Function:
        for option in (
            click.option("--label-column", help="Column of the labels.  [default: label, class, …]"),
            click.option(
                "--pair-column",
                help="Column of the second text of a pair.  [default: recognized, as in premise and hypothesis]",
            ),
            click.option("--image-column", help="Column of the images.  [default: image, path, …]"),
            click.option("--text-column", help="Column of the texts.  [default: text, sentence, …]"),
            click.option("--data", help=purpose, multiple=multiple),
        ):
            function = option(function)
        return function

    return decorate


def answer_options(function: _Function) -> _Function:
    """Add ``--metric`` and ``--max-new-tokens``, for answers that a language model generates to ``--data``."""
    for option in (
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            help="Language models: longest answer for --metric.  [default: 128]",
        ),
        click.option(
            "--metric",
            type=click.Choice(get_args(AnswerMetric)),
            help="Language models: also generate an answer to every prompt of --data, with PyTorch and with the graph, and "
            "compare both with the right one; rougeL needs the extra metrics.",
        ),
    ):
        function = option(function)
    return function


class _PlainConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(_CONTROLS), **options)


def colored(words: str, style: str, text: str = "", *, before: str = "") -> Text:
    """Return plain text, ``words`` in a style of rich, and plain text again."""
    parts = before.translate(_CONTROLS), (words.translate(_CONTROLS), style), text.translate(_CONTROLS)
    return Text.assemble(*parts)


def make_console(*, as_json: bool = False) -> Console:
    """Return a console on stdout, or on stderr if stdout is reserved for JSON.

    Texts are printed as they are: names, labels and paths come from files and may hold ``[/]`` or codes that control a
    terminal. Color is given with :func:`colored`.
    """
    console = _PlainConsole(stderr=as_json, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def write_text(console: Console, text: str) -> None:
    """Write a part of a text at once, with its tabs, which the console would replace by spaces."""
    console.file.write(text.translate(_CONTROLS))
    console.file.flush()


def print_json(value: Any) -> None:
    """Write ``value`` as JSON to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=not shows_unicode(), allow_nan=False))


def named(values: Sequence[str], *, flag: str) -> dict[str, str]:
    """Split ``NAME=VALUE`` items; an item without a name gets the last part of its path as its name.

    Raises:
        ConfigError: two items have the same name.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or "/" in name or not rest:  # a path may hold an equals sign too
            name, rest = Path(value).resolve().name, value
        if name in found:
            raise ConfigError(f"{flag} names '{name}' twice: write NAME=PATH with a different name for each.")
        found[name] = rest
    return found


def by_adapter(values: Sequence[str], adapters: Sequence[str], *, flag: str) -> dict[str, str]:
    """Return adapter → value of ``NAME=VALUE`` items; where there is one adapter, a single value needs no name.

    Raises:
        ConfigError: an item does not say which of several adapters it is for, or two are for the same.
    """
    found = named(values, flag=flag)
    if len(adapters) == 1 and len(values) == 1:
        (only,), (value,), ((name, rest),) = adapters, values, found.items()
        if rest == value or name == only or Path(value).exists():
            return {only: value.removeprefix(f"{only}=")}
    for (name, rest), value in zip(found.items(), values, strict=True):
        if rest == value and name not in adapters:
            raise ConfigError(
                f"{flag} {value} does not say which adapter it is for: write {flag} NAME={value}, once for each adapter. The "
                f"names are {some_of(adapters)}."
            )
    return found


def unique_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return name → directory: its last part, or the whole path if two end alike; repeated paths are returned once."""
    short = [path.resolve().name for path in dict.fromkeys(paths)]
    return {
        (name if short.count(name) == 1 else str(path)): path
        for name, path in zip(short, dict.fromkeys(paths), strict=True)
    }
