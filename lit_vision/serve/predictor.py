"""The model behind the API: images from bytes to answers, which are the lines that lit-vision predict writes.

An image is decoded on a reader thread, runs on the one thread of the model in a batch with others, and becomes an
answer on a writer thread.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lit_vision.data.image_files import image_extensions
from lit_vision.data.views.decode import ImageDecodeError, decode, read_header
from lit_vision.errors import UserError
from lit_vision.io.processes import cores
from lit_vision.predict.ann_index import open_neighbors
from lit_vision.predict.inference import draw_explanations
from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.restoration import tiled_restorer
from lit_vision.predict.runtimes import Model
from lit_vision.predict.search import Index
from lit_vision.predict.tasks import TASKS, preprocess_for, results_with_options
from lit_vision.predict.tiles import TiledNetwork, run_tiled
from lit_vision.serve.batching import Batcher
from lit_vision.serve.pictures import PREVIEW_SIDE, jpeg, png, to_base64
from lit_vision.serve.uploads import Upload

NEIGHBORS = 8
RESTORED_PIXELS = 4_000_000  # of an image that is restored here: more would hold up all other requests


class Wanted(NamedTuple):
    """Content of an answer.

    Attributes:
        options: of the predict command: top_k, min_score.
        include: of INCLUDES.
        features: the features instead of a prediction.
    """

    options: Mapping[str, Any] = {}
    include: frozenset[str] = frozenset()
    features: bool = False


# extra content of an answer: its description
INCLUDES = {
    "why": "PNG of the image beside the same image under a map of what the model looked at (predict --explain)",
    "mask": "PNG of class numbers in the size of the image (predict --masks)",
    "drawing": "PNG of the image with boxes or class colors (predict --draw)",
    "neighbors": "the nearest images of --index",
    "restored": "PNG of the restored image (lit-vision restore), of at most 4 megapixels",
    "preview": "JPEG of the image as it was decoded, at most 1024 pixels a side",
}


@dataclass
class _Job:
    """One image on its way to an answer."""

    upload: Upload
    wanted: Wanted
    done: Future[dict[str, Any]] = field(default_factory=Future)
    pixels: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    extra: dict[str, Any] = field(default_factory=dict)


class _PngCollector:
    """Takes what an `ImageWriter` would write to a folder, as base64 of a PNG."""

    def __init__(self) -> None:
        self.png = ""

    def write(self, name: str, pixels: np.ndarray) -> None:
        self.png = to_base64(png(pixels))


class Predictor:
    """Answers of one model. Use it as a context manager, which ends its threads when all answers are given.

    Args:
        model: from `load_model`.
        max_pixels: of an image, by its header; more are refused before any is decoded.
        index: features of images that answers may name as neighbors, made with the same model.
        captions: of a model for captioning, see `predict.captioning.check_captions`; None is "auto".
        max_batch, max_wait: see `Batcher`.
        readers: threads that decode; 0: the number of cores.

    Attributes:
        includes: the names of INCLUDES that this model's answers may have.
        neighbors: finds the nearest images of the index; None without an index.
        observe_batch: called with the number of images of each batch.

    Raises:
        UserError: the model does not run, fills missing pixels, which takes a mask, a decoder of captions is refused,
            or faiss is needed for the index and not installed. UsageError: `captions` for another task.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_pixels: int,
        index: Index | None = None,
        captions: str | None = None,
        max_batch: int = 32,
        max_wait: float = 0.004,
        readers: int = 0,
    ) -> None:
        self.model, self.index, self.max_pixels = model, index, max_pixels
        self.neighbors = open_neighbors(index) if index is not None else None
        self._tiles = _tiled(model) if model.metadata.task == "restoration" else None
        self._prepare = preprocess_for(model.metadata) if self._tiles is None else _check_size
        self._fixed: dict[str, Any] = {}  # options of the predict command that requests do not give
        if captions is not None or model.metadata.task == "captioning":
            results_of_task, self._fixed = results_with_options(model, {"captions": captions})
            results_of_task(model.metadata, "jsonl", **self._fixed)  # may refuse the model
        self._readers = ThreadPoolExecutor(readers or cores(), "reader")
        self._writer = ThreadPoolExecutor(1, "writer")
        self._reading = 0
        self._lock = threading.Lock()
        self._batcher: Batcher[_Job] = Batcher(self._run_batch, max_batch, max_wait, lambda: self._reading)
        self.observe_batch: Callable[[int], None] = lambda images: None
        self._formats = _formats()
        self.includes = self._find_includes()

    def __enter__(self) -> Predictor:
        self._batcher.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._readers.shutdown()
        self._batcher.__exit__(kind, error, traceback)
        self._writer.shutdown()

    @property
    def predicts(self) -> bool:
        """True if the model has predictions, False if it has features alone."""
        return TASKS[self.model.metadata.task].results is not None

    @property
    def embeds(self) -> bool:
        """True if the model has features."""
        return "features" in self.model.metadata.outputs

    def submit(self, upload: Upload, wanted: Wanted) -> Future[dict[str, Any]]:
        """Return the future answer to an image.

        The answer is the object that predict writes to a .jsonl, with what `wanted.include` names; {"path",
        "features"}; or {"path", "error"} if the image cannot be read.
        """
        job = _Job(upload, wanted)
        with self._lock:
            self._reading += 1
        self._readers.submit(self._read, job)
        return job.done

    def _read(self, job: _Job) -> None:
        try:
            pixels = self._decode(job.upload.data)
            job.size = pixels.shape[0], pixels.shape[1]
            job.pixels = self._prepare(pixels)
            if "preview" in job.wanted.include:
                job.extra["preview"] = to_base64(jpeg(pixels, PREVIEW_SIDE))
            self._batcher.put(job)
        except ImageDecodeError as error:
            job.done.set_result({"path": job.upload.name, "error": str(error)})
        except BaseException as error:
            job.done.set_exception(error)
        finally:
            with self._lock:
                self._reading -= 1

    def _decode(self, data: bytes) -> np.ndarray:
        """Return the pixels of an image file; its format and size are checked before any is decoded."""
        header = read_header(data)
        if header.image is not None and header.image.format not in self._formats:
            raise ImageDecodeError(f"{header.image.format} is not a format that is read here; save it as PNG or JPEG")
        if header.width * header.height > self.max_pixels:
            raise ImageDecodeError(
                f"it has {header.width} x {header.height} pixels, over the limit of {self.max_pixels}; make it smaller"
            )
        return decode(data, self.model.metadata.pixel_format)

    def _run_batch(self, jobs: list[_Job]) -> None:
        """Run the model; on its thread."""
        self.observe_batch(len(jobs))
        if self._tiles is not None:
            for job in jobs:
                self._restore(self._tiles, job)
            return
        try:
            pixels = np.stack([job.pixels for job in jobs if job.pixels is not None])
            outputs = self.model(pixels)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
                return
            for job in jobs:  # so that one image fails alone
                self._run_batch([job])
            return
        for i, job in enumerate(jobs):
            own = {name: value[i : i + 1] for name, value in outputs.items()}
            batch = InputBatch(0, 1, [job.upload.name], [0], pixels[i : i + 1], [job.size])
            if "why" in job.wanted.include:
                self._explain(job, batch, own)
            self._writer.submit(self._answer, job, batch, own)

    def _restore(self, tiles: TiledNetwork, job: _Job) -> None:
        """Answer with the restored image; on the model's thread."""
        assert job.pixels is not None
        try:
            answer = {"path": job.upload.name, "height": job.size[0], "width": job.size[1]}
            if "restored" in job.wanted.include:
                job.extra["restored"] = to_base64(png(run_tiled(tiles, job.pixels)))
            job.done.set_result(answer | job.extra)
        except BaseException as error:
            job.done.set_exception(error)

    def _explain(self, job: _Job, batch: InputBatch, outputs: dict[str, np.ndarray]) -> None:
        """Add the picture of what the model looked at; on the model's thread, since the model runs again."""
        picture = _PngCollector()
        draw_explanations(self.model, batch, outputs, picture)
        job.extra["why"] = picture.png

    def _answer(self, job: _Job, batch: InputBatch, outputs: dict[str, np.ndarray]) -> None:
        try:
            job.done.set_result(self._answer_of(job.wanted, batch, outputs) | job.extra)
        except BaseException as error:
            job.done.set_exception(error)

    def _answer_of(self, wanted: Wanted, batch: InputBatch, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        answer: dict[str, Any]
        if wanted.features or not self.predicts:
            answer = {"path": batch.names[0]}
            if wanted.features:
                answer["features"] = outputs["features"][0].astype(np.float32, copy=False).tolist()
        else:
            pictures = {name: _PngCollector() for name in ("mask", "drawing") if name in wanted.include}
            results_of_task, options = results_with_options(self.model, {**self._fixed, **wanted.options})
            writers = {"masks": pictures.get("mask"), "draw": pictures.get("drawing")}
            lines = results_of_task(self.model.metadata, "jsonl", **{**options, **writers}).lines(batch, outputs)
            answer = json.loads(lines["rows"] if isinstance(lines, dict) else lines)
            answer |= {name: collector.png for name, collector in pictures.items()}
        if "neighbors" in wanted.include and self.neighbors is not None and self.index is not None:
            rows = self.neighbors.top(outputs["features"], NEIGHBORS)[0]
            answer["neighbors"] = [
                {"number": row, "path": self.index.names[row], "score": round(score, 6)} for row, score in rows
            ]
        return answer

    def _find_includes(self) -> list[str]:
        """Return what answers may include; runs the model once, which also warms it up.

        Raises:
            UserError: the model does not run.
        """
        if self._tiles is not None:
            run_tiled(self._tiles, np.full((64, 64, 3), 128, np.uint8))
            return ["restored", "preview"]
        metadata = self.model.metadata
        results = TASKS[metadata.task].results
        flags: Collection[str] = results.options if results is not None else ()
        found = [name for name, flag in (("mask", "masks"), ("drawing", "draw")) if flag in flags]
        view = self._prepare(np.full((64, 64, 3), 128, np.uint8))[None]
        outputs = self.model(view)
        if "explain" in flags and self.model.method is not None:
            batch = InputBatch(0, 1, [""], [0], view, [(64, 64)])
            try:
                draw_explanations(self.model, batch, outputs, _PngCollector())
                found.append("why")
            except UserError:  # a model without plain attention or maps
                pass
        return [*found, *(["neighbors"] if self.index is not None else []), "preview"]


def _tiled(model: Model) -> TiledNetwork:
    """Return a model of restoration as a network of tiles; UserError if it needs a mask, which no request has."""
    tiles = tiled_restorer(model)
    if model.metadata.options["holes"]:
        raise UserError(f"{model.path}: fills missing pixels, which takes a mask; use lit-vision restore --mask")
    return tiles


def _check_size(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels of an image that may be restored here; ImageDecodeError if it is too large."""
    if pixels.shape[0] * pixels.shape[1] > RESTORED_PIXELS:
        raise ImageDecodeError(
            f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, more than the 4 megapixels that are restored here; "
            "use lit-vision restore"
        )
    return pixels


def _formats() -> frozenset[str]:
    """Return Pillow's names of the formats whose endings a folder of images may have.

    Pillow knows more: one of them hands PostScript to Ghostscript, and few of the others were ever tested with hostile
    files.
    """
    Image.init()
    names = {Image.EXTENSION.get(f".{ending}") for ending in image_extensions()}
    return frozenset(name for name in names if name) | {"MPO"}
