"""Pictures: what is no picture, or would need far too much memory, is refused before it is decoded."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from rmlora.errors import InputError
from rmlora.images import MAX_RATIO, open_image


def png(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and holds almost nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_pictures_are_opened_from_paths_bytes_and_objects(tmp_path: Path) -> None:
    picture = Image.new("P", (5, 4))
    picture.save(tmp_path / "a.png")
    for value in (str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), picture):
        assert open_image(value).size == (5, 4)
        assert open_image(value).mode == "RGB"


def test_photos_are_turned_as_transformers_turns_them(tmp_path: Path) -> None:
    """A photo of a telephone was read lying on its side."""
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        got = open_image(tmp_path / "a.png")
        expected = load_image(str(tmp_path / "a.png"))
        assert got.size == expected.size == ((24, 16) if orientation < 5 else (16, 24))
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    Image.fromarray(pixels).save(tmp_path / "b.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(tmp_path / "b.jpg").size == (24, 16)  # with damaged EXIF data
    Image.fromarray(pixels.repeat(8, 0)).save(tmp_path / "c.jpg", exif=exif)
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be decoded"):
        open_image(tmp_path / "c.jpg")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 40, b"GIF89a" + b"\xff" * 20, png(9, 9)]
)
def test_damaged_pictures_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png cannot be decoded as an image \(.*\): remove or replace it"):
        open_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="An image cannot be decoded"):
        open_image(content)


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="pixels"):
        open_image(png(*size))


def test_endless_strips_are_refused() -> None:
    """A processor scales the shorter side to 224 pixels or so; the longer one would then have millions."""
    with pytest.raises(InputError, match=f"at most {MAX_RATIO} times"):
        open_image(png(1, 1_000_000))
    stream = io.BytesIO()
    Image.new("RGB", (1, MAX_RATIO)).save(stream, "PNG")
    assert open_image(stream.getvalue()).size == (1, MAX_RATIO)


def test_pipes_and_devices_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(InputError, match="a pipe or a device"):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "missing.png")


def test_gray_in_sixteen_bits_keeps_its_shades() -> None:
    shades = np.array([[0, 300, 32768, 65535]], np.uint16)
    assert np.asarray(open_image(Image.fromarray(shades)))[0, :, 0].tolist() == [0, 1, 128, 255]
    stream = io.BytesIO()
    Image.fromarray(shades).save(stream, "PNG")
    assert np.asarray(open_image(stream.getvalue()))[0, :, 2].tolist() == [0, 1, 128, 255]


def test_gray_in_thirty_two_bits_is_read_where_it_is_clear() -> None:
    assert np.asarray(open_image(Image.fromarray(np.array([[0, 200]], np.int32))))[0, :, 0].tolist() == [0, 200]
    for numbers in (np.array([[0, 40_000]], np.int32), np.array([[-1.0, 1.0]], np.float32)):
        with pytest.raises(InputError, match="its numbers reach from .* where 0 is black and 255 white"):
            open_image(Image.fromarray(numbers))
