"""Detection: inference networks, decoding to boxes and masks in the file's pixels, results, lines and drawings.

B images, A anchors, K classes, n detections of an image, M side of Mask R-CNN's grid over a box (28).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from lit_vision.data.annotations.views import letterbox_scale
from lit_vision.evaluation.detection import MAX_DETECTIONS, to_original_size
from lit_vision.methods.detection.decoding import AnchorDecoder
from lit_vision.predict.coco_ids import CocoIds, Id, usual_category_ids
from lit_vision.predict.image_writer import ImageWriter, upscale_for_text
from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.predictions import Detections, encode_rle
from lit_vision.predict.runtimes import Model
from lit_vision.predict.writers import PER_IMAGE, coco_file, coco_image, csv_line, json_line, results_file
from lit_vision.results.overlays import draw_boxes, draw_instances
from lit_vision.weights.model_metadata import ModelMetadata

_RAW_OUTPUTS = {
    "fcos": ("cls_logits", "bbox_regression", "bbox_ctrness"),
    "retinanet": ("cls_logits", "bbox_regression"),
}


class DetectorInference(nn.Module):
    """Normalized images (B, 3, S, S) -> outputs per anchor: (B, A, K), (B, A, 4) and, for FCOS, (B, A, 1)."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method, self.outputs = method, _RAW_OUTPUTS[method.hparams["head"]]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs (see the class)."""
        raw = self.method.raw(images)
        return tuple(raw[name] for name in self.outputs)


class TwoStageInference(nn.Module):
    """Normalized images (B, 3, S, S) -> boxes (B, n, 4), scores (B, n), labels (B, n); n is the largest number allowed.

    Rows beyond the detections have score 0. Mask R-CNN also returns mask_probs (B, n, M, M): grids, not masks at the
    size of the view, which would take gigabytes a batch.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        masks = ("mask_probs",) if method.hparams["head"] == "mask_rcnn" else ()
        self.method, self.outputs = method, ("boxes", "scores", "labels", *masks)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs (see the class)."""
        found = self.method.detect_with_mask_probs(images)
        most = self.method.head.roi_heads.detections_per_img
        padded = tuple(images.new_zeros(len(found), most, *found[0][name].shape[1:]) for name in self.outputs)
        for rows, name in zip(padded, self.outputs):
            for row, detections in zip(rows, found):
                row[: len(detections[name])] = detections[name].to(row.dtype)
        return padded


def detector_inference(method: nn.Module) -> nn.Module:
    """Return the inference network of a detector: raw outputs of a one-stage head, detections of a two-stage one."""
    return DetectorInference(method) if method.one_stage else TwoStageInference(method)


def limit_detections(model: Model, count: int) -> None:
    """Let a detector return up to `count` detections an image instead of the number that it was trained with.

    A two-stage network chooses its detections itself; those of a one-stage head are chosen by `DecodeBoxes`.
    """
    model.metadata.options["max_detections"] = count
    if model.method is not None and not model.method.one_stage:
        model.method.head.roi_heads.detections_per_img = count


class DecodeBoxes:
    """Decode the outputs of a detector, run in any runtime, to detections.

    Args:
        metadata: of the model.
    """

    def __init__(self, metadata: ModelMetadata) -> None:
        self.size, options = (metadata.side, metadata.side), metadata.options
        self.decoder: AnchorDecoder | None = None
        if "strides" in options:
            self.decoder = AnchorDecoder.from_options(
                options["head"],
                len(metadata.class_names),
                options["strides"],
                options["score"],
                options["nms"],
                options.get("max_detections", MAX_DETECTIONS),  # files of older versions have none
            )

    def __call__(self, outputs: dict[str, np.ndarray]) -> list[dict[str, Tensor]]:
        """Return a dictionary per image, best detections first.

        Keys: `boxes` (n, 4) in pixels of the view, `scores` (n,), `labels` (n,); for Mask R-CNN `mask_probs` (n, M, M).
        """
        tensors = _tensors(outputs)
        if self.decoder is not None:
            return self.decoder(tensors, self.size)
        found = []
        for i, scores in enumerate(tensors["scores"]):
            detections = {name: value[i][scores > 0] for name, value in tensors.items()}
            found.append({**detections, "labels": detections["labels"].long()})
        return found

    def decode_all(self, outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes (B, A, 4) in pixels and scores (B, A, K) of all anchors of a one-stage head.

        Raises:
            ValueError: the model has two stages.
        """
        if self.decoder is None:
            raise ValueError("a two-stage detector has no anchors to decode")
        boxes, scores = self.decoder.decode_all(_tensors(outputs), self.size)
        return boxes.numpy(), scores.numpy()


def _tensors(outputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}


def paste_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield Mask R-CNN's masks: each grid resized to its box and thresholded at one half.

    Source: He et al. 2017, arXiv:1703.06870, section 3.1 (inference).
    The same pixels as torchvision's paste_masks_in_image, but one mask at a time (100 objects in a photograph of 12
    million pixels would take 5 GB), and a box that lies outside of the image, in the view's padding, gives an empty
    mask instead of an error.

    Args:
        probs: (n, M, M), 0 to 1.
        boxes: (n, 4) x1, y1, x2, y2 in pixels, not below 0; they may exceed the right and bottom edges.
        size: (height, width) of the image, pixels.

    Yields:
        n masks (H, W) bool, column-major as COCO's run lengths are.
    """
    height, width = size
    grids, scale = expand_masks(probs[:, None], padding=1)  # (n, 1, M + 2, M + 2)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    for grid, (x1, y1, x2, y2) in zip(grids, corners):
        resized = nn.functional.interpolate(grid[None], (y2 - y1 + 1, x2 - x1 + 1), mode="bilinear")[0, 0]
        left, top = max(x1, 0), max(y1, 0)
        inside = resized[top - y1 : max(height - y1, 0), left - x1 : max(width - x1, 0)].numpy()
        mask = np.zeros(size, bool, order="F")
        mask[top : y2 + 1, left : x2 + 1] = inside > 0.5
        yield mask


class DetectionLines:
    """Detections of each image in the pixels of its file; Mask R-CNN's masks are COCO's compressed run lengths.

    Args:
        metadata: of the model.
        file_format: "csv" (a line per box: path, label, score, x1, y1, x2, y2), "jsonl" (a line per image: {"path",
            "height", "width", "detections": [{"label", "score", "box"}, ...]}), "json" (COCO: images, categories,
            annotations with a score) or "results.json" (only the list of detections, for pycocotools' `loadRes`). All
            but CSV have the masks, under `segmentation`.
        min_score: detections below are left out, in addition to the model's threshold; so are boxes without area in
            the file.
        draw: writes the images with their boxes, or None.
        ids: for COCO's files; None: `usual_category_ids`, and images count from 1 in the order of the list.
    """

    formats = ("csv", "jsonl", "json", "results.json")
    options: Mapping[str, Any] = {
        "min_score": 0.0,
        "max_detections": None,
        "draw": None,
    }  # flags of the command that apply to it, with defaults

    def __init__(
        self,
        metadata: ModelMetadata,
        file_format: str,
        min_score: float = 0.0,
        draw: ImageWriter | None = None,
        ids: CocoIds | None = None,
        **_: Any,
    ) -> None:
        self.metadata, self.file_format, self.min_score, self.draw = metadata, file_format, min_score, draw
        self.decode = DecodeBoxes(metadata)
        self.ids = ids
        self.category_ids: Sequence[Id] = usual_category_ids(metadata) if ids is None else ids.categories
        self.max_detections: int = metadata.options.get("max_detections", MAX_DETECTIONS)
        self.at_limit = 0  # images with as many detections as are allowed
        self.streams = ("images",) if file_format == "json" else ()

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        return csv_line(["path", "label", "score", "x1", "y1", "x2", "y2"]) if self.file_format == "csv" else b""

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[Detections]:
        """Return the predictions of one batch, in its order."""
        return [result for result, _ in self._with_views(batch, outputs)]

    def _with_views(
        self, batch: InputBatch, outputs: dict[str, np.ndarray]
    ) -> Iterator[tuple[Detections, dict[str, Tensor]]]:
        """Yield each image's result, and the same detections in pixels of the view."""
        for path, size, found in zip(batch.names, batch.sizes, self.decode(outputs)):
            above = found["scores"] >= self.min_score
            found = {name: value[above] for name, value in found.items()}
            self.at_limit += len(found["scores"]) >= self.max_detections
            scale = torch.from_numpy(letterbox_scale(*size, self.metadata.side))
            boxes = to_original_size(found["boxes"], scale, torch.tensor(size)).numpy().round(2)
            visible = (boxes[:, 2:] > boxes[:, :2]).all(1)  # the other boxes lie in the view's padding
            found = {name: value[visible] for name, value in found.items()}
            labels = found["labels"].numpy()
            classes = tuple(self.metadata.class_names[label] for label in labels.tolist())
            masks = self._run_lengths(found, scale, size)
            yield Detections(path, size, classes, labels, found["scores"].numpy(), boxes[visible], masks), found

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return the lines of one batch by stream, in its order; write its drawings."""
        streams: dict[str, list[bytes]] = {"rows": [], **{name: [] for name in self.streams}}
        for i, (result, found) in enumerate(self._with_views(batch, outputs)):
            name, size, number = result.path, result.size, batch.positions[i]
            scores, labels = result.scores.round(6).tolist(), result.labels.tolist()
            masks: list[dict[str, Any]] = [{"segmentation": lengths} for lengths in result.run_lengths or ()]
            rows = list(zip(result.boxes.tolist(), scores, labels, masks or [{} for _ in labels]))
            if self.file_format == "csv":
                for box, score, label, _ in rows:
                    row = [name, self.metadata.class_names[label], f"{score:.6f}", *(f"{v:.2f}" for v in box)]
                    streams["rows"].append(csv_line(row))
            elif self.file_format == "jsonl":
                detections = [
                    {
                        "label": self.metadata.class_names[k],
                        "score": _rounded(s, 6),
                        "box": [_rounded(v, 2) for v in b],
                        **mask,
                    }
                    for b, s, k, mask in rows
                ]
                record = {"path": name, "height": size[0], "width": size[1], "detections": detections}
                streams["rows"].append(json_line(record))
            else:
                if self.file_format == "json":
                    streams["images"].append(coco_image(self._image_id(number), name, size))
                for j, (box, score, label, mask) in enumerate(rows):
                    own_id = number * max(PER_IMAGE, self.max_detections) + j + 1
                    ids = {"id": own_id, "image_id": self._image_id(number), "category_id": self.category_ids[label]}
                    annotation = _annotation(ids, box, score, mask)
                    streams["rows"].append(json_line(annotation if self.file_format == "json" else _result(annotation)))
            if self.draw and batch.pixels is not None:
                self._draw(self.draw, name, batch.pixels[i], size, found)
        return {stream: b"".join(parts) for stream, parts in streams.items()}

    @property
    def finish(self) -> Callable[[Path, Mapping[str, Path]], None] | None:
        """Function that writes COCO's files from the streams; None for the other formats."""
        if self.file_format == "json":
            return lambda out, paths: coco_file(out, paths, self.metadata.class_names, self.category_ids)
        return results_file if self.file_format == "results.json" else None

    @property
    def note(self) -> str:
        """A line about detections that were left out, "" if none can have been."""
        if not self.at_limit:
            return ""
        return (
            f"{self.at_limit} images have {self.max_detections} detections, the most that are kept; give "
            "--max_detections to keep more"
        )

    def _image_id(self, number: int) -> Id:
        """Return the id of the image at this position of the list."""
        return number + 1 if self.ids is None else self.ids.images[number]

    def _run_lengths(
        self, found: dict[str, Tensor], scale: Tensor, size: tuple[int, int]
    ) -> tuple[dict[str, Any], ...] | None:
        """Return the run lengths of the masks at the size of the file; None without masks, or in CSV."""
        if self.file_format == "csv" or "mask_probs" not in found:
            return None
        # boxes that are not clipped to the file, because the grid covers the complete box
        masks = paste_masks(found["mask_probs"], found["boxes"] / scale.repeat(2), size)
        return tuple(encode_rle(mask) for mask in masks)

    def _draw(
        self, writer: ImageWriter, name: str, pixels: np.ndarray, size: tuple[int, int], found: dict[str, Tensor]
    ) -> None:
        """Write the view without its padding, with masks and boxes drawn on it."""
        width, height = (letterbox_scale(*size, self.metadata.side) * (size[1], size[0])).round().astype(int)
        picture, times = upscale_for_text(pixels[:height, :width])
        names = [self.metadata.class_names[label] for label in found["labels"].tolist()]
        texts = [f"{n} {100 * s:.0f}" for n, s in zip(names, found["scores"].tolist())]
        if "mask_probs" in found:
            masks = paste_masks(found["mask_probs"], found["boxes"] * times, picture.shape[:2])
            picture = draw_instances(picture, list(masks), found["labels"])
        drawn = draw_boxes(picture, found["boxes"].numpy() * times, found["labels"], texts)
        writer.write(name, drawn)


def _rounded(value: float, digits: int) -> float:
    return round(float(value), digits)


def _annotation(ids: dict[str, Id], box: list[float], score: float, mask: dict[str, Any]) -> dict[str, Any]:
    """Return an annotation in COCO's format; its area is that of the mask if there is one."""
    x1, y1, x2, y2 = box
    area = _rounded((x2 - x1) * (y2 - y1), 2)
    if mask:
        from faster_coco_eval.core.mask import area as mask_area

        area = int(mask_area(mask["segmentation"]))
    return {
        **ids,
        "bbox": [_rounded(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        "area": area,
        "score": _rounded(score, 6),
        "iscrowd": 0,
        **mask,
    }


def _result(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an annotation that COCO's results format has; pycocotools adds id and area itself."""
    return {key: value for key, value in annotation.items() if key not in ("id", "area", "iscrowd")}
