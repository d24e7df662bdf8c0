"""Scans of folders of every layout: content, fingerprint, and one-line errors."""

import os
from pathlib import Path

import pytest

from lit_vision.data.folder import Paths, scan
from lit_vision.data.image_files import list_entries
from lit_vision.errors import UserError


def _make(root: Path, *names: str, size: int = 3) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return root


def test_scan__imagefolder_with_splits_classes_by_name_and_nested_files(tmp_path) -> None:
    _make(
        tmp_path,
        "train/b/1.png",
        "train/a/deep/2.JPG",
        "train/a/notes.txt",
        "train/a/.hidden.png",
        "val/b/3.png",
        "unlabeled/x/4.webp",
    )
    folder = scan(tmp_path)
    assert folder.classes == ["a", "b"]
    assert list(folder.splits["train"].paths) == ["train/a/deep/2.JPG", "train/b/1.png"]
    assert folder.splits["train"].labels.tolist() == [0, 1]
    assert folder.splits["val"].labels.tolist() == [1]
    assert "test" not in folder.splits
    assert list(folder.unlabeled.paths) == ["unlabeled/x/4.webp"]
    assert folder.unlabeled.labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("names", "classes", "labels", "unlabeled"),
    [
        (["1.png", "2.png"], [], [-1, -1], 0),
        (["train/1.png"], [], [-1], 0),
        (["a/1.png", "b/2.png"], ["a", "b"], [0, 1], 0),
        (["a/1.png", "b/2.png", "unlabeled/3.png"], ["a", "b"], [0, 1], 1),
        (["train/a/1.png", "unlabeled/3.png", "unlabeled/deep/4.png"], ["a"], [0], 2),
    ],
)
def test_scan__flat_mixed_and_unsplit_shapes(tmp_path, names, classes, labels, unlabeled) -> None:
    folder = scan(_make(tmp_path, *names))
    assert (folder.classes, folder.splits["train"].labels.tolist(), len(folder.unlabeled)) == (
        classes,
        labels,
        unlabeled,
    )


def test_scan__only_unlabelled_images_beside_a_labelled_val(tmp_path) -> None:
    folder = scan(_make(tmp_path, "unlabeled/1.png", "val/a/1.png", "val/b/1.png"))
    assert folder.classes == ["a", "b"]
    assert "train" not in folder.splits
    assert len(folder.unlabeled) == 1


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train/a/notes.txt"], "no image"),
        (["train/a/1.png", "val/a/1.png", "val/z/1.png"], "val: classes z "),
        (["train/a/1.png", "train/loose.png"], r"loose\.png: 1 .*unlabeled"),
    ],
)
def test_scan__one_line_for_each_folder_that_cannot_be_read(tmp_path, names, match) -> None:
    with pytest.raises(UserError, match=match) as caught:
        scan(_make(tmp_path, *names))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_scan__missing_empty_and_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"none: .*data\.root"):
        scan(tmp_path / "none")
    with pytest.raises(UserError, match="no image"):
        scan(tmp_path)
    with pytest.raises(UserError, match="file: "):
        scan(_make(tmp_path, "file") / "file")


def test_require__a_folder_of_val_or_test_alone_has_no_training_split(tmp_path) -> None:
    folder = scan(_make(tmp_path, "val/a/1.png"))
    assert (folder.classes, list(folder.splits)) == (["a"], ["val"])
    with pytest.raises(UserError, match=r"it has val, .*data\.train_split"):
        folder.require_split("train", "training")


def test_require__names_the_split_and_the_classes(tmp_path) -> None:
    folder = scan(_make(tmp_path, "train/a/1.png"))
    with pytest.raises(UserError, match=r"val split.*validation"):
        folder.require_split("val", "validation")
    with pytest.raises(UserError, match=r"\(a\).*training on labels"):
        folder.require_classes("training on labels")


def test_links__are_followed_but_never_in_circles(tmp_path) -> None:
    _make(tmp_path / "data", "train/a/1.png")
    _make(tmp_path / "far", "2.png")
    os.symlink(tmp_path / "far", tmp_path / "data/train/b")
    assert list(scan(tmp_path / "data").splits["train"].paths) == ["train/a/1.png", "train/b/2.png"]
    os.symlink(tmp_path / "data/train", tmp_path / "data/train/a/again")
    with pytest.raises(UserError, match="train/a/again: "):
        scan(tmp_path / "data")
    (tmp_path / "data/train/a/again").unlink()
    os.symlink("self", tmp_path / "data/train/a/self")
    with pytest.raises(UserError, match="train/a/self: "):
        scan(tmp_path / "data")
    (tmp_path / "data/train/a/self").unlink()
    os.symlink("nothing", tmp_path / "data/train/a/gone.png")
    with pytest.raises(UserError, match=r"gone\.png: "):
        scan(tmp_path / "data")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes__are_not_entries_of_a_folder(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.png").symlink_to("none.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    assert {entry.name for entry in list_entries(tmp_path)} == {"a.png", "folder", "broken.png"}


def test_fingerprint__changes_with_name_size_label_and_folder_only(tmp_path) -> None:
    root = _make(tmp_path, "train/a/1.png", "train/b/2.png")
    first = scan(root).fingerprint()
    os.utime(root / "train/a/1.png", (0, 0))
    assert scan(root).fingerprint() == first
    deep = scan(root).fingerprint(hash_content=True)
    (root / "train/a/1.png").write_bytes(b"yyy")  # same size
    assert scan(root).fingerprint() == first
    assert scan(root).fingerprint(hash_content=True) != deep
    seen = {first}
    (root / "train/a/1.png").write_bytes(b"yyyy")
    seen.add(scan(root).fingerprint())
    (root / "train/a/1.png").rename(root / "train/b/1.png")
    seen.add(scan(root).fingerprint())
    _make(root, "val/b/3.png")
    seen.add(scan(root).fingerprint())
    assert len(seen) == 4


def test_paths__behave_like_a_list_of_strings() -> None:
    names = ["a/1.png", "", "é/\udcff.png", "b"]
    paths = Paths(names)
    assert list(paths) == names
    assert len(paths) == 4
    assert paths[-1] == "b"
    with pytest.raises(IndexError):
        paths[4]
