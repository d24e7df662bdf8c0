"""Recognize exports of annotation tools that no reader takes, and say how to export them in a format that one does."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_LABELME = (
    "LabelMe's file of one image; convert the folder with labelme's examples/instance_segmentation/labelme2coco.py"
)
_VIA = "VIA's own project or region file; in VIA choose Annotation > Export Annotations (COCO format)"
_LABEL_STUDIO = "Label Studio's own JSON; choose COCO, YOLO or Pascal VOC XML in its export dialog"
_CVAT = "CVAT's own format; export the task as COCO 1.0, Pascal VOC 1.1 or Ultralytics YOLO Detection 1.0"
_CREATE_ML = "CreateML's JSON; export the set as COCO"
_FIFTYONE = "FiftyOne's own format; export with dataset_type=fiftyone.types.COCODetectionDataset"
_PREDICTIONS = "a list of detections (COCO's results format), not annotations; give the instances file"
_FILES = 400  # names of a folder that are looked at


def describe_json(content: Any) -> str:
    """Return the tool whose export a JSON content is, and what to do; "" if it is unknown."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return ""
    if "shapes" in first and "imagePath" in first:
        return _LABELME
    if isinstance(content, list):
        if "bbox" in first and "image_id" in first:
            return _PREDICTIONS
        if "data" in first and ("annotations" in first or "completions" in first):
            return _LABEL_STUDIO
        if "annotation_id" in first and "annotator" in first:
            return _LABEL_STUDIO  # JSON-MIN
        return _CREATE_ML if "image" in first and "annotations" in first else ""
    if "_via_img_metadata" in content:
        return _VIA
    samples = content.get("samples")
    if isinstance(samples, list) and samples and isinstance(samples[0], dict) and "filepath" in samples[0]:
        return _FIFTYONE
    if isinstance(content.get("classes"), list) and isinstance(content.get("labels"), dict):
        return _FIFTYONE
    some = next(iter(content.values()), None)
    return _VIA if isinstance(some, dict) and "regions" in some and "filename" in some else ""


def describe_export(root: Path) -> str:
    """Return "FILE is <a tool's format>; what to do" for the first file that only another tool reads, or ""."""
    for file in islice(_candidates(root), _FILES):
        found = _describe_file(file)
        if found:
            return f"{file} is {found}"
    return ""


def _candidates(root: Path) -> Iterator[Path]:
    """Yield JSON, XML and CSV files of a folder and of the folders in it."""
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))):
        try:
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".json", ".xml", ".csv", ".tfrecord"))
        except OSError:
            continue
        yield from islice((p for p in files if p.is_file()), 5)


def _describe_file(file: Path) -> str:
    try:
        if file.suffix.lower() == ".json":
            return describe_json(json.loads(file.read_bytes()))
        if file.suffix.lower() == ".tfrecord":
            return "TensorFlow's record file; export the set as COCO"
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as text:
            if file.suffix.lower() == ".xml":
                head = text.read(4096)
                return _CVAT if "<annotations>" in head or "<annotations " in head else ""
            header = next(csv.reader(text), [])
            return _VIA if {"region_shape_attributes", "region_attributes"} <= {h.lstrip("#") for h in header} else ""
    except (OSError, ValueError, RecursionError, csv.Error):
        return ""
