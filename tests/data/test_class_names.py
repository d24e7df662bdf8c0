"""match_class_names: by name, never by position; what differs is said or refused. Labels of loaders are renumbered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_annotations import NAMES, write_coco, write_semantic, write_yolo

from lit_vision.data import AnnotatedDataModule, ImageFolderDataModule
from lit_vision.data.class_names import match_class_names
from lit_vision.errors import UserError


@pytest.mark.parametrize(
    ("model", "data", "numbers", "note"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2], ""),
        (["c", "a", "b"], ["a", "b", "c"], [1, 2, 0], "order"),
        (["a", "b", "c"], ["c", "b"], [2, 1], "2 of the model's 3 classes, not a;"),
        (["caf\u00e9", "bar"], ["bar", "cafe\u0301"], [1, 0], "order"),
        (["caf\u00e9", "bar"], ["cafe\u0301", "bar"], [0, 1], ""),
        (list("abcdef"), ["f"], [5], "a, b, c and 2 more"),
    ],
)
def test_same_names_are_matched_and_differences_said(model, data, numbers, note) -> None:
    found, text = match_class_names(model, data, "data.root x")
    assert found.tolist() == numbers
    assert (note in text) if note else text == ""


@pytest.mark.parametrize(
    ("model", "data", "names"),
    [
        (["cat", "dog"], ["dog", "zz-cat"], ("zz-cat", "cat")),
        (["cat", "dog"], ["apple", "pear"], ("apple, pear", "cat, dog")),
        (["cat", "dog"], ["cat", "dog", "eel"], ("eel",)),
        (["cat"], ["Cat"], ("Cat", "cat")),
    ],
)
def test_other_names_are_refused_with_the_difference(model, data, names) -> None:
    with pytest.raises(UserError, match=r"data.root x.*classes_by_number") as error:
        match_class_names(model, data, "data.root x")
    assert all(name in str(error.value) for name in names)


def test_by_number__only_between_equal_counts_and_never_in_silence() -> None:
    numbers, note = match_class_names(["cat", "dog"], ["dog", "cat"], "x", by_number=True)
    assert numbers.tolist() == [0, 1]
    assert "dog as cat, cat as dog" in note
    assert match_class_names(["cat", "dog"], ["cat", "dog"], "x", by_number=True)[1] == ""
    with pytest.raises(UserError, match="3 classes, the model has 2"):
        match_class_names(["cat", "dog"], ["a", "b", "c"], "x", by_number=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_folder__labels_follow_the_models_order_and_identity_does_not(tmp_path: Path, in_memory: bool) -> None:
    for c, name in enumerate(("ant", "bee")):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16), 100 * c + i, np.uint8)).save(tmp_path / split / name / f"{i}.png")
    model = ["bee", "cow", "ant"]
    data = ImageFolderDataModule(
        str(tmp_path), img_size=16, batch_size=4, num_workers=0, in_memory=in_memory, use_unlabeled=True
    )
    data.setup()
    before = data.fingerprint, data._identity()
    assert "2 of the model's 3" in data.number_classes_as(model)
    assert (data.class_names, data.num_classes) == (model, 3)
    assert (data.fingerprint, data._identity()) == before  # a run can continue
    batches = [*data.eval_loader("val"), *data.train_dataloader()]
    brightness = torch.cat([b["images"][:, 0].float().mean((1, 2, 3)) for b in batches])
    labels = torch.cat([b["label"] for b in batches])
    assert labels.tolist() == [0 if value > 50 else 2 for value in brightness.tolist()]
    assert data.number_classes_as(["ant", "bee"]) == ""  # always from the folder's own names, not from the last model's
    assert next(iter(data.eval_loader("val")))["label"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_coco, {"format": "coco", "images": "images", "annotations": "a.json"}),
        (write_yolo, {"format": "yolo"}),
    ],
)
def test_boxes__labels_and_category_ids_follow_the_models_order(tmp_path: Path, write, options) -> None:
    write(tmp_path)
    data = AnnotatedDataModule(str(tmp_path), img_size=32, batch_size=3, num_workers=0, **options)
    data.setup()
    before = [t["labels"].tolist() for t in next(iter(data.eval_loader("train")))["targets"]]
    fingerprint, ids = data.fingerprint, data.category_ids
    assert before == [[0, 1], [], [1]]
    assert "order" in data.number_classes_as(NAMES[::-1])
    after = [t["labels"].tolist() for t in next(iter(data.eval_loader("train")))["targets"]]
    assert after == [[1, 0], [], [0]]
    assert (data.class_names, data.category_ids) == (NAMES[::-1], ids[::-1])
    assert data.fingerprint == fingerprint
    with pytest.raises(UserError, match=r"data.root"):
        data.number_classes_as(["cat", "cow"])


def test_masks__values_become_the_models_classes_and_ignored_pixels_stay(tmp_path: Path) -> None:
    write_semantic(tmp_path)
    values = np.zeros((30, 40), np.uint8)
    values[:10], values[10:20] = 1, 255
    Image.fromarray(values).save(tmp_path / "masks/a.png")
    data = AnnotatedDataModule(
        str(tmp_path),
        format="masks",
        images="images",
        annotations="masks",
        split_list="train.txt",
        img_size=40,
        batch_size=3,
        num_workers=0,
    )
    data.number_classes_as(["dog", "sky", "cat"])
    mask = next(iter(data.eval_loader("train")))["mask"]
    assert mask[0, [0, 15, 25], 20].tolist() == [0, 255, 2]  # dog, ignored, cat
    assert mask[1, :30].unique().tolist() == [2]
