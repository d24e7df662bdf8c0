"""Images as they are stored: the bytes of their files, or shrunk and encoded as JPEG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lit_vision.data.folder import Folder
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat


def downscale(data: bytes, short_side: int, quality: int, pixel_format: PixelFormat = DEFAULT_FORMAT) -> bytes:
    """Return an image file as a JPEG whose short side has at most `short_side` pixels (bicubic, antialiased).

    An upright JPEG that is small enough is returned unchanged: encoding it again would only lose quality.

    Args:
        data: the file.
        short_side: pixels.
        quality: of the JPEG, 1 to 100; chroma at half resolution, as cameras store it.
        pixel_format: conversion of images deeper than 8 bits.

    Raises:
        ImageDecodeError: the bytes are no complete image.
    """
    import simplejpeg

    from lit_vision.data.views.decode import decode, read_header
    from lit_vision.data.views.views import resize

    header = read_header(data)
    image = decode(data, pixel_format)
    height, width = image.shape[:2]
    if header.scalable and header.orientation == 1 and min(height, width) <= short_side:
        return data
    if min(height, width) > short_side:
        shrink = short_side / min(height, width)
        image = resize(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
    is_gray = (image[..., :1] == image).all()
    image = np.ascontiguousarray(image[..., :1] if is_gray else image)
    encoded: bytes = simplejpeg.encode_jpeg(image, quality, *(("GRAY", "Gray") if is_gray else ("RGB", "420")))
    return encoded


class EncodeImage:
    """Function for worker processes: path -> (bytes to store, ""), or (b"", reason) for a file that cannot be read.

    Args:
        folder: of the images.
        short_side: pixels, see `downscale`; None keeps the bytes of the files, broken ones included.
        quality: of the JPEGs, 1 to 100; not used without `short_side`.
        pixel_format: conversion of images deeper than 8 bits; not used without `short_side`.
    """

    def __init__(self, folder: Folder, short_side: int | None, quality: int, pixel_format: PixelFormat):
        self.folder, self.short_side, self.quality, self.pixel_format = folder, short_side, quality, pixel_format

    def __call__(self, path: str) -> tuple[bytes, str]:
        from lit_vision.data.views.decode import ImageDecodeError

        try:
            data = self.folder.read(path)
            if self.short_side is not None:
                data = downscale(data, self.short_side, self.quality, self.pixel_format)
            return data, ""
        except ImageDecodeError as error:
            return b"", str(error)
        except OSError as error:
            return b"", f"{error.strerror}; restore the file"


def encoded_images(
    encode: EncodeImage, paths: Sequence[str], workers: int, progress: bool
) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield (path, result of `encode`) in the order of the paths."""
    from lit_vision.io.processes import parallel_map

    return zip(paths, parallel_map(encode, paths, workers, "packing" if progress else ""))
