"""Annotated images as batches: pixels and boxes move together, keyed per sample, complete in evaluation, resumable."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_annotations import painted_boxes

from lit_vision.data import AnnotatedDataModule
from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions, boxes_of, letterbox_scale
from lit_vision.data.make.scenes import make_scenes
from lit_vision.data.views.decode import ImageDecodeError
from lit_vision.errors import UserError

NAMES = ["background", *map(str, range(10))]
OPTIONS = AugmentationOptions(jitter=(0.4, 1.8), brightness=0.3, contrast=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(out, {"train": 8, "val": 3, "test": 2})
    return out


def _module(root: Path, **changes) -> AnnotatedDataModule:
    settings = {"img_size": 64, "batch_size": 2, "num_workers": 0, "train_view": "lsj", "seed": 5} | changes
    return AnnotatedDataModule(str(root), **settings)


@pytest.mark.parametrize("name", ["flip", "lsj"])
def test_boxes_and_masks_stay_on_what_they_mark(name: str) -> None:
    image, boxes, masks = painted_boxes()
    views = AnnotatedViews(name, 64, 0, AugmentationOptions(jitter=(0.4, 1.8)))
    seen = 0
    for index in range(25):
        view = views(image, (0, index, 0), boxes, masks)
        assert view.image.shape == (64, 64, 3)
        alone = views(image, (0, index, 0), boxes)
        for box, which, mask in zip(view.boxes, view.box_ids, view.masks):
            painted = (view.image[..., which] > 200) & (view.image[..., (which + 1) % 3] < 80)
            np.testing.assert_allclose(box, boxes_of(painted[None])[0], atol=2)
            assert (mask.astype(bool) == painted).mean() > 0.97
            rows = alone.boxes[alone.box_ids == which]
            assert len(rows) == 1
            np.testing.assert_allclose(rows[0], box, atol=2)
            seen += 1
    assert seen > 25


@pytest.mark.parametrize("shape", [(2, 1000), (1000, 2), (1, 64), (5, 64), (3, 192), (50, 21), (1000, 47)])
def test_fit_scale__is_what_the_view_does(shape: tuple[int, int]) -> None:
    """Rounded as the view rounds, and never to nothing: a pixel of the shorter side is left at any aspect ratio."""
    view = AnnotatedViews("fit", 32, 0, OPTIONS)(np.zeros((*shape, 3), np.uint8), (0, 0, 0))
    seen = (view.image == 0).all(2)
    sides = np.array([seen.any(0).sum(), seen.any(1).sum()])
    np.testing.assert_allclose(letterbox_scale(*shape, 32) * (shape[1], shape[0]), sides, rtol=1e-6)
    np.testing.assert_allclose(view.scale, letterbox_scale(*shape, 32))


def test_fit_keeps_everything_and_knows_its_scale() -> None:
    image, boxes, masks = painted_boxes()
    boxes = np.concatenate([boxes, [[10, 10, 10.5, 10.5]]]).astype(np.float32)  # smaller than a pixel of the view
    masks = np.concatenate([masks, np.zeros((1, 60, 90), np.uint8)])
    view = AnnotatedViews("fit", 45, 0, OPTIONS)(image, (0, 0, 0), boxes, masks)
    np.testing.assert_allclose(view.scale, [0.5, 0.5])
    np.testing.assert_allclose(view.boxes, boxes / 2)
    assert view.box_ids.tolist() == [0, 1, 2, 3]
    assert view.masks.shape == (4, 45, 45)
    assert (view.image[30:] == (124, 116, 104)).all()
    same = AnnotatedViews("fit", 90, 0, OPTIONS)(image, (0, 0, 0), boxes)
    assert (same.image[:60] == image).all()


def test_views_are_functions_of_the_key_alone() -> None:
    image, boxes, _ = painted_boxes()
    views = AnnotatedViews("lsj", 64, 7, OPTIONS)
    keys = [(e, i, c) for e in range(2) for i in range(3) for c in range(2)]
    first = {key: views(image, key, boxes) for key in keys}
    again = pickle.loads(pickle.dumps(views))
    for key in reversed(keys):
        view = again(image, key, boxes)
        assert (view.image == first[key].image).all()
        assert (view.boxes == first[key].boxes).all()
    assert len({first[key].image.tobytes() for key in keys}) == len(keys)
    assert (AnnotatedViews("lsj", 64, 8, OPTIONS)(image, keys[0], boxes).image != first[keys[0]].image).any()


def test_a_semantic_mask_moves_with_its_pixels_and_is_ignored_in_the_padding() -> None:
    image, _, masks = painted_boxes()
    mask = np.zeros((60, 90), np.uint8)
    for i in range(3):
        mask[masks[i] > 0] = i + 1
    views = AnnotatedViews("lsj", 64, 0, AugmentationOptions(jitter=(0.5, 0.8), flip=1.0))
    for index in range(5):
        view = views(image, (0, index, 0), mask=mask)
        padded = (view.image == (124, 116, 104)).all(-1)
        assert padded.any()
        assert ((view.mask == 255) == padded).mean() > 0.98
        for i in range(3):
            assert ((view.mask == i + 1) == (view.image[..., i] > 127) & ~padded).mean() > 0.97


def test_batches_of_boxes_masks_and_semantics(root: Path) -> None:
    batch = next(iter(_module(root, with_masks=True).train_dataloader()))
    assert batch["images"].shape == (2, 1, 64, 64, 3)
    assert batch["images"].dtype == torch.uint8
    assert batch["key"].shape == (2, 3)
    for target in batch["targets"]:
        n = len(target["labels"])
        assert target["boxes"].shape == (n, 4)
        assert target["masks"].shape == (n, 64, 64)
        assert set(target) == {"boxes", "labels", "iscrowd", "masks"}
    data = _module(root, format="masks", class_names=NAMES)
    batch = next(iter(data.train_dataloader()))
    assert batch["mask"].shape == (2, 64, 64)
    assert set(batch["mask"].unique().tolist()) <= {*range(11), 255}
    assert data.num_classes == 11
    batches = list(_module(root, with_masks=True).val_dataloader())
    assert [len(b["key"]) for b in batches] == [2, 1]
    target = batches[0]["targets"][0]
    np.testing.assert_allclose(target["boxes"], target["original"] * 0.5)
    assert target["size"].tolist() == [128, 128]
    assert target["masks"].shape[1:] == (64, 64)
    assert len(list(_module(root).test_dataloader())) == 1
    assert sum(len(b["key"]) for b in _module(root).eval_loader("val", limit=2)) == 2


def test_the_same_batches_from_workers_and_after_a_resume(root: Path) -> None:
    whole = [b for _ in range(2) for b in _epochs(_module(root))]
    spread = _epochs(_module(root, num_workers=2))
    for a, b in zip(whole[:4], spread):
        assert torch.equal(a["images"], b["images"])
        assert all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(a["targets"], b["targets"]))
    data = _module(root)
    state = {**data.state_dict(), "samples": 4}
    data.load_state_dict(state)
    rest = _epochs(data)
    assert len(rest) == 2
    assert torch.equal(rest[0]["images"], whole[2]["images"])
    for change in ({"seed": 6}, {"batch_size": 4}, {"labels": 6}):
        with pytest.raises(UserError, match="to resume"):
            _module(root, **change).load_state_dict(state)


def _epochs(data: AnnotatedDataModule) -> list[dict]:
    return list(data.train_dataloader())


def test_parts_of_the_training_split_are_nested_and_keep_the_fingerprint(root: Path) -> None:
    parts = [_module(root, labels=n) for n in (2, 4, 0.75)]
    paths = [set(part.table("train").paths) for part in parts]
    assert [len(p) for p in paths] == [2, 4, 6]
    assert paths[0] < paths[1] < paths[2]
    assert len({part.fingerprint for part in parts}) == 1
    assert parts[0].fingerprint == _module(root).fingerprint != _module(root, with_masks=True).fingerprint


def test_crowd_is_left_out_of_training_and_given_to_the_evaluation(root: Path, tmp_path: Path) -> None:
    content = json.loads((root / "train/annotations.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 1)
    crowded = tmp_path / "crowd"
    crowded.symlink_to(root)
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = _module(tmp_path, images="crowd/{split}/images", annotations="a.json", train_view="fit", batch_size=8)
    batch = next(iter(data.train_dataloader()))
    counts = {int(k[1]): len(t["labels"]) for k, t in zip(batch["key"], batch["targets"])}
    assert counts[0] == 0
    assert min(counts[i] for i in range(1, 8)) > 0
    target = next(iter(data.eval_loader("train")))["targets"][0]
    assert target["iscrowd"].all()
    assert len(target["iscrowd"]) > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "csv"}, "data.format: 'csv'"),
        ({"format": "yolo", "with_masks": True}, "data.with_masks: yolo"),
        ({"train_view": "mosaic"}, "data.train_view: 'mosaic'"),
        ({"jitter": [2.0, 0.5]}, "data.jitter"),
        ({"flip": 1.5}, "data.flip"),
        ({"labels": 900}, "data.labels: 900 of 8"),
        ({"on_bad_box": "drop"}, "data.on_bad_box"),
        ({"split_list": "x.txt"}, "data.split_list: coco"),
        ({"annotations": "none.json"}, "none.json: "),
        ({"format": "masks"}, "classes.txt: "),
        ({"format": "masks", "class_names": ["background"], "train_view": "fit"}, "value "),
    ],
)
def test_wrong_settings_are_named(root: Path, change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        next(iter(_module(root, **change).train_dataloader()))


def test_a_broken_image_is_replaced_with_its_own_boxes_in_training_and_named_in_evaluation(
    root: Path, tmp_path: Path, caplog
) -> None:
    shutil.copytree(root / "train", tmp_path / "train")
    (tmp_path / "train/images/000003.png").write_bytes(b"nothing")
    data = _module(tmp_path, train_view="fit", batch_size=8, img_size=128)
    batch = next(iter(data.train_dataloader()))
    table = data.table("train")
    place = batch["key"][:, 1].tolist().index(3)
    boxes = batch["targets"][place]["boxes"].numpy()
    others = [i for i in range(8) if i != 3 and np.array_equal(table.boxes[table.rows(i)], boxes)]
    assert len(others) == 1
    other = batch["key"][:, 1].tolist().index(others[0])
    assert torch.equal(batch["images"][place], batch["images"][other])
    assert "000003.png" in caplog.text
    run = SimpleNamespace(
        default_root_dir=str(tmp_path / "run"), global_rank=0, world_size=1, accumulate_grad_batches=1
    )
    run.num_devices = 1
    again = _module(tmp_path, train_view="fit", batch_size=8, img_size=128)
    again.trainer = run
    next(iter(again.train_dataloader()))
    listed = (tmp_path / "run" / "bad_images.csv").read_text().splitlines()
    assert listed[0] == "epoch,index,path,reason"
    assert listed[1].startswith("0,3,train/images/000003.png,")
    with pytest.raises(UserError, match=r"000003.png"):
        list(data.eval_loader("train"))


def test_an_image_of_another_size_than_annotated(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train/images").mkdir(parents=True)
    content = json.loads((root / "train/annotations.json").read_text())
    (tmp_path / "train/annotations.json").write_text(json.dumps(content))
    for image in content["images"]:
        Image.fromarray(np.zeros((100, 128, 3), np.uint8)).save(tmp_path / "train/images" / image["file_name"])
    with pytest.raises(UserError, match=r"128 x 100.*128 x 128"):
        next(iter(_module(tmp_path).train_dataloader()))
    with pytest.raises(UserError, match=f"^{tmp_path}/none: "):
        _module(tmp_path / "none").setup()


def test_kept_images_are_the_same_and_are_read_once(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"train": 6})
    kept, fresh, small = (
        AnnotatedDataModule(str(tmp_path), img_size=32, train_view="lsj", batch_size=2, num_workers=0, in_memory=m)
        for m in (True, False, "auto")
    )
    keys = [(0, i, 0) for i in range(6)]
    for data in (kept, fresh, small):
        data.setup()
    sets = [data._dataset("train", train=True) for data in (kept, fresh, small)]
    sets[2].memory = 2 * 128 * 128 * 3  # two images fit
    first = [s.__getitems__(keys) for s in sets]
    for path in (tmp_path / "train" / "images").iterdir():
        path.unlink()
    again = sets[0].__getitems__(keys)
    for other in (*first[1:], again):
        torch.testing.assert_close(other["images"], first[0]["images"], rtol=0, atol=0)
    assert (len(sets[2]._cache), sets[2].memory, len(sets[1]._cache)) == (2, 0, 0)
    sets[2].__getitems__(keys[:2])
    with pytest.raises(ImageDecodeError):
        sets[1].__getitems__(keys[:1])
