"""Prediction on videos: scores over time against a loop over PyAV's frames, folders of frames, strips, bad files."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from toy_models import NAMES, make_classifier, write_run
from toy_videos import make_video_classifier, numbered_frames, turn_movie, write_movie

import lit_vision
from lit_vision.cli.main import main
from lit_vision.data.video.clip_frames import ClipFrames
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.predict import video
from lit_vision.predict.video_inputs import clips_over_time


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def predict(*arguments: object) -> int:
    return main(["predict", "--device", "cpu", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "video", make_video_classifier())


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 2.9 s at a variable rate."""
    rng = np.random.default_rng(0)
    times = np.cumsum([0, *rng.integers(20, 120, 40)]).tolist()
    noise = rng.integers(0, 256, (41, 20, 30, 3), np.uint8)
    return write_movie(tmp_path_factory.mktemp("movies") / "a/noise.mkv", noise, times)


def test_scores_over_time_are_those_of_a_loop_over_pyavs_frames(run: Path, movie: Path, tmp_path: Path, capsys) -> None:
    with av.open(str(movie)) as container:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    at = [[i for i, (t, _) in enumerate(shown) if t <= k / 10 + 1e-9][-1] for k in range(int(shown[-1][0] * 10) + 1)]
    method, rows = make_video_classifier(), []
    for first in range(0, len(at), 5):  # a clip is 5 tenths long: frames 0, 2 and 4
        if len(at) - first < 3 and first:
            continue
        numbers = [at[min(first + k, len(at) - 1)] for k in (0, 2, 4)]
        views = np.stack([resize_and_crop(shown[i][1], 16, 1.0) for i in numbers])
        clip = (torch.from_numpy(views).float() / 255 - method.mean) / method.std
        with torch.no_grad():
            scores = method(clip.permute(0, 3, 1, 2)[None]).double().softmax(1)[0]
        rows.append((first / 10, min(first + 4, len(at) - 1) / 10, scores))
    assert predict("--model", run, movie.parent, "--out", tmp_path / "p.csv", "--draw", tmp_path / "strips") == 0
    assert capsys.readouterr().out.splitlines() == ["1 videos", f"{tmp_path / 'p.csv'}: 1 videos"]
    found = read_csv(tmp_path / "p.csv")
    assert len(found) == len(rows) == 6
    for row, (start, end, scores) in zip(found, rows):
        assert (row["path"], row["start"], row["end"]) == ("noise.mkv", f"{start:.3f}", f"{end:.3f}")
        assert row["label"] == NAMES[int(scores.argmax())]
        assert float(row["score"]) == pytest.approx(scores.max().item(), abs=2e-6)
        assert float(row["score_3"]) == pytest.approx(scores.min().item(), abs=2e-6)
    strip = np.asarray(Image.open(tmp_path / "strips/noise.png"))
    assert strip.shape[1] == 1280
    assert len(np.unique(strip.reshape(-1, 3), axis=0)) > 1000  # frames, not an empty page
    (of_python,) = lit_vision.load(run, "cpu").predict(movie)
    np.testing.assert_allclose(of_python.probabilities, np.stack([scores for *_, scores in rows]), atol=2e-6)
    np.testing.assert_allclose(of_python.mean, np.mean([scores.numpy() for *_, scores in rows], 0), atol=2e-6)
    assert of_python.classes == tuple(NAMES)


def test_a_folder_of_its_frames_gives_the_scores_of_a_video(run: Path, movie: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "frames", str(movie.parent), "--out", str(tmp_path / "f"), "--format", "png"]) == 0
    for source, out in ((movie, "file.jsonl"), (tmp_path / "f/noise", "one.jsonl"), (tmp_path / "f", "all.jsonl")):
        assert predict("--model", run, source, "--out", tmp_path / out, "--step", 0.3) == 0
    files = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("file", "one", "all")]
    assert [row.pop("path") for rows in files for row in rows[:1]] == [str(movie), str(tmp_path / "f/noise"), "noise"]
    bare = [[{**row, "path": ""} for row in rows] for rows in files]
    assert bare[0] == bare[1] == bare[2]
    starts = [row["start"] for row in bare[0]]
    np.testing.assert_allclose(starts, 0.3 * np.arange(len(starts)))
    (tmp_path / "f/noise/frame_times.csv").unlink()
    assert predict("--model", run, tmp_path / "f", "--out", tmp_path / "rate.csv") == 0  # the model's rate
    assert [row["start"] for row in read_csv(tmp_path / "rate.csv")][:2] == ["0.000", "0.500"]
    other = write_run(tmp_path / "unknown", make_video_classifier(frames_per_second=None))
    assert predict("--model", other, tmp_path / "f", "--out", tmp_path / "x.csv") == 1
    assert "x.csv.skipped.csv: lists all 1 videos, none could be read" in capsys.readouterr().err
    (skipped,) = read_csv(tmp_path / "x.csv.skipped.csv")
    assert skipped["reason"].endswith("noise: has no frame_times.csv; say how many frames a second has (--fps)")
    assert predict("--model", other, tmp_path / "f", "--out", tmp_path / "x.csv", "--fps", 20) == 0
    assert [row["start"] for row in read_csv(tmp_path / "x.csv")][:2] == ["0.000", "0.250"]


def test_clips_follow_one_another_or_begin_every_step() -> None:
    times = 3.0 + np.arange(22) / 2  # seconds; 11 s in all
    dense = ClipFrames(3, 2)

    def spans(*arguments: object, **more: object) -> list[tuple[float, float]]:
        return [(clip.start, clip.end) for clip in clips_over_time(times, *arguments, **more)]

    assert spans(dense) == [(0, 2), (2.5, 4.5), (5, 7), (7.5, 9.5)]  # the last would have 2 frames of 5
    assert clips_over_time(times[:3], dense)[0].numbers == (0, 2, 2)
    assert clips_over_time(times[:18], dense)[-1].numbers == (15, 17, 17)  # 3 of 5 frames are there
    assert spans(dense, fps=1.0) == [(0, 4), (5, 9)]
    assert spans(dense, step=4.0) == [(0, 2), (4, 6), (8, 10)]
    assert spans(dense, fps=1.0, step=4.0) == [(0, 4), (4, 8), (8, 10)]
    uniform = ClipFrames(4, sampling="uniform")
    assert [clip.numbers for clip in clips_over_time(times, uniform)] == [(2, 8, 13, 19)]
    found = clips_over_time(times, uniform, step=4.0)
    assert [clip.numbers for clip in found] == [(1, 3, 5, 7), (9, 11, 13, 15), (16, 18, 19, 21)]
    assert len(clips_over_time(times, uniform, step=1e-9)) == 22  # a clip a frame, in little memory


def test_what_cannot_be_read_is_skipped_and_listed(run: Path, movie: Path, tmp_path: Path, capsys) -> None:
    videos = tmp_path / "videos"
    turn_movie(write_movie(videos / "b/turned.mp4", numbered_frames(20), codec="mpeg4"), (0, 1, -1, 0))
    (videos / "b/cut.mp4").write_bytes((videos / "b/turned.mp4").read_bytes()[:900])
    (videos / "b/poster.png").write_bytes(b"beside a video: no frame of one")
    (videos / "frames").mkdir()
    (videos / "frames/1.png").write_bytes(b"no image")
    assert predict("--model", run, videos, "--out", tmp_path / "p.csv") == 0
    assert f"{tmp_path / 'p.csv'}: 1 videos, 2 skipped (see p.csv.skipped.csv)" in capsys.readouterr().out
    assert {row["path"] for row in read_csv(tmp_path / "p.csv")} == {"b/turned.mp4"}
    skipped = read_csv(tmp_path / "p.csv.skipped.csv")
    assert [row["path"] for row in skipped] == ["b/cut.mp4", "frames"]
    assert "1.png: the image format is unknown" in skipped[1]["reason"]
    model = lit_vision.load(run, "cpu")
    assert [scores is None for scores in model.predict(videos, errors="skip")] == [True, False, True]
    with pytest.raises(UserError, match=r"b/cut.mp4: .* is no video that can be read"):
        model.predict([videos / "b/cut.mp4"])
    with pytest.raises(UserError, match="this model takes videos; give the path"):
        model.predict(np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"--step 0: give seconds"):
        model.predict(movie, step=0)
    images = write_run(tmp_path / "images", make_classifier())
    for arguments, message in (
        ([run, videos / "b/cut.mp4"], "lists all 1 videos, none could be read"),
        ([run, videos / "none.mp4"], "none.mp4: no such file or folder"),
        ([images, videos / "b/turned.mp4"], "turned.mp4: is a video, and "),
        ([images, videos, "--step", 1], "--step: does not apply to classification"),
        ([run, videos, "--masks", tmp_path / "m"], "--masks: does not apply to video"),
    ):
        assert predict("--out", tmp_path / "q.csv", "--model", *arguments) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_prediction_that_is_stopped_goes_on(run: Path, movie: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for i in range(3):
        (tmp_path / f"v/{i}.mkv").parent.mkdir(exist_ok=True)
        (tmp_path / f"v/{i}.mkv").write_bytes(movie.read_bytes())
    arguments = "--model", run, tmp_path / "v", "--out", tmp_path / "p.csv", "--batch_size", 7
    assert predict(*arguments) == 0
    whole = (tmp_path / "p.csv").read_bytes()
    computed = []
    real = video.video_outputs

    def stopped(model, path, *more):
        computed.append(Path(path).name)
        if computed == ["0.mkv", "1.mkv"]:
            raise KeyboardInterrupt
        return real(model, path, *more)

    monkeypatch.setattr(video, "video_outputs", stopped)
    assert predict(*arguments, "--overwrite") == 130
    assert "stopped after 1 of 3 videos" in capsys.readouterr().err
    assert predict(*arguments, "--overwrite") == 0
    assert computed == ["0.mkv", "1.mkv", "1.mkv", "2.mkv"]
    assert (tmp_path / "p.csv").read_bytes() == whole
