"""Odd and broken image files, generated: {name: (bytes, outcome, notes)}.

Outcome "ok": an image; `notes` are those that doctor prints for it. Outcome "bad": an error; `notes` holds the kind of
fault that doctor prints.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = (80, 96)  # height, width of most of them


def picture(seed: int = 0, height: int = SIDE[0], width: int = SIDE[1]) -> np.ndarray:
    """Return a smooth color image (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG from its raw rows (each with its filter byte), for formats that Pillow does not write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def forged_jpeg(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG with another size in its frame header."""
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        start = data.find(marker)
        if start >= 0:
            return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]
    raise ValueError("no frame header")


def rotated_jpeg(orientation: int) -> bytes:
    """Return a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), "JPEG", exif=exif, quality=92)


def odd_and_broken_images() -> dict[str, tuple[bytes, str, tuple[str, ...]]]:
    """Return all of them: {name: (bytes, "ok" or "bad", notes)}."""
    rgb = Image.fromarray(picture())
    gray, jpeg, rgb_png = rgb.convert("L"), encode(rgb, "JPEG", quality=92), encode(rgb, "PNG")
    progressive = encode(rgb, "JPEG", progressive=True, quality=92)
    alpha = Image.fromarray(np.dstack([picture(), np.tile(np.arange(96, dtype=np.uint8), (80, 1))]), "RGBA")
    deep = (np.arange(80 * 96).reshape(80, 96) * 8).astype(np.uint16)
    tiff, webp, gif, bmp = (encode(rgb, kind) for kind in ("TIFF", "WEBP", "GIF", "BMP"))
    rows16 = b"".join(b"\0" + row.tobytes() for row in np.dstack([deep.astype(">u2")] * 3))
    images: dict[str, tuple[bytes, str, tuple[str, ...]]] = {}

    def ok(name: str, data: bytes, *notes: str) -> None:
        images[name] = data, "ok", notes

    def bad(name: str, data: bytes, kind: str) -> None:
        images[name] = data, "bad", (kind,)

    # readable, usual and unusual
    ok("plain.jpg", jpeg)
    ok("progressive.jpg", progressive)
    ok("optimised.jpg", encode(rgb, "JPEG", optimize=True))
    ok("restarts.jpg", encode(rgb, "JPEG", restart_marker_blocks=2))
    ok("full_chroma.jpg", encode(rgb, "JPEG", subsampling=0))
    ok("half_chroma.jpg", encode(rgb, "JPEG", subsampling=1))
    ok("quality_1.jpg", encode(rgb, "JPEG", quality=1))
    ok("quality_100.jpg", encode(rgb, "JPEG", quality=100))
    ok("gray.jpg", encode(gray, "JPEG"), "grayscale")
    ok("cmyk.jpg", encode(rgb.convert("CMYK"), "JPEG"), "cmyk")
    ok("stored_as_rgb.jpg", encode(rgb, "JPEG", keep_rgb=True))
    for orientation in range(2, 9):
        ok(f"exif_{orientation}.jpg", rotated_jpeg(orientation), "exif-rotated")
    ok("exif_9.jpg", rotated_jpeg(9))
    ok("exif_damaged.jpg", jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0\x2a\xff\xff\xff\xff" + jpeg[2:])
    ok("comment.jpg", encode(rgb, "JPEG", comment=b"Orientation" * 50))
    ok("icc.jpg", encode(rgb, "JPEG", icc_profile=b"\0" * 400))
    ok(
        "tail_of_text.jpg",
        jpeg + b"and more" * 40,
    )
    ok("two_in_one.jpg", jpeg + jpeg)
    ok("upper.JPG", jpeg)
    ok("name with space é.jpg", jpeg)
    ok("plain.png", rgb_png)
    ok("gray.png", encode(gray, "PNG"), "grayscale")
    ok("one_bit.png", encode(gray.convert("1"), "PNG"), "grayscale")
    ok("palette.png", encode(rgb.convert("P"), "PNG"))
    ok("palette_alpha.png", encode(rgb.convert("P"), "PNG", transparency=3), "alpha")
    ok("alpha.png", encode(alpha, "PNG"), "alpha")
    ok("gray_alpha.png", encode(alpha.convert("LA"), "PNG"), "alpha", "grayscale")
    ok("deep_gray.png", encode(Image.fromarray(deep), "PNG"), "16-bit", "grayscale")
    ok("deep_rgb.png", png(96, 80, 16, 2, rows16), "16-bit")
    ok("text.png", encode(rgb, "PNG")[:33] + chunk(b"tEXt", b"Comment\0hello") + rgb_png[33:])
    ok("plain.webp", webp)
    ok("lossless.webp", encode(rgb, "WEBP", lossless=True))
    ok("alpha.webp", encode(alpha, "WEBP"), "alpha")
    ok("moving.webp", encode(rgb, "WEBP", save_all=True, append_images=[gray.convert("RGB")]), "animated")
    ok("plain.tif", tiff)
    ok("deflate.tiff", encode(rgb, "TIFF", compression="tiff_adobe_deflate"))
    ok("lzw.tiff", encode(rgb, "TIFF", compression="tiff_lzw"))
    ok("deep.tiff", encode(Image.fromarray(deep), "TIFF"), "16-bit", "grayscale")
    ok("floats.tiff", encode(Image.fromarray(deep.astype(np.float32) / 40), "TIFF"), "16-bit", "grayscale")
    ok("cmyk.tiff", encode(rgb.convert("CMYK"), "TIFF"), "cmyk")
    ok("plain.bmp", bmp)
    ok("palette.bmp", encode(rgb.convert("P"), "BMP"))
    ok("plain.gif", gif)
    ok("moving.gif", encode(rgb, "GIF", save_all=True, append_images=[gray]), "animated")
    ok("plain.ppm", encode(rgb, "PPM"))
    ok("gray.pgm", encode(gray, "PPM"), "grayscale")
    ok("really_a_jpeg.png", jpeg, "wrong extension")
    ok("really_a_png.jpg", rgb_png, "wrong extension")
    ok("really_a_gif.jpeg", gif, "wrong extension")
    ok("one_pixel.png", encode(rgb.crop((0, 0, 1, 1)), "PNG"), "tiny")
    ok("one_pixel.jpg", encode(rgb.crop((0, 0, 1, 1)), "JPEG"), "tiny")
    ok("one_row.png", encode(picture(1, 1, 300), "PNG"), "tiny")
    ok("one_column.jpg", encode(picture(1, 300, 1), "JPEG"), "tiny")
    ok("black.png", encode(np.zeros((80, 96, 3), np.uint8), "PNG"))
    # broken
    bad("empty.jpg", b"", "empty")
    bad("empty.png", b"", "empty")
    bad("text.jpg", b"this is no image\n" * 9, "no image")
    bad("page.png", b"<!doctype html><title>404</title>", "no image")
    bad("zeros.jpg", bytes(4000), "no image")
    bad("vector.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image")
    bad("start_only.jpg", jpeg[:2], "no image")
    bad("header_only.jpg", jpeg[:200], "truncated")
    bad("half.jpg", jpeg[: len(jpeg) // 2], "truncated")
    bad("half_progressive.jpg", progressive[: len(progressive) // 3], "truncated")
    bad("most.jpg", jpeg[: len(jpeg) * 9 // 10], "truncated")
    bad("signature.png", rgb_png[:8], "no image")
    bad("half.png", rgb_png[: len(rgb_png) // 2], "truncated")
    bad("no_pixels.png", png(96, 80, 8, 2, b""), "truncated")
    bad("half.webp", webp[: len(webp) // 2], "truncated")
    bad("half.gif", gif[: len(gif) // 2], "truncated")
    bad("half.bmp", bmp[: len(bmp) // 2], "truncated")
    bad("half.tif", tiff[: len(tiff) // 2], "truncated")
    bad("half.ppm", encode(rgb, "PPM")[:9000], "truncated")
    bad("forged.jpg", forged_jpeg(jpeg, 65_000, 65_000), "forged header")
    bad("forged_below_cap.jpg", forged_jpeg(jpeg, 13_000, 13_000), "forged header")
    bad("forged_progressive.jpg", forged_jpeg(progressive, 60_000, 60_000), "forged header")
    bad("forged.png", png(100_000, 100_000, 8, 2, b"\0"), "forged header")
    bad("forged_below_cap.png", png(13_000, 13_000, 8, 2, b"\0" * 99), "forged header")
    bad("forged.gif", gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:], "forged header")
    bad("forged.bmp", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:], "forged header")
    bad("no_size.png", png(0, 0, 8, 2, b""), "no image")
    bad("wrong_sum.png", rgb_png[:41] + bytes([rgb_png[41] ^ 255]) + rgb_png[42:], "unreadable")
    return images
