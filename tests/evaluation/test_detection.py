"""Average precision: pycocotools' numbers to 1e-6, on ordinary and on odd cases."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lit_vision.evaluation.detection import coco_metric, coco_values, to_original_size

STATS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


def _reference(predictions, targets, kind: str) -> dict[str, float]:
    """pycocotools, given the same by its own files' layout."""
    images, annotations, found, labels = [], [], [], {0}
    for i, (p, t) in enumerate(zip(predictions, targets), 1):
        images.append({"id": i, "width": 128, "height": 128})
        for k, box in enumerate(t["boxes"].tolist()):
            a = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": int(t["labels"][k]),
                "iscrowd": int(t["iscrowd"][k]),
            }
            a |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            a["area"] = float(t["area"][k]) or a["bbox"][2] * a["bbox"][3]
            if kind == "segm":
                a["segmentation"] = _packed(t["masks"][k])
                a["area"] = float(t["area"][k]) or float(t["masks"][k].sum())
            annotations.append(a)
            labels.add(a["category_id"])
        for k, box in enumerate(p["boxes"].tolist()):
            d = {"image_id": i, "category_id": int(p["labels"][k]), "score": float(p["scores"][k])}
            d |= {"segmentation": _packed(p["masks"][k])} if kind == "segm" else {}
            d |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]} if kind == "bbox" else {}
            found.append(d)
            labels.add(d["category_id"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": n} for n in sorted(labels)],
        }
        truth.createIndex()
        if (
            not found
        ):  # loadRes refuses an empty list: what is never found has precision 0 wherever there is ground truth
            return {"map": 0.0 if any(not a["iscrowd"] for a in annotations) else -1.0}
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(STATS, run.stats[:6].tolist()))


def _packed(mask) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def _random(seed: int, images: int, classes: int = 3, crowd: float = 0.0, masks: bool = False, whole: bool = False):
    """Ground truth and detections that are shaken copies of it, some missing, some invented; scores with ties."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(images):
        n = int(rng.integers(0, 7))
        corner, side = rng.uniform(0, 80, (n, 2)), rng.uniform(3, 47, (n, 2))
        boxes = np.concatenate([corner, corner + side], 1)
        if whole:
            boxes = boxes.round() + np.array([0, 0, 1, 1])
        labels = rng.integers(0, classes, n)
        keep = rng.random(n) < 0.8
        found = boxes[keep] + (rng.integers(-2, 3, (keep.sum(), 4)) if whole else rng.normal(0, 3, (keep.sum(), 4)))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        extra = np.concatenate([c := rng.uniform(0, 80, (3, 2)), c + rng.uniform(3, 40, (3, 2))], 1)
        found = np.concatenate([found, extra]).clip(0, 127)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        names = np.concatenate([labels[keep], rng.integers(0, classes, 3)])
        prediction = {"boxes": found, "scores": rng.random(len(found)).round(1), "labels": names}
        target = {"boxes": boxes, "labels": labels, "iscrowd": rng.random(n) < crowd, "area": np.zeros(n)}
        if masks:
            for side in (prediction, target):
                side["masks"] = np.zeros((len(side["boxes"]), 128, 128), bool)
                for mask, (x1, y1, x2, y2) in zip(side["masks"], side["boxes"].round().astype(int)):
                    mask[y1 : y2 + 1, x1 : x2 + 1] = True
            target["area"] = target["masks"].sum((1, 2)).astype(float)
        predictions.append(_tensors(prediction))
        targets.append(_tensors(target))
    return predictions, targets


def _tensors(side: dict) -> dict[str, torch.Tensor]:
    types = {"boxes": torch.float32, "scores": torch.float32, "area": torch.float32, "labels": torch.int64}
    return {k: torch.as_tensor(v).to(types.get(k, torch.bool)) for k, v in side.items()}


def _measured(predictions, targets, masks: bool = False) -> dict[str, float]:
    metric = coco_metric(masks)
    for i in range(0, len(targets), 3):  # in batches
        metric.update(predictions[i : i + 3], targets[i : i + 3])
    return coco_values(metric)


def _agree(ours: dict[str, float], theirs: dict[str, float], prefix: str = "") -> None:
    for name, value in theirs.items():
        if value < 0:
            assert prefix + name not in ours
        else:
            assert ours[prefix + name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(("seed", "crowd", "whole"), [(0, 0, False), (1, 0.4, False), (2, 0, True), (3, 0.5, True)])
def test_boxes_get_pycocotools_numbers(seed: int, crowd: float, whole: bool) -> None:
    predictions, targets = _random(seed, 20, crowd=crowd, whole=whole)
    _agree(_measured(predictions, targets), _reference(predictions, targets, "bbox"))


def test_masks_get_pycocotools_numbers() -> None:
    predictions, targets = _random(4, 8, crowd=0.2, masks=True)
    ours = _measured(predictions, targets, masks=True)
    _agree(ours, _reference(predictions, targets, "segm"), "mask_")


def _cases(masks: bool = False):
    predictions, targets = _random(5, 6, masks=masks)
    nothing = {k: v[:0] for k, v in predictions[0].items()}
    empty = {k: v[:0] for k, v in targets[0].items()}
    full = next(i for i, t in enumerate(targets) if len(t["labels"]) > 2)
    crowd = {**targets[full], "iscrowd": torch.ones(len(targets[full]["labels"]), dtype=torch.bool)}
    other = {**predictions[full], "labels": predictions[full]["labels"] + 5}
    many = {
        "boxes": targets[full]["boxes"][:1].repeat(150, 1),
        "scores": torch.linspace(1, 0, 150),
        "labels": torch.zeros(150).long(),
    }
    many["boxes"][:120, 2:] += 60
    if masks:  # wrong ones first, as the boxes
        many["masks"] = targets[full]["masks"][:1].repeat(150, 1, 1)
        many["masks"][:120] = many["masks"][:120].roll(20, dims=1)
    return {
        "an image without ground truth among others": (predictions, [empty, *targets[1:]]),
        "no detection on one image": ([nothing, *predictions[1:]], targets),
        "no detection at all": ([nothing] * 6, targets),
        "no ground truth at all": (predictions, [empty] * 6),
        "neither": ([nothing] * 2, [empty] * 2),
        "one image, all of it crowd": ([predictions[full]], [crowd]),
        "crowd beside objects": (
            predictions * 2,
            [*targets, *[crowd if i == full else t for i, t in enumerate(targets)]],
        ),
        "a class that was never annotated": ([predictions[full], other], [targets[full], targets[full]]),
        "more than 100 detections": (
            [many],
            [{**targets[full], "labels": torch.zeros(len(targets[full]["labels"])).long()}],
        ),
        "perfect": ([{**targets[full], "scores": torch.ones(len(targets[full]["labels"]))}], [targets[full]]),
    }


@pytest.mark.filterwarnings("ignore:Encountered more than 100 detections")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("case", list(_cases()))
def test_odd_cases_get_pycocotools_numbers(case: str, kind: str) -> None:
    masks = kind == "segm"
    predictions, targets = _cases(masks)[case]
    ours, theirs = _measured(predictions, targets, masks), _reference(predictions, targets, kind)
    _agree(ours, theirs, "mask_" if masks else "")
    if masks:
        _agree(ours, _reference(predictions, targets, "bbox"))


def test_each_class_by_name() -> None:
    predictions, targets = _random(6, 10)
    metric = coco_metric(per_class=True)
    metric.update(predictions, targets)
    values = coco_values(metric, ["a", "b", "c"])
    assert np.mean([values[f"map/{n}"] for n in "abc"]) == pytest.approx(values["map"], abs=1e-6)


def test_boxes_go_back_to_the_file() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [-5.0, 0.0, 64.0, 64.0]])
    found = to_original_size(boxes, torch.tensor([0.5, 0.25]), torch.tensor([200, 100]))
    assert found.tolist() == [[20, 80, 60, 160], [0, 0, 100, 200]]
