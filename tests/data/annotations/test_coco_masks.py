"""COCO's run lengths: the pixels of pycocotools if they are valid, an error in one line if they are not."""

import json
from pathlib import Path

import numpy as np
import pytest

from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.coco_masks import decode_masks, decode_rle, run_lengths
from lit_vision.data.annotations.table import AnnotationError

H, W = 30, 40


def _masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    block = np.zeros((H, W), np.uint8)
    block[3:9, 4:11] = 1
    return [
        block,
        block * 0,
        1 - block * 0,
        1 - block,
        *((rng.random((H, W)) < p).astype(np.uint8) for p in (0.02, 0.5, 0.98)),
    ]


@pytest.mark.parametrize("number", range(7))
def test_run_lengths_become_the_mask_that_they_came_from(number: int) -> None:
    from pycocotools import mask as coco_mask

    mask = _masks()[number]
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    lengths = decode_rle(packed)
    assert lengths.sum() == H * W
    found = decode_masks([{"size": [H, W], "counts": c} for c in (packed, lengths.tolist())], H, W)
    assert (found == mask).all()


def test_long_runs_are_packed_in_many_characters() -> None:
    from pycocotools import mask as coco_mask

    mask = np.zeros((3000, 2000), np.uint8)
    mask[1500:, 700:] = 1
    mask[:, 1999] = 0
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert (decode_masks([{"counts": packed}], 3000, 2000)[0] == mask).all()


BROKEN = [
    ([5, 5], "10 .*1200"),
    ([H * W - 3], "1197"),
    ([5, 500_000], "500005"),
    ([-5, H * W + 5], "-5"),
    ([5, 1195.0], "counts"),
    ([True, 1199], "counts"),
    ([5, None], "counts"),
    ([], "counts"),
    (None, "counts"),
    (7, "counts"),
    ("zzz~~", "counts"),
    ("", "counts"),
    ("\u00e9", "counts"),
    ("o", "counts"),  # another character must follow
    ("55", " 10 "),
    ("oooooooooo0", "counts"),
    ("@5", "counts"),
]


@pytest.mark.parametrize(("counts", "named"), BROKEN)
def test_wrong_run_lengths_are_refused_before_and_at_decoding(counts, named: str, tmp_path: Path) -> None:
    segmentation = {"size": [H, W], "counts": counts}
    with pytest.raises(AnnotationError, match=named):
        decode_masks([segmentation], H, W)
    annotation = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": segmentation}
    image = {"id": 1, "file_name": "a.jpg", "height": H, "width": W}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=named) as caught:
        read_coco(tmp_path, "a.json", ".", with_masks=True)
    assert "annotation 3: the mask's counts" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(read_coco(tmp_path, "a.json", ".")) == 1  # boxes alone do not need them


def test_every_mask_survives_its_run_lengths() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    masks = [rng.random((7, 5)) < p for p in (0.0, 0.2, 0.8, 1.0)]
    for mask in masks:
        encoded = run_lengths(mask)
        assert sum(encoded["counts"]) == 35
        assert (coco_mask.decode(coco_mask.frPyObjects(encoded, 7, 5)) == mask).all()
