"""Pixels of the views, against Pillow, timm, torchvision and slow loops; single against batched views."""

import io
import math
import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from lit_vision.data.batch import normalize
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.color import LUMA, color_matrices
from lit_vision.data.views.params import COLOR_ORDERS, ViewParams, make_view_spec
from lit_vision.data.views.timm_augment import TimmAugment
from lit_vision.data.views.views import make_views, resize, rotate
from lit_vision.errors import UserError

RNG = np.random.default_rng(0)


def _photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return a smooth random image."""
    noise = RNG.normal(size=(height, width, channels)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2).reshape(height, width, channels)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).reshape(height, width, channels).astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = _photo(90, 120)
KEYS = [(2, i, 0) for i in range(24)]
SETTINGS = [
    ("simclr", {}, 32),
    ("simclr", {"rotation": 180.0}, 32),
    ("mae", {}, 32),
    ("train", {"rotation": 20.0, "scale": [1.0, 1.4], "brightness": 0.4, "contrast": 0.4}, 32),
    ("simclr", {}, 48),
    ("eval", {}, 32),
]


@pytest.mark.parametrize(("name", "views"), [("simclr", 2), ("mae", 1), ("train", 1), ("eval", 1)])
def test_views__have_their_shape_and_depend_on_the_key_alone(name: str, views: int) -> None:
    data, make = _png(PHOTO), make_views(name, 40, seed=5)
    first = make(data, 3, 7)
    assert first.shape == (views, 40, 40, 3)
    assert first.dtype == np.uint8
    make(data, 9, 9)
    assert (pickle.loads(pickle.dumps(make))(data, 3, 7, 0) == first).all()
    if name != "eval":
        for other in (
            make(data, 4, 7),
            make(data, 3, 8),
            make(data, 3, 7, 1),
            make_views(name, 40, seed=6)(data, 3, 7),
        ):
            assert (other != first).any()
    if views == 2:
        assert (first[0] != first[1]).any()


@pytest.mark.parametrize(("name", "options", "size"), SETTINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_batched_views__equal_the_single_ones_within_rounding(
    name: str, options: dict, size: int, channels: int
) -> None:
    images = (
        np.stack([_photo(36, 40, channels) for _ in KEYS])
        if name != "eval"
        else np.stack([_photo(32, 32, channels) for _ in KEYS])
    )
    batched = make_batch_views(name, size, 5, **options)(images, torch.tensor(KEYS)).numpy().astype(int)
    single = make_views(name, size, 5, **options)
    expected = np.stack(
        [single.from_array(np.repeat(i, 3 // channels, axis=2), *k) for i, k in zip(images, KEYS)]
    ).astype(int)
    difference = np.abs(batched - expected)
    assert batched.shape == expected.shape
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.98) <= 3


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [*SETTINGS, ("train", {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}, 32)],
)
def test_batched_views__do_not_depend_on_the_batch(name: str, options: dict, size: int) -> None:
    """To the bit: any batch size, any neighbours, any order, gray stored once or three times."""
    make = make_batch_views(name, size, 5, **options)
    images, keys = np.stack([_photo(32, 32) for _ in range(150)]), [(1, i, 0) for i in range(150)]
    whole = make(images, keys)
    assert torch.equal(torch.cat([make(images[i : i + 1], keys[i : i + 1]) for i in range(20)]), whole[:20])
    order = np.random.default_rng(1).permutation(150)
    assert torch.equal(make(images[order], [keys[i] for i in order]), whole[order])
    gray = images[:9, :, :, :1]
    assert (make(gray, keys[:9]).int() - make(np.repeat(gray, 3, 3), keys[:9]).int()).abs().max() <= (
        0 if name != "train" else 255
    )


def test_crops__equal_pillows_antialiased_bicubic() -> None:
    make, data = make_views("mae", 32, 0, flip=0.0), _photo(200, 260)
    for index in range(10):
        drawn = make.sampler(0, index, 0, 0, 200, 260)
        crop = Image.fromarray(data[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width])
        expected = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
        difference = np.abs(make.from_array(data, 0, index)[0] - expected)
        assert (difference <= 1).mean() > 0.99


def test_eval__equals_timms_transform() -> None:
    from timm.data import create_transform

    for size, shape in ((96, (120, 200)), (224, (375, 500)), (80, (81, 60))):
        image = _photo(*shape)
        reference = create_transform(size, crop_pct=0.875, interpolation="bicubic", normalize=False)
        expected = np.asarray(reference(Image.fromarray(image))).transpose(1, 2, 0).astype(int)
        got = make_views("eval", size, 0)(_png(image), 0, 0)[0]
        assert got.shape == expected.shape
        assert (np.abs(got - expected) <= 1).mean() > 0.99


def test_eval__leaves_a_fitting_image_as_it_is() -> None:
    image = _photo(224, 224)
    assert (make_views("eval", 224, 0)(_png(image), 0, 0)[0] == image).all()


def _draw(**values) -> ViewParams:
    base = {"left": 0, "top": 0, "width": 40, "height": 40, "flip": False, "angle": 0.0, "zoom": 1.0, "order": 0}
    colors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gray": False, "sigma": 0.0}
    return ViewParams(**{**base, **colors, **values})


@pytest.mark.parametrize("order", [0, 5, 13, 23])
def test_color_matrix__equals_the_operations_one_after_the_other(order: int) -> None:
    """A slow loop without clipping; for mild factors torchvision's clipped operations agree (without hue: HSV)."""
    drawn = _draw(order=order, brightness=1.1, contrast=0.8, saturation=0.7, gray=False)
    image = 60 + PHOTO.astype(np.float64) / 3
    slow, reference = image.copy(), torch.from_numpy(image).permute(2, 0, 1) / 255
    for operation in COLOR_ORDERS[order]:
        if operation == 0:
            slow, reference = slow * 1.1, tv.adjust_brightness(reference, 1.1)
        elif operation == 1:
            slow, reference = 0.8 * slow + 0.2 * (slow @ LUMA).mean(), tv.adjust_contrast(reference, 0.8)
        elif operation == 2:
            slow, reference = 0.7 * slow + 0.3 * (slow @ LUMA)[..., None], tv.adjust_saturation(reference, 0.7)
    matrix, shift = color_matrices([drawn, drawn], np.repeat(image.mean((0, 1))[None], 2, 0))
    got = image @ matrix[1].T + shift[1]
    np.testing.assert_allclose(got, slow, atol=1e-9)
    np.testing.assert_allclose(
        got, reference.permute(1, 2, 0).numpy() * 255, atol=0.1
    )  # its gray weights have four digits


def test_color_matrix__hue_keeps_gray_and_luma_and_grayscale_ends_gray() -> None:
    matrix, shift = color_matrices([_draw(hue=0.3), _draw(hue=0.1, saturation=1.5, gray=True)], np.full((2, 3), 100.0))
    np.testing.assert_allclose(matrix[0] @ np.ones(3), np.ones(3), atol=1e-9)
    np.testing.assert_allclose(LUMA @ matrix[0], LUMA, atol=1e-9)
    assert np.ptp(matrix[1] @ np.array([10.0, 200.0, 90.0]) + shift[1]) < 1e-9
    red_to_green = color_matrices([_draw(hue=1 / 3)], np.zeros((1, 3)))[0][0] @ np.array([1.0, 0, 0])
    assert red_to_green.argmax() == 1  # as a third of a turn in HSV


def test_rotate__by_quarter_turns_is_exact_and_counter_clockwise() -> None:
    image = _photo(40, 40)
    for quarter in (1, 2, 3):
        got = rotate(image, _draw(angle=90.0 * quarter), 40, 40).astype(int)
        assert np.abs(got - np.rot90(image, quarter)).max() <= 1


def test_rotate__zooms_out_to_black_and_shrinks_with_antialias() -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    half = rotate(white, _draw(zoom=0.5), 40, 40)
    assert half.mean() / 255 == pytest.approx(0.25, abs=0.03)
    assert half[0, 0, 0] == 0
    assert half[20, 20, 0] == 255
    checks = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = rotate(checks, _draw(width=320, height=320, angle=30.0), 40, 40)
    assert np.abs(small[10:30, 10:30].astype(int) - 127).max() < 12  # no moire


def test_blur__has_the_papers_kernel() -> None:
    make = make_views("simclr", 224, 0, blur=1.0, strength=0.0, grayscale=0.0, flip=0.0)
    drawn = make.sampler(0, 0, 0, 0, 300, 300)
    image = _photo(300, 300)
    crop = resize(image[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width], 224, 224)
    expected = (
        tv.gaussian_blur(torch.from_numpy(crop.copy()).permute(2, 0, 1), [23, 23], [drawn.sigma] * 2)
        .permute(1, 2, 0)
        .numpy()
    )
    assert np.abs(make.render(image, drawn).astype(int) - expected).max() <= 1


def test_rand_augment__posterize_to_no_bits_is_black() -> None:
    """Strong settings ask for 0 bits now and then, which Pillow 13 refuses."""
    policy = TimmAugment(make_view_spec("train", 32, rand_augment="rand-m9-mstd0.5-inc1"), 0).policy
    image = Image.fromarray(np.full((4, 4, 3), 200, np.uint8))
    (posterize,) = {op.aug_fn for op in policy.ops if op.name.startswith("Posterize")}
    values = [np.unique(np.array(posterize(image, bits))).tolist() for bits in (0, 1, 4, 8)]
    assert values == [[0], [128], [192], [200]]


def test_rand_augment__is_keyed_leaves_global_generators_alone_and_differs_between_keys() -> None:
    make = make_views("train", 32, 0, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.9)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    views = [make.from_array(PHOTO, 0, i)[0] for i in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all((a == make.from_array(PHOTO, 0, i)[0]).all() for i, a in enumerate(views))
    assert len({v.tobytes() for v in views}) == 6
    with pytest.raises(UserError, match="rand_augment"):
        make_views("train", 32, 0, rand_augment="wild")


def test_normalize__is_the_float_formula() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (2, 3, 5, 4, 3), np.uint8))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = ((images.double() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    got = normalize(images, mean, std)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-6)
    plain = normalize(images, torch.zeros(3), torch.ones(3))
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert math.isclose(plain.max().item(), images.max().item() / 255, rel_tol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        normalize(images.float(), mean, std)
