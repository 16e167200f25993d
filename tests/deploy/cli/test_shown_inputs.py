"""What inputs of a file are called beside their answers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rmlora.text_pair import TextPair
from rmlora_deploy.cli.predict_inputs import shown_input


def test_inputs_that_are_no_texts_can_be_shown_and_written_as_json() -> None:
    assert shown_input("w1 w2", 1) == "w1 w2"
    assert shown_input(TextPair("w1", "w2"), 1) == TextPair("w1", "w2")
    assert shown_input(["Turn", "on"], 1) == "Turn on"
    assert shown_input(Path("photos/1.png"), 1) == "photos/1.png"
    assert [shown_input(image, 3) for image in (b"\x89PNG", Image.new("RGB", (2, 2)))] == ["image 3", "image 3"]
