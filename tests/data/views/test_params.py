"""Sampled view parameters, against their stated distributions."""

import math

import numpy as np
import pytest
from scipy import stats

from lit_vision.data.views.params import ViewParamSampler, make_view_spec
from lit_vision.errors import UserError

N = 20_000


def _draws(name: str, size: int = 224, height: int = 2000, width: int = 2000, **options) -> list:
    sampler = ViewParamSampler(make_view_spec(name, size, **options), seed=11)
    return [sampler(i // 100, i % 100, 0, i % 2, height, width) for i in range(N)]


def _p(values: list[float], low: float, high: float) -> float:
    return stats.kstest(values, "uniform", args=(low, high - low)).pvalue


def test_simclr__parameters_follow_the_paper() -> None:
    draws = _draws("simclr")
    jittered = [d for d in draws if (d.brightness, d.contrast, d.saturation, d.hue) != (1, 1, 1, 0)]
    for share, p in (
        (len(jittered), 0.8),
        (sum(d.flip for d in draws), 0.5),
        (sum(d.gray for d in draws), 0.2),
        (sum(d.sigma > 0 for d in draws), 0.5),
    ):
        assert stats.binomtest(share, N, p).pvalue > 1e-3
    for field in ("brightness", "contrast", "saturation"):
        assert _p([getattr(d, field) for d in jittered], 0.2, 1.8) > 1e-3
    assert _p([d.hue for d in jittered], -0.2, 0.2) > 1e-3
    assert _p([d.sigma for d in draws if d.sigma], 0.1, 2.0) > 1e-3
    assert stats.chisquare(np.bincount([d.order for d in jittered], minlength=24)).pvalue > 1e-3


def test_crop__area_aspect_and_position_follow_rejection_sampling() -> None:
    """Against a slow loop of the definition (Inception's crop): draw area and aspect until the window fits."""
    rng, areas, aspects = np.random.default_rng(0), [], []
    while len(areas) < N:
        area, aspect = rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        if area * aspect <= 1 and area / aspect <= 1:
            areas.append(area), aspects.append(aspect)
    draws = _draws("simclr")
    assert stats.ks_2samp([d.width * d.height / 4e6 for d in draws], areas).pvalue > 1e-3
    assert stats.ks_2samp([d.width / d.height for d in draws], aspects).pvalue > 1e-3
    assert _p([d.left / (2000 - d.width) for d in draws if d.width < 1900], 0, 1) > 1e-3
    assert all(0 <= d.left <= 2000 - d.width and 0 <= d.top <= 2000 - d.height for d in draws)


def test_train_and_mae__options_follow_their_ranges() -> None:
    draws = _draws("train", rotation=30.0, scale=[0.5, 2.0], brightness=0.4, contrast=1.5)
    assert _p([d.angle for d in draws], -30, 30) > 1e-3
    assert _p([math.log(d.zoom) for d in draws], -math.log(2), math.log(2)) > 1e-3
    assert _p([d.brightness for d in draws], 0.6, 1.4) > 1e-3
    assert _p([d.contrast for d in draws], 0, 2.5) > 1e-3
    mae = _draws("mae")
    assert min(d.width * d.height for d in mae) > 0.19 * 4e6
    assert all((d.brightness, d.angle, d.zoom, d.sigma, d.gray) == (1, 0, 1, 0, False) for d in mae)


def test_views__draw_independently_of_each_other_and_of_other_options() -> None:
    sampler = ViewParamSampler(make_view_spec("simclr", 224), 0)
    a = [sampler(0, i, 0, 0, 500, 500) for i in range(N)]
    for b in (
        [sampler(0, i, 0, 1, 500, 500) for i in range(N)],
        a[1:] + a[:1],
        [sampler(1, i, 0, 0, 500, 500) for i in range(N)],
    ):
        assert abs(np.corrcoef([d.left for d in a], [d.left for d in b])[0, 1]) < 0.03
        assert abs(np.corrcoef([d.sigma for d in a], [d.sigma for d in b])[0, 1]) < 0.03
    plain, turned = (
        ViewParamSampler(make_view_spec("mae", 224, **o), 0)(1, 2, 0, 0, 500, 400) for o in ({}, {"rotation": 90})
    )
    assert plain[:5] == turned[:5]


def test_crop__extreme_images_fall_back_to_the_center() -> None:
    tall = ViewParamSampler(make_view_spec("mae", 32), 0)(0, 0, 0, 0, 4000, 10)
    assert tall.width == 10
    assert tall.height <= 14
    assert 0 <= tall.top <= 4000 - tall.height
    dot = ViewParamSampler(make_view_spec("simclr", 32), 0)(0, 0, 0, 0, 1, 1)
    assert (dot.left, dot.top, dot.width, dot.height) == (0, 0, 1, 1)


def test_small_images__get_half_the_strength_and_no_blur() -> None:
    small, large = make_view_spec("simclr", 32), make_view_spec("simclr", 33)
    assert (small.brightness, small.blur) == (0.4, 0.0)
    assert (large.brightness, large.hue, large.blur) == (0.8, 0.2, 0.5)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dino", {}, "dino"),
        ("mae", {"strength": 1.0}, "strength"),
        ("eval", {"flip": 0.5}, "flip"),
        ("train", {"crop_scale": [0.5, 1.5]}, "crop_scale"),
        ("train", {"flip": 1.5}, "flip"),
        ("simclr", {"strength": -1.0}, "strength"),
    ],
)
def test_make_view_spec__refuses_what_a_view_does_not_have(name: str, options: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make_view_spec(name, 32, **options)
