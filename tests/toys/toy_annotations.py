"""Three images with three boxes, written in the formats COCO, YOLO, VOC and semantic masks, for tests of readers.

And one image with painted boxes, for tests of views.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

W, H = 40, 30
NAMES = ["cat", "dog"]
# per image: (class, x1, y1, x2, y2)
BOXES = {"a": [(0, 2, 3, 12, 20), (1, 10, 5, 40, 30)], "b": [], "c": [(1, 0, 0, 8, 8)]}


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in BOXES:
        Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / f"{name}.jpg")


def write_coco(root: Path) -> dict:
    """Write ROOT/images and ROOT/a.json; return the content of the JSON file."""
    write_images(root / "images")
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]}
    for i, (name, boxes) in enumerate(BOXES.items()):
        content["images"].append({"id": 10 + i, "file_name": f"{name}.jpg", "width": W, "height": H})
        for label, x1, y1, x2, y2 in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 10 + i,
                    "category_id": (7, 90)[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": 50.0,
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    (root / "a.json").write_text(json.dumps(content))
    return content


def write_yolo(root: Path) -> None:
    write_images(root / "images/train")
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    for name, boxes in BOXES.items():
        lines = [f"{c} {(a + x) / 2 / W} {(b + y) / 2 / H} {(x - a) / W} {(y - b) / H}" for c, a, b, x, y in boxes]
        if name != "b":  # no file, no object
            (root / f"labels/train/{name}.txt").write_text("\n".join(lines))


def write_voc(root: Path) -> None:
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("a\nb\nc\n")
    for name, boxes in BOXES.items():
        things = "".join(
            f"<object><name>{NAMES[c]}</name><difficult>{int(name == 'c')}</difficult><bndbox><xmin>{a + 1}</xmin>"
            f"<ymin>{b + 1}</ymin><xmax>{x}</xmax><ymax>{y}</ymax></bndbox></object>"
            for c, a, b, x, y in boxes
        )
        size = f"<size><width>{W}</width><height>{H}</height></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{things}</annotation>")


def write_semantic(root: Path) -> None:
    write_images(root / "images")
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("\n".join(NAMES))
    (root / "train.txt").write_text("a\nb\nc\n")
    for name, boxes in BOXES.items():
        mask = np.zeros((H, W), np.uint8)
        for label, x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = label
        Image.fromarray(mask).save(root / f"masks/{name}.png")


def painted_boxes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image with three boxes painted in different colors, the boxes and their masks."""
    image = np.zeros((60, 90, 3), np.uint8)
    boxes = np.array([[5, 8, 30, 40], [50, 10, 85, 30], [40, 35, 60, 58]], np.float32)
    masks = np.zeros((3, 60, 90), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        image[y1:y2, x1:x2, i] = 255
        masks[i, y1:y2, x1:x2] = 1
    return image, boxes, masks
