"""Pictures as clients send them: ``data:`` URLs, of which nothing is fetched and little is believed."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from rmlora.errors import InputError, require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode_image"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows dozens more, of which some start other programs."""


def decode_image(url: str, number: int, max_pixels: int) -> Image.Image:
    """Return the decoded picture in a ``data:`` URL.

    Args:
        url: ``data:image/png;base64,…`` or of another type of picture.
        number: of the input, for messages.
        max_pixels: more are refused before they are decoded.

    Raises:
        InputError: it is something else, cannot be decoded, or is too large.
    """
    require("PIL", "serve")
    from PIL import Image

    head, comma, content = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise InputError(f"Input {number} must be a picture as  data:image/png;base64,… : this model reads images.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True)), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(f"Input {number} has {width} × {height} pixels, of at most {max_pixels} in all.")
            decoded: Image.Image = image.convert("RGB")
            return decoded
    except InputError:
        raise
    except Exception:  # noqa: BLE001 - decoders of damaged files raise whatever they stumble over
        raise InputError(f"Input {number} is no picture that can be decoded ({', '.join(_FORMATS)}).") from None
