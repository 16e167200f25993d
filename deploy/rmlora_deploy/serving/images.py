"""Decodes images as clients send them: ``data:`` URLs only. Nothing is fetched, and sizes and formats are limited."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from rmlora.errors import InputError, require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode_image"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted formats. Pillow knows dozens more, some of which start other programs."""


def decode_image(url: str, number: int, max_pixels: int) -> Image.Image:
    """Return the image in a ``data:`` URL as RGB.

    Args:
        url: ``data:image/png;base64,…``, or another image type.
        number: of the input, for error messages.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        InputError: it is not such a URL, cannot be decoded, or is too large.
    """
    require("PIL", "serve")
    from PIL import Image

    head, comma, content = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise InputError(f"Input {number} must be an image as  data:image/png;base64,… : this model reads images.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True)), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(f"Input {number} has {width} × {height} pixels; the limit is {max_pixels} in all.")
            decoded: Image.Image = image.convert("RGB")
            return decoded
    except InputError:
        raise
    except Exception:  # noqa: BLE001 - decoders raise all kinds of errors for damaged files
        raise InputError(f"Input {number} cannot be decoded as an image ({', '.join(_FORMATS)}).") from None
