"""Segmentation: inference network, results and result lines. B images, K classes, S side of the view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor, nn

from lit_vision.data.annotations.coco_masks import run_lengths
from lit_vision.data.annotations.views import letterbox_scale
from lit_vision.predict.coco_ids import CocoIds, Id
from lit_vision.predict.image_writer import ImageWriter, upscale_for_text
from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.predictions import Segmentation
from lit_vision.predict.writers import PER_IMAGE, coco_file, coco_image, csv_line, json_line
from lit_vision.results.overlays import draw_mask
from lit_vision.weights.model_metadata import ModelMetadata


class SegmenterInference(nn.Module):
    """Normalized images (B, 3, S, S) -> scores (B, K, S, S)."""

    outputs = ("scores",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (self.method(images),)


class SegmentationLines:
    """Class of each pixel at the size of the file: the view's best class per pixel, resized by nearest neighbor.

    Args:
        metadata: of the model.
        file_format: "csv" (path, then the share of each class), "jsonl" ({"path", "height", "width", "shares": {class:
            share}}) or "json" (COCO: a run-length mask per image and class, without the background).
        masks: writes the masks (pixel = class number), or None.
        draw: writes the images with colored classes, or None.
        ids: for COCO's file; None counts the images from 1 and the classes from 0.
    """

    formats = ("csv", "jsonl", "json")
    options: Mapping[str, Any] = {"masks": None, "draw": None}  # flags of the command that apply to it, with defaults
    note = ""

    def __init__(
        self,
        metadata: ModelMetadata,
        file_format: str,
        masks: ImageWriter | None = None,
        draw: ImageWriter | None = None,
        ids: CocoIds | None = None,
        **_: Any,
    ) -> None:
        self.ids = ids
        self.category_ids: Sequence[Id] = range(len(metadata.class_names)) if ids is None else ids.categories
        self.metadata, self.file_format, self.masks, self.draw = metadata, file_format, masks, draw
        self.background = metadata.options.get("background")
        self.streams = ("images",) if file_format == "json" else ()

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        return csv_line(["path", *self.metadata.class_names]) if self.file_format == "csv" else b""

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[Segmentation]:
        """Return the predictions of one batch, in its order."""
        return [result for result, _ in self._with_views(batch, outputs)]

    def _with_views(
        self, batch: InputBatch, outputs: dict[str, np.ndarray]
    ) -> Iterator[tuple[Segmentation, np.ndarray]]:
        """Yield each image's result, and its class numbers in the pixels of the view without the padding."""
        names = tuple(self.metadata.class_names)
        for path, size, scores in zip(batch.names, batch.sizes, outputs["scores"]):
            width, height = (letterbox_scale(*size, self.metadata.side) * (size[1], size[0])).round().astype(int)
            view_mask = scores[:, :height, :width].argmax(0).astype(np.uint8 if len(names) <= 256 else np.uint16)
            mask = cv2.resize(view_mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
            yield Segmentation(path, names, mask), view_mask

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return the lines of one batch by stream, in its order; write its masks and drawings."""
        streams: dict[str, list[bytes]] = {"rows": [], **{name: [] for name in self.streams}}
        names = self.metadata.class_names
        for i, (result, view_mask) in enumerate(self._with_views(batch, outputs)):
            name, size, number, mask = batch.names[i], batch.sizes[i], batch.positions[i], result.mask
            shares = result.shares
            if self.file_format == "csv":
                streams["rows"].append(csv_line([name, *(f"{share:.6f}" for share in shares)]))
            elif self.file_format == "jsonl":
                named = {label: round(float(share), 6) for label, share in zip(names, shares) if share}
                record = {"path": name, "height": size[0], "width": size[1], "shares": named}
                streams["rows"].append(json_line(record))
            else:
                streams["images"].append(coco_image(self._image_id(number), name, size))
                streams["rows"] += self._annotations(number, mask)
            if self.masks:
                self.masks.write(name, mask)
            if self.draw and batch.pixels is not None:
                picture, factor = upscale_for_text(batch.pixels[i][: view_mask.shape[0], : view_mask.shape[1]])
                upscaled = view_mask.repeat(factor, 0).repeat(factor, 1)
                self.draw.write(name, draw_mask(picture, upscaled, self.background))
        return {stream: b"".join(parts) for stream, parts in streams.items()}

    @property
    def finish(self) -> Callable[[Path, Mapping[str, Path]], None] | None:
        """Function that writes COCO's file from the streams; None for the other formats."""
        names = self.metadata.class_names
        if self.file_format != "json":
            return None
        return lambda out, paths: coco_file(out, paths, names, self.category_ids)

    def _image_id(self, number: int) -> Id:
        """Return the id of the image at this position of the list."""
        return number + 1 if self.ids is None else self.ids.images[number]

    def _annotations(self, number: int, mask: np.ndarray) -> list[bytes]:
        """Return a line per class that occurs, without the background."""
        lines = []
        for label in np.unique(mask).tolist():
            if label == self.background:
                continue
            pixels = mask == label
            rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
            ids = {"id": number * PER_IMAGE + label + 1, "image_id": self._image_id(number)}
            ids |= {"category_id": self.category_ids[label], "iscrowd": 0}
            shape = {"bbox": box, "area": int(pixels.sum()), "segmentation": run_lengths(pixels)}
            lines.append(json_line({**ids, **shape}))
        return lines
