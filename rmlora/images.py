"""Opening images given as path, encoded bytes or PIL image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError, require
from rmlora.readable import permissions_named

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["open_image"]


def open_image(value: Any) -> Image.Image:
    """Return an RGB image from a path, encoded bytes or a PIL image.

    Raises:
        InputError: the image is missing or cannot be decoded.
    """
    require("PIL", "serve")
    from PIL import Image

    name = str(value) if isinstance(value, (str, Path)) else "An image"
    try:
        if isinstance(value, (str, Path)):
            with permissions_named(Path(value)):
                value = Image.open(value)
        elif isinstance(value, (bytes, bytearray)):
            value = Image.open(io.BytesIO(value))
        return value.convert("RGB")  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise InputError(f"Image not found: {name} does not exist.") from None
    except (OSError, AttributeError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be decoded as an image ({error}): remove or replace it.") from None
