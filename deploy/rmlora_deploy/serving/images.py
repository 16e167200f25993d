"""Decodes images as clients send them: ``data:`` URLs only. Nothing is fetched, and sizes and formats are limited."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from rmlora.errors import InputError, require
from rmlora.images import as_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SentImage"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted formats. Pillow knows dozens more, some of which start other programs."""


class SentImage:
    """An image in a ``data:`` URL, of which only the header has been read.

    Args:
        url: ``data:image/png;base64,…``, or another image type.
        number: of the input, for error messages.
        max_pixels: larger images are refused.

    Raises:
        InputError: it is not such a URL, its header cannot be read, or it is too large.
    """

    def __init__(self, url: str, number: int, max_pixels: int) -> None:
        require("PIL", "serve")
        head, comma, content = url.partition(",")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise InputError(f"Input {number} must be an image as  data:image/png;base64,… : this model reads images.")
        self._number = number
        try:
            self._bytes = base64.b64decode(content, validate=True)
            with self._open() as image:
                width, height = image.size
        except Exception:  # noqa: BLE001 - decoders raise all kinds of errors for damaged files
            raise self._damaged() from None
        self.pixels: int = width * height
        if self.pixels > max_pixels:
            raise InputError(
                f"Input {number} has {width} × {height} pixels; the limit is {max_pixels} in all (--max-pixels)."
            )

    def decode(self) -> Image.Image:
        """Return it as RGB.

        Raises:
            InputError: it cannot be decoded.
        """
        try:
            with self._open() as image:
                return as_rgb(image)
        except Exception:  # noqa: BLE001 - see above
            raise self._damaged() from None

    def _open(self) -> Image.Image:
        from PIL import Image

        return Image.open(io.BytesIO(self._bytes), formats=_FORMATS)

    def _damaged(self) -> InputError:
        return InputError(f"Input {self._number} cannot be decoded as an image ({', '.join(_FORMATS)}).")
