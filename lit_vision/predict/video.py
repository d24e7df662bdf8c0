"""Video classification: inference network, scores over time, result lines. B clips, T frames, K classes, S pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from lit_vision.data.video.clip_frames import ClipFrames, frames_at
from lit_vision.errors import UserError
from lit_vision.predict.classification import softmax
from lit_vision.predict.inputs import InputBatch, Inputs
from lit_vision.predict.predictions import VideoScores
from lit_vision.predict.video_inputs import TimedClip, VideoSource, clips_over_time
from lit_vision.predict.writers import csv_line
from lit_vision.weights.model_metadata import ModelMetadata

if TYPE_CHECKING:
    from lit_vision.predict.image_writer import PictureWriter
    from lit_vision.predict.runtimes import Model

DEFAULT_FRAMES = 8  # of a clip, where neither the model nor its training data says how many
STRIP_FRAMES = 8  # in a drawing


class VideoInference(nn.Module):
    """Normalized clips (B, T, C, S, S) -> logits (B, K)."""

    outputs = ("logits",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.network = method

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (self.network(images),)


def clip_rule(metadata: ModelMetadata) -> ClipFrames:
    """Return the rule of a model's clips, as its training data had them."""
    options = metadata.options
    return ClipFrames(
        options.get("frames_per_clip", DEFAULT_FRAMES), options.get("frame_stride", 1),
        options.get("fps"), options.get("sampling", "dense"),
    )  # fmt: skip


def outputs_of_videos(
    model: Model,
    inputs: Inputs,
    prepare: Callable[[np.ndarray], np.ndarray],
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 32,
    threads: int = 0,
    step: float | None = None,
    fps: float | None = None,
) -> Iterator[tuple[InputBatch, dict[str, np.ndarray] | None]]:
    """Yield each video as a batch of its own, with what `video_outputs` returns, or None if it cannot be read.

    Args:
        model: of videos.
        inputs: from `find_videos`.
        prepare: the model's evaluation view of a frame.
        start, stop: number of the first video, and one more than that of the last; None: of all.
        batch_size: frames that the network gets at a time, at least one clip.
        threads: of the decoder; 0: as it chooses.
        step, fps: as `video_outputs`.
    """
    for i in range(start, len(inputs) if stop is None else stop):
        batch = InputBatch(i, i + 1, [inputs.names[i]], [i])
        try:
            outputs = video_outputs(model, inputs.path(i), prepare, batch_size, threads, step, fps)
        except (UserError, OSError) as error:
            reason = str(error) if isinstance(error, UserError) else f"{error.strerror}; bring it back"
            yield InputBatch(i, i + 1, unreadable=[(inputs.names[i], reason)]), None
        else:
            yield batch, outputs


def video_outputs(
    model: Model,
    path: str,
    prepare: Callable[[np.ndarray], np.ndarray],
    batch_size: int = 32,
    threads: int = 0,
    step: float | None = None,
    fps: float | None = None,
) -> dict[str, np.ndarray]:
    """Return the logits of a video's clips over time.

    Args:
        model: of videos.
        path: of a video file or a folder of frames.
        prepare: the model's evaluation view of a frame.
        batch_size: frames that the network gets at a time, at least one clip.
        threads: of the decoder; 0: as it chooses.
        step: seconds from one clip's start to the next, see `clips_over_time`.
        fps: frames per second that clips are cut from; None is the rate of the training videos, if it is known.

    Returns:
        {"logits": (N, K), "starts": (N,) and "ends": (N,) seconds, "frames": (M, S, S, 3) uint8 from the middles of M
        equal parts of the video, "seconds": () its length}.

    Raises:
        UserError: the video cannot be read.
    """
    rule = clip_rule(model.metadata)
    fps = fps or rule.fps or model.metadata.options.get("frames_per_second")
    source = VideoSource(path, fps, model.metadata.pixel_format, threads)
    clips = clips_over_time(source.times, rule, fps, step)
    times = source.times - source.times[0]
    shown = frames_at(times, (np.arange(STRIP_FRAMES) + 0.5) * times[-1] / STRIP_FRAMES)
    logits: list[np.ndarray] = []
    pictures: dict[int, np.ndarray] = {}
    for pixels in _batches(_clips(source, clips, prepare, pictures, shown), max(1, batch_size // rule.frames)):
        logits.append(model(pixels)["logits"])
    return {
        "logits": np.concatenate(logits),
        "starts": np.array([clip.start for clip in clips]),
        "ends": np.array([clip.end for clip in clips]),
        "frames": np.stack([pictures[number] for number in shown]),
        "seconds": times[-1],
    }


def _clips(
    source: VideoSource,
    clips: list[TimedClip],
    prepare: Callable[[np.ndarray], np.ndarray],
    pictures: dict[int, np.ndarray],
    shown: list[int],
) -> Iterator[np.ndarray]:
    """Yield each clip (T, S, S, 3) uint8 as soon as its last frame is read; put the frames `shown` into `pictures`.

    Only frames that a later clip needs are held.
    """
    needed = sorted({number for clip in clips for number in clip.numbers} | {*shown})
    held: dict[int, np.ndarray] = {}
    done = 0
    for number, pixels in zip(needed, source.frames(needed)):
        held[number] = prepare(pixels)
        if number in shown:
            pictures[number] = held[number]
        while done < len(clips) and clips[done].numbers[-1] <= number:
            yield np.stack([held[i] for i in clips[done].numbers])
            done += 1
            first = clips[done].numbers[0] if done < len(clips) else needed[-1] + 1
            held = {i: frame for i, frame in held.items() if i >= first}
    if done < len(clips) or len(pictures) < len({*shown}):
        raise UserError(f"{source.path}: changed while it was read; run the command again")


def _batches(clips: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield clips (B, T, S, S, 3), at most `size` at a time."""
    waiting: list[np.ndarray] = []
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


class VideoLines:
    """One result line per clip of a video: its seconds, the best classes and their probabilities.

    Args:
        metadata: of the model.
        file_format: "csv" (path, start, end, label, score, label_2, score_2, ...) or "jsonl" ({"path", "start", "end",
            "predictions": [{"label", "score"}, ...]}).
        top_k: number of classes per clip.
        draw: takes a picture of each video, its frames and the scores of its best classes over time; or None.
    """

    formats = ("csv", "jsonl")
    options: Mapping[str, Any] = {"top_k": 5, "draw": None, "step": None, "fps": None}
    streams: tuple[str, ...] = ()
    finish = None
    note = ""

    def __init__(
        self, metadata: ModelMetadata, file_format: str, top_k: int = 5, draw: PictureWriter | None = None, **_: Any
    ) -> None:
        self.metadata, self.file_format, self.draw = metadata, file_format, draw
        self.top_k = min(top_k, len(metadata.class_names))

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        if self.file_format != "csv":
            return b""
        suffixes = ["", *(f"_{i}" for i in range(2, self.top_k + 1))]
        columns = (f"{column}{suffix}" for suffix in suffixes for column in ("label", "score"))
        return csv_line(["path", "start", "end", *columns])

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[VideoScores]:
        """Return the scores of the one video of a batch; `outputs` are those of `video_outputs`."""
        classes = tuple(self.metadata.class_names)
        return [VideoScores(batch.names[0], outputs["starts"], outputs["ends"], classes, softmax(outputs["logits"]))]

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> bytes:
        """Return the lines of the one video of a batch, and draw it."""
        (scores,) = self.predictions(batch, outputs)
        if self.draw is not None:
            from lit_vision.predict.video_strip import video_strip

            self.draw.write(scores.path, video_strip(scores, outputs["frames"], float(outputs["seconds"])))
        lines = []
        for start, end, row in zip(scores.starts.tolist(), scores.ends.tolist(), scores.probabilities):
            best = np.argsort(-row, kind="stable")[: self.top_k].tolist()
            pairs = [(scores.classes[i], round(float(row[i]), 6)) for i in best]
            if self.file_format == "csv":
                values = (x for label, p in pairs for x in (label, f"{p:.6f}"))
                lines.append(csv_line([scores.path, f"{start:.3f}", f"{end:.3f}", *values]))
            else:
                predictions = [{"label": label, "score": p} for label, p in pairs]
                record = {
                    "path": scores.path,
                    "start": round(start, 3),
                    "end": round(end, 3),
                    "predictions": predictions,
                }
                lines.append(json.dumps(record).encode() + b"\n")
        return b"".join(lines)
