"""Opening images given as path, encoded bytes or PIL image."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.errors import InputError, require
from rmlora.json_files import check_file
from rmlora.library_calls import library_call
from rmlora.readable import permissions_named

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "MAX_RATIO", "as_rgb", "open_image"]

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is read: Pillow's own limit, above which it warns."""
_ORIENTATION, _UPRIGHT = 0x0112, 1
"""EXIF's key of how a camera was held, and its value for an image that is stored as it is seen."""
MAX_RATIO = 100
"""Most that one side may be longer than the other. Processors scale the shorter side to a fixed number of pixels."""


def open_image(value: Any, *, what: str = "An image") -> Image.Image:
    """Return an RGB image from a path, encoded bytes or a PIL image.

    Args:
        value: the image.
        what: to call it in errors if it is no path.

    Raises:
        InputError: the image is missing or cannot be decoded.
    """
    require("PIL", "predict")
    from PIL import Image

    is_path = isinstance(value, (str, Path))
    name = str(value) if is_path else what
    if is_path:
        check_file(Path(value), what="Image")

    def refuse(reason: str) -> InputError:
        return InputError(f"{name} cannot be decoded as an image ({reason}): remove or replace it.")

    with library_call(refuse), permissions_named(Path(name)):
        encoded = isinstance(value, (bytes, bytearray))
        image: Image.Image = Image.open(io.BytesIO(value) if encoded else value) if is_path or encoded else value
        width, height = image.size
    _check_pixels(width, height, name)
    with library_call(refuse):
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits for each color, as it is seen: turned as its EXIF data say, as transformers does.

    Of gray in 16 bits the higher 8 remain: Pillow would make most of it white.

    Raises:
        ValueError: gray in 32 bits has numbers below 0 or above 255, of which nobody knows what is white.
    """
    from PIL import Image

    image = _turned(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        numbers = np.asarray(image)
        low, high = float(numbers.min()), float(numbers.max())
        if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 255):
            raise ValueError(f"its numbers reach from {low:g} to {high:g}, where 0 is black and 255 white")
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """Return an image as it is seen: photos of telephones are often stored as the sensor saw them."""
    from PIL import ImageOps

    orientation = _UPRIGHT
    with suppress(Exception):  # damaged EXIF data say nothing, and the image is there all the same
        orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
    if orientation == _UPRIGHT:
        return image
    image.load()
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _check_pixels(width: int, height: int, name: str) -> None:
    """Refuse images that would need far more memory than others: too many pixels, or scaled into an endless strip.

    Raises:
        InputError: they have more than :data:`MAX_PIXELS`, or one side is more than :data:`MAX_RATIO` times the other.
    """
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} × {height} pixels; at most {MAX_PIXELS:,} are read: scale it down.")
    if max(width, height) > MAX_RATIO * max(1, min(width, height)):
        raise InputError(
            f"{name} has {width} × {height} pixels: one side may be at most {MAX_RATIO} times as long as the other, crop it."
        )
