"""``--config``: defaults for the flags of a command from a YAML file."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rmlora.errors import ConfigError, InputError, require
from rmlora.json_files import read_text
from rmlora.library_calls import library_call
from rmlora.readable import check_readable
from rmlora.unicode_text import is_unicode

__all__ = ["load_yaml"]


def load_yaml(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the values in the YAML file the defaults of the flags, so that flags win over them.

    A repeatable flag takes a list or a single value; one of NAME=VALUE pairs takes a mapping too.

    Raises:
        ConfigError: the file cannot be read, has a setting that no flag has, or a value of the wrong kind.
    """
    if path is None:
        return
    values = _read(path)
    flags = {
        parameter.name: parameter
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("config", "as_json", "help")
    }
    # The flags' own spelling (--train) is understood beside the name of the value (train_data).
    spelled = {
        option.lstrip("-").replace("-", "_"): flag
        for flag in flags.values()
        for option in flag.opts
        if option[:2] == "--"
    }
    known = {**spelled, **{str(name): flag for name, flag in flags.items()}}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else "."
            raise ConfigError(
                f"{path} has the unknown setting '{key}': the known ones are {', '.join(sorted(spelled))}{meant}"
            )
        if value is not None:
            defaults[str(known[name].name)] = _default(known[name], value, f"{path} sets '{key}' to")
    context.default_map = {**(context.default_map or {}), **defaults}


def _read(path: Path) -> Mapping[Any, Any]:
    require("yaml", "train")
    import yaml

    check_readable([path])
    try:
        text = read_text(path, what="Settings").removeprefix("\ufeff")
    except InputError as error:
        raise ConfigError(str(error)) from None
    with library_call(lambda reason: ConfigError(f"{path} cannot be read as YAML: {reason}.")):
        values = yaml.safe_load(text)
        twice = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
    if twice is not None:
        raise ConfigError(f"{path} has the setting '{twice}' twice: remove one.")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as 'name: value' lines.")
    return values


def _repeated_key(document: Any) -> str | None:
    """Return a key that a document has twice; YAML's reader would silently take the last."""
    keys = (
        [str(key.value) for key, _ in document.value] if hasattr(document, "value") and document.id == "mapping" else []
    )
    return next((key for number, key in enumerate(keys) if key in keys[:number]), None)


def _default(flag: click.Option, value: Any, where: str) -> Any:
    """Return ``value`` as click takes the default of ``flag``."""
    if flag.multiple:
        if isinstance(value, dict):
            if "=" not in str(flag.metavar):
                raise ConfigError(f"{where} a mapping: write a list of names.")
            return [f"{_name(name, where)}={_scalar(item, where)}" for name, item in value.items()]
        return [_name(item, where) for item in (value if isinstance(value, list) else [value])]
    if flag.name == "labels" and isinstance(value, list):
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([_name(item, where) for item in value])
        return line.getvalue()
    return _scalar(value, where) if flag.is_flag else _name(value, where)


def _name(value: Any, where: str) -> str:
    """Return a value as a text, which click takes for all types. YAML reads yes, no, on, off, true, false and null as others."""
    if isinstance(value, bool) or value is None:
        meant = "null" if value is None else "true (or yes, on)" if value else "false (or no, off)"
        raise ConfigError(f"{where} {meant}, which is not what this setting takes: write names in quotes.")
    return str(_scalar(value, where))


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, dict | list | set):
        raise ConfigError(f"{where} a {type(value).__name__}: one value belongs there.")
    if isinstance(value, bool):
        return value
    text = str(value)
    if "\0" in text or not is_unicode(text):
        raise ConfigError(f"{where} a text with a null character or half of a surrogate pair: remove it.")
    return text
