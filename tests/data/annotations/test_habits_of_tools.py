"""Files of tools that go beyond the formats' descriptions: prefixes, texts for numbers, poses, colors, sizes of 0."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_annotations import NAMES, H, W, write_coco, write_images, write_semantic, write_voc, write_yolo

from lit_vision.data import AnnotatedDataModule, ImageFolderDataModule
from lit_vision.data.annotations.coco import read_coco
from lit_vision.data.annotations.colors import color_numbers, read_colors
from lit_vision.data.annotations.image_names import ImageFinder
from lit_vision.data.annotations.locations import OTHER_NAMES
from lit_vision.data.annotations.masks import IGNORE, read_mask
from lit_vision.data.annotations.voc import read_voc
from lit_vision.data.annotations.yolo import read_yolo
from lit_vision.data.annotations.yolo_yaml import yolo_split
from lit_vision.data.layout import ROLES, role_of
from lit_vision.errors import UserError


def _module(root: Path, **settings) -> AnnotatedDataModule:
    return AnnotatedDataModule(str(root), img_size=32, batch_size=1, num_workers=0, train_view="fit", **settings)


# ---------------------------------------------------------------------- names of images


@pytest.mark.parametrize(
    "name",
    [
        "sub/a b.jpg",
        "images/sub/a b.jpg",
        r"images\sub\a b.jpg",
        r"C:\Users\me\set\sub\a b.jpg",
        "/data/upload/1/sub/a b.jpg",
        "../../media/sub/a b.jpg",
        "file:///home/me/sub/a%20b.jpg",
        "https://host/bucket/sub/a%20b.jpg?X-Signature=1",
        "s3://bucket/images/sub/a b.jpg",
        "/data/local-files/?d=images%2Fsub%2Fa%20b.jpg",
    ],
)
def test_an_image_is_found_under_the_name_that_a_tool_gave(name: str, tmp_path: Path, caplog) -> None:
    write_images(tmp_path / "images/sub")
    (tmp_path / "images/sub/a.jpg").rename(tmp_path / "images/sub/a b.jpg")
    find = ImageFinder(tmp_path, "images")
    assert find(name) == "images/sub/a b.jpg"
    find.report(tmp_path / "x.json")
    assert ("x.json: 1 file names" in caplog.text) == (name != "sub/a b.jpg")


@pytest.mark.parametrize("name", ["z.jpg", "sub/z.jpg", "http://[", "", "a" * 5000])
def test_a_name_of_no_file_stays(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    assert ImageFinder(tmp_path, "images")(name) == f"images/{name}"


def test_two_entries_for_one_file_are_refused(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "left/a.jpg", "right/a.jpg"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.jpg: .*twice"):
        read_coco(tmp_path, "a.json", "images")


def test_missing_images_are_named_at_set_up(tmp_path: Path, caplog) -> None:
    content = write_coco(tmp_path)
    (tmp_path / "images/b.jpg").unlink()  # one: training replaces it, evaluation stops
    settings = {"images": "images", "annotations": "a.json"}
    _module(tmp_path, **settings).setup()
    assert "1 of the 3 images" in caplog.text
    with pytest.raises(UserError, match=r"1 of the 3 images .*images/b\.jpg.*data\.images"):
        _module(tmp_path, **settings, on_bad_image="error").setup()
    (tmp_path / "images/c.jpg").unlink()
    with pytest.raises(UserError, match="2 of the 3 images"):
        _module(tmp_path, **settings).setup()
    (tmp_path / "list.txt").write_text("images/b.jpg\nimages/c.jpg\n")
    assert len(_module(tmp_path, **settings, quarantine=str(tmp_path / "list.txt")).table("train")) == 1
    assert len(content["images"]) == 3


# ---------------------------------------------------------------------- COCO


def test_ids_may_be_texts_in_one_list_and_numbers_in_the_other(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    plain = read_coco(tmp_path, "a.json", "images")
    for entry in content["annotations"]:
        entry.update(image_id=str(entry["image_id"]), category_id=str(entry["category_id"]))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    table = read_coco(tmp_path, "b.json", "images")
    assert table.labels.tolist() == plain.labels.tolist()
    assert table.category_ids == [7, 90]
    content["annotations"][0]["category_id"] = "007"
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="category_id '007'"):
        read_coco(tmp_path, "b.json", "images")


@pytest.mark.parametrize(
    ("segmentation", "kept"),
    [
        ([], None),
        (None, None),
        ([[7, 7, 8, 8]], None),
        ([[3, 3, 9, 9, 12, 12]], None),  # on a line
        ([5, 5, 25, 5, 25, 25], [[5, 5, 25, 5, 25, 25]]),
        ([[5, 5, 25, 5, 25, 25], [7, 7, 8, 8]], [[5, 5, 25, 5, 25, 25]]),
        ([[0, 0, 10, 10, 10, 0, 0, 10]], [[0, 0, 10, 10, 10, 0, 0, 10]]),  # a figure eight
    ],
)
def test_unusable_polygons_are_fixed(segmentation: object, kept: object, tmp_path: Path, caplog) -> None:
    content = write_coco(tmp_path)
    content["annotations"][0]["segmentation"] = segmentation
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = read_coco(tmp_path, "a.json", "images", with_masks=True, on_bad_box="fix")
    assert table.dropped == ({0: 1} if kept is None else {})
    assert len(table.segmentations(0)) == (1 if kept is None else 2)
    assert kept is None or table.segmentations(0)[0] == kept
    assert ("1 without area or usable mask" in caplog.text) == (kept is None)


def test_a_size_of_0_is_taken_from_the_image_when_fixing(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "coco")
    content["images"][0].update(height=0, width=0)
    del content["images"][1]["height"]
    (tmp_path / "coco/a.json").write_text(json.dumps(content))
    write_voc(tmp_path / "voc")
    file = tmp_path / "voc/Annotations/a.xml"
    file.write_text(file.read_text().replace(f"<width>{W}<", "<width>0<"))
    with pytest.raises(UserError, match=r"height 0 .*on_bad_box"):
        read_coco(tmp_path / "coco", "a.json", "images")
    with pytest.raises(UserError, match=r"a\.xml: .*on_bad_box"):
        read_voc(tmp_path / "voc", "Annotations", "JPEGImages", class_names=NAMES)
    tables = [
        read_coco(tmp_path / "coco", "a.json", "images", on_bad_box="fix"),
        read_voc(tmp_path / "voc", "Annotations", "JPEGImages", class_names=NAMES, on_bad_box="fix"),
    ]
    for table in tables:
        assert (table.sizes == (H, W)).all()


def test_a_category_that_groups_the_others_is_no_class_if_no_object_has_it(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    root = {"id": 0, "name": "pets", "supercategory": "none"}
    for category in content["categories"]:
        category["supercategory"] = "pets"
    content["categories"].append(root)
    (tmp_path / "b.json").write_text(json.dumps(content))
    table = read_coco(tmp_path, "b.json", "images")
    assert (table.class_names, table.category_ids) == (NAMES, [7, 90])
    content["annotations"][0]["category_id"] = 0
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_coco(tmp_path, "b.json", "images").class_names == ["pets", *NAMES]
    content["annotations"][0]["category_id"] = 7
    content["categories"][0]["supercategory"] = "wild"  # the others have two groups: a usual hierarchy
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_coco(tmp_path, "b.json", "images").class_names == ["pets", *NAMES]


# ---------------------------------------------------------------------- what trains


def test_crowd_alone_is_refused_and_can_be_trained_on(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "a.json").unlink()
    with pytest.raises(UserError, match=r"all 3 are crowd .*data\.crowd_as_objects"):
        _module(tmp_path).setup()
    assert not _module(tmp_path, crowd_as_objects=True).table("train").crowd.any()


def test_boxes_that_are_shares_of_the_image_are_refused_in_formats_of_pixels(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    for entry in content["annotations"]:
        entry["bbox"] = [0.2, 0.2, 0.5, 0.5]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "a.json").unlink()
    with pytest.raises(UserError, match=r"train: all boxes .*shares .*width and height"):
        _module(tmp_path).setup()


def test_classes_without_an_object_are_named(tmp_path: Path, caplog) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog, cow]\n")
    _module(tmp_path, format="yolo").setup()
    assert "train: no object of cow" in caplog.text


def test_validation_never_falls_back_on_the_images_that_train(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = _module(tmp_path, images="images", annotations="a.json")
    data.setup()
    with pytest.raises(UserError, match=r"val would be the images that train .*hold_out"):
        data.table("val")


# ---------------------------------------------------------------------- YOLO


@pytest.mark.parametrize("label", ["1", "1.0", "1.000000"])
def test_classes_may_be_written_as_decimals(label: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"\ufeff{label} .5 .5 .1 .1\n", encoding="utf-8")
    assert read_yolo(tmp_path, "labels/train", "images/train").labels[0] == 1


def test_a_pose_is_not_read_as_a_polygon(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    line = "1 .5 .5 .4 .4 .4 .4 2 .6 .6 1"  # two keypoints: ten numbers, which could be a polygon
    (tmp_path / "labels/train/a.txt").write_text(line)
    with pytest.raises(UserError, match=r"a\.txt:1: .*kpt_shape: \[2, 3\]"):
        read_yolo(tmp_path, "labels/train", "images/train")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [2, 3]\n")
    table = read_yolo(tmp_path, "labels/train", "images/train")
    np.testing.assert_allclose(table.boxes[0], [0.3 * W, 0.3 * H, 0.7 * W, 0.7 * H], rtol=1e-5)
    (tmp_path / "labels/train/a.txt").write_text(line + " .1 .1 0")
    with pytest.raises(UserError, match=r"a\.txt:1: 13 numbers .*4 and 6"):
        read_yolo(tmp_path, "labels/train", "images/train")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: 17\n")
    with pytest.raises(UserError, match=r"data\.yaml: kpt_shape"):
        read_yolo(tmp_path, "labels/train", "images/train")


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("train/images", ("train/images", "train/labels", None)),
        ("../train/images", ("train/images", "train/labels", None)),
        ("/home/me/set/train/images/", ("train/images", "train/labels", None)),
        (r"C:\me\train\images", ("train/images", "train/labels", None)),
        ("list.txt", (".", "", "list.txt")),
        (["train/images"], ("train/images", "train/labels", None)),
    ],
)
def test_paths_of_data_yaml(entry: object, place: tuple, tmp_path: Path) -> None:
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("train/images/a.jpg")
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["cat"], "path": "/datasets/x", "train": entry}))
    assert yolo_split(tmp_path, ["train"]) == place
    assert yolo_split(tmp_path, ["val", "valid"]) is None


@pytest.mark.parametrize("entry", ["../valid/images", "/else/valid/images", ["a", "b"], {"a": 1}, 7, "\0", "a" * 500])
def test_paths_of_data_yaml_that_lead_nowhere(entry: object, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()  # only the last name of the entry: another folder
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["cat"], "val": entry}))
    with pytest.raises(UserError, match=r"data\.yaml: val") as caught:
        yolo_split(tmp_path, ["val"])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred cup:128,0,0::\n",
        "background 0 0 0\nred cup 128 0 0\n",
        "name,r,g,b\nbackground,0,0,0\nred cup,128,0,0\n",
        "background;0;0;0\n\nred cup; 128; 0; 0\n",
    ],
)
def test_colors_of_classes(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\ufeff" + text, encoding="utf-8")
    colors = read_colors(tmp_path / "c.txt")
    assert colors == {"background": (0, 0, 0), "red cup": (128, 0, 0)}
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[3:9, 4:7] = colors["red cup"]
    Image.fromarray(pixels).save(tmp_path / "m.png")
    palette = Image.fromarray(pixels).quantize(4)
    palette.save(tmp_path / "p.png")
    rgba = np.concatenate([pixels, np.full((H, W, 1), 255, np.uint8)], 2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    numbers = color_numbers(colors, ["red cup", "background"], IGNORE)
    for name in "mpa":
        mask = read_mask(tmp_path / f"{name}.png", (H, W), 2, 0, [255], numbers)
        assert (mask == np.where(pixels[..., 0] == 128, 0, 1)).all()
    only = color_numbers(colors, ["background"], IGNORE)  # a color that is no class
    assert set(np.unique(read_mask(tmp_path / "m.png", (H, W), 1, 0, [255], only))) == {0, IGNORE}
    pixels[0, 0] = 1, 2, 3
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png: color \(1, 2, 3\) at 1 pixels"):
        read_mask(tmp_path / "m.png", (H, W), 2, 0, [255], numbers)
    with pytest.raises(UserError, match=r"data\.colors: class 'pan'"):
        color_numbers(colors, ["background", "pan"], IGNORE)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "lists no color"),
        ("cup 1 2", "'cup 1 2'"),
        ("cup 1 2 256", "256"),
        ("cup 1 2 99999999999999999999", "9999"),
        ("cup 1 2 3\ncup 4 5 6", "earlier line"),
        ("cup 1 2 3\npan 1 2 3", "earlier line"),
    ],
)
def test_files_that_list_no_colors(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=rf"c\.txt: .*{named}"):
        read_colors(tmp_path / "c.txt")


def test_masks_of_0_and_255_are_refused_and_read_with_colors(tmp_path: Path, caplog) -> None:
    write_semantic(tmp_path)
    for name in "abc":
        file = tmp_path / f"masks/{name}.png"
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    with pytest.raises(UserError, match=r"none is dog; .*data\.colors .*'cat 0 0 0' and 'dog 255 255 255'"):
        _module(tmp_path, format="masks").setup()
    (tmp_path / "colors.txt").write_text("cat 0 0 0\ndog 255 255 255\n")
    data = _module(tmp_path, format="masks", colors="colors.txt")  # below the root
    batch = next(iter(data.train_dataloader()))
    assert set(batch["mask"].unique().tolist()) <= {0, 1, IGNORE}
    with pytest.raises(UserError, match=r"data\.colors: coco"):
        _module(tmp_path, colors="colors.txt")
    write_semantic(tmp_path / "ignored")
    for name in "abc":
        Image.fromarray(np.full((H, W), 255, np.uint8)).save(tmp_path / f"ignored/masks/{name}.png")
    with pytest.raises(UserError, match="all pixels of 3 masks are ignored"):
        _module(tmp_path / "ignored", format="masks").setup()


def test_only_a_gray_mask_may_have_three_channels(tmp_path: Path) -> None:
    mask = np.zeros((H, W), np.uint8)
    mask[3:9] = 1
    for mode in ("RGB", "RGBA", "LA", "1"):
        image = Image.fromarray(mask * np.uint8(255 if mode == "1" else 1)).convert(mode)
        image.save(tmp_path / "m.png")
        assert (read_mask(tmp_path / "m.png", (H, W), 2, 0, [255]) == mask).all(), mode


# ---------------------------------------------------------------------- places


def test_the_right_format_is_named_where_a_set_is_of_another(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    with pytest.raises(UserError, match=r"format yolo, not coco; set data\.format"):
        _module(tmp_path / "set").setup()
    with pytest.raises(UserError, match=r"in its folder set; set data\.root: .*set"):
        _module(tmp_path, format="yolo").setup()
    write_coco(tmp_path / "bare")
    (tmp_path / "bare/a.json").rename(tmp_path / "bare/annotations.json")
    (tmp_path / "bare/images").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"annotations\.json: is there, but the folder of its images"):
        _module(tmp_path / "bare").setup()


def test_a_given_place_is_found_under_another_name_of_the_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_coco(tmp_path / split)
    data = _module(tmp_path, images="{split}/images", annotations="{split}/a.json")
    assert data.table("val").paths[0] == "valid/images/a.jpg"


def test_labels_of_folders_are_not_learned_from_an_annotated_set(tmp_path: Path) -> None:
    for write, name in ((write_yolo, "yolo"), (write_coco, "coco"), (write_semantic, "masks"), (write_voc, "voc")):
        write(tmp_path / name)
        with pytest.raises(UserError, match="AnnotatedDataModule"):
            ImageFolderDataModule(str(tmp_path / name), train_view="train", img_size=32, num_workers=0).setup()


def test_a_list_may_name_files(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets/train.txt").write_text("a.jpg\nb.jpg 1\n")
    table = read_voc(tmp_path, "Annotations", "JPEGImages", split_list="ImageSets/train.txt", class_names=NAMES)
    assert list(table.paths) == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]


def test_other_names_of_a_split_have_its_role_in_folders_of_classes_too() -> None:
    assert {role: {role_of(name) for name in names} for role, names in OTHER_NAMES.items()} == {
        role: {role} for role in ROLES
    }
