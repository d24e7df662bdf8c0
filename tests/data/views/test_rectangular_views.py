"""Views that are not square, against Pillow, slow loops and the square views of a stretched image."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from lit_vision.data.views.albumentations_views import PIPELINES, register_pipeline
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.decode import SCALES, read_header
from lit_vision.data.views.image_size import height_and_width, plain_size, size_text
from lit_vision.data.views.params import ViewParamSampler, make_view_spec
from lit_vision.data.views.views import make_views, rotate, window_matrix
from lit_vision.errors import UsageError, UserError

SIZE = 24, 40


def _photo(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


PHOTO = _photo(90, 120)


def _encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def test_crops__of_a_wide_view_are_those_of_a_square_view_of_the_stretched_image() -> None:
    wide = ViewParamSampler(make_view_spec("simclr", (64, 128)), 3)
    square = ViewParamSampler(make_view_spec("simclr", 128), 3)
    for i in range(500):
        a, b = wide(0, i, 0, 0, 2000, 4000), square(0, i, 0, 0, 4000, 4000)
        assert (a.width, a.left) == (b.width, b.left)
        assert abs(2 * a.height - b.height) <= 1  # rounding
        assert abs(2 * a.top - b.top) <= 3
        assert a[4:] == b[4:]


def test_crops__stretch_objects_by_at_most_a_third() -> None:
    sampler = ViewParamSampler(make_view_spec("train", [96, 32]), 0)
    crops = [sampler(0, i, 0, 0, 900, 900) for i in range(500)]
    stretch = [c.width / 32 / (c.height / 96) for c in crops]
    assert 0.74 < min(stretch) < 0.8
    assert 1.25 < max(stretch) < 1.35


@pytest.mark.parametrize("size", [SIZE, (40, 24)])
def test_views__have_the_pixels_of_pillows_bicubic_one_by_one_and_in_batches(size: tuple[int, int]) -> None:
    views, keys = make_views("mae", size, 1), [(0, i, 0) for i in range(8)]
    batched = make_batch_views("mae", size, 1)(np.repeat(PHOTO[None], 8, 0), keys).numpy()
    for key, of_batch in zip(keys, batched):
        (p,) = views.sample_params(90, 120, *key)
        box = p.left, p.top, p.left + p.width, p.top + p.height
        expected = np.asarray(Image.fromarray(PHOTO).crop(box).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        expected = expected[:, ::-1] if p.flip else expected
        single = views.from_array(PHOTO, *key)
        assert single.shape == of_batch.shape == (1, *size, 3)
        assert abs(single[0] - expected).max() <= 1
        assert abs(of_batch[0] - expected).max() <= 1


@pytest.mark.parametrize("angle", [0.0, 37.0, 90.0])
def test_rotated_views__are_a_slow_loop_over_the_window(angle: float) -> None:
    spec = {"rotation": 180.0, "scale": [1.0, 1.0], "crop_scale": [0.05, 0.1], "flip": 0.0}
    views = make_views("train", SIZE, 0, **spec)
    params = views.sample_params(90, 120, 0, 4, 0)[0]._replace(angle=angle, left=50, top=40)
    rows, columns = SIZE
    expected, (first, second) = np.zeros((*SIZE, 3)), window_matrix(params)
    for i in range(rows):
        for j in range(columns):
            place = np.array([(2 * j + 1) / columns - 1, (2 * i + 1) / rows - 1, 1])
            x, y = np.dot(first, place) - 0.5, np.dot(second, place) - 0.5
            assert 0 <= x < 119, "the window lies inside the image"
            (left, top), u, v = (int(x), int(y)), x - int(x), y - int(y)
            upper = (1 - u) * PHOTO[top, left] + u * PHOTO[top, left + 1]
            lower = (1 - u) * PHOTO[top + 1, left] + u * PHOTO[top + 1, left + 1]
            expected[i, j] = (1 - v) * upper + v * lower
    assert abs(rotate(PHOTO, params, *SIZE) - expected).max() <= 2.5  # cv2 has 1/32 of a pixel
    batch = make_batch_views("train", SIZE, 0, **spec)
    batch.sampler = lambda *_: params
    assert abs(batch(PHOTO[None], [(0, 4, 0)])[0, 0].numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "size", "resized"),  # the smallest size that covers height / 0.5 and width / 0.5, in the image's aspect
    [
        ((90, 120), (24, 40), (60, 80)),
        ((90, 120), (40, 24), (80, 106)),
        ((90, 300), (24, 40), (48, 160)),
        ((60, 100), (24, 40), (48, 80)),
        ((300, 90), (24, 40), (266, 80)),
    ],
)
def test_evaluation__is_the_center_of_the_image_resized_to_cover_the_view(
    image: tuple[int, int], size: tuple[int, int], resized: tuple[int, int]
) -> None:
    pixels = _photo(*image)
    whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC)).astype(int)
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    expected = whole[top : top + size[0], left : left + size[1]]
    view = make_views("eval", size, 0, crop_pct=0.5).from_array(pixels, 0, 0)[0]
    of_batch = make_batch_views("eval", size, 0, crop_pct=0.5)(pixels[None], [(0, 0, 0)])[0, 0]
    assert view.shape == (*size, 3)
    assert abs(view - expected).max() <= 1
    assert (of_batch.numpy() == view).all()
    own = make_views("eval", image, 0, crop_pct=0.5)
    assert (own.from_array(pixels, 0, 0)[0] == pixels).all()


def test_jpegs__are_decoded_no_smaller_than_the_view_in_either_direction() -> None:
    data = _encoded(_photo(480, 640), "JPEG")
    views, header, scales = make_views("simclr", (120, 30), 0), read_header(data), set()
    for index in range(60):
        params = views.sample_params(480, 640, 0, index, 0)
        scales.add(scale := views.decoding_scale(header, params))
        assert scale == 1 or all(p.width >= 30 * scale and p.height >= 120 * scale for p in params)
        larger = [s for s in SCALES if s > scale]
        assert not larger or any(p.width < 30 * s or p.height < 120 * s for p in params for s in larger[-1:])
    assert len(scales) > 1
    assert views(data, 0, 0).shape == (2, 120, 30, 3)


@pytest.mark.parametrize("name", ["lejepa", *(f"albumentations:{name}" for name in PIPELINES)])
def test_every_view__has_height_before_width(name: str) -> None:
    views = make_views(name, SIZE, 0)
    shapes = {views(_encoded(PHOTO, "PNG"), 0, index).shape[1:] for index in range(6)}
    assert shapes == {(*SIZE, 3)}


def test_pipelines_of_a_square_size__are_refused_where_they_ignore_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_vision.data.views.albumentations_views.PIPELINES", dict(PIPELINES))
    register_pipeline("mine", lambda size: lambda image: {"image": image[:24, :24]})
    monkeypatch.setattr("lit_vision.data.views.albumentations_views.rekey", lambda *_: None)
    with pytest.raises(UserError, match="mine: made 24x24 pixels instead of 24x40"):
        make_views("albumentations:mine", SIZE, 0).from_array(PHOTO, 0, 0)


def test_sizes__have_one_form_and_bad_ones_are_refused() -> None:
    assert (height_and_width(32), height_and_width([24, 40])) == ((32, 32), (24, 40))
    assert (plain_size([32, 32]), plain_size((24, 40)), size_text((24, 40))) == (32, [24, 40], "24x40")
    for size in (0, [24], [24, 0], [24, 40, 3], "24", [2.5, 4], None):
        with pytest.raises(UsageError, match=r"data\.img_size"):
            height_and_width(size, "data.img_size")
