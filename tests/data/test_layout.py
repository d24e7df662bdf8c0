"""Layouts of folders: names of splits, folders that are no classes, and what a scan says that it left out."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from lit_vision.data import image_files
from lit_vision.data.check.content import list_items
from lit_vision.data.fitness import uses_of
from lit_vision.data.folder import scan
from lit_vision.data.image_files import LeftOut, image_extensions
from lit_vision.data.layout import role_of
from lit_vision.errors import UserError


def _make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["train", "TRAIN", "Training", "train_images", "train2017", "TrainSet", "training-set", "seg_train"], "train"),
        (["val", "Valid", "validation", "VALIDATION_DATA", "dev", "eval"], "val"),
        (["test", "Test1", "testing", "TestImages", "test set"], "test"),
        (
            ["cat", "train_station", "test tube", "valley", "device", "images", "bullet_train", "訓練", "train_a", ""],
            "",
        ),
    ],
)
def test_role__is_that_of_a_name_made_of_a_word_for_it_and_fillers(names, role) -> None:
    assert {name: role_of(name) for name in names} == dict.fromkeys(names, role)


@pytest.mark.parametrize("wrapping", ["", "archive/", "a/b/"])
@pytest.mark.parametrize(
    "folders", [("Train", "Test"), ("TRAIN", "VAL", "TEST"), ("training", "testing"), ("train", "valid", "test")]
)
def test_scan__takes_splits_of_any_usual_name_also_inside_a_wrapping_folder(tmp_path, folders, wrapping) -> None:
    names = [f"{wrapping}{folder}/{name}/1.png" for folder in folders for name in ("cat", "dog")]
    folder = scan(_make(tmp_path, *names, "__MACOSX/x.png"))
    assert folder.classes == ["cat", "dog"]
    assert folder.root == (tmp_path / wrapping)
    roles = [role_of(name) for name in folders]
    assert list(folder.splits) == roles
    assert folder.inventory.splits == dict(zip(roles, folders))
    assert folder.count() == 2 * len(folders)


def test_scan__a_split_of_the_very_name_comes_before_another_spelling(tmp_path) -> None:
    folder = scan(_make(tmp_path, "train/a/1.png", "test/a/1.png", "Test/a/1.png", "Test/a/2.png"))
    assert list(folder.splits["test"].paths) == ["test/a/1.png"]
    assert folder.inventory.beside == {"Test": 2}
    assert "Test/ (2 images)" in folder.lines()[1]


def test_scan__a_split_that_is_named_has_no_other_spelling(tmp_path) -> None:
    root = _make(tmp_path, "large/a/1.png", "train/a/1.png", "valid/a/1.png")
    folder = scan(root, train="large", val="validation")
    assert list(folder.splits) == ["large"]
    assert folder.inventory.beside == {"train": 1, "valid": 1}


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train/a/1.png", "dev/a/1.png", "eval/a/1.png"], r"dev and eval .*data\.val_split"),
        (["Test/1.png", "cat/1.png", "dog/1.png"], r"Test .*cat, dog .*train"),
        (["training/1.png", "gaming/1.png", "office/1.png"], r"training .*gaming, office"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], r"cat: .*test, train; .*train/cat"),
        (["images/train/1.png", "images/val/1.png", "labels/train/1.txt"], r"images: .*train, val"),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], r"testA and trainA .*data\.train_split: trainA"),
        (["asl_alphabet_train/a/1.png", "asl_alphabet_test/a/1.png"], r"data\.test_split: asl_alphabet_test"),
        (["fold1/a/1.png", "fold2/a/1.png", "fold10/a/1.png"], r"fold1, fold10, fold2 are numbered parts"),
        (["HAM_images_part_1/1.jpg", "HAM_images_part_2/1.jpg"], r"numbered parts .*unlabeled"),
        (["images/1.png", "masks/1.png"], r"images and masks .*AnnotatedDataModule"),
        (["train/cat/1.png", "train/Unlabeled/1.png"], r"train/Unlabeled: "),
        ([r"train\cat\1.png", r"train\dog\1.png"], r"backslashes"),
        (["archive/train\\cat\\1.png"], r"backslashes"),
    ],
)
def test_scan__refuses_a_layout_that_would_be_misread_in_one_line(tmp_path, names, match) -> None:
    with pytest.raises(UserError, match=match) as caught:
        scan(_make(tmp_path, *names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [["0", "1"], ["class1", "class2"], ["test tube", "train station"], ["crash_test", "car"], ["part_1", "car"]],
)
def test_scan__a_word_or_number_in_a_class_name_is_no_split(tmp_path, names) -> None:
    assert scan(_make(tmp_path, *(f"{name}/1.png" for name in names))).classes == sorted(names)
    assert scan(_make(tmp_path / "x", "train/fold1/1.png", "train/fold2/1.png")).classes == ["fold1", "fold2"]


@pytest.mark.parametrize("place", ["archive", "archive/flowers", "images", "a/images"])
def test_classes_inside_other_folders__the_folder_to_give_is_named(tmp_path, place) -> None:
    folder = scan(_make(tmp_path, f"{place}/rose/1.png", f"{place}/tulip/1.png"))
    with pytest.raises(UserError, match=rf"rose, tulip: give {tmp_path}/{place},"):
        folder.require_classes("this")


def test_doctor_opens_no_pipe_in_a_folder_that_cannot_be_scanned(tmp_path) -> None:
    root = _make(tmp_path, "train/cat/1.png", "train/loose.png")
    os.mkfifo(root / "train/cat/2.png")
    content = list_items(root, ("train", "val", "test"))
    assert content.refused
    assert sorted(item.path for item in content.items) == ["train/cat/1.png", "train/loose.png"]


def test_scan__counts_what_it_leaves_out_by_kind(tmp_path) -> None:
    folder = scan(
        _make(
            tmp_path,
            *(f"train/{name}/1.png" for name in ("cat", "dog")),
            *("train/cat/1.cr2", "train/cat/2.CR2", "train/cat/notes.txt", "train/dog/README", "labels.csv"),
            *("train/cat/@eaDir/1.png/THUMB.jpg", "$RECYCLE.BIN/x.png", ".thumbnails/x.png", "train/#recycle/9.png"),
            *("train/cat/._1.png", "train/cat/Thumbs.db", ".DS_Store", "extra/1.png", "loose.png"),
        )
    )
    (folder.root / "train/bird").mkdir()
    inventory = scan(tmp_path).inventory
    left_out = inventory.left_out
    assert folder.count() == 2
    assert left_out.endings == {"cr2": 2, "txt": 1, "": 1, "csv": 1}
    assert left_out.pictures == {"cr2": 2}
    assert left_out.system == {"@eaDir": 1, "$RECYCLE.BIN": 1, ".thumbnails": 1, "#recycle": 1}
    assert left_out.hidden == 1
    assert (inventory.beside, inventory.loose, inventory.empty) == ({"extra": 1}, ["loose.png"], ["train/bird"])
    taken, passed = scan(tmp_path).lines()
    assert taken == f"{tmp_path}: train 2 in 2 classes"
    for phrase in ("extra/ (1 images)", "loose.png", "train/bird", "2 .cr2", "3 other files", "1 hidden", "@eaDir"):
        assert phrase in passed


def test_only_class__names_the_folder_that_a_zip_wrapped_the_classes_in(tmp_path) -> None:
    folder = scan(_make(tmp_path, "archive/cat/1.png", "archive/dog/1.png"))
    assert folder.classes == ["archive"]  # pre-training may go on
    with pytest.raises(UserError, match=rf"cat, dog: give {tmp_path}/archive"):
        folder.require_classes("training on labels")


def test_uses__follow_from_the_splits_and_their_labels(tmp_path) -> None:
    uses = uses_of(scan(_make(tmp_path / "a", "test/cat/1.png")), ("train", "val", "test"))
    assert [use for use, reason in uses.items() if not reason] == ["testing"]
    uses = uses_of(scan(_make(tmp_path / "b", "train/a/1.png", "train/b/1.png", "val/1.png")), ("train", "val", "test"))
    assert [use for use, reason in uses.items() if not reason] == ["pre-training"]
    assert "no class folders" in uses["training on labels"]


def test_endings__of_a_plugin_count_where_it_is_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    if "heic" in image_extensions():
        pytest.skip("pillow-heif is installed")
    left_out = LeftOut()
    assert not left_out.count("photo.HEIC", False)
    assert left_out.phrases() == ["1 .heic (install pillow-heif)"]
    (tmp_path / "pillow_heif.py").write_text("registered = []\ndef register_heif_opener(): registered.append(1)\n")
    image_files.image_extensions.cache_clear()
    try:
        assert {"heic", "heif"} <= image_extensions()
        assert left_out.count("photo.HEIC", False)
        from lit_vision.data.views.pillow_plugins import register_plugins

        register_plugins()
        assert sys.modules["pillow_heif"].registered == [1]
    finally:
        sys.modules.pop("pillow_heif", None)
        image_files.image_extensions.cache_clear()


def test_endings__without_one_and_unknown_ones() -> None:
    assert {"jpg", "jpeg", "jfif", "png", "mpo", "tga", "webp", "tif", "bmp", "pgm"} <= image_extensions()
    assert [image_files.extension_of(name) for name in ("a.JPG", "b", ".hidden", "c.tar.gz")] == ["jpg", "", "", "gz"]
    assert not image_files.has_image_extension("jpg")
