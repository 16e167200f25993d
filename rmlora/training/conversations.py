"""Reading instruction data: chats, prompts with completions, or plain texts, from any table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rmlora.chat_messages import without_content
from rmlora.errors import InputError, some_of
from rmlora.training.table import Reading, Table
from rmlora.unicode_text import is_unicode
from rmlora.wording import counted, numbers

__all__ = ["Conversation", "Conversations", "Form", "TextColumns", "read_conversations", "usual_names"]

Form = Literal["messages", "completion", "text"]
Message = dict[str, Any]

_MESSAGES = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "instruction", "question", "input")
_CONTEXTS = ("input", "context")
"""Columns with more about an instruction, as Alpaca's and Dolly's; they may be empty in a row."""
_COMPLETIONS = ("completion", "response", "output", "answer")
_TEXTS = ("text", "content")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Names of roles in ShareGPT's and similar data → the usual ones."""
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class TextColumns:
    """Column names that the user chose; None looks for the usual names."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Conversation:
    """One row: the messages of a chat, or a prompt and its completion, or a text (as a completion without prompt)."""

    number: int
    """Line or row in the data, from 1."""
    messages: tuple[Message, ...] = ()
    """Each with ``role``, ``content`` and whatever else the data holds; the last is the assistant's."""
    prompt: str = ""
    completion: str = ""

    @property
    def key(self) -> str:
        """What is asked: rows with the same key belong to the same side of a split."""
        return (
            json.dumps(self.messages[:-1], sort_keys=True, default=str)
            if self.messages
            else self.prompt or self.completion
        )

    @property
    def answer(self) -> str:
        """What is to be answered: the last message of the assistant, or the completion; empty if it only calls tools."""
        return str(self.messages[-1].get("content") or "") if self.messages else self.completion

    def as_messages(self) -> tuple[Message, ...]:
        """Return the messages; those of a user and an assistant for a prompt and its completion."""
        turns = ({"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.completion})
        return self.messages or turns


@dataclass(frozen=True)
class Conversations:
    """All rows of one file or data set."""

    source: str
    form: Form
    unit: str
    """What rows are numbered by: ``line`` or ``row``."""
    rows: tuple[Conversation, ...]
    notes: tuple[str, ...] = ()

    def name(self, row: Conversation) -> str:
        """Return how an error names a row: ``Line 7 of train.jsonl``."""
        return f"{self.unit.capitalize()} {row.number} of {self.source}"


class _RowError(Exception):
    """What is wrong with a row, as the rest of a sentence that begins with its number."""


def usual_names() -> set[str]:
    """Return all column names that are looked for, in lower case."""
    return {*_MESSAGES, *_PROMPTS, *_CONTEXTS, *_COMPLETIONS, *_TEXTS}


def read_conversations(table: Table, source: str, columns: TextColumns, reading: Reading) -> Conversations:
    """Read the rows of ``table`` in the richest form that it has: messages, prompt and completion, or text.

    Args:
        table: of the data.
        source: where it came from.
        columns: names that the user chose.
        reading: rows without prompt or answer are left out with ``skip_empty``, and refused without.

    Raises:
        InputError: there are no rows, a column is missing, or a row cannot be used; the sentence has its number.
    """
    if table.rows == 0:
        raise InputError(f"{source} holds no rows: there is nothing to train on.")
    form, used = _find_form(table, columns, source)
    read = _READERS[form]
    cells = {name: table.columns[name] for name in used}
    rows, empty, faults = [], [], []
    for index, number in enumerate(table.numbers(range(table.rows))):
        try:
            row = read(number, *(cells[name][index] for name in used))
        except _RowError as fault:
            faults.append((number, str(fault)))
            continue
        empty.append(number) if row is None else rows.append(row)
    if faults:
        raise InputError(_describe_faults(faults, table.unit, source))
    notes = list(table.notes)
    if empty:
        notes.append(_left_out(empty, form, table, source, reading))
    if not rows:
        raise InputError(f"{source} has no row with {_WANTED[form]}: check the columns.")
    if others := [name for name in table.columns if name and name not in used]:
        notes.append(f"Columns of {source} that are not used: {some_of(others)}.")
    if any(row.messages for row in rows):  # a prompt and a completion may hold messages, too
        form = "messages"
    return Conversations(source, form, table.unit, tuple(rows), tuple(notes))


_WANTED: Mapping[Form, str] = {
    "messages": "messages",
    "completion": "both prompt and completion",
    "text": "a text",
}


def _find_form(table: Table, columns: TextColumns, source: str) -> tuple[Form, list[str]]:
    """Return the form of the data and the columns that are read: chosen ones first, then the usual names."""
    present = list(table.columns)
    lower = {name.lower(): name for name in reversed(present)}
    for flag, chosen in _flags(columns).items():
        if chosen is not None and chosen not in present:
            raise InputError(f"{source} has no column '{chosen}' (it has {some_of(present)}): change {flag}.")

    def usual(names: Sequence[str]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    chosen_pair = columns.prompt or columns.completion
    if messages := columns.messages or (None if chosen_pair or columns.text else usual(_MESSAGES)):
        return "messages", [messages]
    prompt, completion = columns.prompt or usual(_PROMPTS), columns.completion or usual(_COMPLETIONS)
    if prompt and completion and prompt != completion and not (columns.text and not chosen_pair):
        context = usual(_CONTEXTS) if prompt.lower() == "instruction" and not columns.prompt else None
        return "completion", [prompt, completion, *([context] if context else [])]
    if chosen_pair:
        missing = "--completion-column" if columns.prompt else "--prompt-column"
        raise InputError(f"{source} has no other half for '{chosen_pair}' (it has {some_of(present)}): pass {missing}.")
    if text := columns.text or usual(_TEXTS):
        return "text", [text]
    raise InputError(
        f"{source} has none of: a column messages; a column {' or '.join(_PROMPTS)} with one of {', '.join(_COMPLETIONS)}; a "
        f"column text (it has {some_of(present)}): rename the columns, or pass --messages-column, --prompt-column with "
        "--completion-column, or --text-column."
    )


def _flags(columns: TextColumns) -> dict[str, str | None]:
    return {
        "--messages-column": columns.messages,
        "--prompt-column": columns.prompt,
        "--completion-column": columns.completion,
        "--text-column": columns.text,
    }


def _messages(number: int, value: Any) -> Conversation | None:
    messages = _parsed_messages(value)
    if not messages:
        return None
    if messages[-1]["role"] != "assistant":
        raise _RowError(f"ends with a message of '{messages[-1]['role']}', so it has no answer to learn: remove it")
    if len(messages) < 2:
        raise _RowError("has an answer, but nothing that is answered: put a message of 'user' before it")
    return Conversation(number, messages)


def _completion(number: int, prompt: Any, completion: Any, context: Any = None) -> Conversation | None:
    if isinstance(prompt, list) and isinstance(completion, list):  # as trl has it: messages in both
        return _messages(number, [*prompt, *completion])
    parts = [_checked(prompt, "prompt"), _checked(context, "input")]
    asked, answer = "\n\n".join(part for part in parts if part), _checked(completion, "completion")
    if not asked.strip() or not answer.strip():
        return None
    return Conversation(number, (), asked, answer)


def _text(number: int, value: Any) -> Conversation | None:
    text = _checked(value, "text")
    return Conversation(number, (), "", text) if text.strip() else None


def _checked(value: Any, what: str) -> str:
    """Return a cell as a text; an empty one for a cell that holds nothing.

    Raises:
        _RowError: it holds something else.
    """
    if value is None or value != value:  # NaN, with which tools fill empty cells
        return ""
    if not isinstance(value, str):
        kind = {bool: "true or false", list: "a list", dict: "an object"}.get(type(value), "a number")
        raise _RowError(f"has {kind} as its {what}, where a text belongs: write it as one text")
    if not is_unicode(value):
        raise _RowError(f"has a {what} that is not valid Unicode: write it as UTF-8")
    return value


def _parsed_messages(value: Any) -> tuple[Message, ...]:
    """Return the messages of a cell: a list of objects, the same as JSON, or an object of lists."""
    if isinstance(value, str):  # of a csv file
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise _RowError("has messages that are not valid JSON: write a list of {role, content}") from None
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if value is None or value != value:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _RowError("has messages that are no list of {role, content}: write them as one")
    return tuple(_message(place, item) for place, item in enumerate(value, start=1))


def _message(place: int, item: Mapping[str, Any]) -> Message:
    if "from" in item and "value" in item:  # ShareGPT
        item = {"role": item["from"], "content": item["value"]}
    role = item.get("role")
    role = _ROLES.get(str(role), role)
    if role not in _KNOWN_ROLES:
        raise _RowError(f"has a message {place} with the role {role!r}: the roles are {', '.join(_KNOWN_ROLES)}")
    if without_content({**item, "role": role}):
        raise _RowError(f"has a message {place} of '{role}' without content: give it one, or remove the row")
    content = item.get("content")
    if role == "assistant" and item.get("tool_calls") and content in (None, ""):
        return {**item, "role": role}
    text = _checked(content, f"message {place}")
    if role in ("user", "assistant") and not text.strip():
        raise _RowError(f"has a message {place} of '{role}' that is empty: fill it in, or remove the row")
    return {**item, "role": role, "content": text}


_READERS: Mapping[Form, Callable[..., Conversation | None]] = {
    "messages": _messages,
    "completion": _completion,
    "text": _text,
}
"""Form → function of a row's number and cells; it returns None for a row without prompt or answer."""


def _describe_faults(faults: Sequence[tuple[int, str]], unit: str, source: str) -> str:
    number, fault = faults[0]
    first = f"{unit.capitalize()} {number} of {source} {fault}."
    others = [number for number, _ in faults[1:]]
    return f"{first} Other {unit}s with faults: {numbers(others)}." if others else first


def _left_out(empty: list[int], form: Form, table: Table, source: str, reading: Reading) -> str:
    """Return the sentence about rows that are left out; raise :class:`InputError` with it if they may not be."""
    one = len(empty) == 1
    listed = f"{table.unit}{'' if one else 's'} {numbers(empty)} {'has' if one else 'have'} no {_EMPTY[form]}"
    if reading.skip_empty:
        return f"Left out {counted(len(empty), 'row')} of {source}: {listed}."
    what = "it" if one else "them"
    start = f"{listed[0].upper()}{listed[1:]}".replace(" ha", f" of {source} ha", 1)
    raise InputError(f"{start}: fill {what} in or leave {what} out with --skip-empty.")


_EMPTY: Mapping[Form, str] = {"messages": "messages", "completion": "prompt or no completion", "text": "text"}
