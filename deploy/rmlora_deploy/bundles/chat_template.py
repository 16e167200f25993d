"""Chats as the text that a model was trained on, by the template that comes with its tokenizer (jinja, no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rmlora.chat_messages import unwritten_calls, without_content
from rmlora.errors import InputError, require
from rmlora.json_files import read_text
from rmlora.library_calls import library_call
from rmlora.readable import is_readable_file
from rmlora.storage import read_json

__all__ = ["ChatTemplate", "Messages"]

Messages = Sequence[Mapping[str, Any]]
"""A chat: ``{"role": …, "content": …}`` for each message."""

_FILE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ChatTemplate:
    """A chat template, compiled as transformers compiles it.

    Args:
        source: the template.
        tokens: name of a special token → its text.
        where: file it comes from, for errors.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], *, where: Path) -> None:
        require("jinja2", "predict")
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._source, self._tokens, self._where = source, tokens, where
        with library_call(
            lambda reason: InputError(f"The chat template in {where} is no template ({reason}): get it again.")
        ):
            self._template = environment.from_string(source)

    @classmethod
    def of(cls, directory: Path) -> ChatTemplate | None:
        """Return the template of the tokenizer in ``directory``; None if it has none.

        Raises:
            InputError: it cannot be read.
            DependencyError: jinja2 is not installed.
        """
        settings = directory / "tokenizer_config.json"
        config = read_json(settings, what="Tokenizer configuration", finite=False) if is_readable_file(settings) else {}
        config = config if isinstance(config, dict) else {}
        tokens = {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
        if is_readable_file(directory / _FILE):
            return cls(read_text(directory / _FILE, what="Chat template"), tokens, where=directory / _FILE)
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name, as older files have them
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        return cls(source, tokens, where=settings) if isinstance(source, str) else None

    def render(self, messages: Messages) -> str:
        """Return the chat as text, ready for the model's answer.

        Raises:
            InputError: the template refuses these messages, or would leave something of them out.
        """
        self._check(messages)
        with library_call(
            lambda reason: InputError(f"The chat template in {self._where} refuses these messages: {reason}.")
        ):
            return self._template.render(
                messages=[dict(message) for message in messages], tools=None, documents=None, add_generation_prompt=True,
                **self._tokens,
            )  # fmt: skip

    def _check(self, messages: Messages) -> None:
        """Raise :class:`InputError` for what a template renders as nothing."""
        for place, message in enumerate(messages, start=1):
            if "role" not in message:
                raise InputError(f"Message {place} of the chat has no role: it is system, user, assistant or tool.")
            if without_content(message):
                raise InputError(f"Message {place} of the chat, of '{message['role']}', has no content: give it one.")
        if calls := unwritten_calls(messages, self._source):
            raise InputError(
                f"Message {calls} of the chat has tool_calls, which the chat template in {self._where} does not write: write them "
                "as its content."
            )


def _generation_tag() -> Any:
    """Return the extension for ``{% generation %}``, with which templates mark what the model says: it changes nothing here."""
    from jinja2 import nodes, parser
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: parser.Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _text(token: Any) -> str | None:
    """Return the text of a special token, which may be stored with its settings."""
    value = token.get("content") if isinstance(token, dict) else token
    return str(value) if value is not None else None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; the arguments, and their order, are those that transformers gives to templates."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise ValueError(message)
