"""A registered albumentations pipeline as a view: keyed like the others, boxes and masks move with the pixels."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_annotations import painted_boxes

from lit_vision.data import AnnotatedDataModule
from lit_vision.data.annotations import views as home
from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions, boxes_of, register_annotated_view
from lit_vision.data.make.scenes import make_scenes
from lit_vision.data.views.albumentations_views import import_albumentations

SIZE = 64
KEYS = [(epoch, index, copy) for epoch in range(2) for index in range(4) for copy in range(2)]


def tilted(size: int, options: AugmentationOptions, fill_mask: int) -> list:
    """Shift, scale, turn by quarters, mirror, noise: everything draws."""
    A = import_albumentations()
    return [
        A.Resize(size, size),
        A.Affine(translate_percent=(-0.2, 0.2), scale=(0.7, 1.2), p=1.0, fill_mask=fill_mask),
        A.RandomRotate90(p=0.5),
        A.HorizontalFlip(p=options.flip),
        A.GaussNoise(std_range=(0.01, 0.03), p=1.0),
    ]


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setattr(home, "VIEWS", dict(home.VIEWS))
    register_annotated_view("tilted", tilted)


def test_the_same_key_gives_the_same_in_any_order_and_another_key_another() -> None:
    image, boxes, masks = painted_boxes()
    views = AnnotatedViews("tilted", SIZE, 3, AugmentationOptions())
    first = {key: views(image, key, boxes, masks) for key in KEYS}
    again = pickle.loads(pickle.dumps(views))  # as in a worker
    for key in [*reversed(KEYS), *KEYS[::3]]:
        view = again(image, key, boxes, masks)
        for name in ("image", "boxes", "box_ids", "masks"):
            np.testing.assert_array_equal(getattr(view, name), getattr(first[key], name))
    assert len({first[key].image.tobytes() for key in KEYS}) == len(KEYS)
    assert len({first[key].masks.tobytes() for key in KEYS}) == len(KEYS)  # places, not only the noise
    other = AnnotatedViews("tilted", SIZE, 4, AugmentationOptions())(image, KEYS[0], boxes, masks)
    assert (other.image != first[KEYS[0]].image).any()


def test_other_draws_between_two_calls_change_nothing() -> None:
    image, boxes, _ = painted_boxes()
    views = AnnotatedViews("tilted", SIZE, 3, AugmentationOptions())
    first = views(image, (1, 2, 0), boxes)
    np.random.random(7)
    torch.rand(7)
    views._pipeline_for_boxes(image=image, bboxes=boxes, box_ids=np.arange(3))  # moves the pipeline's own state on
    again = views(image, (1, 2, 0), boxes)
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.boxes, first.boxes)


def test_boxes_and_masks_move_with_the_pixels() -> None:
    image, boxes, masks = painted_boxes()
    views = AnnotatedViews("tilted", SIZE, 0, AugmentationOptions())
    semantic = np.max(masks * np.arange(1, 4, dtype=np.uint8)[:, None, None], 0)
    seen = 0
    for index in range(25):
        view = views(image, (0, index, 0), boxes, masks)
        alone = views(image, (0, index, 0), boxes)
        whole = views(image, (0, index, 0), mask=semantic)
        np.testing.assert_array_equal(whole.image, view.image)  # one key, one geometry, whatever goes along
        for box, which, mask in zip(view.boxes, view.box_ids, view.masks):
            painted = (view.image[..., which] > 128) & (view.image[..., (which + 1) % 3] < 128)
            np.testing.assert_allclose(box, boxes_of(painted[None])[0], atol=2)
            assert (mask.astype(bool) == painted).mean() > 0.97
            assert ((whole.mask == which + 1) == painted).mean() > 0.97
            np.testing.assert_allclose(alone.boxes[alone.box_ids == which][0], box, atol=2)
            seen += 1
    assert seen > 40


def test_batches_under_ones_own_view_are_the_same_from_workers(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"train": 6})
    settings = {"img_size": SIZE, "batch_size": 2, "train_view": "tilted", "with_masks": True, "seed": 1}
    alone, spread = (
        list(AnnotatedDataModule(str(tmp_path), num_workers=n, **settings).train_dataloader()) for n in (0, 2)
    )
    assert len(alone) == len(spread) == 3
    for a, b in zip(alone, spread):
        assert torch.equal(a["images"], b["images"])
        for one, other in zip(a["targets"], b["targets"]):
            assert torch.equal(one["boxes"], other["boxes"])
            assert torch.equal(one["masks"], other["masks"])
