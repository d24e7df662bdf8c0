"""Videos that tests write with PyAV (any frame times, without loss, turned as phones note it), and a model of them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from toy_models import CNN, NAMES

from lit_vision.methods import VideoClassifier


def write_movie(path: Path, frames: np.ndarray, milliseconds: list[int] | None = None, codec: str = "ffv1") -> Path:
    """Write frames (N, H, W, 3) uint8, shown from these times on; 25 a second without them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times, tick = (range(len(frames)), Fraction(1, 25)) if milliseconds is None else (milliseconds, Fraction(1, 1000))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        for pixels, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_movie(path: Path, matrix: tuple[int, ...]) -> None:
    """Write the (a, b, c, d) of a rotation into the track header of an mp4 file, as a phone does."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 1, 3, 4), matrix):
        data[start + 4 * place : start + 4 * place + 4] = int(value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def numbered_frames(n: int, height: int = 16, width: int = 32) -> np.ndarray:
    """Return frames whose gray says which they are; the upper left corner is white, the rest of the top black."""
    frames = np.repeat(np.arange(n, dtype=np.uint8) * 10, height * width * 3).reshape(n, height, width, 3)
    frames[:, : height // 2, : width // 2] = 255
    frames[:, : height // 2, width // 2 :] = 0
    return frames


OPTIONS = {
    "frames_per_clip": 3,
    "frame_stride": 2,
    "sampling": "dense",
    "clips_per_video": 1,
    "frames_per_second": 10.0,
}


def make_video_classifier(**options) -> VideoClassifier:
    """Return a classifier of clips with random weights of a spread that makes the classes differ."""
    torch.manual_seed(3)
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "temporal": "lstm", "temporal_width": 8}
    method = VideoClassifier("resnet18", 3, backbone_args=CNN, **settings).eval()
    with torch.no_grad():
        method.head.weight.normal_(0, 3)
    options = {**OPTIONS, **options}
    method.metadata = {"task": "video", "class_names": NAMES, "size": 16, "crop_pct": 1.0, "options": options}
    return method
