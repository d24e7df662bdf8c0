"""Extraction of frames: PyAV's own frames by time stamp, variable rates, turned and broken files, kills."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from toy_videos import numbered_frames, turn_movie, write_movie

from lit_vision.cli.main import main
from lit_vision.data import VideoFolderDataModule
from lit_vision.data.video import extract, video_files
from lit_vision.data.video.extract import FrameOptions, extract_frames, find_video_files
from lit_vision.data.video.frame_folder import read_frame_times
from lit_vision.data.video.video_files import VideoReadError, read_video
from lit_vision.errors import UserError

IRREGULAR = [0, 40, 80, 500, 510, 2000, 2040]  # ms


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames (N, H, W, 3) and their seconds."""
    names = sorted(path.name for path in folder.glob("*.png"))
    frames = np.stack([cv2.imread(str(folder / name))[..., ::-1] for name in names])
    return frames, read_frame_times(folder, names)


def test_a_clip_by_its_key_has_the_frames_that_pyav_shows_at_those_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(("train/a/x", "train/b/y", "val/a/z", "val/b/w")):
        times = np.cumsum(rng.integers(10, 300, 20)).tolist()
        write_movie(
            tmp_path / f"videos/{name}.mkv", rng.integers(0, 256, (20, 16, 16, 3), np.uint8), [i * 7, *times[1:]]
        )
    assert main(["data", "frames", str(tmp_path / "videos"), "--out", str(tmp_path / "f"), "--format", "png"]) == 0
    data = VideoFolderDataModule(
        str(tmp_path / "f"), fps=4.0, frames_per_clip=5, img_size=16, batch_size=2, num_workers=0, clips_per_video=2,
        crop_scale=[1, 1], crop_aspect=[1, 1], flip=0,
    )  # fmt: skip
    data.setup("fit")
    batches = [("train", batch) for batch in data.train_dataloader()] + [("val", b) for b in data.val_dataloader()]
    for role, batch in batches:
        for images, key in zip(batch["images"].numpy(), batch["key"].tolist()):
            path = tmp_path / "videos" / f"{data.folder.splits[role].paths[key[1]]}.mkv"
            with av.open(str(path)) as container:  # without any code of this project
                shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
            for clip in images:
                starts = [i for i, (_, pixels) in enumerate(shown) if np.array_equal(pixels, clip[0])]
                assert len(starts) == 1
                after = shown[starts[0] + 1][0] if starts[0] + 1 < len(shown) else np.inf
                possible = [  # some start within the first frame's time gives just these frames
                    all(
                        np.array_equal([p for t, p in shown if t <= start + k / 4 + 1e-6][-1], frame)
                        for k, frame in enumerate(clip)
                    )
                    for start in np.linspace(shown[starts[0]][0], min(after, shown[-1][0]) - 2e-6, 400)
                ]
                assert any(possible)


def test_every_frame_keeps_its_time_at_a_variable_rate(tmp_path: Path) -> None:
    frames = numbered_frames(7)
    write_movie(tmp_path / "v.mkv", frames, IRREGULAR)
    found = extract_frames([tmp_path / "v.mkv"], tmp_path / "all", FrameOptions(file_format="png"))
    assert (found.videos, found.frames, found.broken) == (1, 7, [])
    pixels, times = read_folder(tmp_path / "all/v")
    np.testing.assert_array_equal(pixels, frames)
    np.testing.assert_allclose(times, np.array(IRREGULAR) / 1000)
    extract_frames([tmp_path / "v.mkv"], tmp_path / "five", FrameOptions(fps=5, file_format="png"))
    pixels, times = read_folder(tmp_path / "five/v")
    np.testing.assert_allclose(times, np.arange(11) / 5)  # the last frame begins at 2.04 s
    shown = [sum(time / 1000 <= k / 5 + 1e-6 for time in IRREGULAR) - 1 for k in range(11)]
    np.testing.assert_array_equal(pixels, frames[shown])


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
@pytest.mark.parametrize(
    ("matrix", "turns"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_a_turned_video_comes_upright(matrix, turns: int, decoder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video_files, "has_pyav", lambda: decoder == "pyav")
    frames = numbered_frames(5)
    turn_movie(write_movie(tmp_path / "v.mp4", frames, codec="mpeg4"), matrix)
    found = [(frame.seconds, frame.pixels()) for frame in read_video(tmp_path / "v.mp4")]
    assert [round(seconds, 4) for seconds, _ in found] == [0, 0.04, 0.08, 0.12, 0.16]
    for (_, pixels), frame in zip(found, frames, strict=True):
        expected = np.rot90(frame, turns)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).mean() < 8  # mpeg4 loses some


def test_a_mirrored_video_comes_as_players_show_it(tmp_path: Path) -> None:
    frames = numbered_frames(2)
    for name, matrix, expected in (
        ("left-right", (-1, 0, 0, 1), frames[1][:, ::-1]),
        ("upside down", (1, 0, 0, -1), frames[1][::-1]),
        ("rows as columns", (0, 1, 1, 0), frames[1].swapaxes(0, 1)),
        ("nothing", (0, 0, 0, 0), frames[1]),
    ):
        path = write_movie(tmp_path / f"{name}.mp4", frames, codec="mpeg4")
        turn_movie(path, matrix)
        _, shown = (frame.pixels() for frame in read_video(path))
        assert shown.shape == expected.shape, name
        assert np.abs(shown.astype(int) - expected).mean() < 8, name  # mpeg4 loses some


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_no_file_opens_another(decoder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video_files, "has_pyav", lambda: decoder == "pyav")
    monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
    write_movie(tmp_path / "other.mkv", numbered_frames(2))
    playlist = tmp_path / "list.mkv"
    playlist.write_text("ffconcat version 1.0\nfile other.mkv\n")
    with pytest.raises(VideoReadError, match=r"list\.mkv: is "):
        next(read_video(playlist))


def test_a_jump_of_the_time_stamps_ends_the_reading(tmp_path: Path) -> None:
    """At a frame rate the frame before it would be written for as long as the file says."""
    path = write_movie(tmp_path / "v.mkv", numbered_frames(3), [0, 3_600_000, 10**9])
    found = []
    with pytest.raises(VideoReadError, match=r"v\.mkv: its time stamps jump from 3600\.0 to 1000000\.0 s"):
        found.extend(frame.seconds for frame in read_video(path))
    assert found in ([], [0, 3600])


def test_broken_files_are_listed_and_the_others_extracted(tmp_path: Path, capsys) -> None:
    videos = tmp_path / "videos"
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    movie = write_movie(videos / "train/a/good.mp4", noise, codec="mpeg4").read_bytes()
    avi = write_movie(tmp_path / "long.avi", noise, codec="mpeg4").read_bytes()
    broken = {
        "no_index.mp4": movie[: len(movie) // 2],
        "cut.avi": avi[: len(avi) // 2],
        "empty.mov": b"",
        "list.mkv": b"ffconcat version 1.0\nfile good.mp4\n",
        "text.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, data in broken.items():
        (videos / "train/a" / name).write_bytes(data)
    (videos / "train/a/notes.txt").write_text("not a video")
    call = ["data", "frames", str(videos), "--out", str(tmp_path / "out"), "--fps", "5", "--workers", "1"]
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"1 videos in {tmp_path / 'out'}, 20 frames written now, 5 broken (see ")
    with open(tmp_path / "out/broken_videos.csv", newline="") as file:
        listed = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == set(broken)
    assert all(name in reason and "\n" not in reason for name, reason in listed.items())
    assert listed["list.mkv"].endswith("list.mkv: is of a format that is not read; convert it to .mp4")
    assert listed["empty.mov"].endswith("empty.mov: is empty; fetch it again")
    assert sorted(path.name for path in (tmp_path / "out/train/a").iterdir()) == ["good"]
    (videos / "train/a/empty.mov").write_bytes(movie)  # repaired: only that one is read now
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train/a/good").iterdir()}
    assert main(call) == 0
    assert "2 videos in" in (line := capsys.readouterr().out.splitlines()[-1])
    assert "20 frames written now, 4 broken" in line
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for argument, message in (
        (["--fps", "4"], "another data set"),
        (["--fps", "nan"], "--fps nan: give more than 0"),
        (["--format", "gif"], "give jpg or png"),
    ):
        assert main([*call, *argument]) in (1, 2)
        assert message in capsys.readouterr().err
    for name in ("good.mp4", "empty.mov"):
        (videos / "train/a" / name).unlink()
    assert main([*call[:4], str(tmp_path / "none")]) == 1
    assert "broken_videos.csv: lists all 4 videos, none could be read; the first: " in capsys.readouterr().err


def test_videos_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/x.avi", "b/y.mp4", "b/y/z.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"x.mp4: its frames would come into the folder of .*x.avi's \(x\)"):
        find_video_files([tmp_path / "a"])
    with pytest.raises(UserError, match=r"y/z.mp4: its frames would come into the folder of .*y.mp4's; rename"):
        find_video_files([tmp_path / "b"])
    (tmp_path / "b/y/.hidden.mp4").write_bytes(b"")
    (tmp_path / "b/y/loop").symlink_to(tmp_path / "b/y")
    assert find_video_files([tmp_path / "b/y", tmp_path / "a/x.avi"]) == [
        (str(tmp_path / "a/x.avi"), "x"), (str(tmp_path / "b/y/z.mp4"), "z"),
    ]  # fmt: skip


@pytest.mark.parametrize(("ending", "codec"), [("avi", "mpeg4"), ("mp4", "mpeg4"), ("mkv", "ffv1")])
def test_a_file_with_wrong_bytes_is_read_or_refused_in_one_line(ending: str, codec: str, tmp_path: Path) -> None:
    data = write_movie(tmp_path / f"good.{ending}", numbered_frames(8), codec=codec).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"wrong.{ending}"
    refused = set()
    for _ in range(40):
        wrong = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            wrong[place] = rng.integers(0, 256)
        path.write_bytes(wrong)
        try:
            for frame in read_video(path, threads=1):
                assert frame.pixels().dtype == np.uint8
        except VideoReadError as error:
            refused.add(str(error))
    assert refused
    assert all(f"wrong.{ending}: " in reason and "\n" not in reason for reason in refused)
    path.write_bytes(data.replace(b"FMP4", b"ZQXJ").replace(b"FFV1", b"ZQXJ"))  # a codec that nobody knows
    if ending != "mp4":
        with pytest.raises(VideoReadError, match="is of a codec that FFmpeg does not know here"):
            list(read_video(path))


def copies_of_a_movie(folder: Path, side: int) -> Path:
    movie = write_movie(folder / "v0.mkv", np.random.default_rng(0).integers(0, 256, (40, side, side, 3), np.uint8))
    for i in range(1, 5):
        (folder / f"v{i}.mkv").write_bytes(movie.read_bytes())
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_extraction_that_is_stopped_goes_on(tmp_path: Path, monkeypatch) -> None:
    videos, options = copies_of_a_movie(tmp_path / "videos", 32), FrameOptions(fps=10)
    extract_frames([videos], tmp_path / "whole", options)
    encoded = []
    real = extract._encode

    def encode_some(pixels: np.ndarray, options: FrameOptions) -> bytes:
        encoded.append(pixels)
        if len(encoded) == 20:
            raise KeyboardInterrupt
        return real(pixels, options)

    monkeypatch.setattr(extract, "_encode", encode_some)
    with pytest.raises(KeyboardInterrupt):
        extract_frames([videos], tmp_path / "out", options, workers=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("v*")) == ["v0"]
    monkeypatch.undo()
    assert extract_frames([videos], tmp_path / "out", options, workers=1).frames == 64
    assert files_below(tmp_path / "whole") == files_below(tmp_path / "out")


@pytest.mark.slow
def test_an_extraction_that_is_killed_goes_on(tmp_path: Path) -> None:
    videos, options = copies_of_a_movie(tmp_path / "videos", 128), FrameOptions(file_format="png")
    extract_frames([videos], tmp_path / "whole", options, workers=1)
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from lit_vision.data.video.extract import *;"
        "print(extract_frames([sys.argv[1]], Path(sys.argv[2]), FrameOptions(file_format='png'), 1).frames)"
    )
    call = [sys.executable, "-c", code, str(videos), str(out)]
    process = subprocess.Popen(call, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (out / "v1").is_dir():
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    complete = sorted(path.name for path in out.glob("v*"))
    assert complete[:2] == ["v0", "v1"]
    assert extract_frames([videos], out, options, 1).frames == 40 * (5 - len(complete))
    assert files_below(tmp_path / "whole") == files_below(out)
    assert not list(out.glob(".*.tmp"))
