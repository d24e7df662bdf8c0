"""Decoding to RGB: formats, orientation, bit depth, and errors for files that are no complete image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lit_vision.data.views.decode import ImageDecodeError, decode, read_header, read_size

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def _bytes(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {})]
)
def test_decode__lossless_formats_keep_every_pixel(kind: str, options: dict) -> None:
    assert (decode(_bytes(Image.fromarray(RGB), kind, **options)) == RGB).all()


def test_decode__jpeg_gray_cmyk_palette_alpha_and_gif() -> None:
    smooth = np.fromfunction(lambda y, x, c: 2 * y + x + 10 * c, (40, 50, 3)).astype(np.uint8)
    image = Image.fromarray(smooth)
    for data in (_bytes(image, "JPEG", quality=95), _bytes(image, "JPEG", quality=95, progressive=True)):
        assert np.abs(decode(data).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 2
    gray = decode(_bytes(image.convert("L"), "JPEG"))
    assert gray.shape == (40, 50, 3)
    assert (gray[..., 0] == gray[..., 2]).all()
    assert decode(_bytes(image.convert("CMYK"), "JPEG")).shape == (40, 50, 3)
    assert decode(_bytes(image.convert("P"), "PNG")).shape == (40, 50, 3)
    assert decode(_bytes(image.convert("1"), "PNG")).max() == 255
    assert decode(_bytes(image, "GIF")).shape == (40, 50, 3)
    alpha = np.dstack([RGB, np.zeros((6, 9), np.uint8)])
    assert (decode(_bytes(Image.fromarray(alpha, "RGBA"), "PNG")) == RGB).all()


def test_decode__sixteen_bit_gray_keeps_its_upper_byte() -> None:
    deep = (np.arange(54).reshape(6, 9) * 1213).astype(np.uint16)
    assert (decode(_bytes(Image.fromarray(deep), "PNG"))[..., 1] == deep >> 8).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode__applies_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :8] = 255  # top left, as stored
    shown = decode(_bytes(Image.fromarray(image), "JPEG", exif=exif, quality=95))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert shown.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    assert shown[corner].min() > 200
    assert (shown > 128).mean() == pytest.approx(0.125, abs=0.02)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 9])  # 9 is no orientation
def test_read_size__is_that_of_the_decoded_pixels(tmp_path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(RGB), kind, exif=exif)
    (tmp_path / "a").write_bytes(data)
    header = read_header(data)
    assert read_size(tmp_path / "a") == decode(data).shape[:2] == (header.height, header.width)


def test_read_size__damaged_exif_data_are_no_damaged_image(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(_bytes(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert read_size(tmp_path / "a.jpg") == decode((tmp_path / "a.jpg").read_bytes()).shape[:2] == (6, 9)


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_read_size__refuses_what_is_no_image(tmp_path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageDecodeError):
        read_size(tmp_path / "a.png")


def test_read_size__refuses_a_header_over_the_limit(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(_forged_png(15_000, 15_000))
    with pytest.raises(ImageDecodeError, match="178956970"):
        read_size(tmp_path / "a.png")


def _forged_png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


JPEG = _bytes(Image.fromarray(np.tile(RGB, (20, 20, 1))), "JPEG")
PNG = _bytes(Image.fromarray(np.tile(RGB, (20, 20, 1))), "PNG")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"hello, world", "format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "PostScript"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (JPEG[:30], "."),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (_forged_png(100_000, 100_000), "100000 x 100000|exceeds limit"),
        (_forged_png(4, 4), "cannot be decoded"),
    ],
)
def test_decode__names_what_is_wrong(data: bytes, match: str) -> None:
    with pytest.raises(ImageDecodeError, match=match) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
