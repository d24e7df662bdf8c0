"""Fast views of JPEG bytes: one scaled decode for all views, crops on its grid, slow references, exact color."""

import io
import itertools

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from lit_vision.data.views import decode as decode_module
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.color import color_matrix, sequential_color_jitter
from lit_vision.data.views.decode import SCALES, decode_scaled, read_header
from lit_vision.data.views.params import COLOR_ORDERS, ViewParams
from lit_vision.data.views.views import blur, make_views, resize_fast, snap_to_decoded_grid


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image with detail at all scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cell in (200, 80, 30, 12, 5):
        coarse = rng.normal(size=(height // cell + 2, width // cell + 2, 3))
        image += cell**0.7 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def _jpeg(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean()))


def _draw(**values) -> ViewParams:
    base = {"left": 0, "top": 0, "width": 40, "height": 40, "flip": False, "angle": 0.0, "zoom": 1.0, "order": 0}
    colors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gray": False, "sigma": 0.0}
    return ViewParams(**{**base, **colors, **values})


@pytest.mark.parametrize(("height", "width"), [(375, 500), (1200, 1600)])
def test_crops__have_37_db_against_pillows_bicubic_of_the_full_decode(height: int, width: int) -> None:
    data = _jpeg(_photo(height, width))
    full, header = Image.open(io.BytesIO(data)), read_header(data)
    views, values, scales = make_views("simclr", 224, 0, strength=0.0, grayscale=0.0, blur=0.0, flip=0.0), [], set()
    for index in range(15):
        draws = views.sample_params(height, width, 0, index, 0)
        scale = views.decoding_scale(header, draws)
        assert all(min(d.width, d.height) // scale >= 224 for d in draws) or scale == 1
        scales.add(scale)
        for drawn, view in zip(draws, views(data, 0, index)):
            d = snap_to_decoded_grid(drawn, scale)
            box = [scale * x for x in (d.left, d.top, d.left + d.width, d.top + d.height)]
            assert all(abs(a - b) < 2 * scale for a, b in zip(box[:2], (drawn.left, drawn.top)))
            values.append(_psnr(view, np.asarray(full.crop(box).resize((224, 224), Image.Resampling.BICUBIC))))
    assert np.median(values) >= 37
    assert (max(scales) > 1) == (height > 500)


def test_scale__is_the_largest_that_leaves_every_crop_its_size() -> None:
    views = make_views("simclr", 100, 0)
    upright = read_header(_jpeg(_photo(1000, 1001)))
    for sides, scale in (
        ((100, 900), 1),
        ((199, 900), 1),
        ((200, 900), 2),
        ((400, 400), 4),
        ((799, 900), 4),
        ((900, 800), 8),
    ):
        assert views.decoding_scale(upright, [_draw(width=side, height=900) for side in sides]) == scale
    assert views.decoding_scale(upright, [_draw(width=900, height=900, zoom=2.0)]) == 4
    mirrored = upright._replace(orientation=3)
    assert views.decoding_scale(mirrored, [_draw(width=900, height=900)]) == 1  # 1001 is odd
    assert views.decoding_scale(mirrored._replace(width=1000), [_draw(width=900, height=900)]) == 8


@pytest.mark.parametrize("scale", SCALES)
def test_decode_scaled__is_a_shrunk_image(scale: int) -> None:
    image = _photo(401, 530)
    data = _jpeg(image)
    small, used = decode_scaled(data, read_header(data), scale)
    assert used == scale
    assert small.shape == (-(-401 // scale), -(-530 // scale), 3)
    inner = (slice(0, 400 // scale), slice(0, 528 // scale))
    expected = cv2.resize(image[:400, :528], (528 // scale, 400 // scale), interpolation=cv2.INTER_AREA)
    assert _psnr(small[inner], expected) > 33


def test_evaluation_and_other_formats__are_never_decoded_at_a_scale(monkeypatch) -> None:
    calls, real = [], decode_module.simplejpeg.decode_jpeg

    def watch(*args, **options):
        calls.append((options.get("min_height"), options.get("fastupsample")))
        return real(*args, **options)

    monkeypatch.setattr(decode_module.simplejpeg, "decode_jpeg", watch)
    data = _jpeg(_photo(900, 1200))
    make_views("eval", 64, 0)(data, 0, 0)
    assert calls == [(900, False)]
    calls.clear()
    make_views("mae", 64, 0)(data, 0, 0)
    make_views("simclr", 64, 0)(data, 0, 0)
    assert len(calls) == 2  # one decode for both views
    assert all(height < 900 and fast for height, fast in calls)


def test_views__of_a_jpeg_that_only_pillow_reads_are_those_of_its_pixels() -> None:
    """Extra bytes in the entropy-coded part: libjpeg-turbo refuses them, Pillow ignores them."""
    data = _jpeg(_photo(300, 400), restart_marker_blocks=40)
    marker = data.index(b"\xff\xd0")
    data = data[:marker] + b"\x12\x34\x56" + data[marker:]
    with pytest.raises(ValueError, match=r"."):
        decode_module.simplejpeg.decode_jpeg(data, "RGB")
    views = make_views("mae", 48, 0)
    assert (views(data, 0, 3) == views.from_array(decode_module.decode(data), 0, 3)).all()


@pytest.mark.parametrize("shrink", [0.4, 1.0, 1.2, 1.6, 1.95, 2.4, 3.5, 5.0])
def test_resize_fast__keeps_37_db_and_does_not_alias(shrink: float) -> None:
    side = round(224 * shrink)
    image = _photo(side, side, seed=3)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    assert _psnr(resize_fast(image, 224, 224), expected) > 37
    if shrink > 2:
        checks = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
        assert resize_fast(checks, 224, 224).std() < 30  # point sampling has 128


@pytest.mark.parametrize("sigma", [0.1, 0.27, 0.5, 1.0, 1.4, 2.0])
def test_blur__is_within_one_level_of_the_papers_kernel(sigma: float) -> None:
    view = _photo(224, 224, seed=4)
    expected = tv.gaussian_blur(torch.from_numpy(view).permute(2, 0, 1).float(), [23, 23], [sigma, sigma])
    got = view if sigma < 0.28 else blur(view, sigma)
    assert np.abs(got - expected.permute(1, 2, 0).numpy()).max() <= 1.5  # one level, and its rounding


@pytest.mark.parametrize("order", range(0, 24, 5))
def test_sequential_color__equals_torchvision_on_floats(order: int) -> None:
    image = _photo(120, 150, seed=order)
    reference = torch.from_numpy(image).permute(2, 0, 1) / 255
    factors = {"brightness": 1.5, "contrast": 0.4, "saturation": 1.7, "hue": -0.17}
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for operation in COLOR_ORDERS[order]:
        reference = functions[operation](reference, list(factors.values())[operation])
    for gray in (False, True):
        expected = (tv.rgb_to_grayscale(reference, 3) if gray else reference).permute(1, 2, 0).numpy() * 255
        got = sequential_color_jitter(image, _draw(order=order, gray=gray, **factors))
        assert (np.abs(got - expected) <= 1).mean() >= 0.99


@pytest.mark.parametrize("name", ["mae", "train", "simclr"])
def test_without_quick__a_crop_is_pillows_of_the_whole_image(name: str) -> None:
    """Full decode, then the crop resized by Pillow's antialiased bicubic filter; the quick path has other pixels."""
    plain = {"grayscale": 0.0, "blur": 0.0, "strength": 0.0} if name == "simclr" else {}
    data = _jpeg(_photo(900, 1200), quality=92)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    slow, quick = (make_views(name, 112, 0, quick=q, **plain) for q in (False, True))
    differ = 0
    for index in range(12):
        views = slow(data, 0, index)
        for drawn, got, fast in zip(slow.sample_params(900, 1200, 0, index, 0), views, quick(data, 0, index)):
            box = (drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height)
            want = np.asarray(whole.crop(box).resize((112, 112), Image.Resampling.BICUBIC)).astype(int)
            want = want[:, ::-1] if drawn.flip else want
            assert np.abs(got - want).max() <= 2
            differ += int((got != fast).any())
    assert differ


def test_exact__is_an_option_of_both_paths_and_differs_from_the_matrix() -> None:
    images, keys = np.stack([_photo(48, 48, seed=i) for i in range(6)]), [(0, i, 0) for i in range(6)]
    one, exact = (make_views("simclr", 48, 0, exact=e) for e in (False, True))
    assert any((one.from_array(i, *k) != exact.from_array(i, *k)).any() for i, k in zip(images, keys))
    batched = make_batch_views("simclr", 48, 0, exact=True)(images, keys).numpy().astype(int)
    single = np.stack([exact.from_array(i, *k) for i, k in zip(images, keys)])
    assert np.abs(batched - single).mean() < 0.7


def test_color_matrix__does_not_depend_on_the_order_and_equals_the_exact_one_where_nothing_clips() -> None:
    image = (90 + _photo(60, 60) * 0.2).astype(np.uint8)
    mean = image.mean((0, 1)).tolist()
    drawn = _draw(brightness=1.1, contrast=0.8, saturation=1.2)
    matrix = np.array(color_matrix(drawn, mean))
    got = image @ matrix[:, :3].T + matrix[:, 3]
    for order in range(24):
        assert np.abs(got - sequential_color_jitter(image, drawn._replace(order=order))).max() <= 1.01
    assert len(set(itertools.chain(matrix[:, 3]))) == 1


def test_views__of_consecutive_keys_are_uncorrelated() -> None:
    """The pixels of the image are its coordinates, so that the crops show their position."""
    places = np.stack([*np.indices((240, 240)), np.zeros((240, 240))], 2).astype(np.uint8)
    views = make_views("mae", 8, 0)
    centers = np.array([views.from_array(places, 0, i)[0, 4, 4, :2] for i in range(1500)], float)
    for axis in range(2):
        assert abs(np.corrcoef(centers[1:, axis], centers[:-1, axis])[0, 1]) < 0.1
    epochs = np.array([views.from_array(places, e, 0)[0, 4, 4, 0] for e in range(1500)], float)
    assert abs(np.corrcoef(epochs[1:], epochs[:-1])[0, 1]) < 0.1
