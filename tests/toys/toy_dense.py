"""Tiny detectors and segmenters and pictures for them, for tests of code that uses such models."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lit_vision.methods import Detector, Segmenter

CNN = {"stem": "small", "stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = ["cup", "pan", "pot"]
SIZE = 32


def _backbone_settings(vit: bool) -> dict:
    name, args = ("vit_tiny_patch16_224", VIT) if vit else ("resnet18", CNN)
    return {"backbone": name, "backbone_args": args, "img_size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3}


def make_detector(head: str = "fcos", vit: bool = False, **more) -> Detector:
    """Return a detector with random weights, some of whose scores pass the threshold."""
    torch.manual_seed(5)
    strides = [4, 8] if head in ("fcos", "retinanet") else [4, 8, 16]
    settings = {"strides": strides, "pyramid_width": 32, "head_convs": 1, "head_width": 32, "rois": 16, **more}
    method = Detector(num_classes=len(NAMES), head=head, **_backbone_settings(vit), **settings)
    with torch.no_grad():
        for name, value in method.head.named_parameters():
            if name.endswith("cls_logits.bias"):
                value.fill_(-1.0)
            elif name.endswith(
                ("cls_logits.weight", "bbox_reg.weight", "bbox_ctrness.weight", "mask_fcn_logits.weight")
            ):
                value.normal_(std=0.3)
    method.metadata = {
        "task": "detection",
        "class_names": NAMES,
        "size": SIZE,
        "crop_pct": 1.0,
        "options": {"head": head},
    }
    return method.eval()


def make_segmenter(head: str = "upernet", vit: bool = False, **more) -> Segmenter:
    """Return a segmenter with random weights; class 0 is the background."""
    torch.manual_seed(6)
    settings = {"strides": [4, 8, 16] if head == "upernet" else None, "width": 16, **more}
    method = Segmenter(num_classes=1 + len(NAMES), head=head, **_backbone_settings(vit), **settings)
    with torch.no_grad():
        scores = method.head.scores[-1] if head != "linear" else method.head
        scores.weight.normal_(std=1.0)
    names = ["background", *NAMES]
    method.metadata = {
        "task": "segmentation",
        "class_names": names,
        "size": SIZE,
        "crop_pct": 1.0,
        "options": {"background": 0},
    }
    return method.eval()


def write_pictures(folder: Path, n: int = 7, seed: int = 0) -> list[str]:
    """Write n pictures of several shapes, blocks of color on noise; return their names, sorted."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        height, width = [(32, 32), (40, 64), (50, 21), (20, 20)][i % 4]
        pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        y, x = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        pixels[y : y + height // 2, x : x + width // 2, i % 3] = 250
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return [f"{i:03d}.png" for i in range(n)]
