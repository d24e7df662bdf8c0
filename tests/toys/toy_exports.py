"""Exports of annotation tools, rebuilt from the descriptions of their formats: the same four pictures and six objects.

Sources (read, not copied):
CVAT: https://docs.cvat.ai/docs/dataset_management/formats/ (COCO, CVAT for images, YOLO, Ultralytics YOLO, masks);
Label Studio: https://labelstud.io/guide/export (COCO, YOLO, JSON);
Roboflow: https://roboflow.com/formats (COCO JSON, YOLOv8, Pascal VOC, semantic segmentation masks);
LabelMe: https://github.com/wkentaro/labelme (README; examples/instance_segmentation: labelme2coco.py, labelme2voc.py);
labelImg: https://github.com/HumanSignal/labelImg (README: PascalVOC and YOLO);
FiftyOne: https://docs.voxel51.com/user_guide/export_datasets.html (COCODetectionDataset, YOLOv5Dataset);
VIA: https://www.robots.ox.ac.uk/~vgg/software/via (via 2: Export Annotations as JSON, CSV, COCO).
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lit_vision.data.annotations.coco_masks import run_lengths

W, H = 64, 48
CLASSES = ["cup", "pan"]
# per image: (class, x1, y1, x2, y2)
OBJECTS = {
    "a": [(0, 5, 5, 25, 25)],
    "b": [(0, 5, 5, 25, 25), (1, 30, 10, 60, 40)],
    "c": [(1, 30, 10, 60, 40)],
    "d": [(0, 10, 10, 40, 30), (1, 40, 4, 60, 20)],
}
COLORS = {"background": (0, 0, 0), "cup": (128, 0, 0), "pan": (0, 128, 0)}


def pictures(folder: Path, names: str = "abcd", suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (H // 8, W // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(folder / f"{name}{suffix}")


def class_mask(name: str, first: int = 1) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    for label, x1, y1, x2, y2 in OBJECTS[name]:
        mask[y1:y2, x1:x2] = label + first
    return mask


def coco_content(
    file_name: Callable[[str], str] = "{}.jpg".format,
    names: str = "abcd",
    first_id: int = 1,
    image_id: Callable[[int], object] = int,
    **fields: object,
) -> dict:
    images = [{"id": i, "file_name": file_name(name), "width": W, "height": H} for i, name in enumerate(names)]
    notes = [
        {
            "id": 10 * i + k,
            "image_id": image_id(i),
            "category_id": label + first_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float((x2 - x1) * (y2 - y1)),
            "iscrowd": 0,
            "segmentation": [],
            **fields,
        }
        for i, name in enumerate(names)
        for k, (label, x1, y1, x2, y2) in enumerate(OBJECTS[name])
    ]
    categories = [{"id": i + first_id, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES)]
    return {"info": {}, "licenses": [], "images": images, "annotations": notes, "categories": categories}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def yolo_lines(name: str, label: str = "{}") -> str:
    return "".join(
        f"{label.format(c)} {(x1 + x2) / 2 / W} {(y1 + y2) / 2 / H} {(x2 - x1) / W} {(y2 - y1) / H}\n"
        for c, x1, y1, x2, y2 in OBJECTS[name]
    )


def voc_text(name: str, path: str = "") -> str:
    things = "".join(
        f"<object><name>{CLASSES[c]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in OBJECTS[name]
    )
    return (
        f"<annotation><folder>x</folder><filename>{name}.jpg</filename><path>{path}</path><source><database>Unknown"
        f"</database></source><size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{things}</annotation>"
    )


def cvat_coco(root: Path) -> None:
    """A rectangle of a brush in image a, as run lengths with iscrowd 1, as CVAT writes every mask."""
    pictures(root / "images/default")
    content = coco_content(attributes={"occluded": False})
    brush = run_lengths(class_mask("a").astype(bool))
    content["annotations"][0].update(iscrowd=1, segmentation=brush)
    write(root / "annotations/instances_default.json", content)


def cvat_images(root: Path) -> None:
    pictures(root / "images")
    box = '<box label="cup" occluded="0" xtl="5" ytl="5" xbr="25" ybr="25" z_order="0"></box>'
    images = "".join(
        f'<image id="{i}" name="{n}.jpg" width="{W}" height="{H}">{box}</image>' for i, n in enumerate(OBJECTS)
    )
    write(
        root / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{images}</annotations>',
    )


def cvat_yolo(root: Path) -> None:
    pictures(root / "obj_train_data")
    for name in OBJECTS:
        write(root / f"obj_train_data/{name}.txt", yolo_lines(name))
    write(root / "obj.names", "cup\npan\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in OBJECTS))


def cvat_ultralytics(root: Path) -> None:
    pictures(root / "images/train")
    for name in OBJECTS:
        write(root / f"labels/train/{name}.txt", yolo_lines(name))
    write(root / "train.txt", "".join(f"images/train/{name}.jpg\n" for name in OBJECTS))
    write(root / "data.yaml", "names:\n  0: cup\n  1: pan\npath: .\ntrain: train.txt\n")


def cvat_masks(root: Path) -> None:
    pictures(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    for name in OBJECTS:
        colors = np.array(list(COLORS.values()), np.uint8)[class_mask(name)]
        Image.fromarray(colors).save(root / f"SegmentationClass/{name}.png")
    lines = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLORS.items())
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + lines)
    write(root / "ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in OBJECTS))


def label_studio_coco(root: Path) -> None:
    """Exported on Windows: backslashes, and ids from 0."""
    pictures(root / "images")
    write(root / "result.json", coco_content(r"images\{}.jpg".format, first_id=0, ignore=0))


def label_studio_yolo(root: Path) -> None:
    pictures(root / "images")
    for name in OBJECTS:
        write(root / f"labels/{name}.txt", yolo_lines(name))
    write(root / "classes.txt", "\ufeffcup\npan\n")
    write(root / "notes.json", {"categories": [{"id": 0, "name": "cup"}], "info": {"year": 2026}})


def label_studio_json(root: Path) -> None:
    pictures(root / "images")
    value = {"x": 8, "y": 10, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cup"]}
    result = [{"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}]
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/ab12-a.jpg"}, "annotations": [{"id": 1, "result": result}]}]
    write(root / "project-1-at-2026-11-26.json", tasks)


def roboflow_coco(root: Path) -> None:
    for split, names in (("train", "abcd"), ("valid", "bd")):
        pictures(root / split, names)
        content = coco_content(names=names)
        content["categories"] = [{"id": 0, "name": "kitchen", "supercategory": "none"}] + [
            {**category, "supercategory": "kitchen"} for category in content["categories"]
        ]
        write(root / split / "_annotations.coco.json", content)
    write(root / "README.roboflow.txt", "kitchen - v1\n")


def roboflow_yolo(root: Path) -> None:
    """data.yaml leads one folder up, and to a test split that is not there."""
    for split, names in (("train", "abcd"), ("valid", "bd")):
        pictures(root / split / "images", names)
        for name in names:
            write(root / split / f"labels/{name}.txt", yolo_lines(name))
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cup', 'pan']\n"
    write(root / "data.yaml", text)


def roboflow_voc(root: Path) -> None:
    for split, names in (("train", "abcd"), ("valid", "bd")):
        pictures(root / split, names)
        for name in names:
            write(root / split / f"{name}.xml", voc_text(name))


def roboflow_masks(root: Path) -> None:
    for split, names in (("train", "abcd"), ("valid", "bd")):
        pictures(root / split, names)
        for name in names:
            Image.fromarray(class_mask(name)).save(root / split / f"{name}_mask.png")
    write(root / "_classes.csv", "Pixel Value, Class\n0, background\n1, cup\n2, pan\n")


def labelme_json(root: Path) -> None:
    pictures(root)
    for name, objects in OBJECTS.items():
        shapes = [
            {
                "label": CLASSES[c],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {},
            }
            for c, x1, y1, x2, y2 in objects
        ]
        data = base64.b64encode((root / f"{name}.jpg").read_bytes()).decode()
        write(
            root / f"{name}.json",
            {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": data,
             "imageHeight": H, "imageWidth": W},
        )  # fmt: skip


def labelme_coco(root: Path) -> None:
    """labelme2coco's category 0 is _background_, which no object has."""
    pictures(root / "JPEGImages")
    content = coco_content("JPEGImages/{}.jpg".format)
    content["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
    write(root / "annotations.json", content)


def labelme_voc(root: Path) -> None:
    pictures(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    for name in OBJECTS:
        image = Image.fromarray(class_mask(name), mode="P")
        image.putpalette([channel for color in COLORS.values() for channel in color])
        image.save(root / f"SegmentationClass/{name}.png")
    write(root / "class_names.txt", "_background_\ncup\npan\n")


def labelimg_voc(root: Path) -> None:
    pictures(root)
    for name in OBJECTS:
        write(root / f"{name}.xml", voc_text(name, rf"C:\Users\me\set\{name}.jpg"))


def labelimg_yolo(root: Path) -> None:
    pictures(root)
    for name in OBJECTS:
        write(root / f"{name}.txt", yolo_lines(name))
    write(root / "classes.txt", "cup\npan\n")


def fiftyone_coco(root: Path) -> None:
    pictures(root / "data")
    write(root / "labels.json", coco_content(first_id=0))


def fiftyone_yolo(root: Path) -> None:
    for split, names in (("train", "abcd"), ("val", "bd")):
        pictures(root / "images" / split, names)
        for name in names:
            write(root / f"labels/{split}/{name}.txt", yolo_lines(name, "{}.0"))
    write(
        root / "dataset.yaml", f"names:\n  0: cup\n  1: pan\npath: {root}\ntrain: ./images/train/\nval: ./images/val/\n"
    )


def via_coco(root: Path) -> None:
    """Images beside the file, which is named after the project; ids are texts in one list only."""
    pictures(root)
    write(root / "via_project_26Nov2026_12h00m_coco.json", coco_content(image_id=str))


def via_json(root: Path) -> None:
    pictures(root)
    region = {
        "shape_attributes": {"name": "rect", "x": 5, "y": 5, "width": 20, "height": 20},
        "region_attributes": {"type": "cup"},
    }
    content = {
        f"{n}.jpg99": {"filename": f"{n}.jpg", "size": 99, "regions": [region], "file_attributes": {}} for n in OBJECTS
    }
    write(root / "via_region_data.json", content)


def via_csv(root: Path) -> None:
    pictures(root)
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    row = 'a.jpg,99,"{}",1,0,"{""name"":""rect"",""x"":5,""y"":5,""width"":20,""height"":20}","{""type"":""cup""}"\n'
    write(root / "via_region_data.csv", header + row)


# name of the export: (writer, format, None if it is read, else what the refusal names)
EXPORTS: dict[str, tuple[Callable[[Path], None], str, str | None]] = {
    "CVAT: COCO 1.0": (cvat_coco, "coco", None),
    "CVAT: CVAT for images 1.1": (cvat_images, "coco", "annotations.xml.*COCO 1.0"),
    "CVAT: YOLO 1.1": (cvat_yolo, "yolo", None),
    "CVAT: Ultralytics YOLO Detection 1.0": (cvat_ultralytics, "yolo", None),
    "CVAT: Segmentation mask 1.1": (cvat_masks, "masks", None),
    "Label Studio: COCO, on Windows": (label_studio_coco, "coco", None),
    "Label Studio: YOLO": (label_studio_yolo, "yolo", None),
    "Label Studio: JSON": (label_studio_json, "coco", "project-1.*choose COCO"),
    "Roboflow: COCO": (roboflow_coco, "coco", None),
    "Roboflow: YOLOv8": (roboflow_yolo, "yolo", None),
    "Roboflow: Pascal VOC": (roboflow_voc, "voc", None),
    "Roboflow: semantic masks": (roboflow_masks, "masks", None),
    "LabelMe: JSON files": (labelme_json, "coco", "a.json.*labelme2coco"),
    "LabelMe: labelme2coco": (labelme_coco, "coco", None),
    "LabelMe: labelme2voc": (labelme_voc, "masks", None),
    "labelImg: Pascal VOC": (labelimg_voc, "voc", None),
    "labelImg: YOLO": (labelimg_yolo, "yolo", None),
    "FiftyOne: COCODetectionDataset": (fiftyone_coco, "coco", None),
    "FiftyOne: YOLOv5Dataset": (fiftyone_yolo, "yolo", None),
    "VIA: COCO": (via_coco, "coco", None),
    "VIA: JSON": (via_json, "coco", "via_region_data.json.*COCO format"),
    "VIA: CSV": (via_csv, "coco", "via_region_data.csv.*COCO format"),
}
