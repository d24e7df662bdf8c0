"""Pictures of predictions: boxes and masks where they belong, and the model's modes as before."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image

from lit_vision.callbacks.predictions import Predictions
from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import GARMENT_CLASSES, make_scenes
from lit_vision.errors import UserError
from lit_vision.methods import Detector, Segmenter
from lit_vision.results.overlays import color_of_class, draw_boxes, draw_instances, draw_mask

CNN = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}


def test_what_is_drawn() -> None:
    image = np.full((20, 30, 3), 7, np.uint8)
    drawn = draw_boxes(image, np.array([[2, 3, 12, 15]]), np.array([4]))
    changed = (drawn != image).any(2)
    assert changed[3, 2:12].all()
    assert changed[14, 2:12].all()
    assert changed.sum() == 2 * 10 + 2 * 10
    assert drawn[3, 5].tolist() == list(color_of_class(4))
    mask = np.zeros((20, 30), np.uint8)
    mask[:4], mask[4:8] = 2, 255
    changed = (draw_mask(image, mask, 0) != image).any(2)
    assert (changed == (mask == 2)).all()
    masks = [np.zeros((20, 30), bool), np.zeros((20, 30), bool)]
    masks[0][:4], masks[1][2:8] = True, True
    drawn = draw_instances(image, masks, np.array([300, 1]))
    for rows, label in ((slice(0, 4), 300), (slice(4, 8), 1)):  # the first is on top
        assert (drawn[rows] == (0.45 * 7 + 0.55 * np.array(color_of_class(label))).astype(np.uint8)).all()
    assert (drawn[8:] == 7).all()
    assert len({color_of_class(label) for label in range(20)}) == 20


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_picture_per_epoch(task: str, tmp_path: Path) -> None:
    make_scenes(tmp_path / "set", {"train": 4, "val": 3})
    common = {"img_size": 64, "batch_size": 2, "num_workers": 0}
    if task == "detect":
        model = Detector("resnet18", 10, 64, strides=[8, 16, 32], pyramid_width=32, head_convs=1, backbone_args=CNN)
        data = AnnotatedDataModule(str(tmp_path / "set"), **common)
    else:
        model = Segmenter("resnet18", 11, 64, head="linear", backbone_args=CNN)
        data = AnnotatedDataModule(
            str(tmp_path / "set"), format="masks", class_names=["background", *GARMENT_CLASSES], **common
        )
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Predictions(images=3)],
    )
    trainer.fit(model, datamodule=data)
    assert Image.open(tmp_path / "samples/predictions-e0001.png").size == (3 * 66 + 2, 2 * 66 + 2)
    assert model.training


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="score"):
        Predictions(score=2)
