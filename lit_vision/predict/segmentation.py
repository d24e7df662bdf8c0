"""Segmentation: the network that runs, and the masks, lines and pictures of its scores. B images, K classes, S side of the view."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from torch import Tensor, nn

from lit_vision.data.annotations.views import letterbox_scale
from lit_vision.data.make.scenes import run_lengths
from lit_vision.predict.image_writer import ImageWriter, upscale_for_text
from lit_vision.predict.inputs import Batch
from lit_vision.predict.writers import PER_IMAGE, coco_file, coco_image, csv_line, json_line
from lit_vision.results.overlays import draw_mask
from lit_vision.weights.model_metadata import ModelMetadata


class SegmenterNetwork(nn.Module):
    """Normalised images (B, 3, S, S) -> scores (B, K, S, S)."""

    outputs = ("scores",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.method(images),)


class Segmentation:
    """The class of each pixel, at the size of the file: the best class of the view's pixels, brought to the file's by nearest neighbour.

    Args:
        metadata: of the model.
        form: "csv" (path, then the share of each class), "jsonl" ({"path", "height", "width", "shares": {class: share}}) or "json" (COCO: a
            run-length mask per image and class, the background apart).
        masks: the masks (pixel = class number), or None.
        draw: the tinted views, or None.
    """

    forms = ("csv", "jsonl", "json")
    option_names = ("masks", "draw")  # of the command

    def __init__(
        self,
        metadata: ModelMetadata,
        form: str,
        masks: ImageWriter | None = None,
        draw: ImageWriter | None = None,
        **_: Any,
    ) -> None:
        self.metadata, self.form, self.masks, self.draw = metadata, form, masks, draw
        self.background = metadata.options.get("background")
        self.streams = ("images",) if form == "json" else ()

    def header(self) -> bytes:
        """What the file begins with."""
        return csv_line(["path", *self.metadata.class_names]) if self.form == "csv" else b""

    def lines(self, batch: Batch, outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
        """The lines of one batch, in its order, by stream; writes its masks and pictures."""
        streams: dict[str, list[bytes]] = {"rows": [], **{name: [] for name in self.streams}}
        names = self.metadata.class_names
        for i, scores in enumerate(outputs["scores"]):
            name, size, number = batch.names[i], batch.sizes[i], batch.places[i]
            width, height = (letterbox_scale(*size, self.metadata.size) * (size[1], size[0])).round().astype(int)
            seen = scores[:, :height, :width].argmax(0).astype(np.uint8 if len(names) <= 256 else np.uint16)
            mask = cv2.resize(seen, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
            shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
            if self.form == "csv":
                streams["rows"].append(csv_line([name, *(f"{share:.6f}" for share in shares)]))
            elif self.form == "jsonl":
                found = {label: round(float(share), 6) for label, share in zip(names, shares) if share}
                record = {"path": name, "height": size[0], "width": size[1], "shares": found}
                streams["rows"].append(json_line(record))
            else:
                streams["images"].append(coco_image(number, name, size))
                streams["rows"] += self._annotations(number, mask)
            if self.masks:
                self.masks.write(name, mask)
            if self.draw:
                picture, times = upscale_for_text(batch.pixels[i][:height, :width])
                drawn = draw_mask(picture, seen.repeat(times, 0).repeat(times, 1), self.background)
                self.draw.write(name, drawn)
        return {stream: b"".join(parts) for stream, parts in streams.items()}

    @property
    def finish(self) -> Any:
        """Makes COCO's file from the streams; None for the other forms."""
        names = self.metadata.class_names
        return (lambda out, paths: coco_file(out, paths, names, range(len(names)))) if self.form == "json" else None

    def _annotations(self, number: int, mask: np.ndarray) -> list[bytes]:
        """A line per class that is there; category ids are the class numbers."""
        found = []
        for label in np.unique(mask).tolist():
            if label == self.background:
                continue
            own = mask == label
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
            entry = {"id": number * PER_IMAGE + label + 1, "image_id": number + 1, "category_id": label, "iscrowd": 0}
            found.append(json_line({**entry, "bbox": box, "area": int(own.sum()), "segmentation": run_lengths(own)}))
        return found
