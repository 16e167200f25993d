"""Image preprocessing with Pillow and numpy alone, exactly as transformers' image processors do it with Pillow.

Most processors of image classifiers are one chain with different settings: resize, crop, rescale, normalize. The settings are
in ``preprocessor_config.json``. Processors that do more are not in :data:`_DEFAULTS` and need transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rmlora.errors import CheckpointError, install_command
from rmlora.storage import read_json

__all__ = ["PlainImageProcessor"]

_BILINEAR, _BICUBIC = 2, 3
_DEFAULTS: dict[str, tuple[int, bool]] = {
    "ViTImageProcessor": (_BILINEAR, False),
    "DeiTImageProcessor": (_BICUBIC, True),
    "BitImageProcessor": (_BICUBIC, True),
    "CLIPImageProcessor": (_BICUBIC, True),
    "ChineseCLIPImageProcessor": (_BICUBIC, True),
    "SiglipImageProcessor": (_BICUBIC, False),
    "BlipImageProcessor": (_BICUBIC, False),
    "PvtImageProcessor": (_BICUBIC, False),
    "MobileNetV1ImageProcessor": (_BILINEAR, True),
}
"""Processor that is nothing but the chain → its interpolation, and if it crops, where the file does not say it."""

Pixels = npt.NDArray[np.float32]


class PlainImageProcessor:
    """The chain with the settings of one directory.

    Args:
        settings: content of ``preprocessor_config.json``, whose type is in :data:`_DEFAULTS`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        resample, crops = _DEFAULTS[_kind(settings)]
        self._settings = {"resample": resample, "do_center_crop": crops, "rescale_factor": 1 / 255, **settings}
        self._mean, self._std = (np.asarray(settings[key], np.float32) for key in ("image_mean", "image_std"))
        self.size = dict(settings["size"])
        self.crop_size = dict(settings.get("crop_size") or {})

    @classmethod
    def open(cls, directory: Path) -> PlainImageProcessor:
        """Read the image processor in ``directory``.

        Raises:
            CheckpointError: there is none, or transformers is needed for it.
        """
        settings = read_json(directory / "preprocessor_config.json", what="Image processor", finite=False)
        if not isinstance(settings, dict) or settings.get("auto_map") or not _is_chain(settings):
            kind = settings.get("image_processor_type") if isinstance(settings, dict) else None
            raise CheckpointError(
                f"The image processor in {directory} ({kind or 'of an unknown type'}) needs transformers: run  "
                f"{install_command('serve', 'transformers', alone=True)}  and try again."
            )
        return cls(settings)

    def __call__(self, images: Sequence[Image.Image], *, return_tensors: str = "np") -> dict[str, Pixels]:
        """Return ``pixel_values``: ``[images, channels, height, width]``; arguments as in transformers.

        Args:
            images: in RGB.
            return_tensors: ``np``.
        """
        return {"pixel_values": np.stack([self._pixels(image) for image in images])}

    def _pixels(self, image: Image.Image) -> Pixels:
        does = self._settings
        if does.get("do_resize", True):
            height, width = _target(self.size, image.height, image.width)
            image = image.resize((width, height), resample=Image.Resampling(does["resample"]))
        pixels = np.moveaxis(np.asarray(image), -1, 0)
        if does["do_center_crop"]:
            pixels = _center_crop(pixels, int(self.crop_size["height"]), int(self.crop_size["width"]))
        if does.get("do_rescale", True):
            pixels = (pixels.astype(np.float64) * does["rescale_factor"]).astype(np.float32)
        pixels = pixels.astype(np.float32)
        if does.get("do_normalize", True):
            pixels = ((pixels.T - self._mean) / self._std).T
        return np.ascontiguousarray(pixels, np.float32)


def _kind(settings: Mapping[str, Any]) -> str:
    """Return the type without the suffixes that name a variant."""
    kind = str(settings.get("image_processor_type") or "")
    return kind.removesuffix("Fast").removesuffix("Pil")


def _is_chain(settings: Mapping[str, Any]) -> bool:
    """Return True if the settings are those of the chain, complete, and written as transformers writes them."""
    mappings = [settings.get("size"), settings.get("crop_size") or {"height": 1, "width": 1}]
    return (
        _kind(settings) in _DEFAULTS
        and not settings.get("do_pad")
        and all(isinstance(settings.get(key), list) for key in ("image_mean", "image_std"))
        and all(isinstance(value, dict) and value for value in mappings)
        and (not settings.get("do_center_crop", _DEFAULTS[_kind(settings)][1]) or bool(settings.get("crop_size")))
    )


def _target(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    """Return the height and width to resize to."""
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    short, limit = int(size["shortest_edge"]), size.get("longest_edge")
    if limit and max(height, width) / min(height, width) * short > limit:
        exact = limit * float(min(height, width)) / float(max(height, width))
        short = round(exact)
        other = int(exact * max(height, width) / min(height, width))
        return (short, other) if height <= width else (other, short)
    other = int(short * max(height, width) / min(height, width))
    return (short, other) if height <= width else (other, short)


def _center_crop(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Return the middle of ``pixels [channels, …, …]``, with zeros around it where the image is too small."""
    tall, wide = max(height, pixels.shape[1]), max(width, pixels.shape[2])
    padded = np.zeros((pixels.shape[0], tall, wide), pixels.dtype)
    top, left = math.ceil((tall - pixels.shape[1]) / 2), math.ceil((wide - pixels.shape[2]) / 2)
    padded[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    above = (pixels.shape[1] - height) // 2 + top
    before = (pixels.shape[2] - width) // 2 + left
    return padded[:, max(0, above) : above + height, max(0, before) : before + width]
