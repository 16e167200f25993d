"""Built-in inputs for verification without data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rmlora.errors import require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SENTENCES", "draw_image"]

SENTENCES = (
    "Free entry in a weekly competition to win cup final tickets, text now!",
    "What is the capital of Iceland ?",
    "Ok, see you at seven.",
    "The committee published its report on Tuesday, after a delay of several months that nobody could explain.",
    "Yes",
    "Why do leaves change their color in the autumn, and not all of them at the same time ?",
    "I have never been so disappointed by a film that had such a good cast.",
    "Your parcel could not be delivered; please call us between nine and five to arrange another day.",
    "How many moons does Jupiter have ?",
    "It rained all morning, then the sun came out, and by four o'clock the whole town was down at the river.",
    "Lol no way",
    "Who wrote the novel in which a whale is hunted around the world by a captain with one leg ?",
    "Thanks for your message, I will answer as soon as I am back in the office next week.",
    "URGENT! Your account was suspended, reply with your number to claim a prize of 1000 pounds.",
    "Where can I find a good recipe for bread ?",
    "A quiet, patient film about two brothers and the farm they grew up on.",
)
"""Sentences of one to twenty words."""


def draw_image(number: int) -> Image.Image:
    """Return an image with smooth gradients and edges like a photograph, different for every number."""
    require("PIL", "predict")
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160 + 16 * number, 200), Image.Resampling.BICUBIC)
