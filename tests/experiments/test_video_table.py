"""The table of directions in videos: clips glide as their labels say; forward and backward have the same frames."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_video


def test_crops_glide_as_their_labels_say_and_the_middle_is_drawn_alike() -> None:
    rows, columns = np.mgrid[:40, :60]
    photograph = (rows + 4 * columns).astype(np.uint8)  # a pixel's value tells its place
    clips, labels = table_video.gliding_clips([photograph], np.random.default_rng(0), 4000)
    steps = np.diff(clips[:, :, 0, 0].astype(int), axis=1)
    for label, (down, right) in enumerate(table_video.DIRECTIONS):
        expected = table_video.STEP * (down + 4 * right)
        assert (steps[labels == label] % 256 == expected % 256).all()
    middle = clips[:, table_video.FRAMES // 2, 0, 0].astype(float)
    means = [middle[labels == label].mean() for label in range(8)]
    errors = [middle[labels == label].std() / np.sqrt((labels == label).sum()) for label in range(8)]
    assert max(abs(means - middle.mean()) / errors) < 4


def test_clips_that_run_backward_have_the_frames_of_those_that_run_forward() -> None:
    side, count = table_video.VIDEO_SIDE, 50
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, side, side))
    clips, labels = table_video.backward_clips({"a": frames}, np.random.default_rng(0), 300)
    order = clips[:, :, 0, 0].astype(int)
    assert order.max() < table_video.TRAIN_SHARE * count
    assert set(labels.tolist()) == {0, 1}
    assert (np.diff(order, axis=1) == table_video.STRIDE * np.where(labels, -1, 1)[:, None]).all()
    held_out = table_video.clips_for_testing(frames)[:, :, 0, 0].astype(int)
    assert held_out.min() >= table_video.TRAIN_SHARE * count
    assert held_out.max() == count - 1


def test_who_reads_the_order_is_right_about_every_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = table_video.VIDEO_SIDE
    frames = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None], (60, side, side))
    torch.save(table_video.build("frame", 8, 0).state_dict(), tmp_path / "gliding-frame-0.pt")
    monkeypatch.setattr(table_video, "FOLDER", tmp_path)
    monkeypatch.setattr(table_video, "read_videos", lambda: {"a": frames})
    monkeypatch.setattr(table_video, "train", lambda *_: None)
    monkeypatch.setattr(
        table_video, "predict", lambda _, __, clips: (clips[:, 0, 0, 0] > clips[:, -1, 0, 0]).astype(int)
    )
    found = table_video.run_backward("frame", 0)
    assert (found["top1"], found["train_top1"], found["videos"]) == (1.0, 1.0, {"a": 1.0})


def test_a_table_of_few_steps_from_training_to_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (40, 40), dtype=np.uint8) for _ in range(2)]
    videos = {
        name: rng.integers(0, 256, (60, table_video.VIDEO_SIDE, table_video.VIDEO_SIDE), dtype=np.uint8)
        for name in table_video.VIDEOS
    }
    small = {"SEEDS": 2, "STEPS": {"gliding": 1, "backward": 1}, "BATCH_SIZE": 2, "TEST_CLIPS": 20, "FOLDER": tmp_path}
    small |= {"RESULT": tmp_path / "video.json", "PAGE": tmp_path / "video.html", "CLIPS_A_VIDEO": 2, "TRAIN_CLIPS": 2}
    small |= {"MODES": {mode: table_video.MODES[mode] for mode in ("frame", "lstm", "tsm")}}
    small |= {"read_photographs": lambda: (noise, noise), "read_videos": lambda: videos}
    for name, value in small.items():
        monkeypatch.setattr(table_video, name, value)
    table_video.make()
    table_video.make()  # every cell is there
    table_video.show()
    text = capsys.readouterr().out
    assert text.count("top-1 0.") == 12  # of the first turn alone
    assert "| the middle frame alone" in text
    table = (tmp_path / "video.md").read_text()
    assert re.search(r"the middle frame alone +\| 50.0 ± 0.0", table.partition("## backward")[2])  # the same both ways
    page = (tmp_path / "video.html").read_text()
    assert page.count("<li>") == table_video.SHOWN
    assert "http" not in page.replace("<!doctype html>", "")
    monkeypatch.setattr(table_video, "read_videos", dict)  # the videos are away: their numbers stay
    before = (tmp_path / "video.md").read_text()
    table_video.make()
    table_video.show()
    assert (tmp_path / "video.md").read_text() == before
    assert table_video.verify() == 0
