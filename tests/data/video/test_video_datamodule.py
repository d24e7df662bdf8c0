"""VideoFolderDataModule: clips as a function of their key, one crop and color a clip, tables of parts, bad folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_vision.data import VideoFolderDataModule
from lit_vision.data.batch import check_batch
from lit_vision.data.labeled_folder import label_options
from lit_vision.data.video.frame_folder import in_number_order, write_frame_times
from lit_vision.data.video.segment_table import open_segments
from lit_vision.data.views.decode import ImageDecodeError
from lit_vision.errors import UserError

AS_IT_IS = {"crop_scale": [1, 1], "crop_aspect": [1, 1], "flip": 0}
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.3, "grayscale": 0.2, "random_erasing": 0.5}


def write_video(folder: Path, video: int, frames: int, side: int = 8, times: bool = False) -> None:
    """Write frames whose red says which video they are of, and green which frame; named 1, 2, ... 10, ..."""
    folder.mkdir(parents=True)
    for frame in range(frames):
        Image.fromarray(np.full((side, side, 3), (10 * video, 10 * frame, 0), np.uint8)).save(
            folder / f"{frame + 1}.png"
        )
    if times:
        write_frame_times(folder, [f"{n + 1}.png" for n in range(frames)], [n / 10 for n in range(frames)])


def write_videos(root: Path, frames: int = 12, times: bool = False) -> Path:
    """Write videos 0 to 7 of two classes for training, and 8 to 11 to validate with."""
    for video in range(12):
        split = "train" if video < 8 else "val"
        write_video(root / split / "ab"[video % 2] / f"v{video}", video, frames, times=times)
    return root


def videos(root: Path, **more) -> VideoFolderDataModule:
    options = {"img_size": 8, "batch_size": 2, "seed": 3, "num_workers": 0, "frames_per_clip": 4, **AS_IT_IS}
    return VideoFolderDataModule(str(root), **{**options, **more})


def numbers(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the video (B, V) and the frames (B, V, T) that a batch shows."""
    assert (images == images[:, :, :, :1, :1]).all()
    video = images[:, :, :, 0, 0, 0].numpy() // 10
    assert (video == video[:, :, :1]).all()  # of one video each
    return video[:, :, 0], images[:, :, :, 0, 0, 1].numpy() // 10


def test_a_training_clip_starts_where_its_key_says(tmp_path: Path) -> None:
    data = videos(write_videos(tmp_path), frame_stride=2)
    data.setup("fit")
    order = {path: int(path.rpartition("v")[2]) for path in data.folder.splits["train"].paths}
    starts = set()
    for epoch in range(12):
        data.cursor = (epoch, 0)
        seen = []
        for batch in data.train_dataloader():
            check_batch(batch)
            assert batch["images"].shape == (2, 1, 4, 8, 8, 3)
            video, frames = numbers(batch["images"])
            assert (np.diff(frames) == 2).all()
            assert batch["label"].tolist() == (video[:, 0] % 2).tolist()
            assert video[:, 0].tolist() == [list(order.values())[key[1]] for key in batch["key"].tolist()]
            alone = data._dataset("train", train=True)[tuple(batch["key"][1].tolist())]
            assert torch.equal(alone["images"][0], batch["images"][1])
            starts |= set(frames[:, 0, 0].tolist())
            seen += video[:, 0].tolist()
        assert sorted(seen) == list(range(8))  # each video once an epoch
    assert starts == set(range(6))


@pytest.mark.parametrize("view", ["train", "simclr"])
def test_all_frames_of_a_clip_have_one_crop_and_one_color(view: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    for name in "ab":
        folder = tmp_path / "train" / name / "still"
        folder.mkdir(parents=True)
        for frame in range(5):
            image.save(folder / f"{frame}.png")
    train = {"rotation": 20, "rand_augment": "rand-m9-n2", **STRONG} if view == "train" else {}
    data = VideoFolderDataModule(
        str(tmp_path), img_size=16, batch_size=2, num_workers=0, frames_per_clip=3, train_view=view, **train
    )
    data.setup("fit")
    different = []
    for epoch in range(4):
        data.cursor = (epoch, 0)
        for batch in data.train_dataloader():
            images = batch["images"]
            assert images.shape[1] == {"train": 1, "simclr": 2}[view]
            assert (images == images[:, :, :1]).all()
            different += [*images.flatten(0, 1)[:, 0]]
    pairs = [(a, b) for i, a in enumerate(different) for b in different[:i]]
    assert not any(torch.equal(a, b) for a, b in pairs)  # but each clip and view another one


def test_evaluation_has_evenly_placed_clips_of_each_video_as_views(tmp_path: Path) -> None:
    data = videos(write_videos(tmp_path), clips_per_video=3, batch_size=3)
    batches = list(data.val_dataloader())
    images = torch.cat([batch["images"] for batch in batches])
    assert images.shape == (4, 3, 4, 8, 8, 3)
    video, frames = numbers(images)
    assert sorted(video[:, 0].tolist()) == [8, 9, 10, 11]
    assert (video == video[:, :1]).all()
    assert frames[:, :, 0].tolist() == [[1, 4, 7]] * 4  # of the starts 0 to 8
    assert [key for batch in batches for key in batch["key"].tolist()] == [[0, i, 0] for i in range(4)]


def test_a_clip_by_seconds_and_a_uniform_one_span_the_video(tmp_path: Path) -> None:
    root = write_videos(tmp_path, times=True)
    images = next(iter(videos(root, fps=5.0).val_dataloader()))["images"]
    assert numbers(images)[1].tolist() == [[[2, 4, 6, 8]]] * 2  # 1.1 s of frames, 0.6 s of clip, so from 0.25 s on
    images = next(iter(videos(root, sampling="uniform").val_dataloader()))["images"]
    assert numbers(images)[1].tolist() == [[[1, 4, 7, 10]]] * 2
    data = videos(root, sampling="uniform")
    data.setup("fit")
    frames = np.concatenate([numbers(batch["images"])[1] for batch in data.train_dataloader()])
    assert (frames // 3 == np.arange(4)).all()
    assert len(np.unique(frames % 3)) == 3
    (root / "train/a/v2/frame_times.csv").unlink()
    with pytest.raises(UserError, match=r"v2/frame_times.csv: no such file \(1 of 12 videos have none\), but data.fps"):
        videos(root, fps=5.0).setup("fit")


def test_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    options = {"crop_scale": [0.3, 1], "flip": 0.5, **STRONG}
    data = videos(write_videos(tmp_path), **options)
    data.cursor = (1, 0)
    alone = list(data.train_dataloader())
    data.cursor = (1, 4)
    resumed = videos(tmp_path, num_workers=2, **options)
    resumed.load_state_dict(data.state_dict())
    for a, b in zip(alone[2:], list(resumed.train_dataloader()), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    (tmp_path / "train/a/v0/12.png").unlink()
    with pytest.raises(UserError, match=r"data \(folder.* has changed since the checkpoint"):
        videos(tmp_path, **options).load_state_dict(data.state_dict())


def test_frames_are_in_the_order_of_their_numbers() -> None:
    names = ["f10.jpg", "f2.jpg", "f1.jpg", "f01.jpg", "10.jpg", "9_2.jpg", "9_10.jpg", "a.jpg"]
    assert sorted(names, key=in_number_order) == [
        "9_2.jpg", "9_10.jpg", "10.jpg", "a.jpg", "f01.jpg", "f1.jpg", "f2.jpg", "f10.jpg",
    ]  # fmt: skip


def test_a_short_video_repeats_its_last_frame(tmp_path: Path) -> None:
    images = next(iter(videos(write_videos(tmp_path, frames=3)).val_dataloader()))["images"]
    assert numbers(images)[1].tolist() == [[[0, 1, 2, 2]]] * 2


def test_a_video_with_a_broken_frame_is_a_broken_image(tmp_path: Path) -> None:
    root = write_videos(tmp_path, frames=4)
    (root / "train/a/v2/3.png").write_bytes(b"no image")
    data = videos(root)
    data.setup("fit")
    shown = {
        key[1]: video
        for batch in data.train_dataloader()
        for key, video in zip(batch["key"].tolist(), numbers(batch["images"])[0][:, 0])
    }
    assert len(shown) == 8
    assert 2 not in shown.values()
    strict = videos(root, on_bad_image="error")
    with pytest.raises(ImageDecodeError, match=r"train/a/v2/3.png: "):
        list(strict.train_dataloader())
    Image.new("RGB", (9, 8)).save(root / "val/a/v8/2.png")
    with pytest.raises(ImageDecodeError, match=r"v8/2.png: is 9 x 8, other frames are 8 x 8"):
        list(data.val_dataloader())
    listed = tmp_path / "quarantine.txt"  # as doctor writes it: frames
    listed.write_text("train/a/v2/3.png\nval/a/v8/2.png\n")
    quarantined = videos(root, quarantine=str(listed), on_bad_image="error", batch_size=1)
    assert sorted(numbers(b["images"])[0].item() for b in quarantined.train_dataloader()) == [0, 1, 3, 4, 5, 6, 7]
    assert len(list(quarantined.val_dataloader())) == 3


def test_what_is_no_folder_of_videos_is_named(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "empty")
    (root / "train/a/none").mkdir()
    (root / "train/a/notes").mkdir()
    data = videos(root)
    data.setup("fit")
    assert "(videos of 12 to 12 frames)" in data.folder.lines()[0]
    assert data.folder.lines()[1] == "without a frame: 2 video folders: train/a/none, train/a/notes"
    files = tmp_path / "files"
    (files / "train/a").mkdir(parents=True)
    (files / "train/a/x.MP4").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds videos \(train/a/x.MP4\), not their frames; extract them: lit-vision"):
        videos(files).setup()
    loose = tmp_path / "loose"
    for name in "ab":
        write_video(loose / "train" / name, 0, 1)
    with pytest.raises(UserError, match=r"a/1.png: a frame outside a folder of its video's own; .* train/<class>/<vid"):
        videos(loose).setup()


def write_table(root: Path, rows: str) -> VideoFolderDataModule:
    (root / "parts.csv").write_text(rows)
    return videos(root, label_file=str(root / "parts.csv"), frames_per_clip=2)


def test_a_table_names_parts_of_videos(tmp_path: Path) -> None:
    write_videos(tmp_path, times=True)
    data = write_table(
        tmp_path,
        "path,label,start,end,split\n"
        "train/a/v0,sit,0.3,0.6,train\n"
        "train/a/v0,stand,,0.3,train\n"
        "/data/old/train/a/v2.mp4,stand,0.9,,train\n"
        "train/b/v1,sit,,,val\n",
    )
    data.setup("fit")
    assert data.class_names == ["sit", "stand"]
    shown = {}
    for epoch in range(20):
        data.cursor = (epoch, 0)
        for batch in data.train_dataloader():
            video, frames = numbers(batch["images"])
            for row, label in enumerate(batch["label"].tolist()):
                shown.setdefault((int(video[row, 0]), data.class_names[label]), set()).update(frames[row, 0].tolist())
    assert shown == {(0, "sit"): {3, 4, 5}, (0, "stand"): {0, 1, 2}, (2, "stand"): {9, 10, 11}}
    assert numbers(next(iter(data.val_dataloader()))["images"])[1].tolist() == [[[5, 6]]]


def test_parts_of_one_video_never_stand_on_both_sides_of_a_split(tmp_path: Path) -> None:
    write_videos(tmp_path)
    rows = [
        f"train/{'ab'[video % 2]}/v{video},{'xy'[part % 2]},{3 * part},{3 * part + 3}"
        for video in range(8)
        for part in range(4)
    ]
    (tmp_path / "parts.csv").write_text("\n".join(["path,label,start_frame,end_frame", *rows]))
    drawn = set()
    for seed in range(3):
        data = videos(tmp_path, label_file=str(tmp_path / "parts.csv"), val_fraction=0.25, label_seed=seed)
        data.setup("fit")
        sides = {name: {p.partition("#")[0] for p in split.paths} for name, split in data.folder.splits.items()}
        assert len(sides["val"]) == 2
        assert not sides["val"] & sides["train"]
        assert data.num_train == 24
        drawn.add(tuple(sorted(sides["val"])))
    assert len(drawn) > 1
    shared = (
        "path,label,start_frame,end_frame,split\ntrain/a/v0,x,0,3,train\ntrain/a/v0,y,3,6,val\ntrain/b/v1,y,,,train\n"
    )
    with pytest.raises(UserError, match=r"group\(s\) stand in two splits, 'train/a/v0' in train .* and val"):
        write_table(tmp_path, shared).setup()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train/a/v9,x,,", r"line 3: there is no folder train/a/v9 with frames below .*; correct the path column"),
        ("../v0,x,,", r"line 3: there is no folder ../v0 with frames"),
        ("train/a/v0,x,1,0.5", r"line 3: train/a/v0 has no frame from 1 to 0.5 s \(12 frames\)"),
        ("train/a/v0,x,7,", r"line 3: train/a/v0 has no frame from 7 to the end s"),
        ("train/a/v0,x,-1,", r"line 3: start is '-1'; write seconds from 0, or nothing"),
        ("train/a/v0,x,0,inf", r"line 3: end is 'inf'; write seconds from 0"),
        ("train/b/v1,x,0,", r"line 3: the same frames of train/b/v1 are on line 2 too"),
        ("train/a/v4,x,0.1,", r"line 3: start and end are seconds, but .*v4/frame_times.csv: no such file"),
        (",x,,", r"line 3: has no path"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line(row: str, message: str, tmp_path: Path) -> None:
    write_videos(tmp_path, times=True)
    (tmp_path / "train/a/v4/frame_times.csv").unlink()
    with pytest.raises(UserError, match=message):
        write_table(tmp_path, f"path,label,start,end\ntrain/b/v1,y,,\n{row}\n").setup()


@pytest.fixture(scope="module")
def one_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    write_video(root / "v", 0, 5, times=True)
    return root


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cells=st.lists(
        st.text(max_size=6) | st.sampled_from(["v", "0", "0.2", "0.4", "1e309", "-0", "x"]), min_size=4, max_size=4
    )
)
def test_any_row_is_read_or_refused_by_its_line(cells: list[str], one_video: Path) -> None:
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    (one_video / "t.csv").write_text(
        f"path,label,start,end\nv,y,0,0.1\n{quoted}\n", encoding="utf-8", errors="replace", newline=""
    )
    try:
        folder = open_segments(one_video, {"train": "train"}, label_options(one_video / "t.csv"))
    except UserError as error:
        assert "t.csv" in str(error)  # noqa: PT017
    else:
        for segment in folder.segments.values():
            assert 0 <= segment.first < segment.end <= 5


def test_the_rate_of_the_training_videos_is_measured(tmp_path: Path) -> None:
    data = videos(write_videos(tmp_path, times=True))
    assert data.frames_per_second == 10
    (tmp_path / "train/a/v0/frame_times.csv").write_text("frame,seconds\n")  # damaged; training can count frames
    assert data.frames_per_second == 10
    (tmp_path / "train/a/v0/frame_times.csv").unlink()
    assert data.frames_per_second is None
