"""Images deeper than 8 bits: the mapping against a slow reference, and every format that Pillow would cut or clip."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from lit_vision.data.views.decode import ImageDecodeError, decode, decode_values, read_header
from lit_vision.data.views.pixel_values import PixelFormat, check_range, conventional_range, to_8bit
from lit_vision.errors import UsageError

RAMP = np.linspace(0, 4095, 32 * 48).reshape(32, 48).astype(np.uint16)  # 12 bits in 16
COLOR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
TWELVE = PixelFormat((0.0, 4095.0))


def encode(pixels: np.ndarray | Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format)
    return file.getvalue()


def tiff(values: np.ndarray, order: str = "<", photometric: int = 1, sample_format: int = 1, orientation: int = 1):
    """Write a TIFF of one strip by hand (TIFF 6.0), since Pillow writes neither big-endian nor inverted ones."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    shorts = {258: [values.dtype.itemsize * 8] * samples, 259: [1], 262: [photometric], 274: [orientation]}
    shorts |= {277: [samples], 339: [sample_format] * samples}
    longs = {256: [width], 257: [height], 273: [8], 278: [height], 279: [len(strip)]}
    entries = sorted([(tag, 3, v) for tag, v in shorts.items()] + [(tag, 4, v) for tag, v in longs.items()])
    at, body, extra = 8 + len(strip) + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, numbers in entries:
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", at + len(extra)), extra + packed
        body += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(strip))
    return head + strip + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + extra


@pytest.mark.parametrize("value_range", [(0.0, 65535.0), (0.0, 4095.0), (0.0, 255.0), (-1024.0, 3071.0), (0.5, 7.25)])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_to_8bit__equals_a_loop_over_the_values(kind: type, value_range: tuple[float, float]) -> None:
    low, high = value_range
    values = np.array([0, 1, 5, 7, 254, 255, 256, 1023, 3071, 4094, 4095, 4096, 65534, 65535]).astype(kind)
    whole = low.is_integer() and high.is_integer()
    for value, pixel in zip(values.tolist(), to_8bit(values, value_range).tolist(), strict=True):
        if kind is np.float32:
            wanted = round((value - low) * 255 / (high - low))  # to even at ties, as numpy
        else:
            wanted = int((value - low) * 256 // (high - low + whole))  # 256 bins of equally many integers
        assert pixel == min(255, max(0, wanted)), value


def test_to_8bit__upper_bits_identity_and_inverse() -> None:
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8bit(values, (0.0, 65535.0)), values >> 8)
    assert np.array_equal(to_8bit(values[:4096], (0.0, 4095.0)), values[:4096] >> 4)
    assert np.array_equal(to_8bit(values[:256], (0.0, 255.0)), values[:256])
    assert np.array_equal(to_8bit((values[:256] / 255).astype(np.float32), (0.0, 1.0)), values[:256])
    assert to_8bit(np.float32([np.nan, np.inf, -np.inf]), (0.0, 1.0)).tolist() == [0, 255, 0]


DEEP = {
    "16-bit PNG": encode(RAMP, "PNG"),
    "16-bit TIFF": encode(RAMP, "TIFF"),
    "big-endian TIFF": tiff(RAMP, ">"),
    "int32 TIFF": tiff(RAMP.astype(np.int32), sample_format=2),
    "uint32 TIFF": tiff(RAMP.astype(np.uint32)),
    "int16 TIFF": tiff(RAMP.astype(np.int16), sample_format=2),
    "raw 16-bit PGM": b"P5 48 32 65535\n" + RAMP.astype(">u2").tobytes(),
    "RGB PNG": cv2.imencode(".png", COLOR[..., ::-1])[1].tobytes(),
    "RGBA PNG": cv2.imencode(".png", np.dstack([COLOR[..., ::-1], RAMP]))[1].tobytes(),
    "RGB TIFF": tiff(COLOR, photometric=2),
    "big-endian RGB TIFF": tiff(COLOR, ">", photometric=2),
    "LZW RGB TIFF": cv2.imencode(".tiff", COLOR[..., ::-1])[1].tobytes(),
}


@pytest.mark.parametrize("name", DEEP)
def test_decode__every_deep_format_keeps_the_levels_of_the_range(name: str) -> None:
    wanted = COLOR if "RGB" in name else np.dstack([RAMP] * 3)
    assert np.array_equal(decode(DEEP[name], TWELVE), wanted >> 4)
    values = decode_values(DEEP[name])
    np.testing.assert_array_equal(values, wanted if "RGB" in name else RAMP)


def test_decode__white_is_zero_is_inverted_and_a_deep_tiff_is_turned_upright() -> None:
    assert np.array_equal(decode(tiff(RAMP, photometric=0), TWELVE)[..., 0], 255 - (RAMP >> 4))
    # unlike deep ones, Pillow inverts 8-bit ones itself
    assert np.array_equal(decode(tiff((RAMP >> 4).astype(np.uint8), photometric=0))[..., 0], 255 - (RAMP >> 4))
    upright = (  # of orientations 1 to 8, TIFF 6.0 and EXIF
        lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1], lambda x: x.swapaxes(0, 1),
        lambda x: np.rot90(x, -1), lambda x: np.rot90(x, 2).swapaxes(0, 1), lambda x: np.rot90(x, 1),
    )  # fmt: skip
    for orientation, turn in enumerate(upright, 1):
        for values, photometric in ((RAMP, 1), (COLOR, 2)):
            data = tiff(values, photometric=photometric, orientation=orientation)
            pixels = decode(data, TWELVE)
            assert np.array_equal(pixels, turn(np.broadcast_to(values.reshape(32, 48, -1), (32, 48, 3))) >> 4)
            assert pixels.shape[:2] == (read_header(data).height, read_header(data).width)


def test_decode__a_large_unsigned_integer_is_not_negative() -> None:
    values = RAMP.astype(np.uint32) << 20
    found = decode_values(tiff(values))
    np.testing.assert_array_equal(found, values)


def test_decode__8_bit_images_do_not_depend_on_the_range() -> None:
    color = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(color)
    for picture, format in (
        (image, "PNG"), (image, "JPEG"), (image, "TIFF"), (image.convert("P"), "GIF"), (image.convert("CMYK"), "TIFF"),
        (image.convert("LA"), "PNG"), (image.convert("1"), "PNG"), (image.convert("L"), "PPM"),
    ):  # fmt: skip
        data = encode(picture, format)
        assert np.array_equal(decode(data, PixelFormat((0.0, 9.0))), decode(data)), (picture.mode, format)
        assert decode_values(data) is None


def test_decode__float_in_0_to_1_keeps_its_levels_or_is_refused() -> None:
    values = (RAMP / 4095).astype(np.float32)
    data = encode(values, "TIFF")
    assert np.array_equal(decode(data, PixelFormat((0.0, 1.0)))[..., 0], np.round(values * np.float64(255)))
    with pytest.raises(ImageDecodeError, match=r"from 0 to 1 would keep 2 of 256 .*data\.range") as error:
        decode(data, PixelFormat())
    assert error.value.kind == "unknown range"
    with pytest.raises(ImageDecodeError, match="nothing in common with the range of values here, 0 to 4095"):
        decode(data, TWELVE)
    assert len(np.unique(decode(data))) == 2  # as before there was a rule


def test_decode__unknown_range_keeps_full_16_bits_and_refuses_12() -> None:
    assert np.array_equal(decode(encode(RAMP << 4, "PNG"), PixelFormat())[..., 0], RAMP >> 4)
    with pytest.raises(ImageDecodeError, match="would keep 16 of 256 gray levels"):
        decode(encode(RAMP, "PNG"), PixelFormat())
    dark = np.random.default_rng(0).integers(0, 12, (16, 16)).astype(np.uint16)  # few levels in the file too
    assert decode(encode(dark, "PNG"), TWELVE).max() == 0


def test_decode__gray_has_three_equal_channels_close_to_pillows() -> None:
    color = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    data = encode(color, "PNG")
    gray = decode(data, PixelFormat(gray=True))
    assert (gray == gray[..., :1]).all()
    assert np.abs(gray[..., 0].astype(int) - np.asarray(Image.fromarray(color).convert("L"))).max() <= 1
    even = encode(color[..., 0], "PNG")
    assert np.array_equal(decode(even, PixelFormat(gray=True)), decode(even))


@pytest.mark.parametrize(
    ("values", "sample_format", "message"),
    [
        (RAMP.astype(np.float64), 3, "kind of TIFF that is not supported"),
        (RAMP.astype(np.float16), 3, "kind of TIFF that is not supported"),
        ((RAMP >> 4).astype(np.uint8).view(np.int8), 2, "signed 8-bit"),
    ],
)
def test_decode__what_pillow_would_misread_is_refused(values: np.ndarray, sample_format: int, message: str) -> None:
    with pytest.raises(ImageDecodeError, match=message):
        decode(tiff(values, sample_format=sample_format))


@pytest.mark.parametrize(
    ("low", "high", "integers", "wanted"),
    [
        (0, 40, True, (0, 255)),  # nothing is lost
        (3, 800, True, (0, 1023)),
        (0, 3999, True, (0, 4095)),
        (100, 60000, True, (0, 65535)),
        (30000, 34000, True, (30000, 34000)),
        (-1024, 3071, True, (-1024, 3071)),
        (7, 7, True, (0, 255)),
        (0.01, 0.97, False, (0, 1)),
        (-0.9, 0.9, False, (-1, 1)),
        (0, 250, False, (0, 255)),
        (0, 5.5, False, (0, 5.5)),
        (0.5, 0.5, False, (0.5, 1.5)),
    ],
)
def test_conventional_range(low: float, high: float, integers: bool, wanted: tuple[float, float]) -> None:
    assert conventional_range(low, high, integers) == wanted


def test_check_range() -> None:
    assert check_range(None) is None
    assert check_range([0, 4095]) == (0.0, 4095.0)
    for wrong in ([1], [2, 1], [0, float("nan")], "x", [0, 1, 2]):
        with pytest.raises(UsageError, match=r"data\.range: .* give two numbers"):
            check_range(wrong)
