"""Messages of errors stay one printable line of limited length, whatever a damaged file put into them."""

from __future__ import annotations

import pickle

import pytest

from rmlora.errors import InputError
from rmlora.unicode_text import is_unicode


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nError: b", "a Error: b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("\0", "\\x00"),
        ("Größe 大小 [/x]", "Größe 大小 [/x]"),
    ],
)
def test_names_from_files_neither_break_the_line_nor_control_the_terminal(name: str, shown: str) -> None:
    error = InputError(f"FILE holds '{name}': remove it.")
    assert str(error) == f"FILE holds '{shown}': remove it."
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - between our own processes


def test_endless_names_are_shortened_in_the_middle() -> None:
    message = str(InputError(f"FILE names {'x' * 70_000}, which is missing: fetch it again."))
    assert len(message) < 4100
    assert message.startswith("FILE names xxx") and message.endswith("which is missing: fetch it again.")


def test_half_of_a_pair_is_no_text() -> None:
    assert is_unicode("plain") and is_unicode("größe 😀")
    assert not is_unicode("\ud83d")
