"""Lines of a file become inputs, what inputs are called beside their answers, and generated text is shown as it is."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from rmlora.errors import InputError
from rmlora.text_pair import TextPair
from rmlora_deploy.cli.console import make_console
from rmlora_deploy.cli.generate import _collect, _from_stdin
from rmlora_deploy.cli.predict_inputs import read_lines, shown_input
from rmlora_deploy.inference.generator import Piece
from rmlora_deploy.loadtest.load_plan import read_texts


def test_inputs_that_are_no_texts_can_be_shown_and_written_as_json() -> None:
    assert shown_input("w1 w2", 1) == "w1 w2"
    assert shown_input(TextPair("w1", "w2"), 1) == TextPair("w1", "w2")
    assert shown_input(["Turn", "on"], 1) == "Turn on"
    assert shown_input(Path("photos/1.png"), 1) == "photos/1.png"
    assert [shown_input(image, 3) for image in (b"\x89PNG", Image.new("RGB", (2, 2)))] == ["image 3", "image 3"]


def test_only_ends_of_lines_end_an_input(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds, as pages from the web have them, made two inputs of one line."""
    file = tmp_path / "texts.txt"
    file.write_bytes("one\u2028two\x85three\nfour\x0cfive\r\n\r\nsix\rseven".encode())
    lines = ["one\u2028two\x85three", "four\x0cfive", "six", "seven"]
    assert read_lines(file, None) == lines and read_texts(file) == lines
    file.write_text("a\u2028b\tc\nd\n")
    with pytest.raises(InputError, match="Line 2 of .* is not a pair"):
        read_lines(file, "pair")


def test_generated_text_keeps_its_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    """A Makefile and a table with tabs came out with spaces."""
    generator: Any = SimpleNamespace(codec=SimpleNamespace(decode=lambda tokens: ""))
    pieces = [Piece(0, 1, "all:\n"), Piece(0, 2, "\tcc -o a\t\tb  "), Piece(0, 3, " \x1b[31m", "length")]
    _collect(generator, iter(pieces), make_console(), 0.0, 1)
    assert capsys.readouterr().out == "all:\n\tcc -o a\t\tb   \\x1b[31m\n"


def test_a_prompt_on_stdin_keeps_its_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code to continue lost its indentation."""
    monkeypatch.setattr("sys.stdin", io.StringIO("    def f(x):\n        \r\n\n"))
    assert _from_stdin() == "    def f(x):\n        "
